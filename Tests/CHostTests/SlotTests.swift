// SPDX-License-Identifier: Apache-2.0
// Slots and the stack's entry, seen through the checks that translated code makes: what fills them, how a site's grows,
// and that everything that empties the software TLB empties them.

import CHost
import Testing

@Suite("Slots")
struct SlotTests {
  let linear: UInt64 = 0x7F00_1234_5000
  static let kinds: [Kind] = [.stack, .site(0), .site(600), .region(3)]

  /// Whose slot it is.
  enum Kind: Sendable {
    case stack
    /// By number; writing sites count from CHOST_SITES on.
    case site(Int)
    case region(Int)
  }

  /// Pages 0x100000, 0x101000, 0x102000 and, somewhere else, 0x200000, one after the other; all may be written.
  func machine() -> BareVCPU {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    for (index, page) in [UInt64(0x10_0000), 0x10_1000, 0x10_2000, 0x20_0000].enumerated() {
      vcpu.map(linear + UInt64(index) << 12, page | 0x67)
    }
    return vcpu
  }

  private func displacement(_ kind: Kind, write: Bool, user: Bool) -> Int {
    let first = Int(CHOST_SLOTS) + (user ? Int(CHOST_SLOT_BYTES) : 0)
    switch kind {
    case .stack: return 88 + (user ? 16 : 0)
    case .site(let number): return first + (number + (write ? Int(CHOST_SITES) : 0)) * Int(CHOST_SLOT_SIZE)
    case .region(let number):
      return first + (2 * Int(CHOST_SITES) + (write ? Int(CHOST_REGIONS) : 0) + number) * Int(CHOST_SLOT_SIZE)
    }
  }

  private func word(_ vcpu: BareVCPU, _ displacement: Int, _ index: Int) -> UInt64 {
    unsafe UnsafeRawPointer(vcpu.cpu).load(fromByteOffset: Int(CHOST_ENV) + displacement + index * 8, as: UInt64.self)
  }

  /// A miss. The host address, as an offset into RAM, or nil.
  @discardableResult
  func fill(
    _ vcpu: BareVCPU, _ kind: Kind, _ address: UInt64, size: UInt32 = 8, write: Bool = false, user: Bool = true
  ) -> UInt64? {
    let information =
      size << UInt32(CHOST_INFO_SIZE_SHIFT) | (write ? UInt32(CHOST_INFO_WRITE) : 0)
      | (user ? UInt32(CHOST_INFO_USER) : 0)
    var request = UInt64(information)
    request |= UInt64(displacement(kind, write: write, user: user)) << UInt64(CHOST_REQUEST_SLOT_SHIFT)
    let offset = address & 4095
    var isRegion = false
    if case .region = kind { isRegion = true }
    if isRegion { request |= offset << UInt64(CHOST_REQUEST_OFFSET_SHIFT) }
    let result = unsafe chost_slot_fill(vcpu.cpu, address, request)
    guard result.failed == 0 else { return nil }
    return (isRegion ? offset : address) &+ result.addend &- vcpu[\.ram]
  }

  /// The check that translated code makes: the host address, as an offset into RAM, of a hit.
  func hit(
    _ vcpu: BareVCPU, _ kind: Kind, _ address: UInt64, size: UInt64 = 8, write: Bool = false, user: Bool = true
  ) -> UInt64? {
    let slot = displacement(kind, write: write, user: user)
    let tag = word(vcpu, slot, 0), value = word(vcpu, slot, 1) &- vcpu[\.ram]
    switch kind {
    case .stack: return address &- tag <= 4096 - size ? address &+ value : nil
    case .site: return address &- tag < word(vcpu, slot, 2) ? address &+ value : nil
    case .region: return address & ~4095 == tag ? address & 4095 &+ value : nil
    }
  }

  @Test("Empty slots hit nowhere", arguments: [UInt64(0), 1, 4096, 1 << 47, 0xFFFF_FFFF_FFFF_F000] as [UInt64])
  func empty(address: UInt64) {
    let vcpu = BareVCPU()
    for kind in SlotTests.kinds {
      for user in [false, true] {
        for write in [false, true] { #expect(hit(vcpu, kind, address, size: 1, write: write, user: user) == nil) }
      }
    }
  }

  /// Where the tag of an empty slot might be taken for an address: FS and GS may have any canonical base, moffs any
  /// address.
  @Test(
    "Empty sites and regions hit at no address", arguments: [1, 1 << 63, 1 << 63 + 4096, 1 &- 65536, 63] as [UInt64])
  func odd(address: UInt64) {
    let vcpu = machine()
    for kind in SlotTests.kinds.dropFirst() {
      for user in [false, true] {
        for write in [false, true] {
          let slot = displacement(kind, write: write, user: user)
          #expect(hit(vcpu, kind, address, size: 1, write: write, user: user) == nil)
          guard case .region = kind else { continue }
          let tag = word(vcpu, slot, 0)
          // Regions start at a multiple of 4096, or at a multiple of 64 from a canonical base, which a displacement moves by
          // 2 GiB at most.
          let distance = min(tag &- 1 << 47, 0xFFFF_8000_0000_0000 &- tag)
          #expect(tag & 4095 != 0 && tag != address && distance > 1 << 32 && distance < 1 << 63)
        }
      }
    }
  }

  @Test("A fill serves the access and the next, for its privilege and direction alone") func separate() {
    for kind in SlotTests.kinds {
      let vcpu = machine()
      #expect(fill(vcpu, kind, linear + 16, write: true) == 0x10_0010)
      #expect(hit(vcpu, kind, linear + 24, write: true) == 0x10_0018)
      #expect(hit(vcpu, kind, linear + 16, write: true, user: false) == nil)
      if case .stack = kind { continue }
      #expect(hit(vcpu, kind, linear + 16) == nil)
    }
  }

  @Test("The stack's entry is for pages that may be written") func stack() {
    let vcpu = machine()
    #expect(fill(vcpu, .stack, linear) == 0x10_0000)
    #expect(hit(vcpu, .stack, linear) == nil, "only the read table has the page")
    fill(vcpu, .stack, linear, write: true)
    #expect(hit(vcpu, .stack, linear + 4088) != nil && hit(vcpu, .stack, linear + 4089) == nil)
    vcpu.map(linear + 0x3000, 0x20_0000 | 0x65)
    vcpu.invalidate(linear + 0x3000)
    fill(vcpu, .stack, linear + 0x3000)
    #expect(hit(vcpu, .stack, linear + 0x3000) == nil)
    #expect(fill(vcpu, .stack, linear + 0x3000, write: true) == nil)
  }

  @Test("A site's slot grows over pages that lie together, up to the class's operand before the end") func growth() {
    let vcpu = machine()
    fill(vcpu, .site(0), linear + 0x1000)
    #expect(hit(vcpu, .site(0), linear + 0x2000) == nil)
    fill(vcpu, .site(0), linear + 0x2000)
    fill(vcpu, .site(0), linear)
    #expect(hit(vcpu, .site(0), linear) == 0x10_0000)
    #expect(hit(vcpu, .site(0), linear + 0xFFC) == 0x10_0FFC, "across pages that are one in the host's memory")
    #expect(hit(vcpu, .site(0), linear + 0x2FF8) == 0x10_2FF8)
    #expect(hit(vcpu, .site(0), linear + 0x2FF9) == nil)
    // Elsewhere in the host's memory: it begins anew.
    fill(vcpu, .site(0), linear + 0x3000)
    #expect(hit(vcpu, .site(0), linear + 0x3000) == 0x20_0000 && hit(vcpu, .site(0), linear) == nil)
    #expect(unsafe chost_site_misses(vcpu.cpu)![2 * Int(CHOST_SITES)] == 1)
    // The class of 32 bytes.
    fill(vcpu, .site(700), linear)
    #expect(hit(vcpu, .site(700), linear + 4064) != nil && hit(vcpu, .site(700), linear + 4065) == nil)
  }

  @Test("A gap is bridged only by pages that the table maps so") func gaps() {
    let vcpu = machine()
    fill(vcpu, .site(0), linear)
    fill(vcpu, .site(0), linear + 0x2000)
    #expect(hit(vcpu, .site(0), linear) == nil)
    vcpu.fill(linear + 0x1000, size: 8, user: true)
    fill(vcpu, .site(0), linear)
    #expect(hit(vcpu, .site(0), linear) != nil && hit(vcpu, .site(0), linear + 0x2000) != nil)
  }

  @Test("What is served but not kept in the tables is not kept in slots") func transient() {
    for kind in SlotTests.kinds {
      let vcpu = machine()
      vcpu.setPageFlags(UInt8(CHOST_PAGE_CODE), 0x10_0000)
      #expect(fill(vcpu, kind, linear, write: true) == nil)
      #expect(hit(vcpu, kind, linear, write: true) == nil)
      vcpu.map(linear, 0xFEE0_0067)
      #expect(fill(vcpu, kind, linear) == nil)
    }
    // A chunk of 64 bytes across pages.
    let vcpu = machine()
    #expect(fill(vcpu, .site(0), linear + 4092) != nil, "assembled in the bounce buffer")
    #expect(hit(vcpu, .site(0), linear + 4092) == nil)
  }

  @Test("Whatever empties the software TLB empties slots", arguments: 0..<4) func flushes(way: Int) {
    for kind in SlotTests.kinds {
      let vcpu = machine()
      fill(vcpu, kind, linear, write: true)
      #expect(hit(vcpu, kind, linear, write: true) != nil)
      switch way {
      case 0: vcpu.loadCR3()
      case 1: vcpu.invalidate(linear + 123)
      case 2: vcpu.flushAll()
      default: vcpu.protect(0x10_0000)
      }
      #expect(hit(vcpu, kind, linear, write: true) == nil)
    }
  }

  @Test("INVLPG of a page in the middle of a run drops the run; elsewhere it does not") func middle() {
    let vcpu = machine()
    for page in UInt64(0)..<3 { fill(vcpu, .site(0), linear + page << 12) }
    vcpu.invalidate(linear + 0x3000)
    #expect(hit(vcpu, .site(0), linear) != nil)
    vcpu.invalidate(linear + 0x1000)
    #expect(hit(vcpu, .site(0), linear) == nil && hit(vcpu, .site(0), linear + 0x2000) == nil)
  }

  @Test("A run does not go on from the last page to the first, whose INVLPG would miss it", arguments: [false, true])
  func wrapping(isUp: Bool) {
    let vcpu = machine()
    let last: UInt64 = 0xFFFF_FFFF_FFFF_F000
    vcpu.map(last, 0x10_0000 | 0x67)
    vcpu.map(0, 0x10_1000 | 0x67)
    for page in isUp ? [last, 0] : [0, last] { fill(vcpu, .site(0), page + 0x100) }
    #expect(hit(vcpu, .site(0), isUp ? 0x100 : last + 0x100) != nil)
    #expect(hit(vcpu, .site(0), isUp ? last + 0x100 : 0x100) == nil)
    vcpu.invalidate(isUp ? 0 : last)
    #expect(hit(vcpu, .site(0), 0x100) == nil && hit(vcpu, .site(0), last + 0x100) == nil)
  }

  @Test("Supervisor's slots of global pages survive MOV CR3") func global() {
    let vcpu = machine()
    vcpu.map(linear, 0x10_0000 | 0x163)
    fill(vcpu, .site(0), linear, user: false)
    fill(vcpu, .site(1), linear + 0x1000, user: false)
    fill(vcpu, .region(0), linear, user: false)
    vcpu.loadCR3()
    #expect(hit(vcpu, .site(0), linear, user: false) != nil && hit(vcpu, .region(0), linear, user: false) != nil)
    #expect(hit(vcpu, .site(1), linear + 0x1000, user: false) == nil)
  }

  @Test("A run between global pages, over one that is not, dies with MOV CR3") func bridged() {
    let vcpu = machine()
    vcpu.map(linear, 0x10_0000 | 0x163)
    vcpu.map(linear + 0x1000, 0x10_1000 | 0x63)
    vcpu.map(linear + 0x2000, 0x10_2000 | 0x163)
    fill(vcpu, .site(0), linear, user: false)
    fill(vcpu, .site(1), linear + 0x1000, user: false)
    fill(vcpu, .site(0), linear + 0x2000, user: false)
    #expect(hit(vcpu, .site(0), linear + 0x1000, user: false) == 0x10_1000, "one run")
    vcpu.loadCR3()
    #expect(hit(vcpu, .site(0), linear + 0x1000, user: false) == nil)
  }

  @Test("A group's check is refused across pages, without a fault") func group() {
    let vcpu = machine()
    let information = UInt32(64) << UInt32(CHOST_INFO_SIZE_SHIFT) | UInt32(CHOST_INFO_USER)
    #expect(unsafe chost_group_fill(vcpu.cpu, linear + 4032, UInt64(information)).failed == 0)
    #expect(unsafe chost_group_fill(vcpu.cpu, linear + 4033, UInt64(information)).failed == 1)
    #expect(unsafe chost_group_fill(vcpu.cpu, linear + 0x10_0000, UInt64(information)).failed == 1)
    #expect(vcpu[\.cr2] == 0)
  }
}

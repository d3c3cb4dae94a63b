// SPDX-License-Identifier: Apache-2.0
// The software TLB, the jump cache and their flushes, seen through the checks that translated code makes.

import CHost
import Testing

@Suite("Software TLB")
struct SoftwareTLBTests {
  let linear: UInt64 = 0x7F00_1234_5FF8

  func machine() -> BareVCPU {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    vcpu.map(linear, 0x10_0007)
    vcpu.map(linear + 4096, 0x20_0007)
    return vcpu
  }

  @Test("Empty tables hit nowhere", arguments: [UInt64(0), 1, 4095, 4096, 1 << 22, .max, .max - 7, 1 << 63])
  func empty(address: UInt64) {
    let vcpu = BareVCPU()
    for user in [false, true] {
      #expect(!vcpu.hits(address, user: user) && !vcpu.hits(address, write: true, user: user))
      #expect(vcpu.jumpTarget(address, user: user) == nil)
    }
  }

  @Test("Read and write, user and supervisor are separate")
  func separate() {
    let vcpu = machine()
    #expect(vcpu.fill(linear, size: 8, user: true) == 0x10_0FF8)
    #expect(vcpu.hits(linear, size: 8, user: true))
    #expect(!vcpu.hits(linear + 1, size: 8, user: true), "crosses the page")
    #expect(!vcpu.hits(linear, write: true, user: true) && !vcpu.hits(linear))
    #expect(vcpu.pageFlags(0x10_0000) == 0)
    #expect(vcpu.fill(linear, size: 8, write: true, user: true) == 0x10_0FF8)
    #expect(vcpu.hits(linear, write: true, user: true))
    #expect(vcpu.pageFlags(0x10_0000) == UInt8(CHOST_PAGE_DIRTY))
    #expect(vcpu.load(vcpu.leaf(linear), as: UInt64.self) & 0x40 != 0, "D")
  }

  @Test("A read across pages is assembled, a write refused")
  func crossing() throws {
    let vcpu = machine()
    vcpu.store(0x4433_2211 as UInt32, at: 0x10_0FFC)
    vcpu.store(0x8877_6655 as UInt32, at: 0x20_0000)
    let offset = try #require(vcpu.fill(linear + 4, size: 8, user: true))
    let pointer = unsafe UnsafeRawPointer(bitPattern: UInt(vcpu[\.ram] &+ offset))!
    #expect(unsafe pointer.load(as: UInt64.self) == 0x8877_6655_4433_2211)
    #expect(vcpu.fill(linear + 4, size: 8, write: true, user: true) == nil)
    #expect(vcpu.fill(linear + 4, size: 65, user: true) == nil)
  }

  @Test("What is not RAM, or holds code, is not filled")
  func refused() {
    let vcpu = machine()
    #expect(vcpu.fill(1 << 50) == nil)
    #expect(vcpu.fill(0x7FFF_FFFF_FFFC, size: 8) == nil)
    vcpu.map(linear, 0xFEE0_0007)
    #expect(vcpu.fill(linear) == nil)
    vcpu.map(linear, 0x10_0007)
    #expect(vcpu.fill(linear, write: true) != nil)
    vcpu.setPageFlags(UInt8(CHOST_PAGE_CODE), 0x10_0000)
    vcpu.protect(0x10_0000)
    #expect(!vcpu.hits(linear, write: true) && vcpu.hits(linear))
    #expect(vcpu.fill(linear, write: true) == nil)
  }

  @Test("MOV CR3 keeps global supervisor entries only")
  func global() {
    let vcpu = machine()
    vcpu.map(linear, 0x10_0107)
    for user in [false, true] { vcpu.fill(linear, write: true, user: user) }
    vcpu.fill(linear + 4096)
    vcpu.loadCR3()
    #expect(vcpu.hits(linear) && vcpu.hits(linear, write: true))
    #expect(!vcpu.hits(linear, user: true) && !vcpu.hits(linear + 4096))
    vcpu.invalidate(linear)
    #expect(!vcpu.hits(linear) && !vcpu.hits(linear, write: true))
  }

  @Test("INVLPG drops every fragment of a large page")
  func large() {
    let vcpu = machine()
    let base: UInt64 = 0xFFFF_8000_0020_0000
    vcpu.map(base, 0)
    vcpu.store(0x40_0187 as UInt64, at: 0x3000 + 8)
    for page: UInt64 in [0, 1, 511] { vcpu.fill(base + page << 12, write: true) }
    vcpu.map(base + 2 << 20, 0x10_0007)
    vcpu.fill(base + 2 << 20)
    vcpu.invalidate(base + 77 << 12)
    for page: UInt64 in [0, 1, 511] {
      #expect(!vcpu.hits(base + page << 12) && !vcpu.hits(base + page << 12, write: true))
    }
    #expect(vcpu.hits(base + 2 << 20))
    vcpu.store(0x187 as UInt64, at: 0x2000 + 16)  // 1 GiB
    let giant = base & ~0x3FFF_FFFF + 2 << 30
    vcpu.fill(giant + 5 << 20)
    vcpu.invalidate(giant)
    #expect(!vcpu.hits(giant + 5 << 20))
  }

  @Test("The jump cache follows the translation, the mode and the blocks")
  func jumps() {
    let vcpu = machine()
    vcpu.map(linear, 0x10_0107)
    let start = linear & ~0xFFF
    vcpu.insertBlock(physical: 0x10_0010, 111)
    vcpu.insertBlock(physical: 0x20_0020, 222)
    #expect(vcpu.lookup(start + 0x10) == 111 && vcpu.jumpTarget(start + 0x10) == 111)
    #expect(vcpu.lookup(start + 0x1020) == 222 && vcpu.jumpTarget(start + 0x1020) == 222)
    #expect(vcpu.lookup(start + 0x30) == 0)
    vcpu.loadCR3()
    #expect(vcpu.jumpTarget(start + 0x10) == 111, "global")
    #expect(vcpu.jumpTarget(start + 0x1020) == nil)
    vcpu.invalidate(start + 4096)
    #expect(vcpu.jumpTarget(start + 0x10) == nil, "its block may reach into the page after it")
    #expect(vcpu.lookup(start + 0x10) == 111)
    vcpu[\.mode] |= UInt32(CHOST_MODE_STEP)
    #expect(vcpu.lookup(start + 0x10) == 0)
    #expect(vcpu.jumpTarget(start + 0x10) == nil, "filled for another mode")
    vcpu.insertBlock(physical: 0x10_0010, 333)
    #expect(vcpu.lookup(start + 0x10) == 333)
    #expect(vcpu.jumpTarget(start + 0x10) == nil, "not while stepping")
  }

  @Test("A block that straddles pages is found with its second page only")
  func straddlers() {
    let vcpu = machine()
    let place = (linear & ~0xFFF) + 0xFFE
    vcpu.insertStraddler(physical: 0x10_0FFE, second: 0x20_0000, offset: 0x123_4560)
    #expect(vcpu.lookup(place) == 0x123_4560 && vcpu.jumpTarget(place) == 0x123_4560)
    vcpu.loadCR3()
    #expect(vcpu.jumpTarget(place) == nil, "its second page is not global")
    vcpu.removeStraddler(physical: 0x10_0FFE, second: 0x30_0000)
    #expect(vcpu.lookup(place) == 0x123_4560)
    vcpu.invalidate(place + 4096)
    #expect(vcpu.jumpTarget(place) == nil)
    vcpu.map(place + 4096, 0x30_0007)
    vcpu.invalidate(place + 4096)
    #expect(vcpu.lookup(place) == 0, "another page follows")
    vcpu.map(place + 4096, 0)
    vcpu.invalidate(place + 4096)
    #expect(vcpu.lookup(place) == 0, "none follows")
    vcpu.map(place + 4096, 0x20_0007)
    #expect(vcpu.lookup(place) == 0x123_4560)
    vcpu.removeStraddler(physical: 0x10_0FFE, second: 0x20_0000)
    vcpu.invalidate(place)
    #expect(vcpu.lookup(place) == 0)
  }
}

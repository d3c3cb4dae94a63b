// SPDX-License-Identifier: Apache-2.0
// #PF from translated code in every form: error code, CR2 and frame for each access and each kind of page; both pages
// of crossing operands; repeated string instructions in the middle. Each case runs with the light delivery of
// CHost/system.c and with Swift's, which must leave the same state to the last bit.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite("Page faults in translated code") struct PageFaultTests {
  static let page: UInt64 = 0x40000
  static let reads = [
    "load1", "load2", "load4", "load8", "load_high", "add_from", "movups_load", "movaps_load", "vmovups_load",
    "fld_memory",
    "fild_memory", "addps_memory", "jump_memory", "call_memory", "push_memory", "ldmxcsr", "div_memory", "divps_memory",
  ]
  static let writes = [
    "store1", "store2", "store4", "store8", "store_immediate", "movups_store", "movaps_store", "vmovups_store",
    "fstp_memory",
    "fxsave", "xsave", "pop_memory",
  ]
  /// Read-modify-write: reported as writes.
  static let both = [
    "add_memory", "adc_memory", "xadd_locked", "xchg_memory", "cmpxchg_locked", "cmpxchg16", "bts_memory",
  ]

  /// Two guests that differ in how faults are delivered.
  private func pair() throws -> [KernelGuest] {
    [
      try KernelGuest { $0.exactFlags = true },
      try KernelGuest {
        $0.lightPaths = false; $0.exactFlags = true
      },
    ]
  }

  /// The state without what the host decides: which components it tracks as in use, and MXCSR_MASK.
  private func comparable(_ guest: KernelGuest) -> CPUState {
    var state = guest.cpu.state
    for index in [28, 29, 30, 31, 512] { state.xsave[index] = 0 }
    return state
  }

  private func check(_ guests: [KernelGuest], _ item: FaultCase) {
    for guest in guests {
      var item = item
      let given = item.prepare
      item.prepare = {
        $0.poke(UInt64(0), at: KernelGuest.stack)
        given($0)
      }
      item.check(on: guest)
    }
    #expect(comparable(guests[0]) == comparable(guests[1]), "\(item.testDescription): light and full differ")
    let frames = guests.map { guest in
      (0..<12).map { guest.peek(UInt64.self, at: (guest.cpu[register: 4] & 0xF_FFF8) + UInt64($0) * 8) }
    }
    #expect(frames[0] == frames[1])
  }

  /// P, W and U of the error code; what the page entry must be for that.
  static let kinds: [(name: String, entry: UInt64, user: Bool, read: UInt64?, write: UInt64?)] = [
    ("absent", 0, false, 0, 2), ("absent", 0, true, 4, 6), ("absent, bits set", 0x1234_5000, true, 4, 6),
    ("read-only", page | 5, false, nil, 3), ("read-only", page | 5, true, nil, 7), ("supervisor", page | 3, true, 5, 7),
    ("reserved bit", page | 7 | 1 << 51, false, 9, 11), ("reserved bit", page | 7 | 1 << 51, true, 13, 15),
  ]

  @Test("Every access, every kind of page", arguments: kinds.indices) func matrix(index: Int) throws {
    let kind = Self.kinds[index]
    let guests = try pair()
    for guest in guests { guest.setPage(Self.page, kind.entry) }
    for (names, code) in [(Self.reads, kind.read), (Self.writes + Self.both, kind.write)] {
      guard let code else { continue }
      for name in names {
        check(
          guests, FaultCase(name, 14, error: code, cr2: Self.page + 0x40, [0: 0, 3: Self.page + 0x40], user: kind.user))
      }
    }
    // The stack: 8 bytes below or above RSP.
    if let code = kind.write, kind.user {
      for name in ["push_register", "push_immediate", "push_flags", "call_near", "call_register"] {
        check(
          guests,
          FaultCase(
            name, 14, error: code, cr2: Self.page + 0x38, [0: KernelGuest.code, 4: Self.page + 0x40], user: kind.user))
      }
    }
    if let code = kind.read, kind.user {
      for name in ["pop_register", "ret", "ret_pop", "pop_flags"] {
        check(guests, FaultCase(name, 14, error: code, cr2: Self.page + 0x40, [4: Self.page + 0x40], user: kind.user))
      }
      check(guests, FaultCase("leave", 14, error: code, cr2: Self.page + 0x40, [5: Self.page + 0x40], user: kind.user))
    }
  }

  @Test("Operands on two pages: the second faults, nothing is stored") func crossing() throws {
    let guests = try pair()
    let end = Self.page + 0x1000
    for guest in guests { guest.setPage(end, 0) }
    let sizes: [String: UInt64] = [
      "load2": 2, "load4": 4, "load8": 8, "add_from": 8, "movups_load": 16, "vmovups_load": 32, "fld_memory": 10,
      "store2": 2, "store4": 4, "store8": 8, "movups_store": 16, "vmovups_store": 32, "fstp_memory": 10,
      "add_memory": 8,
      "xadd_locked": 8, "xchg_memory": 8, "push_memory": 8, "pop_memory": 8, "jump_memory": 8, "fxsave": 512,
      "xsave": 832,
    ]
    for (name, size) in sizes.sorted(by: { $0.key < $1.key }) {
      let isWrite = !Self.reads.contains(name)
      let start = name == "fxsave" || name == "xsave" ? end - 64 : end - size / 2
      for guest in guests { for offset in UInt64(0)..<64 { guest.poke(UInt8(0x5A), at: end - 64 + offset) } }
      for user in [false, true] {
        check(
          guests,
          FaultCase(name, 14, error: (isWrite ? 2 : 0) | (user ? 4 : 0), cr2: end, [0: 0, 3: start], user: user))
      }
      for guest in guests { #expect(guest.peek(UInt64.self, at: end - 8) == 0x5A5A_5A5A_5A5A_5A5A, "\(name)") }
    }
    check(guests, FaultCase("push_register", 14, error: 6, cr2: end, [4: end + 4], user: true))
    check(guests, FaultCase("call_near", 14, error: 6, cr2: end, [4: end + 4], user: true))
  }

  @Test("Fetches: absent, NX, SMEP, the second page of an instruction") func fetches() throws {
    let guests = try pair()
    for (entry, user, code, smep) in [
      (0, true, 0x14, false), (0, false, 0x10, false), (Self.page | 7 | 1 << 63, true, 0x15, false),
      (Self.page | 3, true, 0x15, false), (Self.page | 7, false, 0x11, true),
      (Self.page | 7 | 1 << 63, false, 0x11, false),
    ] as [(UInt64, Bool, UInt64, Bool)] {
      for guest in guests {
        guest.setPage(Self.page, entry)
        guest.load("nops", at: Self.page)
        guest.start(user: user) {
          $0.rip = Self.page
          if smep { $0.cr4 |= 1 << 20 }
        }
        if smep { for page in UInt64(0xB0)..<0xB2 { guest.setPage(page << 12, page << 12 | 3) } }
        let frame = guest.exception()
        #expect(frame?.vector == 14 && frame?.error == code && frame?.rip == Self.page, "\(entry) \(user)")
        #expect(guest.cpu.state.cr2 == Self.page)
      }
      #expect(comparable(guests[0]) == comparable(guests[1]))
    }
    for guest in guests {
      guest.setPage(Self.page, Self.page | 7)
      guest.setPage(Self.page + 0x1000, 0)
      guest.load("nop_move", at: Self.page + 0xFFD)
      guest.start(user: true) { $0.rip = Self.page + 0xFFD }
      let frame = guest.exception()
      #expect(frame?.vector == 14 && frame?.error == 0x14 && frame?.rip == Self.page + 0xFFE)
      #expect(guest.cpu.state.cr2 == Self.page + 0x1000)
    }
  }

  @Test("CR0.WP and SMAP") func supervisor() throws {
    let guests = try pair()
    for guest in guests { guest.setPage(Self.page, Self.page | 5) }
    check(guests, FaultCase("store8", 14, error: 3, cr2: Self.page, [3: Self.page]))
    for guest in guests {
      guest.load("store8")
      guest.start {
        $0.cr0 &= ~(1 << 16)
        $0.registers[3] = Self.page
      }
      #expect(guest.cpu.run() == .halt && guest.frame() == nil)
      guest.setPage(Self.page, Self.page | 7)
      for page in [UInt64(0x7F), 0x80, 0xB0, 0xB1] { guest.setPage(page << 12, page << 12 | 3) }
      for page in UInt64(1)..<0x20 { guest.setPage(page << 12, page << 12 | 3) }
    }
    for name in ["load8", "store8"] {
      let item = FaultCase(name, 14, error: name == "load8" ? 1 : 3, cr2: Self.page, [3: Self.page]) {
        $0.cr4 |= 1 << 21
      }
      check(guests, item)
    }
  }

  @Test("String instructions stop in the middle, with exact registers") func strings() throws {
    let guests = try pair()
    let end = Self.page + 0x1000
    for guest in guests {
      guest.setPage(end, 0)
      for offset in UInt64(0)..<0x200 { guest.poke(UInt64(0x7777_7777_7777_7777), at: Self.page + offset * 8) }
    }
    func stop(_ name: String, _ registers: [Int: UInt64], _ after: [Int: UInt64], write: Bool, cr2: UInt64 = 0x41000) {
      for guest in guests {
        guest.load(name)
        guest.start(user: true) {
          for (number, value) in registers { $0.registers[number] = value }
          $0.rflags = 0x8D7
        }
        let frame = guest.exception()
        let at = KernelGuest.mark(name + ".at", in: name)
        #expect(
          frame
            == Delivered(
              vector: 14, error: write ? 6 : 4, rip: at, cs: KernelGuest.userCode, rflags: 0x8D7 | RFLAGS.rf,
              ss: KernelGuest.userData), "\(name)")
        #expect(guest.cpu.state.cr2 == cr2, "\(name)")
        for (number, value) in after { #expect(guest.cpu.state.registers[number] == value, "\(name) r\(number)") }
      }
      #expect(comparable(guests[0]) == comparable(guests[1]), "\(name)")
    }
    let data = KernelGuest.data
    stop("rep_movsb", [1: 100, 6: end - 10, 7: data], [1: 90, 6: end, 7: data + 10], write: false)
    stop("rep_movsb", [1: 100, 6: data, 7: end - 10], [1: 90, 6: data + 10, 7: end], write: true)
    stop("rep_movsq", [1: 100, 6: end - 20, 7: data], [1: 98, 6: end - 4, 7: data + 16], write: false)
    stop("rep_movsq", [1: 100, 6: data, 7: end - 20], [1: 98, 6: data + 16, 7: end - 4], write: true)
    stop("rep_stosb", [0: 0x77, 1: 100, 7: end - 1], [1: 99, 7: end], write: true)
    stop("rep_stosd", [0: 0x7777_7777, 1: 100, 7: end - 6], [1: 99, 7: end - 2], write: true)
    stop("rep_lodsb", [0: 0, 1: 100, 6: end - 3], [0: 0x77, 1: 97, 6: end], write: false)
    stop("repe_cmpsb", [1: 100, 6: end - 5, 7: Self.page], [1: 95, 6: end, 7: Self.page + 5], write: false)
    stop("repne_scasb", [0: 0, 1: 100, 7: end - 5], [1: 95, 7: end], write: false)
    stop("movs", [6: end, 7: data], [6: end, 7: data], write: false)
    stop("movs", [6: data, 7: end], [6: data, 7: end], write: true)
  }
}

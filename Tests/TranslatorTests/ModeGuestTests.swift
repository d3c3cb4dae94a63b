// SPDX-License-Identifier: Apache-2.0
// Guests of 16 and 32 bits: real mode, protected mode with every paging format and with segments that are not flat,
// compatibility mode, and the ways from each mode to the next.

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

@Suite("16- and 32-bit guests") struct ModeGuestTests {
  private static func real(_ state: inout CPUState) {
    state.efer = 0
    state.cr0 = 0x10
    state.cr4 = 0
    for path in [\CPUState.ss, \CPUState.ds, \CPUState.es, \CPUState.fs, \CPUState.gs] {
      state[keyPath: path] = Segment(selector: 0, base: 0, limit: 0xFFFF, attributes: 0x93)
    }
    state.cs = Segment(selector: 0x1000, base: 0x10000, limit: 0xFFFF, attributes: 0x9B)
    state.rip = 0
    state.registers[4] = 0x8000
    state.idtr = DescriptorTable(base: 0, limit: 0x3FF)
  }

  enum Paging: CaseIterable { case none, twoLevel, twoLevelLarge, pae }

  private static func protected(_ guest: KernelGuest, _ state: inout CPUState, paging: Paging) {
    state.efer = 0
    state.cs = Segment(selector: 8, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC09B)
    state.tr = Segment(selector: 0x40, base: 0x7000, limit: 0x67, attributes: 0x8B)
    state.cr4 = 0x600
    state.cr0 = 0x1_0033
    for vector in UInt64(0)..<32 {
      let target = KernelGuest.handlers + vector * 16
      guest.poke(target & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (target >> 16) << 48, at: KernelGuest.idt + vector * 8)
    }
    switch paging {
    case .none: return
    case .twoLevel:
      guest.poke(UInt32(0x9007), at: 0x8000)
      for page in UInt64(0)..<1024 { guest.poke(UInt32(page << 12 | 7), at: 0x9000 + page * 4) }
      state.cr3 = 0x8000
    case .twoLevelLarge:
      for index in UInt64(0)..<4 { guest.poke(UInt32(index << 22 | 0x87), at: 0x8000 + index * 4) }
      state.cr3 = 0x8000
      state.cr4 |= 0x10
    case .pae:
      guest.poke(KernelGuest.directory | 1, at: 0x8020)
      for index in UInt64(1)..<4 { guest.poke(UInt64(0), at: 0x8020 + index * 8) }
      state.cr3 = 0x8020
      state.cr4 |= 0x20
    }
    state.cr0 |= 0x8000_0000
  }

  private func run(_ guest: KernelGuest, _ name: String, _ edit: (inout CPUState) -> Void) -> CPUState {
    guest.load(name)
    guest.start(edit)
    let exit = guest.cpu.run()
    #expect(exit == .halt, "\(name)")
    return guest.cpu.state
  }

  @Test("Real mode: strings, far transfers, INT, wrapping, the limit") func realMode() throws {
    let guest = try KernelGuest()
    var state = run(guest, "real_strings", Self.real)
    #expect(state.registers[0] & 0xFFFF == 3 && state.registers[1] & 0xFFFF == 2)
    #expect(try guest.memory.bytes(at: GuestPhysical(0x20000), count: 5) == Array("hello".utf8))
    state = run(guest, "real_far", Self.real)
    #expect(state.registers[3] & 0xFFFF == 0x0FFF && state.registers[1] & 0xFFFF == 0x1000)
    #expect(state.cs.selector == 0x0FFF && state.registers[4] & 0xFFFF == 0x8000)
    state = run(guest, "real_int", Self.real)
    #expect(state.registers[0] & 0xFFFF == 42 && state.registers[4] & 0xFFFF == 0x8000)
    state = run(guest, "real_wrap", Self.real)
    #expect(state.registers[3] & 0xFFFF == 0xA55A && state.registers[1] & 0xFFFF == 1)
    guest.poke(UInt32(0xB000_00D0), at: 13 * 4)
    state = run(guest, "real_limit", Self.real)
    #expect(state.rip == 0xD1 && state.cs.selector == 0xB000)
    #expect(guest.peek(UInt16.self, at: 0x8000 - 6) == 0)
  }

  @Test("32-bit flat, with every kind of paging", arguments: Paging.allCases) func flat(paging: Paging) throws {
    let guest = try KernelGuest()
    let state = run(guest, "flat32") { Self.protected(guest, &$0, paging: paging) }
    #expect(guest.frame() == nil)
    #expect(state.rip == KernelGuest.code + UInt64(GuestProgram("flat32").bytes.count) - 3)
    #expect(state.registers[2] == 500500 && state.registers[4] == KernelGuest.stack)
    #expect(state.registers[6] == 0x20100 && state.registers[7] == 0x21100 && state.registers[1] == 0)
    #expect(guest.peek(UInt32.self, at: 0x21000) == 0x77)
    // What 64-bit mode left in the upper halves is not there.
    let junk = run(guest, "flat32") {
      Self.protected(guest, &$0, paging: paging)
      for number in 0..<8 { $0.registers[number] |= 0xABCD_0123_0000_0000 }
    }
    for number in 0..<8 {
      #expect(junk.registers[number] & 0xFFFF_FFFF == state.registers[number] & 0xFFFF_FFFF, "register \(number)")
    }
    #expect(junk.rip == state.rip)
    // Round trips of the state change nothing, PDPTEs included.
    guest.load("flat32")
    guest.start { Self.protected(guest, &$0, paging: paging) }
    let other = try KernelGuest()
    other.load("flat32")
    for table in stride(from: UInt64(0x1000), to: 0xB000, by: 8) {
      other.poke(guest.peek(UInt64.self, at: table), at: table)
    }
    other.cpu.state = guest.cpu.state
    #expect(other.cpu.run() == .halt)
    #expect(other.cpu.state.registers == state.registers)
  }

  @Test("32-bit exceptions: BOUND, INTO, limits, expand-down") func exceptions() throws {
    let guest = try KernelGuest()
    func fault(_ name: String, _ mark: String, vector: UInt64) {
      let state = run(guest, name) { Self.protected(guest, &$0, paging: .none) }
      #expect(state.rip == KernelGuest.handlers + vector * 16 + 1, "\(name)")
      let code: UInt64 = vector == 13 || vector == 12 ? 4 : 0
      #expect(
        UInt64(guest.peek(UInt32.self, at: state.registers[4] + code)) == KernelGuest.mark(mark, in: name), "\(name)")
      #expect(state.registers[4] == KernelGuest.stack - 12 - code)
    }
    guest.poke(UInt64(10) << 32 | 1, at: 0x20000)
    fault("bound32", "bound32.at", vector: 5)
    fault("into32", "into32.after", vector: 4)
    fault("limit32", "limit32.at", vector: 13)
    fault("expand32", "expand32.at", vector: 13)
  }

  @Test("32-bit segments with bases and limits") func segments() throws {
    let guest = try KernelGuest()
    for paging in [Paging.none, .pae] {
      guest.poke(UInt32(0), at: 0x200FC)
      let state = run(guest, "segments32") { Self.protected(guest, &$0, paging: paging) }
      #expect(guest.frame() == nil)
      #expect(
        state.registers[3] == 0x1122_3344 && state.registers[1] == 0x1122_3344 && state.registers[2] == 0x1122_3345)
    }
  }

  @Test("Compatibility mode under a 64-bit kernel") func compatibility() throws {
    let guest = try KernelGuest()
    guest.poke(UInt32(0xCAFE), at: 0x20000)
    guest.load("compatibility")
    guest.start(user: true) {
      $0.cs = Segment(selector: 0x23, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC0FB)
      $0.registers[1] = 0xFFFF_FFFF_0000_0000
    }
    let frame = guest.exception()
    #expect(
      frame?.vector == 0x80 && frame?.cs == 0x23
        && frame?.rip == KernelGuest.mark("compatibility.after", in: "compatibility"))
    #expect(guest.cpu[register: 0] == 0 && guest.cpu[register: 1] == 1 && guest.cpu[register: 6] == 0xCAFE)
  }

  @Test("Real to protected to 64-bit mode, and back") func switches() throws {
    let guest = try KernelGuest()
    var state = run(guest, "real_to_long") {
      Self.real(&$0)
      $0.registers[3] = KernelGuest.pml4
      $0.gdtr = DescriptorTable(base: KernelGuest.gdt, limit: 0x7F)
      $0.tr = Segment(selector: 0, base: 0, limit: 0xFFFF, attributes: 0x8B)
    }
    #expect(state.efer & 0x500 == 0x500 && state.cs.selector == 0x10)
    #expect(state.registers[1] == 0x1234_5678_9ABC_DEF0)
    // 16-bit code with base 10000 at selector 90.
    guest.poke(0x0000_9B01_0000_FFFF as UInt64, at: KernelGuest.gdt + 0x90)
    state = run(guest, "long_to_real") {
      $0.gdtr.limit = 0x97
      $0.cs.selector = UInt16(KernelGuest.kernelCode)
    }
    #expect(state.cr0 & 1 == 0 && state.cs.base == 0x10000 && state.efer & 0x500 == 0)
    #expect(state.registers[0] & 0xFFFF == 0xBEEF && guest.peek(UInt16.self, at: 0x20000) == 0xBEEF)
  }
}

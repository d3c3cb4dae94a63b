// SPDX-License-Identifier: Apache-2.0
// Exceptions and single-step traps of a guest with an interrupt table: how often its handlers run, and where.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct TrapTests {
  /// A flat guest whose handlers of #DB, #BP and #UD are `inc dword [0x30000 + vector * 4]; iretq`; that of #UD, which
  /// is a fault, halts instead.
  private func guest(_ code: [UInt8], flags: UInt64 = 2) throws -> FlatGuest {
    let guest = try FlatGuest()
    try guest.load(code)
    for (index, descriptor) in [UInt64(0), 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF].enumerated() {
      try guest.memory.store(descriptor, at: GuestPhysical(0x7000 + UInt64(index) * 8))
    }
    for vector in [UInt64(1), 3, 6, 0x80] {
      let handler = 0x9000 + vector * 32
      try guest.memory.store(handler & 0xFFFF | 0x08 << 16 | 0x8E00 << 32, at: GuestPhysical(0x8000 + vector * 16))
      try guest.memory.store(UInt64(0), at: GuestPhysical(0x8008 + vector * 16))
      var bytes: [UInt8] = [0xFF, 0x04, 0x25, UInt8(vector * 4 & 0xFF), UInt8(vector >> 6), 3, 0]
      bytes += vector == 6 ? [0xF4] : [0x48, 0xCF]
      try guest.memory.copy(from: bytes, to: GuestPhysical(handler))
    }
    var state = guest.cpu.state
    state.gdtr = .init(base: 0x7000, limit: 0x17)
    state.idtr = .init(base: 0x8000, limit: 0xFFF)
    state.cs.selector = 8
    state.ss.selector = 16
    state.rflags = flags
    guest.cpu.state = state
    return guest
  }

  private func count(_ guest: FlatGuest, _ vector: UInt64) throws -> UInt32 {
    try guest.memory.load(UInt32.self, at: GuestPhysical(0x30000 + vector * 4))
  }

  @Test("what has no row is #UD, whatever its opcode means in other modes", arguments: [0x06, 0x27, 0x37, 0x60, 0xD6])
  func noRow(opcode: UInt8) throws {
    let guest = try guest([opcode, 0xF4])
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 6) == 1)
    #expect(guest.cpu[register: 4] == 0x80000 - 40)
  }

  @Test("a stepped REP MOVSB traps after every element") func steppedString() throws {
    // mov ecx,5; mov esi,0x10000; mov edi,0x40000; rep movsb; ud2 (a stepped HLT does not wait)
    let guest = try guest(
      [0xB9, 5, 0, 0, 0, 0xBE, 0, 0, 1, 0, 0xBF, 0, 0, 4, 0, 0xF3, 0xA4, 0x0F, 0x0B], flags: 0x102)
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 1) == 8)
    #expect(guest.cpu[register: 7] == 0x40005)
  }

  @Test("INT clears TF: no trap in its handler") func steppedInterrupt() throws {
    // nop; int3; int 0x80; nop; ud2
    let guest = try guest([0x90, 0xCC, 0xCD, 0x80, 0x90, 0x0F, 0x0B], flags: 0x102)
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 3) == 1)
    #expect(try count(guest, 0x80) == 1)
    // After each NOP; IRET restores TF, which counts from the instruction after it.
    #expect(try count(guest, 1) == 2)
  }

  @Test("SYSCALL that masks TF is not trapped") func steppedSystemCall() throws {
    // syscall; at 0x20000: hlt
    let guest = try guest([0x0F, 0x05, 0xF4], flags: 0x102)
    try guest.memory.store(UInt8(0xF4), at: GuestPhysical(0x20000))
    var state = guest.cpu.state
    state.efer |= 1
    state.star = 8 << 32
    state.lstar = 0x20000
    state.sfmask = 0x100
    guest.cpu.state = state
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 1) == 0)
    #expect(guest.cpu.state.rip == 0x20001)
  }

  @Test("a stepped instruction on the slow path traps") func steppedSlowAccess() throws {
    // mov eax,[0x4ffe]; mov [0x10100],eax (a store into a page of code); ud2
    let guest = try guest(
      [0x8B, 0x04, 0x25, 0xFE, 0x4F, 0, 0, 0x89, 0x04, 0x25, 0, 1, 1, 0, 0x0F, 0x0B], flags: 0x102)
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 1) == 2)
  }

  @Test("data breakpoints are traps, instruction breakpoints faults") func breakpoints() throws {
    // mov [0x40000],eax; push rax; mov ecx,[0x40002]; nop; nop; hlt
    let code: [UInt8] = [0x89, 0x04, 0x25, 0, 0, 4, 0, 0x50, 0x8B, 0x0C, 0x25, 2, 0, 4, 0, 0x90, 0x90, 0xF4]
    // DR0: writes of four bytes at 0x40000; DR1: reads and writes of a byte at 0x40003; both hit by the store, DR1 by
    // the load.
    func hits(_ dr7: UInt64) throws -> UInt32 {
      let guest = try guest(code)
      var state = guest.cpu.state
      state.dr0 = 0x40000
      state.dr1 = 0x40003
      state.dr2 = 0x80000 - 8
      state.dr3 = 0x1000F
      state.dr7 = dr7
      guest.cpu.state = state
      if dr7 & 0xC0 != 0 {
        // The handler of a fault returns to the instruction: RF in the image it returns to.
        try guest.memory.copy(
          from: [0xFF, 0x04, 0x25, 4, 0, 3, 0, 0x80, 0x4C, 0x24, 0x12, 1, 0x48, 0xCF], to: GuestPhysical(0x9020))
      }
      #expect(guest.cpu.run() == .halt)
      return try count(guest, 1)
    }
    #expect(try hits(0x400) == 0)
    #expect(try hits(0x400 | 1 | 0xD << 16) == 1)
    #expect(try hits(0x400 | 4 | 3 << 20) == 2)
    #expect(try hits(0x400 | 5 | 0xD << 16 | 3 << 20) == 2)
    #expect(try hits(0x400 | 0x10 | 9 << 24) == 1)
    #expect(try hits(0x400 | 0x40) == 1)
  }
}

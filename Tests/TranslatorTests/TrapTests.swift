// SPDX-License-Identifier: Apache-2.0
// Exceptions and single-step traps of a guest with an interrupt table: how often its handlers run, and where.

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct TrapTests {
  /// A flat guest whose handlers of #DB, #BP, #UD and INT 80 count at 0x30000 + vector * 4 and go back; that of #UD,
  /// which is a fault, halts instead.
  private func guest(_ code: [UInt8], flags: UInt64 = 2) throws -> FlatGuest {
    let guest = try FlatGuest()
    try guest.load(code)
    for (index, descriptor) in [UInt64(0), 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF].enumerated() {
      try guest.memory.store(descriptor, at: GuestPhysical(0x7000 + UInt64(index) * 8))
    }
    for (vector, name) in [(1, "db"), (3, "bp"), (6, "ud"), (0x80, "int80")] as [(UInt64, String)] {
      let handler = 0x9000 + vector * 32
      try guest.memory.store(handler & 0xFFFF | 0x08 << 16 | 0x8E00 << 32, at: GuestPhysical(0x8000 + vector * 16))
      try guest.memory.store(UInt64(0), at: GuestPhysical(0x8008 + vector * 16))
      try guest.memory.copy(from: GuestProgram("count_" + name).bytes, to: GuestPhysical(handler))
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

  private func guest(_ name: String, flags: UInt64 = 2) throws -> FlatGuest {
    try guest(GuestProgram(name).bytes, flags: flags)
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
    let guest = try guest("trap_string", flags: RFLAGS.tf | 2)
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 1) == 8)
    #expect(guest.cpu[register: 7] == 0x40005)
  }

  @Test("INT clears TF: no trap in its handler") func steppedInterrupt() throws {
    let guest = try guest("trap_interrupts", flags: RFLAGS.tf | 2)
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 3) == 1)
    #expect(try count(guest, 0x80) == 1)
    // After each NOP; IRET restores TF, which counts from the instruction after it.
    #expect(try count(guest, 1) == 2)
  }

  @Test("SYSCALL that masks TF is not trapped") func steppedSystemCall() throws {
    let guest = try guest("trap_syscall", flags: RFLAGS.tf | 2)
    try guest.memory.copy(from: GuestProgram("halt").bytes, to: GuestPhysical(0x20000))
    var state = guest.cpu.state
    state.efer |= EFER.sce
    state.star = 8 << 32
    state.lstar = 0x20000
    state.sfmask = RFLAGS.tf
    guest.cpu.state = state
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 1) == 0)
    #expect(guest.cpu.state.rip == 0x20001)
  }

  @Test("a stepped instruction on the slow path traps") func steppedSlowAccess() throws {
    let guest = try guest("trap_slow", flags: RFLAGS.tf | 2)
    #expect(guest.cpu.run() == .halt)
    #expect(try count(guest, 1) == 2)
  }

  @Test("data breakpoints are traps, instruction breakpoints faults") func breakpoints() throws {
    // DR0: writes of four bytes at 0x40000; DR1: reads and writes of a byte at 0x40003; both hit by the store, DR1 by
    // the load.
    func hits(_ dr7: UInt64) throws -> UInt32 {
      let guest = try guest("trap_data")
      var state = guest.cpu.state
      state.dr0 = 0x40000
      state.dr1 = 0x40003
      state.dr2 = 0x80000 - 8
      state.dr3 = 0x10000 + UInt64(GuestProgram("trap_data").offset(of: "trap_data.nop"))
      state.dr7 = dr7
      guest.cpu.state = state
      if dr7 & 0xC0 != 0 {
        // The handler of a fault returns to the instruction: RF in the image it returns to.
        try guest.memory.copy(from: GuestProgram("count_db_fault").bytes, to: GuestPhysical(0x9020))
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

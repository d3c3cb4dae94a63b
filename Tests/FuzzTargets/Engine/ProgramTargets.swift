// SPDX-License-Identifier: Apache-2.0
// Targets that run programs on one vCPU: of level 3 in every mode that has it, of level 0 in every mode.

import GuestMemory
import Host
import TestSupport
import X86

@testable import Translator

/// Runs the programs of an input, one after the other, on one guest.
enum Programs {
  /// - Parameter prepare: Makes the guest's tables ready, and returns where and with what the next program begins.
  static func run(
    _ input: inout FuzzInput,
    _ prepare: (EngineGuest, inout FuzzInput) throws -> (CPUState, ProgramWriter.Taste),
    after check: (EngineGuest) throws -> Void = { _ in }
  ) throws {
    try onPreparedThread {
      let refusals = Refusals()
      let isSplit = input.chance(8)
      let guest = try EngineGuest {
        $0.refused = { refusals.note($0) }
        $0.singleInstruction = isSplit
      }
      let kicking = try Kicking(guest.cpus)
      defer { kicking.stop() }
      let end = HostClock.after(nanoseconds: 1_000_000_000)
      repeat {
        var random = SeededGenerator(seed: input.seed())
        var (state, taste) = try prepare(guest, &input)
        // Some cross the end of the page.
        let offset = input.chance(4) ? 4096 - UInt64(input.below(32)) : 0
        let bytes = ProgramWriter.program(&input, count: 32 + input.below(160), taste)
        try guest.load(bytes, at: EngineGuest.code + offset)
        state.rip &+= offset
        guest.cpu.state = state
        if try guest.run(0, &random) {
          try guest.settle(0, &random)
          try guest.checkState()
        }
        try guest.check(refusals)
        try check(guest)
      } while !input.isOver && HostClock.monotonic < end
      if let problem = PollGraph(guest.translation.cache).problem { throw FuzzFailure(problem) }
    }
  }
}

/// Programs of level 3.
enum Ring3 {
  static func run64(_ input: inout FuzzInput) throws {
    var last: EngineGuest?
    try Programs.run(&input) { guest, input in
      last = guest
      var state = EngineGuest.long(user: true)
      EngineGuest.setRegisters(&state, &input)
      return (state, ProgramWriter.Taste(system: 24))
    } after: {
      try $0.checkRegisters()
    }
    try last?.checkSupervisorMemory()
  }

  static func run32(_ input: inout FuzzInput) throws {
    var last: EngineGuest?
    try Programs.run(&input) { guest, input in
      last = guest
      return (state32(&input), ProgramWriter.Taste(is64: false, system: 24))
    } after: {
      try $0.checkRegisters()
    }
    try last?.checkSupervisorMemory()
  }

  private static func state32(_ input: inout FuzzInput) -> CPUState {
    let mode = input.below(8)
    var state = mode < 3 ? EngineGuest.long(user: true) : EngineGuest.protected(user: true, paging: mode & 1)
    state.cs = EngineGuest.segment(0x23, 0xC0FB)
    EngineGuest.setRegisters(&state, &input)
    switch input.byte() % 8 {
    case 0, 1:
      // Segments with bases and limits.
      let segments = [
        EngineGuest.segment(0x8B, 0xF3, base: 0x20000, limit: 0xFFFF),
        EngineGuest.segment(0x93, 0x40F7, limit: 0xFFF),
        EngineGuest.segment(0x9B, 0x40F3, base: 0x20000, limit: 0xFF),
        EngineGuest.segment(0xDB, 0xC0F3, base: 0x40_0000, limit: 0xFF_FFFF),
        EngineGuest.segment(0x2B, 0xC0F3),
        EngineGuest.segment(0x73, 0xC0F1),
        EngineGuest.segment(0x2B, 0xC0F3, base: 0xFFFF_F000),
      ]
      for path in [\CPUState.ds, \.es, \.fs, \.gs] { state[keyPath: path] = input.choose(segments) }
      if input.chance(2) { state.ss = input.choose(Array(segments.prefix(2) + segments.suffix(1))) }
    case 2:
      state.cs = EngineGuest.segment(0x83, 0xFB, base: 0x10000, limit: 0xFFFF)
      state.rip = 0
      state.registers[4] &= 0xFFFF
    case 3 where mode >= 3:
      // Virtual-8086 mode.
      state.rflags |= 0x2_0000
      if input.chance(2) { state.cr4 |= 1 }
      if input.chance(2) { state.rflags |= 0x3000 }
      for path in [\CPUState.ss, \.ds, \.es, \.fs, \.gs] {
        let selector = input.word(UInt16.self) % 0x8000
        state[keyPath: path] = EngineGuest.segment(selector, 0xF3, base: UInt64(selector) << 4, limit: 0xFFFF)
      }
      state.cs = EngineGuest.segment(0x1000, 0xF3, base: 0x10000, limit: 0xFFFF)
      state.rip = 0
    default: break
    }
    if state.efer & EFER.lma == 0 { for number in 0..<16 { state.registers[number] &= 0xFFFF_FFFF } }
    return state
  }
}

/// Programs of level 0.
enum Ring0 {
  /// A state of one of the modes.
  static func state(_ input: inout FuzzInput) -> (CPUState, ProgramWriter.Taste) {
    let mode = input.below(8)
    var taste = ProgramWriter.Taste(is64: mode < 3, system: 3)
    var state: CPUState
    switch mode {
    case 0, 1: state = EngineGuest.long(user: false)
    case 2: state = EngineGuest.long(user: true)
    case 3: state = EngineGuest.real(&input)
    case 4:
      state = EngineGuest.protected(user: false, paging: 2)
      state.cs = EngineGuest.segment(0x50, 0x9B, limit: 0xFFFFF)
      state.ss = EngineGuest.segment(0x58, 0x93, base: 0x100, limit: 0x8FFFF)
    default: state = EngineGuest.protected(user: input.chance(4), paging: mode - 5)
    }
    let rip = state.rip
    EngineGuest.setRegisters(&state, &input)
    state.rip = rip
    if mode > 2 {
      for number in 0..<16 { state.registers[number] &= 0xFFFF_FFFF }
      taste.is64 = false
    }
    return (state, taste)
  }

  static func systemInstructions(_ input: inout FuzzInput) throws {
    try Programs.run(&input) { guest, input in
      try guest.restoreTables()
      return state(&input)
    }
  }
}

/// GDT, LDT, IDT and TSS.
enum DescriptorTables {
  static func run(_ input: inout FuzzInput) throws {
    try Programs.run(&input) { guest, input in
      try guest.restoreTables()
      for _ in 0..<input.below(16) { try damage(guest, &input) }
      var (state, taste) = Ring0.state(&input)
      if input.chance(2) { state.ldtr = EngineGuest.segment(0xA0, 0x82, base: EngineGuest.ldt, limit: 0xFF) }
      if input.chance(4) { state.gdtr.limit = input.word() }
      if input.chance(4) { state.idtr.limit = input.word() }
      taste.system = 2
      return (state, taste)
    }
  }

  private static func damage(_ guest: EngineGuest, _ input: inout FuzzInput) throws {
    let tables = [
      EngineGuest.gdt, EngineGuest.ldt, EngineGuest.idt, EngineGuest.idt32, EngineGuest.tss, EngineGuest.tss32,
    ]
    let table = input.choose(tables)
    switch input.byte() % 4 {
    case 0: try guest.poke(input.byte(), at: table + UInt64(input.byte()))
    case 1: try guest.poke(input.word(UInt64.self), at: table + UInt64(input.byte() & 0x3F) * 8)
    case 2:
      // A descriptor: base, limit, type and flags.
      let (base, limit) = (input.value(), UInt64(input.word(UInt32.self)))
      var value = limit & 0xFFFF | (base & 0xFF_FFFF) << 16
      value |= UInt64(input.byte()) << 40 | UInt64(input.byte()) << 48 | (base >> 24 & 0xFF) << 56
      try guest.poke(value, at: table + UInt64(input.byte() & 0x1F) * 8)
    default:
      // A gate.
      let target = input.choose([EngineGuest.code, EngineGuest.handlers, 0x8000_0000, 0xFFFF_FFF0, input.value()])
      let selector = UInt64(input.byte() & 0x1F) << 3 | UInt64(input.byte() & 7)
      let access = UInt64(0x80 | input.byte() & 0x60) | UInt64(input.choose([4, 5, 6, 7, 12, 14, 15]) as UInt8)
      let value =
        target & 0xFFFF | selector << 16 | UInt64(input.byte() & 0x1F) << 32 | access << 40 | (target >> 16 & 0xFFFF)
        << 48
      let place = table + UInt64(input.byte() & 0x3F) * 8
      try guest.poke(value, at: place)
      if input.chance(2) { try guest.poke(target >> 32, at: place + 8) }
    }
  }
}

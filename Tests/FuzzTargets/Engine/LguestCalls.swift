// SPDX-License-Identifier: Apache-2.0
// The target of lguest's hypercalls: calls of any arguments, made and left in the ring, over page tables and a struct
// lguest_data that change meanwhile, restarts, and a little code that uses what they lead to.

import Engine
import GuestMemory
import Host
import TestSupport
import X86

@testable import Paravirt
@testable import Translator

/// Calls of one ring-1 guest.
enum LguestCalls {
  static func run(_ input: inout FuzzInput) throws {
    try onPreparedThread {
      let guest = try LguestGuest(LguestGuest.Choice(&input), LguestGuest.makePages())
      let end = HostClock.after(nanoseconds: 1_000_000_000)
      try begin(guest, &input)
      repeat {
        if guest.isOver {
          try guest.settle()
          guest.reset()
          if !input.chance(4) { guest.makeTables() }
          try begin(guest, &input)
        }
        try step(guest, &input)
        try guest.check()
      } while !input.isOver && HostClock.monotonic < end
    }
  }

  /// Registers struct lguest_data, as a rule one that can be, and takes page tables.
  private static func begin(_ guest: LguestGuest, _ input: inout FuzzInput) throws {
    guest.makeData()
    if input.chance(4) { damage(guest, &input) }
    if !input.chance(8) { guest.call(.initialize, UInt32(truncatingIfNeeded: guest.choice.place)) }
    // Most traps have a handler, which does nothing.
    guest.ram.store(UInt32(0xFEEB), at: LguestGuest.handlers)
    for vector in UInt32(0)..<(input.chance(4) ? 0 : 0x28) {
      guest.call(.loadIDTEntry, vector, 0x61_0000 | UInt32(LguestGuest.handlers & 0xFFFF), 0xB_EE00)
    }
    if !input.chance(4) { guest.call(.newPageTable, UInt32(input.choose([LguestGuest.narrow, LguestGuest.wide]))) }
  }

  private static func step(_ guest: LguestGuest, _ input: inout FuzzInput) throws {
    var random = SeededGenerator(seed: UInt64(input.byte()))
    switch input.byte() % 8 {
    case 0: damage(guest, &input)
    case 1:
      for _ in 0..<(1 + input.below(input.chance(8) ? 80 : 8)) { guest.queue(input.below(64), call(&input)) }
    case 2: try use(guest, &input, &random)
    default:
      let words = call(&input)
      guest.setCall(words[0], Array(words[1...]))
      // From the guest, if its code is where it can be executed; else the trap is another one.
      try execute(guest, [0xCD, 0x1F], &random)
    }
  }

  /// Executes a few bytes at level 1.
  private static func execute(_ guest: LguestGuest, _ bytes: [UInt8], _ random: inout SeededGenerator) throws {
    try guest.settle()
    let code = bytes + [0xEB, 0xFE]
    for (index, byte) in code.enumerated() { guest.ram.store(byte, at: LguestGuest.code + UInt64(index)) }
    guest.cpu.state.cs = LguestHost.codeSegment
    guest.cpu.state.ss = LguestHost.dataSegment
    guest.cpu.state.rip = LguestGuest.code | (random.next() & 1 == 0 ? 0 : UInt64(LguestGuest.kernelBase))
    guest.cpu.state[register: GPR.rsp] = LguestGuest.stack
    _ = try guest.run(&random, exits: 1)
  }

  /// Loads, stores and goes by linear address and by selector.
  private static func use(_ guest: LguestGuest, _ input: inout FuzzInput, _ random: inout SeededGenerator) throws {
    var bytes: [UInt8] = []
    for _ in 0..<(1 + input.below(4)) {
      let address = linear(&input)
      let word = (0..<4).map { UInt8(truncatingIfNeeded: address >> ($0 * 8)) }
      let forms: [[UInt8]] = [
        [0xA1] + word, [0xA3] + word, [0x66, 0xB8, input.byte(), 0, 0x8E, 0xC0 | input.byte() & 0x38],
        [0xFF, 0x35] + word, [0x68] + word + [0x6A, 0x61, 0xCB], [0xCD, input.byte()], [0xEA] + word + [0x61, 0],
      ]
      bytes += input.choose(forms)
    }
    try execute(guest, bytes, &random)
  }

  // MARK: Numbers

  private static func linear(_ input: inout FuzzInput) -> UInt32 {
    let page = UInt32(input.word(UInt16.self)) % 0x420 << 12
    return switch input.byte() % 6 {
    case 0: LguestGuest.kernelBase | page
    case 1: LguestHost.reserved &- 8 &+ UInt32(input.byte())
    case 2: LguestHost.reserved | page
    case 3: input.word()
    default: page | UInt32(input.byte()) * 4
    }
  }

  /// A number and four arguments.
  private static func call(_ input: inout FuzzInput) -> [UInt32] {
    let tables = [LguestGuest.narrow, LguestGuest.wide, LguestGuest.directory, LguestGuest.narrowTable]
    let number = UInt32(input.byte()) % 22
    let arguments = (0..<4).map { _ -> UInt32 in
      switch input.byte() % 8 {
      case 0: UInt32(input.choose(tables))
      case 1: linear(&input)
      case 2: UInt32(input.byte() & 0x3F)
      case 3: UInt32(input.byte())
      case 4: descriptor(&input)
      case 5: UInt32(truncatingIfNeeded: LguestGuest.byteCount) &- UInt32(input.byte())
      case 6: UInt32(truncatingIfNeeded: input.value(addresses: LguestGuest.byteCount))
      default: UInt32(input.byte()) << 8
      }
    }
    // SHUTDOWN ends the guest, and so do numbers that are none: both are seldom.
    let isEnd = number == 1 || number == 2 || number > 19
    return [isEnd && !input.chance(8) ? 14 : number] + arguments
  }

  /// The upper half of a descriptor or a gate, with everything that it may say.
  private static func descriptor(_ input: inout FuzzInput) -> UInt32 {
    UInt32(input.byte()) << 24 | UInt32(input.byte()) << 16 | UInt32(input.byte() | 0x80) << 8 | UInt32(input.byte())
  }

  /// Changes an entry of a table, a word of struct lguest_data, or anything.
  private static func damage(_ guest: LguestGuest, _ input: inout FuzzInput) {
    for _ in 0..<(1 + input.below(12)) {
      let value = UInt32(truncatingIfNeeded: input.value(addresses: LguestGuest.byteCount))
      let entry = value & ~0xFFF | UInt32(input.byte()) | (input.chance(4) ? 0x100 : 1)
      let slot = UInt64(input.byte())
      switch input.byte() % 6 {
      case 0: guest.ram.store(entry, at: LguestGuest.narrow + slot * 16)
      case 1: guest.ram.store(entry, at: LguestGuest.narrowTable + slot * 4)
      case 2: guest.ram.store(UInt64(entry), at: LguestGuest.directory + slot * 8)
      case 3: guest.ram.store(UInt64(entry), at: LguestGuest.wide + (slot & 3) * 8)
      case 4: guest.ram.store(value, at: guest.choice.place &+ slot * 8 % guest.choice.layout.byteCount)
      default: guest.ram.store(value, at: UInt64(input.word(UInt32.self)) % LguestGuest.byteCount)
      }
    }
  }
}

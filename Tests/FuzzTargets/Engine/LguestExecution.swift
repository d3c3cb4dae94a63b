// SPDX-License-Identifier: Apache-2.0
// The targets of code under lguest: programs of levels 1 and 3 with traps, gates that the machine keeps, segments of every
// kind, hypercalls and debug registers. Each runs twice, with the light helpers and without, and must come to the same.

import Engine
import GuestMemory
import Host
import TestSupport
import X86

@testable import Paravirt
@testable import Translator

/// The same programs on two ring-1 guests, which share their per-CPU pages.
enum LguestExecution {
  /// What programs have come to.
  struct Coverage {
    /// Programs that were compared, and those that began at level 3 among them.
    var programs = 0, userPrograms = 0
    /// Exits by trap, and handlers of the guest's that ran, by vector.
    var traps: [UInt8: Int] = [:], handled: [UInt8: Int] = [:]
    /// Calls that programs made.
    var calls: [String: Int] = [:]

    fileprivate mutating func note(_ guest: LguestGuest, isUser: Bool, before: [UInt64]) {
      programs += 1
      if isUser { userPrograms += 1 }
      for case .trap(let trap) in guest.log.lazy.map(\.exit) { traps[trap.vector, default: 0] += 1 }
      for vector in UInt8(0)...255 {
        let count = guest.ram.loadWord(at: LguestSteps.count(of: vector)) ?? 0
        if count > 0 { handled[vector, default: 0] += Int(count) }
      }
      for (call, (now, before)) in zip(guest.host.calls, zip(guest.host.callCounts, before)) where now > before {
        if let call { calls["\(call)", default: 0] += Int(now - before) }
      }
    }
  }

  /// Programs of anything.
  static func run(_ input: inout FuzzInput) throws {
    var coverage = Coverage()
    try run(&input, isStepwise: false, patience: LguestGuest.patience, &coverage)
  }

  /// Programs that go on whatever a step comes to (LguestSteps.swift).
  ///
  /// - Parameters:
  ///   - patience: How long one may take, in ns.
  ///   - coverage: What has come of them is added to it.
  static func runSteps(_ input: inout FuzzInput, patience: UInt64, _ coverage: inout Coverage) throws {
    try run(&input, isStepwise: true, patience: patience, &coverage)
  }

  private static func run(
    _ input: inout FuzzInput, isStepwise: Bool, patience: UInt64, _ coverage: inout Coverage
  ) throws {
    try onPreparedThread {
      let pages = try LguestGuest.makePages()
      var choice = LguestGuest.Choice(&input)
      choice.place &= ~3
      choice.place = min(choice.place, LguestGuest.byteCount - 4096)
      let light = try LguestGuest(choice, pages, patience: patience)
      choice.lightPaths = false
      let guests = [light, try LguestGuest(choice, pages, patience: patience)]
      let end = HostClock.after(nanoseconds: 1_000_000_000)
      repeat {
        let seed = input.seed()
        let program = isStepwise ? LguestSteps.program(&input, choice.era) : program(&input)
        let beginning = Beginning(&input, isStepwise: isStepwise)
        var ends: [LguestGuest.End] = [], before: [UInt64] = []
        for guest in guests {
          try guest.settle()
          guest.reset()
          try beginning.apply(to: guest, program)
          if guest === light { before = guest.host.callCounts }
          var random = SeededGenerator(seed: seed)
          ends.append(try guest.run(&random, exits: 64))
        }
        // Where a kick comes is luck, and what it leads to stays in memory.
        if ends.contains(.kicked) { break }
        do { try compare(guests, ends) } catch {
          let code = program.map { String($0, radix: 16) }.joined(separator: " ")
          throw FuzzFailure("\(error); \(choice.era), level \(beginning.isUser ? 3 : 1): \(code)")
        }
        coverage.note(light, isUser: beginning.isUser, before: before)
      } while !input.isOver && HostClock.monotonic < end
    }
  }

  // MARK: Comparing

  private static func compare(_ guests: [LguestGuest], _ ends: [LguestGuest.End]) throws {
    let (a, b) = (guests[0], guests[1])
    for (number, (left, right)) in zip(a.log, b.log).enumerated() where left != right {
      throw FuzzFailure("exit \(number) is \(left) with light helpers, else \(right)")
    }
    if ends[0] != ends[1] || a.log.count != b.log.count { throw FuzzFailure("the ends are \(ends)") }
    let (first, second) = (state(a), state(b))
    for (left, right) in zip(Mirror(reflecting: first).children, Mirror(reflecting: second).children)
    where "\(left.value)" != "\(right.value)" {
      throw FuzzFailure("\(left.label ?? "") is \(left.value) with light helpers, else \(right.value)")
    }
    let count = Int(LguestGuest.byteCount)
    let (left, right) = (
      try a.memory.bytes(at: GuestPhysical(0), count: count), try b.memory.bytes(at: GuestPhysical(0), count: count)
    )
    if left != right, let place = left.indices.first(where: { left[$0] != right[$0] }) {
      throw FuzzFailure("RAM at \(String(place, radix: 16)) is \(left[place]) with light helpers, else \(right[place])")
    }
  }

  /// A state without the x87's pointers, which are the host's, and without which components are in their first state, of
  /// which the host's processor keeps its own account (SDM volume 1, 13.6).
  private static func state(_ guest: LguestGuest) -> CPUState {
    var state = guest.cpu.state
    for index in Array(6..<24) + Array(512..<520) { state.xsave[index] = 0 }
    return state
  }

  // MARK: The guest

  /// How a program begins.
  private struct Beginning {
    let isUser: Bool, isWide: Bool, isStepwise: Bool
    let interrupts: UInt32
    let gates: [(vector: UInt8, high: UInt8)]
    let returns: [UInt8]
    let descriptors: [UInt64]
    let registers: [UInt64]
    /// On the stack.
    let words: [UInt32]
    let flags: UInt64

    init(_ input: inout FuzzInput, isStepwise: Bool) {
      self.isStepwise = isStepwise
      isUser = input.chance(3)
      isWide = input.chance(2)
      interrupts = input.chance(2) ? 0x200 : 0
      gates = (0..<input.below(12)).map { _ in (input.byte() & 0x3F, input.choose([0, 0x8E, 0xEE, 0xEF, 0x8F, 0xAE])) }
      returns = (0..<256 / 8).map { _ in input.byte() }
      descriptors = (0..<14).map { _ in
        let kind = UInt64(
          input.choose([0x9A, 0x92, 0x93, 0xBA, 0xB2, 0xF2, 0xFA, 0xF6, 0x96, 0x9E, 0x12, 0x89, 0x82, 0xD2]))
        let size = UInt64(input.choose([0xCF, 0x4F, 0x0F, 0xC0, 0x40, 0x00]))
        return UInt64(input.word(UInt16.self)) | UInt64(input.chance(4) ? input.byte() : 0) << 32 | kind << 40 | size
          << 48
      }
      registers = (0..<8).map {
        $0 == 4
          ? LguestGuest.stack - UInt64(input.byte() & 0x3C)
          : input.value(addresses: LguestGuest.byteCount) & 0xFFFF_FFFF
      }
      words = (0..<16).map { _ in input.word() }
      flags =
        UInt64(input.word(UInt32.self)) & (RFLAGS.arithmetic | RFLAGS.df | RFLAGS.ac)
        | (input.chance(16) ? RFLAGS.tf : 0)
    }

    func apply(to guest: LguestGuest, _ program: [UInt8]) throws {
      guest.makeTables()
      guest.makeData()
      try guest.memory.copy(from: program, to: GuestPhysical(LguestGuest.code))
      guest.call(.initialize, UInt32(guest.choice.place))
      guest.call(.newPageTable, UInt32(isWide ? LguestGuest.wide : LguestGuest.narrow))
      for vector in UInt8(0)...255 { gate(guest, vector, [3, 4, 0x80].contains(vector) ? 0xEE : 0x8E) }
      // A program of steps changes its gates itself.
      for (vector, high) in isStepwise ? [] : gates { gate(guest, vector, high) }
      for (index, value) in descriptors.enumerated() { set(guest, UInt32(17 + index), value) }
      set(guest, 14, 0x00CF_FA00_0000_FFFF)
      set(guest, 15, 0x00CF_F200_0000_FFFF)
      guest.call(.setStack, 0x69, UInt32(LguestGuest.stack1), 2)
      guest.ram.store(interrupts, at: guest.choice.place + LguestDataLayout.irqEnabled)
      guest.ram.store(UInt32(0), at: guest.choice.place + LguestDataLayout.blockedInterrupts)
      var state = guest.cpu.state
      if isUser {
        state.cs = EngineGuest.segment(0x73, 0xC0FB)
        for path in [\CPUState.ss, \.ds, \.es] { state[keyPath: path] = EngineGuest.segment(0x7B, 0xC0F3) }
      }
      (state.rip, state.rflags) = (LguestGuest.code, flags | RFLAGS.ones | RFLAGS.if)
      for (number, value) in registers.enumerated() { state.registers[number] = value }
      for (index, word) in words.enumerated() {
        guest.ram.store(word, at: state.registers[4] + UInt64(index) * 4)
      }
      guest.cpu.state = state
      for vector in UInt8(0)...255 { guest.ram.store(UInt32(0), at: LguestSteps.count(of: vector)) }
    }

    /// A gate, and its handler: a call that ends the guest, or a return to the next or another place.
    private func gate(_ guest: LguestGuest, _ vector: UInt8, _ high: UInt8) {
      let handler = LguestSteps.handler(of: vector)
      guest.call(.loadIDTEntry, UInt32(vector), 0x61_0000 | handler & 0xFFFF, handler & ~0xFFFF | UInt32(high) << 8)
      let hasCode = [10, 11, 12, 13, 14, 17].contains(vector)
      var code: [UInt8] = [0xB8, 0x63, 0, 0, 0, 0xCD, LguestCall.vector]
      if returns[Int(vector / 8)] >> (vector & 7) & 1 != 0 {
        code = (hasCode ? [0x83, 0xC4, 0x04] : []) + [0x83, 0x04, 0x24, hasCode ? 2 : 0, 0xCF]
      }
      if isStepwise { code = LguestSteps.handler(vector, hasCode: hasCode) }
      for (index, byte) in code.enumerated() { guest.ram.store(byte, at: UInt64(handler) + UInt64(index)) }
    }

    private func set(_ guest: LguestGuest, _ index: UInt32, _ value: UInt64) {
      let (low, high) = (UInt32(truncatingIfNeeded: value), UInt32(truncatingIfNeeded: value >> 32))
      // Before 2.6.31 they come as a table.
      if guest.choice.era >= .linux2_6_31 { return guest.call(.loadGDTEntry, index, low, high) }
      let table: UInt64 = 0xF000
      if index == 17 {
        for other in UInt64(0)..<32 {
          guest.ram.store(
            [12: 0x00CF_9B00_0000_FFFF, 13: 0x00CF_9300_0000_FFFF][other] ?? UInt64(0), at: table + other * 8)
        }
      }
      guest.ram.store(value, at: table + UInt64(index) * 8)
      guest.call(.loadGDT, UInt32(table), 32)
    }
  }

  // MARK: Code

  private static func program(_ input: inout FuzzInput) -> [UInt8] {
    var bytes: [UInt8] = []
    let taste = ProgramWriter.Taste(is64: false, system: 6)
    for _ in 0..<(2 + input.below(12)) {
      bytes += input.chance(2) ? piece(&input) : ProgramWriter.program(&input, count: 4 + input.below(20), taste)
    }
    // A call that there is not ends the guest.
    return bytes + [0xB8, 0x63, 0, 0, 0, 0xCD, LguestCall.vector, 0x0F, 0x0B]
  }

  static func word(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }

  static func selector(_ input: inout FuzzInput) -> UInt32 {
    input.chance(3) ? UInt32(input.byte()) : input.choose([0x61, 0x69, 0x73, 0x7B, 0x33, 0x89, 0x91])
  }

  static func flags(_ input: inout FuzzInput) -> [UInt8] {
    [0x68] + word(input.chance(2) ? 0x202 : input.word())
  }

  /// - Parameter next: Where it goes, if it goes anywhere; nil: to anywhere nearby.
  static func piece(_ input: inout FuzzInput, to next: UInt32? = nil) -> [UInt8] {
    func target(_ input: inout FuzzInput) -> UInt32 {
      let nearby = UInt32(LguestGuest.code) + UInt32(input.byte())
      return next ?? nearby
    }
    switch input.byte() % 12 {
    case 0, 1:
      // A call, by every instruction that may be one.
      var bytes: [UInt8] = [0xB8, input.byte() % 21, 0, 0, 0]
      for register in [UInt8(1), 2, 3] where input.chance(2) { bytes += [0xB8 | register] + word(argument(&input)) }
      return bytes + input.choose([[0xCD, 0x1F], [0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9], [0xCD, 0x1F]])
    case 2:
      // To level 3.
      let stack = UInt32(LguestGuest.stack) - UInt32(input.byte() & 0x3C)
      return [0x68] + word(input.chance(4) ? selector(&input) : 0x7B) + [0x68] + word(stack) + flags(&input)
        + [0x68] + word(input.chance(4) ? selector(&input) : 0x73) + [0x68] + word(target(&input)) + [0xCF]
    case 3: return flags(&input) + [0x68] + word(selector(&input)) + [0x68] + word(target(&input)) + [0xCF]
    case 4: return [0xCD, input.choose([3, 4, 0x80, 0x20, 0x1F, 1, 2, 8, 13, 14])]
    case 5: return input.choose([[0xCC], [0xCE], [0xF1], [0xFA], [0xFB], [0xF4], [0x0F, 0x0B], [0x0F, 0x06]])
    case 6: return [0x66, 0xB8, UInt8(selector(&input)), 0, 0x8E, 0xC0 | input.byte() & 0x38]
    case 7: return [0x0F, input.choose([0x20, 0x21, 0x22, 0x23]), 0xC0 | input.byte() & 0x3F]
    case 8:
      // A breakpoint nearby: DR0 to DR3, then DR7.
      let enable = UInt32(1 << (input.byte() & 7)) | UInt32(input.word(UInt16.self)) << 16
      return [0xB8] + word(target(&input)) + [0x0F, 0x23, 0xC0 | input.byte() & 0x18, 0xB8] + word(enable) + [
        0x0F, 0x23, 0xF8,
      ]
    case 9: return flags(&input) + [0x9D]
    case 10:
      let transfers: [[UInt8]] = [
        [0x68] + word(selector(&input)) + [0x68] + word(target(&input)) + [0xCB],
        [0xEA] + word(target(&input)) + [UInt8(selector(&input)), 0],
        [0x9A] + word(target(&input)) + [UInt8(selector(&input)), 0],
      ]
      return input.choose(transfers)
    default:
      // The guest's own flag.
      return [0xC7, 0x05] + word(UInt32(LguestGuest.data) + 0x4000) + word(input.chance(2) ? 0 : 0x200)
    }
  }

  private static func argument(_ input: inout FuzzInput) -> UInt32 {
    let tables = [LguestGuest.narrow, LguestGuest.wide]
    return switch input.byte() % 4 {
    case 0: UInt32(input.choose(tables))
    case 1: UInt32(input.byte())
    default: UInt32(truncatingIfNeeded: input.value(addresses: LguestGuest.byteCount))
    }
  }
}

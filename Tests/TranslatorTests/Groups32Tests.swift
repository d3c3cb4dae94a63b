// SPDX-License-Identifier: Apache-2.0
// Accesses that share a check in 32-bit code, where addresses wrap at 4 GiB in the middle of a group: random straight
// lines run with groups and, one instruction a block, without. Registers, memory and what reached the bus must be the
// same, and the checker must find every access inside its check.

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

/// A vCPU in flat 32-bit protected mode without paging.
private final class Flat32Guest {
  static let code: UInt64 = 0x10000
  let memory: GuestMemory
  let translation: Translation
  let cpu: TranslatedCPU
  private(set) var bus: [String] = []

  init(singleInstruction: Bool) throws {
    memory = try GuestMemory(byteCount: 1 << 20)
    var options = TranslationOptions(cpuid: [CPUIDTable([])], supports: { _ in true })
    options.singleInstruction = singleInstruction
    options.softFaultLimit = 1
    translation = try Translation(memory: memory, options: options)
    translation.cache.hotCode.isEverything = !singleInstruction
    cpu = try translation.makeCPU(0)
  }

  /// Runs to the HLT; what lies outside RAM is a device that answers with its address. `stackUpper`: what is left in the
  /// upper half of RSP.
  func run(_ code: [UInt8], _ registers: [UInt32], stackUpper: UInt64 = 0) throws {
    var state = CPUState()
    state.cs = Segment(selector: 8, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC09B)
    for path in [\CPUState.ss, \.ds, \.es, \.fs, \.gs] {
      state[keyPath: path] = Segment(selector: 16, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC093)
    }
    state.cr0 = 0x33
    state.rip = Flat32Guest.code
    for (number, value) in registers.enumerated() { state.registers[number] = UInt64(value) }
    state.registers[4] |= stackUpper
    cpu.state = state
    bus = []
    try memory.copy(from: code, to: GuestPhysical(Flat32Guest.code))
    for _ in 0..<100_000 {
      let exit = cpu.run()
      switch exit {
      case .halt: return
      case .mmioRead(let address, _):
        bus.append("\(exit)")
        cpu.completeRead(address &* 0x9E37_79B9)
      case .mmioWrite: bus.append("\(exit)")
      // A program that overwrites itself ends somehow, and both must end the same way.
      case .failed:
        Issue.record("the engine says \(exit)")
        return
      default:
        bus.append("\(exit)")
        return
      }
    }
    Issue.record("a program without end")
  }
}

@Suite("Groups in 32-bit code", .serialized) struct Groups32Tests {
  /// MOV, ADD and the like with [base + displacement]; PUSH, POP; what moves ESI, EBX and ESP.
  private static func program(_ random: inout SeededGenerator) -> [UInt8] {
    func below(_ bound: UInt64) -> UInt64 { random.next() % bound }
    func long(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) } }
    var code: [UInt8] = []
    for _ in 0..<3 + below(12) {
      let register = UInt8([0, 1, 2, 5, 7][Int(below(5))])
      // EBX, ESI, and EBX + EDI * 4.
      let base: UInt8 = below(2) == 0 ? 3 : 6
      switch below(14) {
      case 0...4:
        let opcode = [0x8B, 0x89, 0x03, 0x01, 0x8A][Int(below(5))] as UInt8
        if below(4) == 0 {
          let displacement = (below(2) == 0 ? 0 : 0xFFFF_0000) &+ UInt32(below(64))
          code += [opcode, 0x84 | register << 3 & 0x38, 0xBB] + long(displacement)
        } else if below(6) == 0 {
          code += [opcode, 0x80 | register << 3 | base] + long(0xFFFE_FFF0 &+ UInt32(below(32)))
        } else {
          code += [opcode, 0x40 | register << 3 | base, UInt8(truncatingIfNeeded: below(80) &- 40)]
        }
      case 5: code += [0x83, 0xC0 | base, UInt8(truncatingIfNeeded: below(32) &- 16)]
      case 6: code += [below(2) == 0 ? 0x46 : 0x4B]
      case 7: code += [0x8D, 0x40 | base << 3 | base, UInt8(truncatingIfNeeded: below(32) &- 16)]
      case 8, 9: code += (below(4) == 0 ? [0x66] : []) + [0x50 | register]
      case 10: code += (below(3) == 0 ? [0x66] : []) + [0x58 | register]
      case 11: code += [below(2) == 0 ? 0xA1 : 0xA3] + long(UInt32(0x20000 + below(64)))
      case 12: code += [[0x8B, 0x89, 0x01][Int(below(3))], 0x05 | register << 3] + long(UInt32(0x20000 + below(64)))
      default: code += [0x66, 0x83, 0xC0 | base, UInt8(below(16))]
      }
    }
    return code + [0xF4]
  }

  private static func register(_ random: inout SeededGenerator) -> UInt32 {
    let low = UInt32(truncatingIfNeeded: random.next() % 96)
    switch random.next() % 8 {
    case 0: return 0 &- low
    case 1: return low
    case 2: return 0x30000 &- low
    case 3: return 0x2_0000 + low
    default: return 0x30000 + low * 8
    }
  }

  @Test("the same as one by one, wrapping or not") func agreement() throws {
    let grouped = try Flat32Guest(singleInstruction: false)
    let single = try Flat32Guest(singleInstruction: true)
    var random = SeededGenerator(seed: TestSeed.of("groups in 32-bit code", fixed: 0x32))
    var wrapped = 0
    for number in 0..<4000 {
      let code = Self.program(&random)
      var registers = (0..<8).map { _ in Self.register(&random) }
      registers[7] = UInt32(truncatingIfNeeded: random.next() % 8 &- 4)
      if number % 4 != 0 { registers[4] = 0x40000 + UInt32(random.next() % 64) }
      for guest in [grouped, single] { try guest.run(code, registers) }
      let text = "number \(number): " + code.map { String($0, radix: 16) }.joined(separator: " ") + " \(registers)"
      for register in 0..<8 {
        #expect(
          grouped.cpu.state.registers[register] == single.cpu.state.registers[register], "register \(register), \(text)"
        )
      }
      #expect(grouped.bus == single.bus, "\(text)")
      for page in [0, 0x10000, 0x20000, 0x2F000, 0x30000, 0x3F000, 0x40000] as [UInt64] {
        for offset in stride(from: UInt64(0), to: 4096, by: 8) {
          let place = GuestPhysical(page + offset)
          let (a, b) = try (grouped.memory.load(UInt64.self, at: place), single.memory.load(UInt64.self, at: place))
          if a != b { Issue.record("memory \(page + offset): \(a) \(b), \(text)") }
        }
      }
      #expect(grouped.translation.cache.refusal == nil, "\(text)")
      if !grouped.bus.isEmpty { wrapped += 1 }
    }
    #expect(wrapped > 400)
  }

  /// What 64-bit mode has left above ESP hits the empty entry of the stack's, whose access then faults in the host.
  @Test("something in the upper half of RSP", arguments: [0, 1 << 63, 0xFFFF_FFFF << 32] as [UInt64])
  func upperHalf(upper: UInt64) throws {
    for first in ["es", "movzx", "push_pop", "fstp", "high_byte", "pop_gs", "add", "push_esi"] {
      for isSingle in [false, true] {
        let guest = try Flat32Guest(singleInstruction: isSingle)
        try guest.memory.store(UInt32(0), at: GuestPhysical(0x30010))
        try guest.memory.store(UInt32(0x1234_0000), at: GuestPhysical(0x30014))
        let code = GuestProgram("upper_" + first).bytes
        try guest.run(code, [0, 0, 0, 0, 0x30010, 0, 0, 0], stackUpper: upper)
        #expect(guest.bus.isEmpty && guest.translation.counters.softFaults == 0)
        #expect(guest.cpu[register: 2] == guest.cpu[register: 1], "\(first)")
        // POP GS and PUSH EAX came to the same place; what was stored there is zero.
        #expect(guest.cpu[register: 4] & 0xFFFF_FFFF == 0x30010, "\(first)")
      }
    }
  }
}

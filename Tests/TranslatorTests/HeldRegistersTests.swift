// SPDX-License-Identifier: Apache-2.0
// Guest registers that live in the vCPU page pass from instruction to instruction in scratch registers: random straight
// lines, mostly about those registers, run as blocks and, one instruction a block, without that. Registers, flags and
// memory must be the same. The single instructions are compared with the host's elsewhere (DifferentialTests).

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

/// Writes random instructions of 64-bit mode that neither fault nor jump backwards.
private struct StraightLine {
  var random: SeededGenerator
  var code: [UInt8] = []

  mutating func below(_ bound: UInt64) -> UInt64 { random.next() % bound }
  mutating func one(of values: [UInt8]) -> UInt8 { values[Int(below(UInt64(values.count)))] }

  /// Not RSP, nor RSI, which points to the data; mostly those of the page.
  mutating func register() -> UInt8 {
    below(4) == 0 ? one(of: [0, 1, 2, 3, 5, 7, 8, 12, 13]) : one(of: [9, 10, 11, 14, 15])
  }

  /// An instruction with two registers in ModRM.
  mutating func two(_ opcode: [UInt8], _ reg: UInt8, _ rm: UInt8, immediate: [UInt8] = []) {
    let width = below(5)
    if width == 0 { code.append(0x66) }
    let rex = 0x40 | (width > 2 ? 8 : 0) | (reg >> 3) << 2 | rm >> 3
    code += [rex] + opcode + [0xC0 | (reg & 7) << 3 | rm & 7] + immediate
  }

  /// The same with [RSI + displacement].
  mutating func memory(_ opcode: UInt8, _ reg: UInt8) {
    code += [0x48 | (reg >> 3) << 2, opcode, 0x40 | (reg & 7) << 3 | 6, UInt8(below(100))]
  }

  /// A VEX-coded instruction of map 2 or 3.
  mutating func vex(
    map: UInt8, prefix: UInt8, _ opcode: UInt8, _ reg: UInt8, _ vvvv: UInt8, _ rm: UInt8, immediate: [UInt8] = []
  ) {
    let first = (reg >> 3 ^ 1) << 7 | 0x40 | (rm >> 3 ^ 1) << 5 | map
    code += [0xC4, first, 0x80 | (~vvvv & 15) << 3 | prefix, opcode, 0xC0 | (reg & 7) << 3 | rm & 7] + immediate
  }

  /// CMP: some instructions leave flags undefined, and what reads flags must not see those.
  mutating func compare() { two([0x39], register(), register()) }

  mutating func instruction() {
    let a = register(), b = register()
    switch below(33) {
    case 0...7: two([one(of: [0x01, 0x09, 0x21, 0x29, 0x31, 0x39, 0x85, 0x03, 0x0B, 0x23, 0x2B, 0x33, 0x3B])], a, b)
    case 8...11: two([one(of: [0x89, 0x8B])], a, b)
    case 12: two([one(of: [0x88, 0x8A, 0x00, 0x28, 0x32])], a, b)
    case 13: two([0x83], one(of: [0, 1, 4, 5, 6, 7]), b, immediate: [UInt8(below(256))])
    case 14, 15: two([0xC1], one(of: [0, 1, 4, 5, 7]), b, immediate: [UInt8(below(40))])
    case 16: two([0xD3], one(of: [0, 1, 4, 5, 7]), b)
    case 17: two([0xF7], one(of: [2, 3]), b)
    case 18: two([0xFF], one(of: [0, 1]), b)
    case 19: two([0x0F, one(of: [0xAF, 0xB6, 0xB7, 0xBE, 0xBF, 0xBC, 0xBD, 0xA3, 0xAB, 0xC1, 0xB1])], a, b)
    case 20:
      compare()
      two([0x0F, 0x40 | UInt8(below(16))], a, b)
    case 21:
      compare()
      two([0x0F, 0x90 | UInt8(below(16))], 0, b)
    case 22: two([0x87], a, b)
    case 32:
      compare()
      if below(2) == 0 {
        two([one(of: [0x11, 0x19, 0x13, 0x1B])], a, b)
      } else {
        two([one(of: [0x83, 0xC1])], one(of: [2, 3]), b, immediate: [UInt8(below(40))])
      }
    case 23: code += [0x48 | a >> 3, 0x0F, 0xC8 | a & 7]
    case 24:
      // LEA with an index that is not RSP.
      code += [0x48 | (a >> 3) << 2 | (b >> 3) << 1, 0x8D, 0x44 | (a & 7) << 3, (b & 7) << 3 | 6, UInt8(below(256))]
    case 25: code += [0x48 | a >> 3, 0xC7, 0xC0 | a & 7] + (0..<4).map { _ in UInt8(below(256)) }
    case 26: code += [0x41, (below(2) == 0 ? 0x50 : 0x58) | one(of: [1, 2, 3, 6, 7])]
    case 27: memory(one(of: [0x8B, 0x89, 0x01, 0x03, 0x39, 0x31]), a)
    case 28:
      // AND b, 7Fh; MOV a, [RSI + b].
      code += [0x40 | b >> 3, 0x83, 0xE0 | b & 7, 0x7F]
      code += [
        0x48 | (a >> 3) << 2 | (b >> 3) << 1, one(of: [0x8B, 0x89, 0x33]), 0x04 | (a & 7) << 3, (b & 7) << 3 | 6,
      ]
    case 29:
      // LEA b, [RSI + 64]; MOV a, [b + 8].
      code += [0x48 | (b >> 3) << 2, 0x8D, 0x46 | (b & 7) << 3, 64]
      code += [0x48 | (a >> 3) << 2 | b >> 3, one(of: [0x8B, 0x89, 0x01]), 0x40 | (a & 7) << 3 | b & 7]
      // R12 as a base wants a SIB byte.
      if b & 7 == 4 { code.append(0x24) }
      code.append(8)
    case 30:
      let c = register()
      switch below(5) {
      case 0: vex(map: 2, prefix: 0, 0xF2, a, b, c)  // ANDN
      case 1: vex(map: 2, prefix: 1, 0xF7, a, b, c)  // SHLX
      case 2: vex(map: 2, prefix: 3, 0xF6, a, b, c)  // MULX
      case 3: vex(map: 2, prefix: 0, 0xF3, one(of: [1, 2, 3]), b, c)  // BLSR, BLSMSK, BLSI
      default: vex(map: 3, prefix: 3, 0xF0, a, 0, c, immediate: [UInt8(below(64))])  // RORX
      }
    default:
      // Jcc over the next instruction.
      compare()
      let place = code.count
      code += [0x70 | UInt8(below(16)), 0]
      instruction()
      code[place + 1] = UInt8(code.count - place - 2)
    }
  }

  /// A program that ends with HLT.
  mutating func program() -> [UInt8] {
    code = []
    for _ in 0..<4 + below(24) { instruction() }
    compare()
    return code + [0xF4]
  }
}

@Suite("Registers held in scratch registers", .serialized) struct HeldRegistersTests {
  @Test("the same as one by one") func agreement() throws {
    let whole = try FlatGuest(), single = try FlatGuest(singleInstruction: true)
    for guest in [whole, single] { guest.translation.cache.hotCode.isEverything = guest === whole }
    var line = StraightLine(random: SeededGenerator(seed: TestSeed.of("held registers", fixed: 0x9E37)))
    var blocks = 0
    for number in 0..<6000 {
      let code = line.program()
      var start = whole.cpu.state
      start.rip = 0x10000
      for register in 0..<16 { start.registers[register] = line.random.next() }
      start.registers[4] = 0x80000
      start.registers[6] = 0x50000
      start.rflags = 2 | line.random.next() & 0x8D5
      let before = whole.translation.cache.blockCount
      for guest in [whole, single] {
        guest.cpu.state = start
        try guest.load(code)
        let exit = guest.cpu.run()
        guard case .halt = exit else {
          Issue.record("number \(number): \(exit)")
          return
        }
      }
      let (a, b) = (whole.cpu.state, single.cpu.state)
      var failed = a.rflags != b.rflags
      let text = "number \(number): " + code.map { String($0, radix: 16) }.joined(separator: " ")
      for register in 0..<16 where a.registers[register] != b.registers[register] {
        failed = true
        Issue.record("register \(register): \(a.registers[register]) \(b.registers[register]), \(text)")
      }
      #expect(a.rflags == b.rflags, "\(text)")
      for page in [0x50000, 0x7F000, 0x80000] as [UInt64] {
        for offset in stride(from: UInt64(0), to: 4096, by: 8) {
          let place = GuestPhysical(page + offset)
          let (a, b) = try (whole.memory.load(UInt64.self, at: place), single.memory.load(UInt64.self, at: place))
          if a == b { continue }
          failed = true
          Issue.record("memory \(page + offset): \(a) \(b), \(text)")
        }
      }
      #expect(whole.translation.cache.refusal == nil, "\(text)")
      if failed { return }
      blocks += Int(whole.translation.cache.blockCount - before)
    }
    #expect(blocks > 6000)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Changes one thing in the emitted code of a block: a field of an instruction, or a few instructions for a few others.

import CHost
import X86

@testable import Translator

/// What is changed.
enum MutantKind: String, CaseIterable {
  case displacement = "displacement"
  case base = "base register"
  case index = "index register"
  case scale = "scale"
  case register = "register operand"
  case prefix = "REX or VEX"
  case immediate = "immediate"
  case condition = "condition"
  case target = "branch target"
  case removal = "removal"
  case swap = "swap"
  case opcode = "opcode"
  case byte = "any byte"
  case sequence = "a few instructions"
}

/// Other bytes at a place.
struct Mutant {
  var kind: MutantKind
  var place: Int
  var bytes: [UInt8]
}

/// Makes them.
struct Mutator {
  var random: Random

  private static func little(_ value: Int, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }

  private static func signed(_ bytes: ArraySlice<UInt8>) -> Int {
    var value = 0
    for byte in bytes.reversed() { value = value << 8 | Int(byte) }
    let unused = 64 - bytes.count * 8
    return unused > 0 && unused < 64 ? (value << unused) >> unused : value
  }

  /// A mutant of the instruction `number`; nil if it has nothing of that kind.
  mutating func mutant(_ kind: MutantKind, of code: MutantCode, _ number: Int) -> Mutant? {
    let step = code.steps[number]
    var bytes = code.bytes(step.place..<step.next)
    let old = bytes
    let fields = HostFields(bytes, hasModRM: step.i.hasModRM)
    let isBranch = [.jcc, .loop, .jump, .call].contains(step.rule)
    switch kind {
    case .displacement:
      guard fields.displacementBytes > 0 else { return nil }
      let range = fields.displacement..<fields.displacement + fields.displacementBytes
      bytes.replaceSubrange(
        range,
        with: Mutator.little(
          displacement(Mutator.signed(bytes[range]), step, code), fields.displacementBytes))
    case .base:
      guard step.i.isMemory, step.rule != .nop else { return nil }
      changeBase(&bytes, fields)
    case .index:
      guard fields.sib >= 0 else { return nil }
      if random.chance(70) {
        bytes[fields.sib] ^= UInt8(1 + random.below(7)) << 3
      } else {
        flip(&bytes, fields, rex: 2)
      }
    case .scale:
      guard fields.sib >= 0 else { return nil }
      bytes[fields.sib] ^= UInt8(1 + random.below(3)) << 6
    case .register:
      guard changeRegister(&bytes, fields, step) else { return nil }
    case .prefix:
      if fields.rex >= 0 {
        bytes[fields.rex] ^= 1 << UInt8(random.below(4))
      } else if fields.vex >= 0 {
        bytes[fields.vex + 1 + random.below(fields.vexBytes - 1)] ^= 1 << UInt8(random.below(8))
      } else {
        return nil
      }
    case .immediate:
      guard !isBranch, fields.immediateBytes > 0 else { return nil }
      let range = fields.immediate..<fields.immediate + fields.immediateBytes
      bytes.replaceSubrange(
        range, with: Mutator.little(immediate(Mutator.signed(bytes[range]), range.count), range.count))
    case .condition:
      guard step.rule == .jcc || step.rule == .loop else { return nil }
      bytes[fields.opcode] ^=
        step.rule == .loop
        ? UInt8(1 + random.below(3))
        : random.chance(40) ? 1 : UInt8(1 + random.below(15))
    case .target:
      guard isBranch, fields.immediateBytes > 0 else { return nil }
      let target = target(step, number, code)
      let distance = target - step.next
      if fields.immediateBytes == 1 && Int(Int8(truncatingIfNeeded: distance)) != distance { return nil }
      let range = fields.immediate..<fields.immediate + fields.immediateBytes
      bytes.replaceSubrange(range, with: Mutator.little(distance, range.count))
    case .removal: bytes = [UInt8](repeating: 0x90, count: bytes.count)
    case .swap:
      guard number + 1 < code.steps.count, code.steps[number + 1].place == step.next else { return nil }
      let both = step.place..<code.steps[number + 1].next
      let swapped = code.bytes(step.next..<both.upperBound) + bytes
      return swapped == code.bytes(both) ? nil : Mutant(kind: kind, place: step.place, bytes: swapped)
    case .opcode:
      bytes[fields.opcode] ^= random.chance(50) ? 2 : 1 << UInt8(random.below(8))
    case .byte:
      bytes[random.below(bytes.count)] ^= UInt8(1 + random.below(255))
    case .sequence:
      let others = sequence()
      var end = number
      while code.steps[end].next - step.place < others.count {
        guard end + 1 < code.steps.count, code.steps[end + 1].place == code.steps[end].next else { return nil }
        end += 1
      }
      let rest = code.steps[end].next - step.place - others.count
      return Mutant(kind: kind, place: step.place, bytes: others + [UInt8](repeating: 0x90, count: rest))
    }
    return bytes == old ? nil : Mutant(kind: kind, place: step.place, bytes: bytes)
  }

  /// A few instructions that take what the scratch registers hold to the guest by ways that are easily overlooked, or
  /// leave the shadow stack or an address other than it was.
  private mutating func sequence() -> [UInt8] {
    // T2, T1, T0.
    let scratch = UInt8(13 + random.below(3)) & 7
    func move(_ register: UInt8) -> [UInt8] { [0x4C, 0x89, 0xC0 | scratch << 3 | register] }
    func clear(_ register: UInt8) -> [UInt8] { [0xB8 | register, 0, 0, 0, 0] }
    let rax: UInt8 = 0, rcx: UInt8 = 1, rdx: UInt8 = 2, rsi: UInt8 = 6
    switch random.below(21) {
    case 0: return move(rax) + [0x48, 0x93] + clear(rax)  // XCHG RAX,RBX
    case 1: return move(rax) + [0x48, 0xF7, 0xE3] + clear(rax)  // MUL RBX
    case 2: return move(rdx) + [0xC4, 0xE2, 0xFB, 0xF6, 0xD9] + clear(rdx)  // MULX RBX,RAX,RCX
    case 3: return move(rcx) + [0xE2, 0]  // LOOP
    case 4: return move(rcx) + [0x48, 0xD3, 0xE3] + clear(rcx)  // SHL RBX,CL
    case 5: return move(rax) + [0x48, 0x99] + clear(rax)  // CQO
    case 6: return move(rax) + [0x48, 0x0F, 0xB1, 0xCB] + clear(rax)  // CMPXCHG RBX,RCX
    case 7: return [0x66, 0x44, 0x8D, 0x03 | scratch << 3] + move(rsi)  // LEA r16,[RBX]
    case 8: return [0x66, 0x41, 0xB8 | scratch, 1, 0] + move(rsi)  // MOV r16
    case 9: return [0x66, 0x41, 0xC7, 0xC0 | scratch, 1, 0] + move(rsi)
    case 10: return [0x41, 0xB0 | scratch, 1] + move(rsi)  // MOV r8
    case 11: return [0x41, 0x81, 0xF8 | scratch, 0, 0, 1, 0, 0x0F, 0x92, 0xC0]  // CMP; SETB AL
    case 12: return [0x41, 0xC1, 0xE8 | scratch, 20, 0x0F, 0x92, 0xC0]  // SHR; SETB AL
    case 13: return [0x49, 0xFF, 0xC0 | scratch, 0x0F, 0x98, 0xC0]  // INC; SETS AL
    case 14: return move(rax) + [0x3D, 0, 0, 1, 0, 0x0F, 0x92, 0xC3] + clear(rax)  // CMP EAX; SETB BL
    case 15: return [0x50 | UInt8(random.below(2))]  // PUSH
    case 16: return [0x49, 0x90]  // XCHG RAX,R8
    case 17: return [0x49, 0x89, 0xC0 | scratch]  // MOV scratch,RAX
    case 18: return [0x48, 0x8D, 0x64, 0x24, random.chance(50) ? 8 : 16]  // LEA RSP,[RSP+n]
    case 19: return [0x4D, 0x89, 0xC7 | scratch << 3, 0x4C, 0x3B, 0x7C, 0x24, 0x08, 0x0F, 0x92, 0xC0]  // CMP T0,[RSP+8]
    default:
      // ADD T0, [an entry of a table].
      let table = Int(CHOST_TLB_READ) + random.below(4) * Int(CHOST_TLB_BYTES) + random.below(4) * 8
      return [0x4D, 0x03, 0xBB] + Mutator.little(table, 4)
    }
  }

  private mutating func displacement(_ old: Int, _ step: HostStep, _ code: MutantCode) -> Int {
    let sign = random.chance(50) ? 1 : -1
    switch random.below(12) {
    case 0: return old + sign
    case 1: return old + sign * (1 + random.below(16))
    case 2, 3: return old + sign * max(step.size, 1)
    case 4: return old + sign * 8
    case 5: return old + sign * 16
    case 6: return old + sign * 64
    case 7: return old + sign * 4096
    case 8: return old ^ 1 << 31
    case 9: return 0 - old
    case 10:
      // That of another instruction of the block.
      let other = code.steps[random.below(code.steps.count)].i
      return other.isMemory ? Int(other.displacement) : old + sign
    default: return random.chance(50) ? random.below(2048) - 128 : Int(Int32(truncatingIfNeeded: random.next()))
    }
  }

  private mutating func changeBase(_ bytes: inout [UInt8], _ fields: HostFields) {
    if random.chance(40) && fields.rex >= 0 || random.chance(20) {
      flip(&bytes, fields, rex: 1)
    } else if fields.sib >= 0 {
      bytes[fields.sib] ^= UInt8(1 + random.below(7))
    } else {
      // Not to the form with SIB, which is longer.
      let low = bytes[fields.modRM] & 7
      var new = UInt8(random.below(8))
      while new == low || new == 4 { new = UInt8(random.below(8)) }
      bytes[fields.modRM] = bytes[fields.modRM] & ~7 | new
    }
  }

  /// Flips REX.B (1), REX.X (2) or REX.R (4), or VEX's.
  private func flip(_ bytes: inout [UInt8], _ fields: HostFields, rex bit: UInt8) {
    if fields.rex >= 0 {
      bytes[fields.rex] ^= bit
    } else if fields.vexBytes == 3 {
      bytes[fields.vex + 1] ^= bit << 5
    } else if fields.vexBytes == 2 && bit == 4 {
      bytes[fields.vex + 1] ^= 0x80
    }
  }

  private mutating func changeRegister(_ bytes: inout [UInt8], _ fields: HostFields, _ step: HostStep) -> Bool {
    let change = UInt8(1 + random.below(7))
    if step.row.form == .plus {
      if random.chance(30) && fields.rex >= 0 { bytes[fields.rex] ^= 1 } else { bytes[fields.opcode] ^= change }
      return true
    }
    guard fields.modRM >= 0 else { return false }
    if step.traits.vvvv.isGeneral && random.chance(30) {
      bytes[fields.vex + fields.vexBytes - 1] ^= change << 3
    } else if !step.i.isMemory && random.chance(50) {
      if random.chance(30) { flip(&bytes, fields, rex: 1) } else { bytes[fields.modRM] ^= change }
    } else if random.chance(30) {
      flip(&bytes, fields, rex: 4)
    } else {
      bytes[fields.modRM] ^= change << 3
    }
    return true
  }

  /// Another value for one of `count` bytes. It may be any of 64 bits, also the least, and is cut to size: so it wraps.
  private mutating func immediate(_ old: Int, _ count: Int) -> Int {
    let sign = random.chance(50) ? 1 : -1
    switch random.below(8) {
    case 0: return old &+ sign
    case 1: return old &+ sign &* (1 << random.below(7))
    case 2: return old &+ sign &* 4096
    case 3: return 0 &- old
    case 4: return old << 1
    case 5: return Int(truncatingIfNeeded: random.next())
    default: return old ^ 1 << random.below(count * 8)
    }
  }

  private mutating func target(_ step: HostStep, _ number: Int, _ code: MutantCode) -> Int {
    let stubs = code.block.stubs
    switch random.below(8) {
    case 0: return step.target + (random.chance(50) ? 1 : -1)
    case 1, 2:
      // The instruction before or behind where it goes.
      guard let there = code.number(at: step.target) else { return step.target + 16 }
      return code.steps[min(max(there + (random.chance(50) ? 1 : -1), 0), code.steps.count - 1)].place
    case 3: return code.steps[random.below(code.steps.count)].place
    case 4:
      let other = code.steps[random.below(code.steps.count)]
      return other.place + 1 + random.below(max(Int(other.i.length) - 1, 1))
    case 5:
      return random.pick([
        stubs.exit, stubs.tlbMiss, stubs.slotMiss, stubs.groupMiss, stubs.jumpMiss, stubs.branchMiss, stubs.callMiss,
        stubs.string, stubs.light,
      ])
    case 6:
      let half = random.chance(50) ? code.block.hot : code.block.cold
      return random.chance(50) ? half.upperBound : half.lowerBound - 16
    default: return step.target + Int(Int32(truncatingIfNeeded: random.next())) >> 8
    }
  }
}

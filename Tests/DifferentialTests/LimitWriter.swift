// SPDX-License-Identifier: Apache-2.0
// Programs whose accesses lie near the limits of what an encoding holds, relative to registers that move by known
// amounts in between; and accesses that need not happen, in front of others that rely on nothing but themselves.

import CNative
import X86

@testable import Translator

/// A straight line of such accesses, and the registers that make them land in the arena.
struct LimitProgram {
  /// What there is of each kind, in all programs of a run.
  enum Feature: String, CaseIterable {
    case nearInt32, nearInt16, nearInt8, moved, stackMoved, stackFar, indexed, segmentBase, emptyMask, prefetch,
      emptyRepeat, farConstant
    case x87Store, highByte, notCanonical
  }

  var bytes: [UInt8] = []
  var registers: [Int: UInt64] = [:]
  var bases: (fs: UInt64, gs: UInt64) = (0, 0)
  var features: Set<Feature> = []
  var touched: [UInt64] = []
}

/// Writes one.
struct LimitWriter {
  private var random: Random
  private let is32: Bool
  /// The processor minds offsets that are not canonical, whatever FS or GS adds (`Bench.mindsOffsets`).
  private let mindsOffsets: Bool
  private var program = LimitProgram()
  /// What registers hold at this point.
  private var current: [Int: UInt64] = [:]
  /// The displacement that was last used with a register.
  private var last: [Int: Int32] = [:]
  /// Bytes on the stack that may be popped.
  private var depth = 0

  private static let scratch = [0, 1, 2, 8, 10]
  /// RBX, RSI, R12, R13 and R14: in host registers of every kind, and in memory.
  private static let pointers = [3, 6, 12, 13, 14]
  /// RBP is the index.
  private static let index = 5
  static let bases: [UInt64] = [0, 1, UInt64(bitPattern: 1 - 65536), 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000]

  init(seed: UInt64, is32: Bool, mindsOffsets: Bool = false) {
    random = Random(seed: seed)
    self.is32 = is32
    self.mindsOffsets = mindsOffsets
  }

  private var mask: UInt64 { is32 ? 0xFFFF_FFFF : .max }
  private var pointers: [Int] { is32 ? [3, 6] : LimitWriter.pointers }
  private mutating func scratch() -> Int { is32 ? random.below(3) : random.pick(LimitWriter.scratch) }

  /// An address with RAM around it.
  private mutating func place() -> UInt64 {
    let window = random.pick(is32 ? [Arena.low, Arena.opposite] : [Arena.low, Arena.opposite, Arena.high])
    return window.base + 0x400 + UInt64(random.below(0x2400))
  }

  private static func hasRAM(_ address: UInt64) -> Bool {
    [Arena.low, Arena.opposite, Arena.high].contains {
      address >= $0.base + 0x100 && address < $0.base + 0x2F00
    }
  }

  /// A displacement near some limit.
  private mutating func displacement() -> Int32 {
    let near = Int32(random.below(300))
    switch random.below(8) {
    case 0, 1: return Int32.max - near
    case 2, 3: return Int32.min + near
    case 4: return (random.chance(50) ? 0x7FFF : -0x8000) + near - 150
    case 5: return (random.chance(50) ? 127 : -128) + near % 20 - 10
    case 6: return near - 150
    default: return Int32(truncatingIfNeeded: random.next())
    }
  }

  private mutating func note(_ displacement: Int32) {
    let distance = Int64(displacement)
    func isNear(_ limit: Int64) -> Bool { abs(distance - limit) <= 300 || abs(distance + limit) <= 300 }
    if isNear(1 << 31) { program.features.insert(.nearInt32) }
    if isNear(1 << 15) { program.features.insert(.nearInt16) }
    if abs(abs(distance) - 128) <= 20 { program.features.insert(.nearInt8) }
  }

  // MARK: Instructions

  private static func long(_ value: Int32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: UInt32(bitPattern: value) >> UInt32($0 * 8)) }
  }

  /// [base + index * scale + displacement] behind an opcode, with REX as needed.
  private mutating func operand(
    _ opcode: [UInt8], prefix: [UInt8] = [], reg: Int, base: Int?, index: Int? = nil, scale: Int = 0,
    _ displacement: Int32,
    wide: Bool = false
  ) -> [UInt8] {
    var rex: UInt8 = wide && !is32 ? 0x48 : 0
    if reg >= 8 { rex |= 0x44 }
    if let base, base >= 8 { rex |= 0x41 }
    let r = UInt8(reg & 7) << 3
    var tail: [UInt8]
    if let base {
      let isShort = displacement >= -128 && displacement <= 127 && random.chance(60)
      let mode: UInt8 = isShort ? 0x40 : 0x80
      if let index {
        tail = [mode | r | 4, UInt8(scale << 6 | index << 3 | base & 7)]
      } else if base & 7 == 4 {
        tail = [mode | r | 4, 0x24]
      } else {
        tail = [mode | r | UInt8(base & 7)]
      }
      tail += isShort ? [UInt8(truncatingIfNeeded: displacement)] : LimitWriter.long(displacement)
    } else {
      // The absolute form: with SIB in 64-bit mode, without in 32-bit code.
      tail = (is32 ? [r | 5] : [r | 4, 0x25]) + LimitWriter.long(displacement)
    }
    return prefix + (rex == 0 ? [] : [rex]) + opcode + tail
  }

  /// The instruction of an access to an operand; some with a register of their own.
  ///
  /// - Parameter isRAM: An x87 store whose exception is not masked may access memory or not, by the processor's vendor,
  ///   which shows where there is none.
  private mutating func access(
    base: Int?, index: Int?, scale: Int, _ d: Int32, prefix: [UInt8] = [], isRAM: Bool
  ) -> [UInt8] {
    let reg = scratch()
    let wide = random.chance(60)
    func plain(_ opcode: [UInt8], _ reg: Int, _ self: inout LimitWriter, more: [UInt8] = []) -> [UInt8] {
      self.operand(opcode, prefix: prefix + more, reg: reg, base: base, index: index, scale: scale, d, wide: wide)
    }
    switch random.below(isRAM ? 14 : 13) {
    case 0...3: return plain([0x8B], reg, &self)
    case 4, 5: return plain([0x89], reg, &self)
    case 6: return plain([random.pick([0x03, 0x01, 0x3B, 0x29])], reg, &self)
    case 7: return plain([0x0F, 0xB6], reg, &self)
    case 8: return plain([0x0F, 0x44], reg, &self)
    case 9: return operand([0x0F, 0x6F], prefix: prefix + [0xF3], reg: 3, base: base, index: index, scale: scale, d)
    case 10: return operand([0x0F, 0x7F], prefix: prefix + [0xF3], reg: 2, base: base, index: index, scale: scale, d)
    case 11:
      // AH or CH, which no REX prefix may stand before.
      guard base ?? 0 < 8 else { return plain([0x8B], reg, &self) }
      program.features.insert(.highByte)
      return operand(
        [random.pick([0x88, 0x8A])], prefix: prefix, reg: random.pick([4, 5]), base: base, index: index, scale: scale, d
      )
    case 12: return operand([0xDD], prefix: prefix, reg: 0, base: base, index: index, scale: scale, d)
    default:
      program.features.insert(.x87Store)
      return operand([random.pick([0xD9, 0xDD])], prefix: prefix, reg: 3, base: base, index: index, scale: scale, d)
    }
  }

  /// An access relative to a pointer that has RAM there, most of the time.
  private mutating func pointed(_ base: Int) {
    guard let value = current[base] else { return }
    let isIndexed = base != 4 && random.chance(25)
    let scale = random.below(4)
    let index = isIndexed ? current[LimitWriter.index] : nil
    for _ in 0..<8 {
      var d = last[base] ?? displacement()
      if random.chance(80) {
        let (moved, overflow) = d.addingReportingOverflow(Int32(random.below(64) - 32))
        if overflow { continue }
        d = moved
      }
      let address = (value &+ (index ?? 0) << UInt64(scale) &+ UInt64(bitPattern: Int64(d))) & mask
      guard LimitWriter.hasRAM(address) || random.chance(2), !Arena.isSystem(address) else { continue }
      note(d)
      last[base] = d
      if isIndexed { program.features.insert(.indexed) }
      program.bytes += access(
        base: base, index: isIndexed ? LimitWriter.index : nil, scale: scale, d, isRAM: LimitWriter.hasRAM(address))
      program.touched.append(address)
      return
    }
  }

  /// ADD, SUB, INC, DEC, LEA of a pointer.
  private mutating func move(_ register: Int) {
    guard let value = current[register] else { return }
    var amount = Int32(random.below(256) - 128)
    if random.chance(10) { amount = displacement() }
    let rex: UInt8 = 0x48 | (register >= 8 ? 1 : 0)
    let prefix: [UInt8] = is32 ? [] : [rex]
    let low = UInt8(register & 7)
    switch random.below(5) {
    case 0 where amount >= -128 && amount <= 127:
      program.bytes += prefix + [0x83, 0xC0 | low, UInt8(truncatingIfNeeded: amount)]
    case 1: program.bytes += prefix + [0x81, 0xC0 | low] + LimitWriter.long(amount)
    case 2:
      program.bytes += prefix + [0x81, 0xE8 | low] + LimitWriter.long(amount)
      return finishMove(register, value, 0 &- Int64(amount))
    case 3:
      program.bytes += operand([0x8D], reg: register, base: register, amount, wide: true)
    default:
      amount = random.chance(50) ? 1 : -1
      program.bytes += prefix + [0xFF, (amount == 1 ? 0xC0 : 0xC8) | low]
    }
    finishMove(register, value, Int64(amount))
  }

  private mutating func finishMove(_ register: Int, _ value: UInt64, _ amount: Int64) {
    program.features.insert(.moved)
    current[register] = (value &+ UInt64(bitPattern: amount)) & mask
  }

  private mutating func stack() {
    let size: UInt64 = is32 ? 4 : 8
    guard let value = current[4] else { return }
    program.features.insert(.stackMoved)
    switch random.below(4) {
    case 0, 1:
      program.bytes.append(0x50 | UInt8(random.below(3)))
      current[4] = value &- size
      depth += 1
    case 2 where depth > 0:
      program.bytes.append(0x58 | UInt8(random.below(3)))
      current[4] = value &+ size
      depth -= 1
    default:
      let amount = Int32(random.below(8) * 8) - 24
      program.bytes += (is32 ? [] : [0x48]) + [0x83, 0xC4, UInt8(truncatingIfNeeded: amount)]
      current[4] = value &+ UInt64(bitPattern: Int64(amount))
      depth = 0
    }
    if program.touched.last != value & ~7 { program.touched.append(value & ~7) }
  }

  /// An access through FS or GS, whose bases are odd.
  private mutating func segment() {
    let isFS = random.chance(50)
    let base = isFS ? program.bases.fs : program.bases.gs
    let target = place()
    let offset = target &- base
    if mindsOffsets && !Processor.isCanonical(offset) { return }
    let prefix: [UInt8] = [isFS ? 0x64 : 0x65]
    program.features.insert(.segmentBase)
    program.touched.append(target)
    if let d = Int32(exactly: Int64(bitPattern: offset)) {
      program.bytes += access(base: nil, index: nil, scale: 0, d, prefix: prefix, isRAM: true)
      // Where an empty slot's tag might be.
      if base & 63 == 1 && random.chance(30) {
        program.bytes += access(
          base: nil, index: nil, scale: 0, Int32(truncatingIfNeeded: 0 &- (base &- 1)), prefix: prefix, isRAM: false)
      }
    } else {
      let pointer = 7
      program.bytes += [0x48, 0xBF] + (0..<8).map { UInt8(truncatingIfNeeded: offset >> UInt64($0 * 8)) }
      program.bytes += access(base: pointer, index: nil, scale: 0, 0, prefix: prefix, isRAM: true)
    }
  }

  /// An instruction that names memory and does not access it, near what the next one accesses.
  private mutating func nothing(_ base: Int) {
    let d = last[base] ?? displacement()
    switch random.below(3) {
    case 0:
      program.features.insert(.prefetch)
      program.bytes += operand([0x0F, 0x18], reg: 1, base: base, d)
    case 1 where !is32:
      program.features.insert(.emptyMask)
      // VXORPS XMM1,XMM1,XMM1; VMASKMOVPS between XMM0 and [base + d] by it.
      program.bytes += [0xC5, 0xF0, 0x57, 0xC9]
      let b: UInt8 = base >= 8 ? 0 : 0x20
      var tail: [UInt8] = [0x80 | UInt8(base & 7)]
      if base & 7 == 4 { tail.append(0x24) }
      program.bytes += [0xC4, 0xC2 | b, 0x71, random.pick([0x2C, 0x2E])] + tail + LimitWriter.long(d)
    default:
      program.features.insert(.emptyRepeat)
      program.bytes += [0x31, 0xC9, 0xF3, random.pick([0xA4, 0xAA, 0xAC])]
    }
  }

  /// A constant at the end of 64 bits, which a displacement leaves; the access is a fault.
  private mutating func farConstant() {
    let register = random.pick(pointers)
    let value = 1 << 63 &+ UInt64(random.below(64)) &- 32
    program.features.insert(.farConstant)
    program.bytes += [0x48 | (register >= 8 ? 1 : 0), 0xB8 | UInt8(register & 7)]
    program.bytes += (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    current[register] = value
    program.bytes += access(
      base: register, index: nil, scale: 0, random.chance(70) ? Int32(random.below(256) - 128) : displacement(),
      isRAM: false)
  }

  mutating func write() -> LimitProgram {
    program.bases = (random.pick(LimitWriter.bases), random.pick(LimitWriter.bases))
    current[LimitWriter.index] = UInt64(random.below(9))
    for pointer in pointers {
      let d = displacement()
      last[pointer] = d
      current[pointer] = (place() &- UInt64(bitPattern: Int64(d))) & mask
    }
    // A stack from which the far end of a displacement is RAM too.
    if !is32 && random.chance(40) {
      program.features.insert(.stackFar)
      let isLow = random.chance(50)
      current[4] = (isLow ? Arena.opposite.base : Arena.high.base) + 0x1800
      last[4] = isLow ? Int32.max - Int32(random.below(200)) : Int32.min + Int32(random.below(200))
    } else {
      current[4] = Arena.low.base + 0x1800 + UInt64(random.below(64))
      last[4] = Int32(random.below(64))
    }
    if !is32 && random.chance(3) {
      // What hits an empty entry of the stack's must not be taken for an access.
      program.features.insert(.notCanonical)
      current[4] = 1 << 63 &+ UInt64(random.below(256))
      last[4] = Int32(random.below(64))
    }
    for (number, value) in current { program.registers[number] = value }
    let favourite = random.pick(pointers)
    for _ in 0..<4 + random.below(10) {
      let pointer = random.chance(70) ? favourite : random.pick(pointers)
      switch random.below(12) {
      case 0...4: pointed(pointer)
      case 5, 6: move(pointer)
      case 7: pointed(4)
      case 8, 9: stack()
      case 10: if !is32 { segment() } else { pointed(pointer) }
      default: nothing(random.chance(30) ? 4 : pointer)
      }
    }
    if !is32 && random.chance(10) { farConstant() }
    program.bytes.append(0xF4)
    return program
  }
}

// SPDX-License-Identifier: Apache-2.0
// Random programs: straight lines of ordinary instructions with branches, calls and short loops between them, to find
// what single instructions cannot: flags lost or resurrected between instructions and across blocks.

import CNative
import X86

@testable import Translator

/// Code in pieces at several addresses.
struct Program {
  var pieces: [(address: UInt64, bytes: [UInt8])] = []
  var start: UInt64 = 0
  /// Where its HLT is.
  var end: UInt64 = 0
  /// It is meant to fault before its end.
  var faults = false
  /// Flags that are undefined at the end.
  var undefined: UInt8 = 0
}

/// Writes programs. Registers with a purpose are never written: RBX and R14 point at data, RSP at a stack, R10 counts.
/// In 32-bit code EBP does R14's work, and a word in memory R10's.
@safe struct ProgramWriter {
  private var random: Random
  private let table = OpcodeTable.shared
  private let decoder = Decoder()
  private let is32: Bool
  private var program = Program()
  private var cursor: UInt64 = 0
  private var piece: [UInt8] = []
  private var pieceStart: UInt64 = 0
  /// Flags that are undefined at this point.
  private var undefined: UInt8 = 0

  private var reserved: Set<UInt8> { is32 ? [3, 4, 5] : [3, 4, 10, 14] }
  private var registers: Int { is32 ? 8 : 16 }
  static let dataLow = Arena.low.base + 0x1800
  static let dataHigh = Arena.high.base + 0x1FC0
  /// Of 32-bit code.
  static let secondData = Arena.low.base + 0x1FC0
  static let counter = Arena.low.base + 0x2200
  static let stack = Arena.low.base + 0x2C00

  init(seed: UInt64, is32: Bool = false) {
    random = Random(seed: seed)
    self.is32 = is32
  }

  private struct Pools {
    var flags: [UInt16] = [], vector: [UInt16] = [], any: [UInt16] = []
  }
  private static let wide = pools { Generator.isComparable($0) }
  private static let narrow = pools { LegacyGenerator.isComparable($0) }

  private static func pools(_ isComparable: (Opcode) -> Bool) -> Pools {
    let table = OpcodeTable.shared
    var flags: [UInt16] = [], vector: [UInt16] = [], any: [UInt16] = []
    for number in 1..<UInt16(table.count) {
      let row = table[number]
      guard isComparable(row), row.flags != .divide, row.flags != .random else { continue }
      switch row.rule {
      case .copy, .lea, .bitMemory, .nop, .incDec32:
        any.append(number)
        if row.flags != .none { flags.append(number) }
      case .mmx, .sse, .avx, .x87: vector.append(number)
      default: break
      }
    }
    return Pools(flags: flags, vector: vector, any: any)
  }

  // MARK: Placing

  private mutating func append(_ bytes: [UInt8]) {
    piece += bytes
    cursor += UInt64(bytes.count)
  }

  private mutating func endPiece() {
    if !piece.isEmpty { program.pieces.append((pieceStart, piece)) }
    piece = []
    pieceStart = cursor
  }

  private static func rel32(_ from: UInt64, _ to: UInt64) -> [UInt8] {
    let value = UInt32(truncatingIfNeeded: to &- from)
    return (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) }
  }

  /// Now and then the program goes on somewhere else.
  private mutating func maybeMove() {
    guard random.chance(12) else { return }
    let target = cursor + 5 + UInt64(random.below(random.chance(50) ? 40 : 2500))
    append([0xE9] + ProgramWriter.rel32(cursor + 5, target))
    endPiece()
    cursor = target
    pieceStart = target
  }

  // MARK: Instructions

  /// One ordinary instruction.
  private mutating func instruction() -> [UInt8]? {
    let pools = is32 ? ProgramWriter.narrow : ProgramWriter.wide
    let kind = random.below(10)
    let number = random.pick(kind < 6 ? pools.flags : (kind < 8 ? pools.any : pools.vector))
    let row = table[number]
    var encoding = is32 ? random.encodeLegacy(row, is16: false) : random.encode(row)
    encoding.prefixes.removeAll { [0x67, 0x64, 0x65, 0x26, 0x2E, 0x36, 0x3E].contains($0) }
    guard let i = decode(encoding.bytes), i.row == number else { return nil }
    if row.rule == .bitMemory && i.isMemory { return nil }
    let traits = RowTraits(row)
    if i.isMemory && row.rule != .lea && row.rule != .nop {
      guard i.index == 0xFF, i.base == 3 || i.base == (is32 ? 5 : 14) else { return nil }
      if encoding.displacementBytes == 4 { encoding.displacement = Int32(random.below(0x100)) & ~31 }
      if encoding.displacementBytes == 1 { encoding.displacement &= ~31 }
      if !row.isVEX && row.attribute != .aligned && encoding.displacementBytes > 0 {
        encoding.displacement += Int32(random.below(8))
      }
      if traits.memoryBytes(i) > 64 { return nil }
    }
    func writes(_ use: FieldUse, _ register: UInt8) -> Bool {
      guard use.isGeneral && use.writes else { return false }
      return reserved.contains(use.isByte && i.isHighByte(register) ? register & 3 : register)
    }
    if writes(traits.reg, i.reg) || !i.isMemory && writes(traits.rm, i.rm) || writes(traits.vvvv, i.vvvv)
      || writes(traits.plus, i.rm) || row.rule == .lea && reserved.contains(i.reg)
      || row.rule == .incDec32 && reserved.contains(i.opcode & 7)
    {
      return nil
    }
    // CMPXCHG's and XADD's implicit targets are RAX; others name theirs.
    if row.flags.reads(condition: i.opcode) & undefined != 0 { return nil }
    undefined &= ~row.flags.writes
    undefined |= row.flags.undefined
    switch row.flags {
    case .shift: undefined |= ArithmeticFlags.cf
    case .doubleShift: undefined = ArithmeticFlags.all
    default: break
    }
    return encoding.bytes
  }

  private func decode(_ bytes: [UInt8]) -> Instruction? {
    let padded = bytes + [UInt8](repeating: 0xF4, count: 16)
    guard bytes.count <= 15, case .complete(let i) = decoder.decode(padded.span, code: is32 ? .code32 : .code64),
      Int(i.length) == bytes.count
    else { return nil }
    return i
  }

  private mutating func line(_ count: Int) {
    var done = 0
    while done < count {
      guard let bytes = instruction() else { continue }
      append(bytes)
      done += 1
      if random.chance(8) { stackPair() }
    }
  }

  /// PUSH and POP of registers that may be written.
  private mutating func stackPair() {
    let from = UInt8(random.below(registers))
    var to = UInt8(random.below(registers))
    while reserved.contains(to) { to = UInt8(random.below(registers)) }
    append(from >= 8 ? [0x41, 0x50 | from & 7] : [0x50 | from])
    if random.chance(50) { append([0x90]) }
    append(to >= 8 ? [0x41, 0x58 | to & 7] : [0x58 | to])
  }

  /// Jcc over a few instructions; a condition whose flags are defined.
  private mutating func conditional() {
    var condition = UInt8(random.below(16))
    for _ in 0..<16 where ArithmeticFlags.read(byCondition: condition) & undefined != 0 {
      condition = (condition + 1) & 15
    }
    guard ArithmeticFlags.read(byCondition: condition) & undefined == 0 else { return }
    let before = undefined
    // Two bytes if the skipped part stays short: written first, patched after.
    endPiece()
    let jump = cursor
    cursor += 6
    pieceStart = cursor
    line(1 + random.below(4))
    if random.chance(30) { maybeMove() }
    endPiece()
    program.pieces.append((jump, [0x0F, 0x80 | condition] + ProgramWriter.rel32(jump + 6, cursor)))
    undefined |= before
  }

  /// A loop of two or three rounds.
  private mutating func counted() {
    let counter = ProgramWriter.immediate(ProgramWriter.counter)
    let rounds = [UInt8(2 + random.below(2)), 0, 0, 0]
    append(is32 ? [0xC7, 0x05] + counter + rounds : [0x41, 0xBA] + rounds)  // MOV [counter] or R10D
    let top = cursor
    // What is undefined at the end of a round is so at the start of the next.
    undefined = ArithmeticFlags.all
    line(1 + random.below(5))
    if random.chance(50) { maybeMove() }
    append(is32 ? [0xFF, 0x0D] + counter : [0x41, 0xFF, 0xCA])  // DEC
    append([0x0F, 0x85] + ProgramWriter.rel32(cursor + 6, top))
    undefined &= ArithmeticFlags.cf
  }

  /// A call of a function that is written on the spot, over a jump.
  private mutating func call() {
    append([0xE9, 0, 0, 0, 0])
    let over = piece.count
    let function = cursor
    let before = undefined
    undefined = ArithmeticFlags.all
    line(1 + random.below(3))
    append(random.chance(30) ? [0xC2, 0, 0] : [0xC3])
    let after = undefined
    undefined = before
    let distance = ProgramWriter.rel32(function, cursor)
    for index in 0..<4 { piece[over - 4 + index] = distance[index] }
    line(1)
    if random.chance(70) {
      append([0xE8] + ProgramWriter.rel32(cursor + 5, function))
    } else {
      // MOV EAX; CALL RAX.
      let address = (0..<4).map { UInt8(truncatingIfNeeded: function >> UInt64($0 * 8)) }
      append([0xB8] + address + [0xFF, 0xD0])
    }
    undefined = after
  }

  private static func immediate(_ value: UInt64) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
  }

  /// A string instruction, repeated few times or not at all, and something that reads its flags.
  private mutating func string() {
    let count = random.pick([0, 0, 1, 2, 5, 17] as [UInt64])
    append([0xBE] + ProgramWriter.immediate(ProgramWriter.dataLow + UInt64(random.below(0x300))))
    append([0xBF] + ProgramWriter.immediate(ProgramWriter.dataLow + 0x100 + UInt64(random.below(0x300))))
    append([0xB9] + ProgramWriter.immediate(count))
    let backwards = random.chance(25)
    if backwards { append([0xFD]) }
    line(random.below(2))
    // RCX, RSI and RDI again: the line may have changed them.
    append([0xB9] + ProgramWriter.immediate(count))
    append([0xBE] + ProgramWriter.immediate(ProgramWriter.dataLow + UInt64(random.below(0x300))))
    append([0xBF] + ProgramWriter.immediate(ProgramWriter.dataLow + 0x100 + UInt64(random.below(0x300))))
    let repeated = random.chance(75)
    if repeated { append([random.chance(50) ? 0xF3 : 0xF2]) }
    if random.chance(30) && !is32 { append([0x48]) }
    let opcode = random.pick([0xA4, 0xA5, 0xA6, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAE, 0xAF] as [UInt8])
    append([opcode])
    if !repeated && [0xA6, 0xA7, 0xAE, 0xAF].contains(opcode) { undefined = 0 }
    if backwards { append([0xFC]) }
  }

  /// PUSHF and POP, or PUSH and POPF.
  private mutating func pushedFlags() {
    if random.chance(50) {
      guard undefined == 0 else { return }
      append([0x9C, 0x5F])
    } else {
      append([0x68] + ProgramWriter.immediate(random.next() & RFLAGS.arithmetic | 0x202) + [0x9D])
      undefined = 0
    }
  }

  /// Something that faults, in the middle of a block.
  private mutating func fault() {
    program.faults = true
    switch random.below(6) {
    case 0: append([0x0F, 0x0B])
    case 1: append([0x8B, 0x04, 0x25] + ProgramWriter.immediate(Arena.low.base + 0x3010))
    case 2: append([0x01, 0x0C, 0x25] + ProgramWriter.immediate(Arena.low.base + 0x5010))
    case 3: append([0x0F, 0x29, 0x43, 0x01])  // MOVAPS [RBX+1]
    case 4: append([0xB9, 0, 0, 0, 0, 0xF7, 0xF1])  // DIV by zero
    case _ where is32: append([0xFF, 0x35, 0, 0, 0, 0])  // PUSH [0]
    default:
      // Not canonical.
      append([0x68, 1, 0, 0, 0, 0x48, 0x89, 0xE1, 0x48, 0xC1, 0xE1, 0x20, 0x48, 0xC1, 0xE1, 0x0F, 0xFF, 0x31])
    }
    line(1)
  }

  /// A whole program.
  mutating func write() -> Program {
    program = Program()
    undefined = 0
    cursor = Arena.codeBase + 0x1000 + UInt64(random.below(0x1800))
    program.start = cursor
    pieceStart = cursor
    for _ in 0..<1 + random.below(4) {
      line(2 + random.below(6))
      switch random.below(7) {
      case 0, 1: conditional()
      case 2: counted()
      case 3: call()
      case 4: random.chance(50) ? maybeMove() : pushedFlags()
      case 5: string()
      default: break
      }
      if cursor > Arena.codeBase + 0x6000 { break }
    }
    line(1)
    if random.chance(20) { fault() }
    program.end = cursor
    append([0xF4])
    endPiece()
    program.undefined = undefined
    return program
  }
}

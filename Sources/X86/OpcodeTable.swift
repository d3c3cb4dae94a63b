// SPDX-License-Identifier: Apache-2.0
// Finds the row of an encoding. The literal tables are written for readers; this file copies them to one place,
// gives each row its number and builds the two-step index that the decoder walks: a cell for each map, mandatory
// prefix and opcode byte, and a group of 72 where the ModRM byte extends the opcode.

/// All opcode rows, numbered, and their index. Row 0 is "(bad)": no such encoding, #UD.
///
/// A value is three pointers into memory that is filled once and never freed: the process has one table, `shared`.
@safe
public struct OpcodeTable: @unchecked Sendable {
  @usableFromInline let rows: UnsafePointer<Opcode>
  @usableFromInline let shapes: UnsafePointer<RowShape>
  /// `[map][prefix][byte]`: 0, a row, or `groupFlag` and a group.
  let cells: UnsafePointer<UInt16>
  /// 72 entries a group: the memory form by ModRM.reg, then the register form by the low six bits of ModRM.
  let groups: UnsafePointer<UInt16>
  /// The number of rows, row 0 included.
  public let count: Int
  /// Pairs of rows that claim one encoding: none, or a table is wrong.
  let overlaps: [(UInt16, UInt16)]

  /// The table of the process.
  public static let shared = OpcodeTable()

  /// The row with a number.
  @inlinable @inline(__always)
  public subscript(row: UInt16) -> Opcode {
    // SAFETY: row numbers come from the decoder, which takes them from the index; `Instruction.row` is 0 by default.
    assert(Int(row) < count)
    return unsafe rows[Int(row)]
  }

  static let groupFlag: UInt16 = 0x8000
  static let groupSize = 72
  static let cellCount = OpcodeMap.allCases.count * 4 * 256

  private static let bad: Opcode = .init(.one, .any, 0, .plain, "(bad)", rule: .undefined)

  private init() {
    var builder = IndexBuilder()
    builder.append(Self.bad)
    builder.append(Self.oneByte)
    builder.append(Self.x87)
    builder.append(Self.twoByte)
    builder.append(Self.mmxRows)
    builder.append(Self.sseRows)
    builder.append(Self.vexVector)
    builder.append(Self.vexGeneral)
    builder.index()
    count = builder.rows.count
    overlaps = builder.overlaps
    unsafe rows = Self.immortal(builder.rows)
    unsafe shapes = Self.immortal(builder.shapes)
    unsafe cells = Self.immortal(builder.cells)
    unsafe groups = Self.immortal(builder.groups)
  }

  /// Copies an array to memory that is never freed.
  private static func immortal<Element>(_ array: [Element]) -> UnsafePointer<Element> {
    let memory = UnsafeMutablePointer<Element>.allocate(capacity: array.count)
    // SAFETY: the allocation has the array's size.
    unsafe array.withUnsafeBufferPointer { unsafe memory.initialize(from: $0.baseAddress!, count: array.count) }
    return unsafe UnsafePointer(memory)
  }
}

/// What the decoder needs of a row, worked out once.
@usableFromInline
struct RowShape: BitwiseCopyable {
  /// What follows as immediate bytes.
  enum Immediate: UInt8 {
    case none, byte, word, operandSize, operandSizeOr8, offset, far, enter
  }
  /// How 66 and REX.W make the operand size.
  enum Sizing: UInt8 {
    case normal
    /// 64 bits in 64-bit mode unless 66.
    case default64
    /// 64 bits in 64-bit mode.
    case always64
  }

  // Bits of `forbidden`: states in which the row does not apply.
  static let in64: UInt8 = 1, outside64: UInt8 = 2, l1: UInt8 = 4, l0: UInt8 = 8, w1: UInt8 = 16, w0: UInt8 = 32

  var forbidden: UInt8 = 0
  var immediate = Immediate.none
  var sizing = Sizing.normal
  var hasModRM = false
  /// The mod field is ignored (MOV CR and DR).
  var ignoresMod = false
  var isLockable = false
  var usesVvvv = false
  var hasVSIB = false
  /// ModRM.reg, or a register in ModRM.rm, has no REX extension.
  var narrowReg = false, narrowRM = false
  var hasSegmentRegister = false
  /// The row to try when this one is forbidden, or 0.
  var next: UInt16 = 0

  init(_ row: Opcode) {
    switch row.form {
    case .plain, .plus: break
    default: hasModRM = true
    }
    switch row.attribute {
    case .notIn64: forbidden = Self.in64
    case .only64: forbidden = Self.outside64
    case .vexL0, .secondWritten: forbidden = Self.l1
    case .vexL1: forbidden = Self.l0
    case .vexW0, .rexW0: forbidden = Self.w1
    case .vexW1, .rexW1: forbidden = Self.w0
    case .vexL1W0: forbidden = Self.l0 | Self.w1
    case .vexL0W0: forbidden = Self.l1 | Self.w1
    case .vexL0W1: forbidden = Self.l1 | Self.w0
    case .vexL1W1: forbidden = Self.l0 | Self.w0
    case .lockable, .exchange: isLockable = true
    case .default64: sizing = .default64
    case .none, .mayFault, .aligned, .privileged: break
    }
    if row.map == .vex0F || row.map == .vex0F38 || row.map == .vex0F3A {
      if row.rule == .copy { forbidden |= Self.l1 }
    } else if row.map == .one && row.byte == 0x82 {
      isLockable = row.access == .readWrite
    }
    switch row.rule {
    case .jump, .jumpIndirect, .call, .callIndirect, .ret, .jcc, .loop: sizing = .always64
    case .x87: narrowRM = true
    default: break
    }
    add(row.operand1)
    add(row.operand2)
    add(row.operand3)
    add(row.operand4)
  }

  private mutating func add(_ operand: Operand) {
    switch operand {
    case .Ib, .Ibs, .Jb, .Lx: immediate = .byte
    case .Iw: immediate = .word
    case .Iz, .Jz: immediate = .operandSize
    case .Iv: immediate = .operandSizeOr8
    case .Ob, .Ov: immediate = .offset
    case .Ap: immediate = .far
    case .Ib2: immediate = .enter
    case .Cy, .Dy:
      ignoresMod = true
      sizing = .always64
    case .Hx, .Ho, .By: usesVvvv = true
    case .Vsibd, .Vsibq: hasVSIB = true
    case .Pq: narrowReg = true
    case .Qq, .Qd, .Nq, .STi: narrowRM = true
    case .Sw:
      narrowReg = true
      hasSegmentRegister = true
    default: break
    }
  }
}

/// Numbers the rows and builds cells and groups.
private struct IndexBuilder {
  var rows: [Opcode] = []
  var shapes: [RowShape] = []
  var cells = [UInt16](repeating: 0, count: OpcodeTable.cellCount)
  var groups: [UInt16] = []
  var overlaps: [(UInt16, UInt16)] = []

  mutating func append(_ row: Opcode) {
    rows.append(row)
    shapes.append(RowShape(row))
  }

  mutating func append<let n: Int>(_ table: borrowing [n of Opcode]) {
    for number in table.indices { append(table[number]) }
  }

  /// Rows that name a prefix come first; `any` takes what is left; `plus` last, for NOP has taken 90.
  mutating func index() {
    cells.reserveCapacity(cells.count)
    groups.reserveCapacity(400 * OpcodeTable.groupSize)
    for number in rows.indices.dropFirst() where rows[number].prefix != .any { claim(UInt16(number)) }
    for number in rows.indices.dropFirst() where rows[number].prefix == .any && rows[number].form != .plus {
      claim(UInt16(number))
    }
    for number in rows.indices where rows[number].form == .plus { claim(UInt16(number)) }
  }

  private mutating func claim(_ number: UInt16) {
    let row = rows[Int(number)]
    let bytes = row.byte...(row.form == .plus ? row.byte + 7 : row.byte)
    let prefixes: ClosedRange<Int> =
      switch row.prefix {
      case .any: 0...3
      case .none: 0...0
      case .p66: 1...1
      case .pF3: 2...2
      case .pF2: 3...3
      }
    for prefix in prefixes {
      for byte in bytes { claim((Int(row.map.rawValue) * 4 + prefix) * 256 + Int(byte), number) }
    }
  }

  private mutating func claim(_ cell: Int, _ number: UInt16) {
    let row = rows[Int(number)]
    let kind = row.form.rawValue
    let everything = 0..<OpcodeTable.groupSize
    switch row.form {
    case .plain, .plus, .modRM: claim(cell, everything, number)
    case .memory: claim(cell, 0..<8, number)
    case .register: claim(cell, shapes[Int(number)].ignoresMod ? everything : 8..<72, number)
    case .exact:
      let entry = Int(row.exact) - 0xC0 + 8
      claim(cell, entry..<entry + 1, number)
    case .ext0, .ext1, .ext2, .ext3, .ext4, .ext5, .ext6, .ext7:
      let reg = Int(kind - Form.ext0.rawValue)
      claim(cell, reg..<reg + 1, number)
      claim(cell, 8 + reg * 8..<16 + reg * 8, number)
    case .mem0, .mem1, .mem2, .mem3, .mem4, .mem5, .mem6, .mem7:
      let reg = Int(kind - Form.mem0.rawValue)
      claim(cell, reg..<reg + 1, number)
    case .reg0, .reg1, .reg2, .reg3, .reg4, .reg5, .reg6, .reg7:
      let reg = Int(kind - Form.reg0.rawValue)
      claim(cell, 8 + reg * 8..<16 + reg * 8, number)
    }
  }

  /// Claims some of a cell's ModRM values for a row.
  private mutating func claim(_ cell: Int, _ entries: Range<Int>, _ number: UInt16) {
    let isWhole = entries.count == OpcodeTable.groupSize
    if cells[cell] & OpcodeTable.groupFlag == 0 {
      if isWhole {
        cells[cell] = merged(cells[cell], number)
        return
      }
      let group = groups.count / OpcodeTable.groupSize
      groups.append(contentsOf: repeatElement(cells[cell], count: OpcodeTable.groupSize))
      cells[cell] = OpcodeTable.groupFlag | UInt16(group)
    }
    let base = Int(cells[cell] & ~OpcodeTable.groupFlag) * OpcodeTable.groupSize
    for entry in entries { groups[base + entry] = merged(groups[base + entry], number) }
  }

  /// What an entry holds after `new` claims it: the first row of a chain whose constraints exclude one another.
  private mutating func merged(_ old: UInt16, _ new: UInt16) -> UInt16 {
    if old == 0 { return new }
    let first = rows[Int(old)], second = rows[Int(new)]
    if first.prefix != .any && second.prefix == .any { return old }
    if first.form == .plain && second.form == .plus && first.byte == 0x90 { return old }
    var last = old
    while true {
      if last == new { return old }
      if !exclude(shapes[Int(last)].forbidden, shapes[Int(new)].forbidden) {
        overlaps.append((last, new))
        return old
      }
      if shapes[Int(last)].next == 0 { break }
      last = shapes[Int(last)].next
    }
    shapes[Int(last)].next = new
    return old
  }

  /// Whether each state is forbidden by one of two rows.
  private func exclude(_ a: UInt8, _ b: UInt8) -> Bool {
    let both = a | b
    return [RowShape.in64 | RowShape.outside64, RowShape.l0 | RowShape.l1, RowShape.w0 | RowShape.w1]
      .contains { both & $0 == $0 }
  }
}

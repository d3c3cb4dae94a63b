// SPDX-License-Identifier: Apache-2.0
// The table of host encodings by which the checker decodes, worked out once from the opcode rows of 64-bit mode. The rows
// are all that the checker shares with the translator.

import X86

/// The encodings, and where each is found: a cell for each map, prefix and opcode byte, and a group where the ModRM byte
/// says more.
@safe struct HostEncodings: @unchecked Sendable {
  private let cells: UnsafePointer<UInt16>
  private let groups: UnsafePointer<UInt16>
  private let encodings: UnsafePointer<HostEncoding>
  private let operands: UnsafePointer<UInt8>
  /// What JECXZ and LOOP that count in ECX are, which no cell leads to.
  let narrowLoop: UInt16
  static let shared = HostEncodings(OpcodeTable.shared)
  static let groupFlag: UInt16 = 0x8000
  /// Memory by ModRM.reg, then registers by the other six bits.
  static let groupSize = 72

  private init(_ table: OpcodeTable) {
    var builder = HostEncodingsBuilder(table)
    builder.build()
    narrowLoop = UInt16(builder.encodings.count)
    var loop = HostEncoding()
    loop.action = .loop
    builder.encodings.append(loop)
    func immortal<T>(_ array: [T]) -> UnsafePointer<T> {
      let memory = UnsafeMutablePointer<T>.allocate(capacity: array.count)
      for (index, element) in array.enumerated() { unsafe (memory + index).initialize(to: element) }
      return unsafe UnsafePointer(memory)
    }
    unsafe cells = immortal(builder.cells)
    unsafe groups = immortal(builder.groups)
    unsafe encodings = immortal(builder.encodings)
    unsafe operands = immortal(
      (0..<256).map { modRM in
        let sib: UInt8 = modRM < 0xC0 && modRM & 7 == 4 ? 1 : 0
        let displacement: UInt8 = modRM & 0xC0 == 0x40 ? 1 : modRM & 0xC0 == 0x80 ? 4 : 0
        return (1 + sib) << 4 | (1 + sib + displacement)
      })
  }

  /// What the cell of a map (0...6), a prefix (none, 66, F3, F2) and a byte says: 0, an encoding, or a group.
  @inline(__always)
  func cell(_ map: Int, _ prefix: Int, _ byte: UInt8) -> UInt16 {
    // SAFETY: maps are below 7, prefixes below 4.
    unsafe cells[(map &* 4 &+ prefix) &* 256 &+ Int(byte)]
  }

  @inline(__always)
  func entry(_ group: UInt16, _ modRM: UInt8) -> UInt16 {
    let position = modRM >= 0xC0 ? Int(modRM) &- 0xB8 : Int(modRM >> 3) & 7
    // SAFETY: cells name groups that exist.
    return unsafe groups[Int(group & ~HostEncodings.groupFlag) &* HostEncodings.groupSize &+ position]
  }

  /// Of a ModRM byte, the bytes from it on up to a displacement (bits 7:4) and up to its end (bits 3:0). A displacement
  /// without a base is not counted.
  @inline(__always)
  func operandBytes(_ modRM: UInt8) -> UInt8 {
    // SAFETY: one for each byte.
    unsafe operands[Int(modRM)]
  }

  @inline(__always)
  subscript(number: UInt16) -> HostEncoding {
    // SAFETY: cells and groups name encodings that exist.
    unsafe encodings[Int(number)]
  }
}

/// Makes the tables.
private struct HostEncodingsBuilder {
  private let table: OpcodeTable
  var cells = [UInt16](repeating: 0, count: 7 * 4 * 256)
  var groups: [UInt16] = []
  var encodings: [HostEncoding] = []
  private var isNamed: [Bool] = []

  init(_ table: OpcodeTable) {
    self.table = table
    for number in 0..<table.count {
      let row = table[UInt16(number)]
      encodings.append(number == 0 || row.attribute == .notIn64 ? HostEncoding() : HostEncoding(row))
      isNamed.append(row.prefix != .any)
    }
  }

  /// Rows that name a prefix come first, NOP before XCHG (`MandatoryPrefix`).
  mutating func build() {
    for pass in 0..<3 {
      for number in 1..<UInt16(table.count) {
        let row = table[number]
        if row.attribute == .notIn64 { continue }
        let mine = row.prefix != .any ? 0 : row.form == .plus ? 2 : 1
        if mine == pass { place(number, row) }
      }
    }
  }

  private mutating func place(_ number: UInt16, _ row: Opcode) {
    // F2 and F3 before a row that names no prefix mean nothing, and are never emitted. A branch with 66 goes elsewhere on
    // AMD's processors, which cut RIP to 16 bits (APM volume 3, near jumps).
    let isBranch =
      switch encodings[Int(number)].action {
      case .branch, .loop, .jump, .call, .indirect, .ret: true
      default: false
      }
    let prefixes: [Int] =
      switch row.prefix {
      case .any: isBranch ? [0] : [0, 1]
      case .none: [0]
      case .p66: [1]
      case .pF3: [2]
      case .pF2: [3]
      }
    let entries: Range<Int>? =
      switch row.form {
      case .plain, .plus, .modRM: nil
      case .memory: 0..<8
      case .register: 8..<72
      case .exact: Int(row.exact) - 0xB8..<Int(row.exact) - 0xB7
      default: nil
      }
    for prefix in prefixes {
      for byte in Int(row.byte)...Int(row.byte) + (row.form == .plus ? 7 : 0) {
        let cell = (Int(row.map.rawValue) * 4 + prefix) * 256 + byte
        if let entries {
          for entry in entries { put(number, cell, entry) }
        } else if let (digit, memory, register) = HostEncodingsBuilder.digit(row.form) {
          if memory { put(number, cell, digit) }
          if register { for low in 0..<8 { put(number, cell, 8 + digit * 8 + low) } }
        } else if cells[cell] & HostEncodings.groupFlag != 0 {
          for entry in 0..<HostEncodings.groupSize { put(number, cell, entry) }
        } else {
          cells[cell] = chained(cells[cell], number)
        }
      }
    }
  }

  private static func digit(_ form: Form) -> (digit: Int, memory: Bool, register: Bool)? {
    let kind = Int(form.rawValue)
    func offset(_ first: Form) -> Int? {
      (0..<8).contains(kind - Int(first.rawValue)) ? kind - Int(first.rawValue) : nil
    }
    if let digit = offset(.ext0) { return (digit, true, true) }
    if let digit = offset(.mem0) { return (digit, true, false) }
    if let digit = offset(.reg0) { return (digit, false, true) }
    return nil
  }

  private mutating func put(_ number: UInt16, _ cell: Int, _ entry: Int) {
    if cells[cell] & HostEncodings.groupFlag == 0 {
      let group = UInt16(groups.count / HostEncodings.groupSize)
      groups += [UInt16](repeating: cells[cell], count: HostEncodings.groupSize)
      cells[cell] = HostEncodings.groupFlag | group
    }
    let place = Int(cells[cell] & ~HostEncodings.groupFlag) * HostEncodings.groupSize + entry
    groups[place] = chained(groups[place], number)
  }

  /// What stands where `old` stood when `new` comes: rows that exclude each other by L and W follow one another.
  private mutating func chained(_ old: UInt16, _ new: UInt16) -> UInt16 {
    if old == 0 { return new }
    if isNamed[Int(old)] != isNamed[Int(new)] || table[new].form == .plus { return old }
    var last = old
    while last != new, encodings[Int(last)].next != 0 { last = UInt16(encodings[Int(last)].next) }
    if last != new { encodings[Int(last)].next = UInt32(new) }
    return old
  }
}

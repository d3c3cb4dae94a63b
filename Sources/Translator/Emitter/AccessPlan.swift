// SPDX-License-Identifier: Apache-2.0
// Which accesses of a block can share one check: those that lie close together relative to the same registers, with
// nothing in between that changes these by an unknown amount. PUSH, POP, CALL and ADD RSP change RSP by a known one, so
// that a whole prologue is one group. Found before a block is emitted, from the rows' operands alone; the checker
// proves of the result what safety needs.

import CHost
import X86

/// What a group's addresses are relative to.
struct AccessBase: Equatable {
  enum Kind: UInt8 { case none, registers, region }
  var kind = Kind.none
  /// Guest registers, 0xFF without an index, and which of their values, counted from the start of the block.
  var base: UInt8 = 0xFF
  var index: UInt8 = 0xFF
  var scale: UInt8 = 0
  var baseVersion: UInt8 = 0
  var indexVersion: UInt8 = 0
  var region = Region(kind: .page, number: 0)
  /// The displacement is the address of a table in the upper half of 32 bits: sums wrap as a rule, not by accident.
  var wraps = false
}

/// A stretch of linear memory whose place is known but for one base: operands in it need no address computed.
struct Region: Equatable {
  enum Kind: UInt8 {
    /// A page, counted from the one that holds the block.
    case page
    /// A page, counted from 0.
    case absolute
    /// 64 bytes, counted from the base of FS or GS.
    case fs, gs
  }
  var kind: Kind
  var number: Int64

  /// Bytes.
  var size: Int { kind == .fs || kind == .gs ? 64 : 4096 }
}

/// Accesses that share a check of `low..<high`, relative to their base.
struct AccessGroup {
  var base = AccessBase()
  var low: Int64 = 0
  var high: Int64 = 0
  var writes = false
  var count = 0
  /// Its check has been emitted.
  var isOpen = false
  /// It stands before a branch and only reads: a store behind the branch, which may never come, is not its own, but for
  /// the stack, whose pages are written all the time.
  var isReadOnly = false
  /// How often the base register had been moved before the first access.
  var moves: UInt8 = 0
  /// Outside 64-bit mode: the base register moves between the accesses, if only there and back, so that it may have
  /// wrapped or lost its upper half. The host address that the check found serves them all, which the register plus a
  /// displacement would not.
  var isMoving = false
}

/// Finds the groups of one block.
struct AccessPlanner {
  /// Widest group: the size field of an exit information word holds it, and wide groups cross pages often.
  static let widest: Int64 = 240
  static let most = 24
  /// How far from either end of Int32 a displacement must stay to be grouped: more than the widest group and whatever
  /// RSP may be due, so that every sum that the emitter makes of one is exact.
  static let margin: Int32 = 1 << 24

  private let groups: WorkArray<AccessGroup>
  private var count = 0
  private var versions = InlineArray<16, UInt8>(repeating: 0)
  /// What each register has been moved by since its version began.
  private var moved = InlineArray<16, Int64>(repeating: 0)
  /// How often.
  private var moves = InlineArray<16, UInt8>(repeating: 0)
  /// 64-bit mode; else 32-bit code in flat segments.
  private let isLong: Bool
  /// Bytes of an address, and of what CALL pushes.
  private var addressBytes: UInt8 { isLong ? 8 : 4 }

  /// - Parameter groups: to work in: `most` elements.
  init(_ groups: WorkArray<AccessGroup>, isLong: Bool) {
    self.groups = groups
    self.isLong = isLong
  }

  /// Puts an access of `size` bytes at `position` from `base` into a group; its number, or -1.
  private mutating func add(_ base: AccessBase, _ position: Int64, size: Int, write: Bool) -> Int8 {
    let moves = base.kind == .registers ? moves[Int(base.base & 15)] : 0
    for number in 0..<count where groups[number].base == base && !(write && groups[number].isReadOnly) {
      let low = min(groups[number].low, position)
      let high = max(groups[number].high, position &+ Int64(size))
      if high &- low > AccessPlanner.widest { continue }
      groups[number].low = low
      groups[number].high = high
      groups[number].writes = groups[number].writes || write
      groups[number].count &+= 1
      if !isLong && groups[number].moves != moves { groups[number].isMoving = true }
      return Int8(truncatingIfNeeded: number)
    }
    guard count < AccessPlanner.most else { return -1 }
    groups[count] = AccessGroup(
      base: base, low: position, high: position &+ Int64(size), writes: write, count: 1, moves: moves)
    count &+= 1
    return Int8(truncatingIfNeeded: count &- 1)
  }

  /// The same for the stack.
  private mutating func addStack(_ item: inout BlockInstruction, offset: Int64, size: Int64, write: Bool) {
    let base = AccessBase(kind: .registers, base: 4, baseVersion: versions[4])
    item.stackPosition = moved[4] &+ offset
    item.stackGroup = add(base, item.stackPosition, size: Int(size), write: write)
  }

  private mutating func move(_ register: UInt8, by amount: Int64) {
    moved[Int(register & 15)] &+= amount
    moves[Int(register & 15)] &+= 1
  }

  private mutating func lose(_ register: UInt8) {
    versions[Int(register & 15)] &+= 1
    moved[Int(register & 15)] = 0
  }

  private mutating func loseAll() { for register in UInt8(0)..<16 { lose(register) } }

  /// Takes the next instruction. `isInline`: its operand, if any, is served by the copy rule.
  mutating func take(_ item: inout BlockInstruction, _ row: Opcode, _ traits: RowTraits, isInline: Bool) {
    let i = item.instruction
    if isInline, i.isMemory || row.rule == .moffs { takeOperand(&item, row, traits) }
    let size = Int64(i.operandSize)
    let addressBytes = Int64(addressBytes)
    switch row.rule {
    case .push, .pushFlags:
      addStack(&item, offset: 0 &- size, size: size, write: true)
      move(4, by: 0 &- size)
    case .pop where !i.isMemory || row.form == .plus:
      addStack(&item, offset: 0, size: size, write: false)
      move(4, by: size)
      lose(row.form == .plus ? i.plusRegister : i.rm)
    case .call, .callIndirect: addStack(&item, offset: 0 &- addressBytes, size: addressBytes, write: true)
    case .ret: addStack(&item, offset: 0, size: addressBytes, write: false)
    case .moffs: if i.opcode & 2 == 0 { lose(0) }
    case .jcc:
      for number in 0..<count where groups[number].base.base != 4 { groups[number].isReadOnly = !groups[number].writes }
    default:
      if traits.rule.contains(.writesNamed) {
        takeEffect(i, row, traits)
      } else if !traits.rule.contains(.writesNone) {
        loseAll()
        for number in 0..<count { groups[number].base.kind = .none }
      }
    }
  }

  private mutating func takeOperand(_ item: inout BlockInstruction, _ row: Opcode, _ traits: RowTraits) {
    let i = item.instruction
    let isOffset = row.rule == .moffs
    let size = isOffset ? i.offsetBytes : traits.memoryBytes(i)
    let write = isOffset ? i.opcode & 2 != 0 : traits.memoryWrites
    guard size > 0, size <= 64, i.addressSize == addressBytes else { return }
    // Outside 64-bit mode the code segment cannot be written, and FS and GS have limits.
    guard isLong || i.segment < 4 && !(write && i.segment == 1) else { return }
    if let (region, offset) = item.region(size: size, isLong: isLong, isOffset: isOffset) {
      item.operandPosition = offset
      item.operandGroup = add(AccessBase(kind: .region, region: region), offset, size: size, write: write)
      return
    }
    guard !isOffset, i.segment < 4, i.base != 0xFF, !i.isRIPRelative, AccessPlanner.hasRoom(i.displacement) else {
      return
    }
    var base = AccessBase(kind: .registers, base: i.base, baseVersion: versions[Int(i.base & 15)])
    base.wraps = !isLong && i.displacement <= BlockBuilder.farthestBelow
    if i.index != 0xFF {
      // Moved by a known amount is changed all the same: the scale is not worth tracking.
      base.index = i.index
      base.scale = i.scale
      base.indexVersion = versions[Int(i.index & 15)]
      if moved[Int(i.index & 15)] != 0 { return }
    }
    item.operandPosition = moved[Int(i.base & 15)] &+ Int64(i.displacement)
    item.operandGroup = add(base, item.operandPosition, size: size, write: write)
  }

  /// Whether a displacement keeps `margin`.
  private static func hasRoom(_ displacement: Int32) -> Bool {
    displacement >= Int32.min + margin && displacement <= Int32.max - margin
  }

  private mutating func takeEffect(_ i: Instruction, _ row: Opcode, _ traits: RowTraits) {
    if let (register, amount) = knownMove(i, row) {
      move(register, by: amount)
      // An index that has moved begins anew.
      loseIndexed(register)
      return
    }
    var written = traits.writtenRegisters(i)
    while written != 0 {
      lose(UInt8(truncatingIfNeeded: written.trailingZeroBitCount))
      written &= written &- 1
    }
  }

  /// Groups that use `register` as an index cannot be joined any more.
  private mutating func loseIndexed(_ register: UInt8) {
    for number in 0..<count where groups[number].base.index == register { groups[number].base.kind = .none }
  }

  /// A register as wide as addresses, moved by a constant: ADD, SUB, INC, DEC, LEA.
  @inline(__always)
  private func knownMove(_ i: Instruction, _ row: Opcode) -> (UInt8, Int64)? {
    guard row.map == .one, i.operandSize == addressBytes else { return nil }
    if row.rule == .lea {
      return i.base == i.reg && i.index == 0xFF && i.addressSize == addressBytes && !i.isRIPRelative
        ? (i.reg, Int64(i.displacement)) : nil
    }
    if row.rule == .incDec32 { return (i.opcode & 7, i.opcode & 8 == 0 ? 1 : -1) }
    guard row.rule == .copy, !i.isMemory else { return nil }
    let digit = i.modRM >> 3 & 7
    let constant = Int64(bitPattern: i.immediate)
    switch (i.opcode, digit) {
    case (0x81, 0), (0x83, 0): return (i.rm, constant)
    case (0x81, 5), (0x83, 5): return (i.rm, 0 &- constant)
    case (0xFF, 0): return (i.rm, 1)
    case (0xFF, 1): return (i.rm, -1)
    default: return nil
    }
  }

  /// The groups worth having, in `result`; `numbers` says where each candidate went, -1 for nowhere.
  func finish(_ result: WorkArray<AccessGroup>) -> InlineArray<24, Int8> {
    var numbers = InlineArray<24, Int8>(repeating: -1)
    var kept = 0
    for number in 0..<count where groups[number].count > 1 && kept < Int(CHOST_GROUPS) {
      result[kept] = groups[number]
      // A candidate that was closed to further members keeps its kind by what it has.
      result[kept].base.kind = groups[number].base.base == 0xFF ? .region : .registers
      numbers[number] = Int8(truncatingIfNeeded: kept)
      kept &+= 1
    }
    return numbers
  }
}

extension BlockInstruction {
  /// The region that the operand of `size` bytes lies in, and where. `isOffset`: it is the moffs rule's.
  func region(size: Int, isLong: Bool, isOffset: Bool = false) -> (Region, Int64)? {
    let i = instruction
    guard i.addressSize == (isLong ? 8 : 4), size <= 64 else { return nil }
    var address = isLong ? Int64(i.displacement) : Int64(UInt32(bitPattern: i.displacement))
    if isOffset {
      address = Int64(bitPattern: i.immediate)
    } else if i.isRIPRelative {
      guard i.segment < 4 else { return nil }
      address &+= Int64(offset) &+ Int64(i.length)
    } else if i.base != 0xFF || i.index != 0xFF {
      return nil
    }
    if i.segment >= 4 {
      guard isLong, address & 63 &+ Int64(size) <= 64 else { return nil }
      return (Region(kind: i.segment == 4 ? .fs : .gs, number: address >> 6), address & 63)
    }
    guard address & 4095 &+ Int64(size) <= 4096 else { return nil }
    return (Region(kind: i.isRIPRelative ? .page : .absolute, number: address >> 12), address & 4095)
  }
}

extension Instruction {
  /// Bytes of the operand of a moffs move.
  var offsetBytes: Int { opcode & 1 == 0 ? 1 : Int(operandSize) }
}

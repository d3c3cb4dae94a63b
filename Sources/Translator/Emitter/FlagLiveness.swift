// SPDX-License-Identifier: Apache-2.0
// Liveness of the arithmetic flags: which of them code may read before it writes them. What nobody reads need not be
// kept.

import X86

extension BlockTranslator {
  /// Every flag.
  static let allFlags: UInt8 = ArithmeticFlags.all

  /// Flags that code at `offset` of the page may read before writing them; `peek` becomes the bytes looked at.
  func liveFlags(
    _ bytes: GuestCode, at offset: Int64, mode: UInt32, peek: inout Range<Int>
  ) -> UInt8 {
    guard offset >= 0 && offset < 4096 else { return BlockTranslator.allFlags }
    let code = BlockTranslator.codeSize(mode)
    var position = Int(offset)
    var unknown = BlockTranslator.allFlags
    var live: UInt8 = 0
    for _ in 0..<6 {
      guard position < 4096,
        case .complete(let i) = unsafe decoder.decode(
          bytes.page + position, count: min(15, 4096 - position), code: code)
      else { return live | unknown }
      let end = position + Int(i.length)
      peek = peek.isEmpty ? position..<end : min(peek.lowerBound, position)..<max(peek.upperBound, end)
      let row = table[i.row]
      live |= row.flags.reads(condition: i.opcode) & unknown
      unknown &= ~row.overwrites(i)
      if unknown == 0 || live == BlockTranslator.allFlags { return live }
      position += Int(i.length)
      if row.rule == .jump {
        position += Int(Int64(bitPattern: i.immediate))
        if position < 0 { return live | unknown }
      } else if !row.rule.traits.isDisjoint(with: [.endsBlock, .leavesForSwift]) {
        return live | unknown
      }
    }
    return live | unknown
  }

  /// Whether the block neither reads the flags it is entered with nor keeps them in EFLAGS until they are written: they
  /// may as well be in the page from the start.
  func passesFlags(_ count: Int) -> Bool {
    var entered = BlockTranslator.allFlags
    var checks = false
    for index in 0..<count {
      let item = self[index]
      let row = table[item.instruction.row]
      let writes = row.flags.writesMaybe
      if row.flags.reads(condition: item.instruction.opcode) & entered != 0 { return false }
      if writes != 0 && item.liveAfter & ~row.overwrites(item.instruction) & entered != 0 { return false }
      let traits = row.rule.traits
      guard traits.contains(.worksWithoutFlags) else { return false }
      if traits.contains(.compares) || traits.contains(.groups) && item.instruction.isMemory { checks = true }
      entered &= ~row.overwrites(item.instruction)
      if entered == 0 { break }
    }
    return checks
  }
}

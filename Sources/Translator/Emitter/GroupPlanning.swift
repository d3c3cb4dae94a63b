// SPDX-License-Identifier: Apache-2.0
// Which accesses of a block are checked together, and which of the others get a slot: the plan is made for the whole
// block before its first instruction is emitted.

import CHost
import X86

extension BlockTranslator {
  /// Finds the accesses that share a check.
  func planGroups(_ builder: inout BlockBuilder, count: Int) {
    var planner = AccessPlanner(candidates, isLong: builder.isLong)
    for index in 0..<count {
      let number = self[index].instruction.row
      let traits = traits(of: number)
      unsafe planner.take(&buffer[index], table[number], traits, isInline: traits.rule.contains(.groups))
    }
    let numbers = planner.finish(builder.groups)
    for index in 0..<count {
      let item = self[index]
      if item.operandGroup >= 0 { unsafe buffer[index].operandGroup = numbers[Int(item.operandGroup)] }
      if item.stackGroup >= 0 { unsafe buffer[index].stackGroup = numbers[Int(item.stackGroup)] }
    }
  }

  /// Forgets what was planned for another form of the block.
  func forgetGroups(_ count: Int) {
    for index in 0..<count {
      unsafe buffer[index].operandGroup = -1
      unsafe buffer[index].stackGroup = -1
    }
  }

  /// Gives the operand of the builder's current instruction a slot, if it will be checked by itself or for its group.
  func planSite(_ b: inout BlockBuilder, _ hotCode: inout HotCode) {
    b.site = nil
    let i = b.instruction
    guard i.isMemory, b.traits.rule.contains(.groups), b.needsSite else { return }
    let group = b.current.operandGroup
    let write = group >= 0 ? b.groups[Int(group)].writes : b.traits.memoryWrites
    let size = group >= 0 ? Int(b.groups[Int(group)].high - b.groups[Int(group)].low) : b.traits.memoryBytes(i)
    guard size > 0, size <= 240 else { return }
    b.site = hotCode.site(
      b.pageNumber << 12 | UInt64(b.current.offset), size: size, user: b.privilege == 3, write: write)
  }
}

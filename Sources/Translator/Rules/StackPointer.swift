// SPDX-License-Identifier: Apache-2.0
// When RSP moves. A processor follows PUSH and POP with an adder beside its pipeline; on the host each would wait for
// the one before. So the moves of a block are added up while nothing can see them, and made at once: the accesses in
// between belong to groups, whose addresses do not need RSP to be exact.

import CHost
import X86

extension BlockBuilder {
  /// Moves RSP by what is due. Keeps EFLAGS.
  mutating func settleStackPointer() {
    guard pendingStack != 0 else { return }
    let count = pendingStack
    pendingStack = 0
    setStackPointer(RegisterMap.stackPointer, plus: count)
  }

  /// The same unless the current instruction neither sees RSP nor can leave the block.
  mutating func prepareStackPointer() {
    if pendingStack != 0 && !ignoresStackPointer { settleStackPointer() }
  }

  /// Takes ADD RSP or SUB RSP with a constant whose flags nobody reads as one of the moves, in a block that accesses
  /// the stack by groups. False: the instruction is translated as it is.
  mutating func movesStackLater() -> Bool {
    let i = instruction
    guard !isLast, row.rule == .copy, row.map == .one, i.opcode == 0x81 || i.opcode == 0x83, !i.isMemory, i.rm == 4,
      i.operandSize == (isLong ? 8 : 4), current.liveAfter == 0, !i.hasLock, pendingStack != 0
    else { return false }
    let digit = i.modRM >> 3 & 7
    let constant = Int32(truncatingIfNeeded: i.immediate)
    guard digit == 0 || digit == 5, constant.magnitude < 0x1_0000, pendingStack.magnitude < 0x10_0000 else {
      return false
    }
    pendingStack &+= digit == 0 ? constant : 0 &- constant
    flagsAreLive = false
    return true
  }

  private func isOpen(_ group: Int8) -> Bool { group >= 0 && groups[Int(group)].isOpen }

  /// Whether the current instruction does without RSP's host register, and neither faults nor leaves.
  @inline(__always)
  private var ignoresStackPointer: Bool {
    let i = instruction
    switch row.rule {
    case .push, .pop:
      guard isOpen(current.stackGroup), row.form == .plus || !i.isMemory else { return false }
      return row.form == .plus ? i.plusRegister != 4 : !i.hasModRM || i.rm != 4
    case .call, .ret: return isOpen(current.stackGroup)
    case .nop: return true
    case .lea: return i.reg != 4 && i.base != 4
    case .copy:
      if row.attribute == .mayFault || row.attribute == .aligned { return false }
      if i.isMemory && !isOpen(current.operandGroup) { return false }
      return !(traits.reg.isGeneral && i.reg == 4) && !(traits.rm.isGeneral && !i.isMemory && i.rm == 4)
        && !(traits.vvvv.isGeneral && i.vvvv == 4) && !(traits.plus.isGeneral && i.plusRegister == 4)
    default: return false
    }
  }
}

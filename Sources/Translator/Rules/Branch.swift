// SPDX-License-Identifier: Apache-2.0
// The branch rule. Targets in the same guest page are direct edges, patched once the target exists; everything
// else goes through the jump cache with the linear target in T0 and the flags in the page.

import CHost
import X86

extension BlockBuilder {
  /// Whether control transfers are served in line: a flat code segment with 32- or 64-bit IP.
  var hasInlineBranches: Bool {
    isLong || (!has(Int(CHOST_MODE_SEGMENTED)) && has(Int(CHOST_MODE_CODE32)))
  }

  /// The offset from the start of the page of a relative target.
  private var relativeTarget: Int64 {
    Int64(nextOffset) &+ Int64(bitPattern: instruction.immediate)
  }

  /// A near branch with 16-bit operand size truncates IP: Swift's business.
  private var truncatesIP: Bool { !isLong && instruction.operandSize == 2 }

  /// Whether a target in this page may be linked: the block there must not depend on how the next page is mapped.
  private func isLinkable(_ target: Int64) -> Bool {
    guard target >= 0 && target < 4096, unsafe bytes.straddling == nil else { return false }
    if target <= 4096 - 15 { return true }
    let position = Int(target)
    if case .needsMore = unsafe decoder.decode(bytes.page + position, count: 4096 - position, code: code) { return false }
    return true
  }

  /// Goes to `target` (from the start of the page): by an edge if it is in this page.
  mutating func go(to target: Int64, liveAtTarget: UInt8) {
    if isLinkable(target) {
      if liveAtTarget != 0 { needHostFlags() }
      edge(to: Int32(truncatingIfNeeded: target))
    } else {
      goIndirect(to: target)
    }
  }

  /// Goes to `target` (from the start of the page) by its linear address.
  mutating func goIndirect(to target: Int64) {
    needPageFlags()
    hot.load(RegisterMap.t0, .env(Slot.pageAddress))
    addToT0(target)
    jumpThroughCache()
  }

  private mutating func addToT0(_ offset: Int64) {
    hot.lea(RegisterMap.t0, HostMemory(RegisterMap.t0, Int32(truncatingIfNeeded: offset)))
    if !isLong { hot.mov32(RegisterMap.t0, RegisterMap.t0) }
  }

  /// Goes to the linear address in T0. The page's flags are current.
  mutating func jumpThroughCache() {
    let user: Int32 = privilege == 3 ? 2 &* 8 &* Int32(CHOST_JUMP_ENTRIES) : 0
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    hot.mov32(t1, t0)
    hot.alu(.and, t1, immediate: Int32(CHOST_JUMP_ENTRIES) &- 1, w: false)
    hot.alu(.cmp, t0, HostMemory(RegisterMap.env, index: t1, scale: 3, Int32(CHOST_JUMP_TAGS) &+ user))
    hot.jump(if: CodeEmitter.notEqual, to: stubs.jumpMiss)
    hot.jump(through: HostMemory(RegisterMap.env, index: t1, scale: 3, Int32(CHOST_JUMP_TARGETS) &+ user))
  }

  /// The same for a target that the guest computed: a non-canonical one is #GP at this instruction, which Swift
  /// raises after the stack pointer has been moved back by `moved`.
  private mutating func jumpToComputed(moved: Int32 = 0) {
    guard isLong else { return jumpThroughCache() }
    let user: Int32 = privilege == 3 ? 2 &* 8 &* Int32(CHOST_JUMP_ENTRIES) : 0
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1, sp = RegisterMap.stackPointer
    hot.mov32(t1, t0)
    hot.alu(.and, t1, immediate: Int32(CHOST_JUMP_ENTRIES) &- 1, w: false)
    hot.alu(.cmp, t0, HostMemory(RegisterMap.env, index: t1, scale: 3, Int32(CHOST_JUMP_TAGS) &+ user))
    hot.jump(if: CodeEmitter.notEqual, to: cold.address)
    hot.jump(through: HostMemory(RegisterMap.env, index: t1, scale: 3, Int32(CHOST_JUMP_TARGETS) &+ user))
    cold.mov(t1, t0)
    cold.shiftLeft(t1, 16, w: true)
    cold.shiftRightArithmetic(t1, 16)
    cold.alu(.cmp, t1, t0)
    cold.jump(if: CodeEmitter.equal, to: stubs.jumpMiss)
    if moved != 0 { cold.lea(sp, HostMemory(sp, 0 &- moved)) }
    cold.storeImmediate32(.env(Slot.exitInfo), info(Int(CHOST_EXIT_INSTRUCTION), offset: current.offset, flagsSaved: true))
    cold.jump(to: stubs.exit)
  }

  /// JMP rel.
  mutating func jump(liveAtTarget: UInt8) -> Bool {
    guard hasInlineBranches, !truncatesIP else { return false }
    go(to: relativeTarget, liveAtTarget: liveAtTarget)
    return true
  }

  /// Jcc rel, falling through to the next instruction.
  mutating func conditionalJump() -> Bool {
    guard hasInlineBranches, !truncatesIP else { return false }
    needHostFlags()
    let condition = instruction.opcode & 15
    let target = relativeTarget
    if isLinkable(target) {
      edge(to: Int32(truncatingIfNeeded: target), condition: condition)
    } else {
      let over = cold.address
      hot.jump(if: condition, to: over)
      // The far side of the branch is cold code: it may be long, and is not the common case in loops.
      if !pageFlags { cold.saveFlags(scratch: RegisterMap.t1, to: .env(Slot.flags)) }
      cold.load(RegisterMap.t0, .env(Slot.pageAddress))
      cold.lea(RegisterMap.t0, HostMemory(RegisterMap.t0, Int32(truncatingIfNeeded: target)))
      if !isLong { cold.mov32(RegisterMap.t0, RegisterMap.t0) }
      swap(&hot, &cold)
      jumpThroughCache()
      swap(&hot, &cold)
    }
    return true
  }

  /// LOOP, LOOPE, LOOPNE, JRCXZ: the host's own instruction around a jump.
  mutating func loop() -> Bool {
    let i = instruction
    guard hasInlineBranches, !truncatesIP, i.addressSize != 2 else { return false }
    let target = relativeTarget
    guard isLinkable(target), isLinkable(Int64(nextOffset)) else { return false }
    needHostFlags()
    if i.addressSize == 4 { hot.byte(0x67) }
    hot.byte(i.opcode)
    // Taken: over the jump that goes to the next instruction.
    let displacement = hot.count
    hot.byte(0)
    edge(to: nextOffset)
    hot.setByte(displacement, UInt8(truncatingIfNeeded: hot.count &- displacement &- 1))
    edge(to: Int32(truncatingIfNeeded: target))
    return true
  }

  /// CALL rel.
  mutating func call(liveAtTarget: UInt8) -> Bool {
    guard hasInlineBranches, hasInlineStack, !truncatesIP else { return false }
    clobberFlags()
    pushReturnAddress()
    go(to: relativeTarget, liveAtTarget: liveAtTarget)
    return true
  }

  private mutating func pushReturnAddress() {
    hot.load(RegisterMap.t2, .env(Slot.pageAddress))
    hot.lea(RegisterMap.t2, HostMemory(RegisterMap.t2, nextOffset))
    pushT2(size: isLong ? 8 : 4)
  }

  /// Loads an indirect target into `scratch`.
  private mutating func indirectTarget(_ scratch: HostRegister) {
    let i = instruction
    let size: Int32 = isLong ? 8 : 4
    if i.isMemory {
      let memory = access(size: Int(size), write: false)
      loadOperand(scratch, memory, size: size)
    } else {
      let value = value(of: i.rm, scratch: scratch)
      if isLong {
        if value != scratch { hot.mov(scratch, value) }
      } else {
        hot.mov32(scratch, value)
      }
    }
  }

  /// JMP r/m.
  mutating func jumpIndirect() -> Bool {
    let i = instruction
    guard hasInlineBranches, !truncatesIP, !i.isMemory || isInline(segment: i.segment) else { return false }
    needPageFlags()
    hostFlags = false
    indirectTarget(RegisterMap.t0)
    jumpToComputed()
    return true
  }

  /// CALL r/m.
  mutating func callIndirect() -> Bool {
    let i = instruction
    guard hasInlineBranches, hasInlineStack, !truncatesIP, !i.isMemory || isInline(segment: i.segment) else {
      return false
    }
    needPageFlags()
    hostFlags = false
    indirectTarget(RegisterMap.t0)
    hot.store(.env(Slot.scratch1), RegisterMap.t0)
    pushReturnAddress()
    hot.load(RegisterMap.t0, .env(Slot.scratch1))
    jumpToComputed(moved: isLong ? -8 : -4)
    return true
  }

  /// RET, RET imm16.
  mutating func ret() -> Bool {
    guard hasInlineBranches, hasInlineStack, !truncatesIP else { return false }
    needPageFlags()
    hostFlags = false
    let size: Int32 = isLong ? 8 : 4
    loadTop(RegisterMap.t0, size: size)
    let count = size &+ Int32(truncatingIfNeeded: instruction.immediate & 0xFFFF)
    release(count)
    jumpToComputed(moved: count)
    return true
  }
}

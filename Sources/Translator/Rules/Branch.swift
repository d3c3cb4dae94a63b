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

  /// A near branch with 16-bit operand size truncates IP: it is executed in Swift.
  private var truncatesIP: Bool { !isLong && instruction.operandSize == 2 }

  /// Whether a target in this page may be linked: the block there must not depend on how the next page is mapped.
  private func isLinkable(_ target: Int64) -> Bool {
    guard target >= 0 && target < 4096, unsafe bytes.straddling == nil else { return false }
    if target <= 4096 - 15 { return true }
    let position = Int(target)
    if case .needsMore = unsafe decoder.decode(bytes.page + position, count: 4096 - position, code: code) {
      return false
    }
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
    loadTarget(target)
    jumpThroughCache()
  }

  /// T0 = the linear address of `target`, from the start of the page. Keeps EFLAGS.
  private mutating func loadTarget(_ target: Int64) {
    let t0 = RegisterMap.t0
    hot.load(t0, .env(Slot.pageAddress))
    if isLong { add(target, to: t0) } else { hot.lea32(t0, HostMemory(t0, Int32(truncatingIfNeeded: target))) }
  }

  /// Goes to the linear address in T0. The page's flags are current.
  mutating func jumpThroughCache() {
    probeJumpCache(missing: stubs.jumpMiss) { code, target in code.jump(through: target) }
  }

  /// Looks the linear address in T0 up; `go` emits the transfer to what was found.
  private mutating func probeJumpCache(missing: UInt64, go: (inout CodeEmitter, HostMemory) -> Void) {
    let user: Int32 = privilege == 3 ? 2 &* 8 &* Int32(CHOST_JUMP_ENTRIES) : 0
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    hot.multiply32(t1, t0, by: Int32(CHOST_JUMP_FACTOR))
    hot.shiftRight32(t1, UInt8(CHOST_JUMP_SHIFT))
    hot.alu(.cmp, t0, HostMemory(RegisterMap.env, index: t1, scale: 3, Int32(CHOST_JUMP_TAGS) &+ user))
    hot.jump(if: CodeEmitter.notEqual, to: missing)
    go(&hot, HostMemory(RegisterMap.env, index: t1, scale: 3, Int32(CHOST_JUMP_TARGETS) &+ user))
  }

  /// The information word with which Swift raises #GP for this instruction, whose target is not canonical.
  private var refusalWord: UInt32 { info(Int(CHOST_EXIT_INSTRUCTION), offset: current.offset, flagsSaved: true) }

  /// Where a transfer to a computed target that is not canonical goes: Swift raises #GP for this instruction, after
  /// the guest's stack pointer has been moved back by `moved`.
  private mutating func coldRefusal(moved: Int32) -> UInt64 {
    let address = cold.address
    if moved != 0 { cold.lea(RegisterMap.stackPointer, HostMemory(RegisterMap.stackPointer, 0 &- moved)) }
    cold.storeImmediate32(.env(Slot.exitInfo), refusalWord)
    cold.jump(to: stubs.exit)
    return address
  }

  /// Refuses T0 unless it is canonical, before anything has happened. The page's flags are current.
  private mutating func refuseUnlessCanonical() {
    let refusal = coldRefusal(moved: 0 &- pendingStack)
    hot.jumpUnlessCanonical(to: refusal)
  }

  /// In the cold half: a miss of the jump cache for a branch, whose target may not be canonical.
  private mutating func coldBranchMiss() -> UInt64 {
    let address = cold.address
    cold.mov(RegisterMap.t1, immediate: UInt64(refusalWord))
    cold.jump(to: stubs.branchMiss)
    return address
  }

  /// Goes to the linear address in T0, where the current instruction branches to. The page's flags are current.
  private mutating func branchThroughCache() {
    guard isLong else { return jumpThroughCache() }
    let miss = coldBranchMiss()
    probeJumpCache(missing: miss) { code, target in code.jump(through: target) }
  }

  /// JMP rel.
  mutating func jump(liveAtTarget: UInt8) -> Bool {
    guard hasInlineBranches, !truncatesIP else { return false }
    let target = relativeTarget
    if isLinkable(target) {
      go(to: target, liveAtTarget: liveAtTarget)
    } else {
      needPageFlags()
      loadTarget(target)
      branchThroughCache()
    }
    return true
  }

  /// Jcc rel, falling through to the next instruction.
  mutating func conditionalJump() -> Bool {
    guard hasInlineBranches, !truncatesIP else { return false }
    needHostFlags()
    let condition = instruction.opcode & 15
    let target = relativeTarget
    if isLinkable(target) {
      edge(to: Int32(truncatingIfNeeded: target), by: .branch(condition))
    } else {
      let miss = isLong ? coldBranchMiss() : stubs.jumpMiss
      let over = cold.address
      hot.jump(if: condition, to: over)
      // The far side of the branch is cold code: it may be long, and is not the common case in loops.
      if !pageFlags { cold.saveFlags(scratch: RegisterMap.t1, to: .env(Slot.flags)) }
      swap(&hot, &cold)
      loadTarget(target)
      probeJumpCache(missing: miss) { code, target in code.jump(through: target) }
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
    let target = relativeTarget
    if returnsToNextPage {
      needPageFlags()
      loadTarget(target)
      callWithoutFrame()
      return true
    }
    pushReturnAddress()
    if isLinkable(target) {
      if liveAtTarget != 0 { needHostFlags(scratch: RegisterMap.t1) }
      hot.push(RegisterMap.t2)
      edge(to: Int32(truncatingIfNeeded: target), by: .call)
      afterCall()
    } else {
      needPageFlags()
      loadTarget(target)
      callThroughCache(isCanonical: !isLong)
    }
    return true
  }

  /// A CALL that ends where its page does, so that the address it pushes may not be canonical. RET is to find that.
  private var returnsToNextPage: Bool { isLong && nextOffset == 4096 }

  /// Calls the linear address in T0 with nothing on the shadow stack. The page's flags are current.
  private mutating func callWithoutFrame() {
    hostFlags = false
    refuseUnlessCanonical()
    hot.store(.env(Slot.scratch1), RegisterMap.t0)
    pushReturnAddress()
    hot.load(RegisterMap.t0, .env(Slot.scratch1))
    jumpThroughCache()
  }

  /// Pushes the guest's return address on its stack; it stays in T2.
  private mutating func pushReturnAddress() {
    hot.load(RegisterMap.t2, .env(Slot.pageAddress))
    let next = HostMemory(RegisterMap.t2, nextOffset)
    if isLong { hot.lea(RegisterMap.t2, next) } else { hot.lea32(RegisterMap.t2, next) }
    pushT2(size: isLong ? 8 : 4)
    settleStackPointer()
  }

  /// Calls the linear address in T0, the return address in T2. The page's flags are current. What is not known to be
  /// canonical may yet be refused, but what has been pushed stays in memory below RSP.
  private mutating func callThroughCache(isCanonical: Bool) {
    hot.push(RegisterMap.t2)
    probeJumpCache(missing: cold.address) { code, target in code.call(through: target) }
    if isCanonical {
      cold.call(stubs.jumpMiss)
    } else {
      cold.mov(RegisterMap.t1, immediate: UInt64(refusalWord))
      cold.call(stubs.callMiss)
    }
    cold.jump(to: hot.address)
    afterCall()
  }

  /// What a matching RET comes back to: T0 = the return address, flags in the page.
  private mutating func afterCall() {
    let sp: HostRegister = 4
    hot.lea(sp, HostMemory(sp, 8))
    hostFlags = false
    pageFlags = true
    if isLinkable(Int64(nextOffset)) {
      edge(to: nextOffset, afterCall: true)
    } else {
      jumpThroughCache()
    }
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
    guard hasInlineBranches, !truncatesIP, !i.isMemory || isInline else { return false }
    needPageFlags()
    hostFlags = false
    indirectTarget(RegisterMap.t0)
    branchThroughCache()
    return true
  }

  /// CALL r/m.
  mutating func callIndirect() -> Bool {
    let i = instruction
    guard hasInlineBranches, hasInlineStack, !truncatesIP, !i.isMemory || isInline else {
      return false
    }
    needPageFlags()
    hostFlags = false
    indirectTarget(RegisterMap.t0)
    if returnsToNextPage {
      callWithoutFrame()
      return true
    }
    if isLong { refuseUnlessCanonical() }
    hot.store(.env(Slot.scratch1), RegisterMap.t0)
    pushReturnAddress()
    hot.load(RegisterMap.t0, .env(Slot.scratch1))
    callThroughCache(isCanonical: true)
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
    settleStackPointer()
    let bad = isLong ? coldRefusal(moved: count) : 0
    // The frame on the shadow stack: host address, guest address.
    let sp: HostRegister = 4
    hot.alu(.cmp, RegisterMap.t0, HostMemory(sp, 8))
    hot.jump(if: CodeEmitter.notEqual, to: cold.address)
    hot.byte(0xC3)
    // Another frame than the caller's: drop it, unless the stack is empty.
    cold.alu(.cmp, sp, .env(Slot.shadowTop &+ (privilege == 3 ? 8 : 0)))
    cold.byte(0x73)  // JAE over LEA RSP,[RSP+16]
    cold.byte(5)
    cold.lea(sp, HostMemory(sp, 16))
    if isLong { cold.jumpUnlessCanonical(to: bad) }
    swap(&hot, &cold)
    jumpThroughCache()
    swap(&hot, &cold)
    return true
  }
}

extension CodeEmitter {
  /// Goes to `target` unless T0 is canonical. Uses T1.
  fileprivate mutating func jumpUnlessCanonical(to target: UInt64) {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    mov(t1, t0)
    shiftLeft(t1, 16, w: true)
    shiftRightArithmetic(t1, 16)
    alu(.cmp, t1, t0)
    jump(if: CodeEmitter.notEqual, to: target)
  }
}

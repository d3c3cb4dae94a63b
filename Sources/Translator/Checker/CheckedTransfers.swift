// SPDX-License-Identifier: Apache-2.0
// Where a block goes: branches inside it, edges, exits with their reasons, calls of the helpers with what they are told,
// the jump cache and the shadow stack.

import CHost

extension CheckPass {
  /// 8 bytes of a frame lie on the shadow stack: the guest's return address. Bits 63:32 of the word are its offset in its
  /// page plus 1, if that is known; its other half is the number of the unknown that it is.
  var isPushed: Bool {
    @inline(__always) get { state[CheckedState.stack].head & 1 != 0 }
  }

  // MARK: Branches

  /// Jcc.
  mutating func branch() {
    let target = next &+ host.immediate
    if encoding.immediate == .long { checkEdge(target) }
    let flags = state[CheckedState.flags].head
    mayBranch(to: target, passing: flags != 0 && flags >> 8 & 15 == UInt64(host.opcode & 15))
  }

  /// A jump out of the block.
  mutating func leave(to target: Int) {
    hideSecrets(target == block.stubs.jumpMiss || target == block.stubs.branchMiss ? Role.t0 : 0)
    if target == block.stubs.exit { return exit() }
    if target == block.stubs.jumpMiss { return isPushed ? refuse(.frame) : () }
    if target == block.stubs.branchMiss { return isPushed ? refuse(.frame) : isInstructionWord ? () : refuse(.request) }
    refuse(.branch)
  }

  /// An edge, if a branch to `target` is one: what its target, once linked, relies on.
  mutating func checkEdge(_ target: Int) {
    if block.edgeCount == 0 { return }
    let number = edge(to: target)
    if number < 0 { return }
    // Its target knows nothing of what is pushed, whatever its stub does.
    if isPushed { return refuse(.frame) }
    hideSecrets()
    let edge = recordedEdge(number)
    let t0 = state[Role.t0], stack = state[CheckedState.stack]
    switch edge.kind {
    case .forward, .backward: break
    case .split:
      // T0 is the address of an instruction in the page.
      guard t0.isSum, t0.id == CheckPass.pageID, t0.offset == Int(edge.targetOffset) else { return refuse(.edge) }
    case .afterCall:
      // T0 is the address that was pushed, whose offset in the page is known.
      guard t0.isSum, t0.offset == 0, stack.offset != 0, Int(t0.id) == stack.offset,
        stack.extra == Int(edge.targetOffset) &+ 1
      else { return refuse(.edge) }
    }
  }

  /// To the exit stub: the reason is known, and the edge if it is one.
  private mutating func exit() {
    if isPushed { return refuse(.frame) }
    let word = state[CheckedState.exit]
    guard word.head >> 32 == 1 else { return refuse(.exit) }
    switch Int32(truncatingIfNeeded: word.head >> UInt64(CHOST_INFO_REASON_SHIFT) & 0xFF) {
    case Int32(CHOST_EXIT_LINK), Int32(CHOST_EXIT_RETURN):
      let number = word.offset &- 1 &- block.firstEdge
      if number < 0 || number >= block.edgeCount { refuse(.exit) }
    case Int32(CHOST_EXIT_ATTENTION), Int32(CHOST_EXIT_INSTRUCTION), Int32(CHOST_EXIT_STEP): break
    case Int32(CHOST_EXIT_NONE): if !block.isScratch { refuse(.exit) }
    default: refuse(.exit)
    }
  }

  // MARK: Calls

  /// CALL rel32.
  mutating func call() {
    let target = next &+ host.immediate
    let stubs = block.stubs
    hideSecrets(target == stubs.jumpMiss || target == stubs.callMiss ? Role.t0 : 0)
    if target == stubs.tlbMiss || target == stubs.slotMiss || target == stubs.groupMiss {
      if isPushed { return refuse(.frame) }
      miss(target)
      // A group that is refused goes on behind the JMP that follows.
      if target == stubs.groupMiss { also(at: next &+ 5, losing: Role.t1) }
      return
    }
    if target == stubs.light || target == stubs.string {
      if isPushed { return refuse(.frame) }
      guard target == stubs.light ? isLightCall : isStringCall else { return refuse(.helper) }
      return forget()
    }
    // A guest's call: the frame is complete with it.
    guard isPushed else { return refuse(.frame) }
    if target == stubs.callMiss {
      if !isInstructionWord { return refuse(.request) }
    } else if target != stubs.jumpMiss {
      let before = problem
      let number = edge(to: target)
      guard number >= 0, block.cold.contains(target), before == nil else { return refuse(.branch) }
      guard recordedEdge(number).kind == .forward || recordedEdge(number).kind == .backward else {
        return refuse(.edge)
      }
      enterFrame(target)
      return
    }
    returned()
  }

  /// T1 is the information word of an instruction that Swift executes.
  @inline(__always)
  private var isInstructionWord: Bool {
    let word = state[Role.t1]
    return word.isConstant && word.offset >> Int(CHOST_INFO_REASON_SHIFT) == Int(CHOST_EXIT_INSTRUCTION)
  }

  /// What is known where a guest's call returns to: T0 is the address that was pushed, and 8 bytes of the frame are left.
  mutating func returned() {
    let stack = state[CheckedState.stack]
    forget()
    state[CheckedState.stack] = stack
    // Where paths with different pushes meet, nobody knows which it was.
    state[Role.t0] = stack.offset != 0 ? CheckedValue(.sum, UInt64(stack.offset)) : unknown()
  }

  /// A miss of the TLB, a slot or a group: T0 is the linear address, T1 the request and then the answer.
  mutating func miss(_ target: Int) {
    let linear = state[Role.t0], word = state[Role.t1]
    guard linear.isSum, !linear.isSecret, word.isConstant else { return refuse(.request) }
    let request = UInt64(bitPattern: Int64(word.offset))
    let reason = request >> UInt64(CHOST_INFO_REASON_SHIFT) & 0xFF
    guard reason == UInt64(CHOST_EXIT_MEMORY), (request & UInt64(CHOST_INFO_USER) != 0) == isUser else {
      return refuse(.request)
    }
    let write = request & UInt64(CHOST_INFO_WRITE) != 0
    let more = write ? CheckedValue.writable : 0
    let field = Int(request >> UInt64(CHOST_INFO_SIZE_SHIFT) & 255)
    let displacement = Int(request >> UInt64(CHOST_REQUEST_SLOT_SHIFT) & 0xF_FFFF)
    let position = Int(request >> UInt64(CHOST_REQUEST_OFFSET_SHIFT))
    let size = field == 255 ? 1024 : max(field, 1)
    var answer = CheckedValue(.addend, linear.id, linear.offset, more: more, extra: size)
    if target == block.stubs.tlbMiss {
      guard request >> 32 == 0 else { return refuse(.request) }
    } else if displacement == 0 {
      guard target == block.stubs.groupMiss, position == 0, field < 255 else { return refuse(.request) }
    } else {
      guard field < 255 else { return refuse(.request) }
      let slot = CheckedSlot(displacement, stack: stackSlot, slots: slots)
      switch slot.kind {
      case .none: return refuse(.request)
      case .stack: if position != 0 { return refuse(.request) }
      case .site: if position != 0 || slot.isWritable != write || size > slot.most { return refuse(.request) }
      case .region:
        // The region begins so far below the address, in the same page, and holds the access.
        let isInPage = linear.id <= CheckPass.pageID && linear.offset & 4095 == position && position &+ size <= 4096
        guard slot.isWritable == write, isInPage || position &+ size <= 64 else { return refuse(.request) }
        answer = CheckedValue(.host, 0, position, more: more, extra: size)
      }
    }
    state[Role.t1] = answer
    afterMiss()
  }

  /// A miss fills what distances were taken from, and names itself as the reason of an exit.
  @inline(__always)
  mutating func afterMiss() {
    if state[Role.t2].isKind(.distance) { lose(Role.t2) }
    state[CheckedState.exit] = CheckedValue(.sum)
    loseFlags()
  }

  /// A light helper: T0 is its number, T1 the information word.
  @inline(__always)
  private var isLightCall: Bool {
    let number = state[Role.t0]
    guard number.isConstant, number.offset >= 0, number.offset <= Int(CHOST_LIGHT_HYPERCALL), isInstructionWord else {
      return false
    }
    let level = block.mode & UInt32(CHOST_MODE_CPL)
    switch Int32(truncatingIfNeeded: number.offset) {
    case Int32(CHOST_LIGHT_SYSCALL), Int32(CHOST_LIGHT_POPF), Int32(CHOST_LIGHT_SYSENTER), Int32(CHOST_LIGHT_INT),
      Int32(CHOST_LIGHT_SEGMENT):
      return true
    // Of 32-bit kernels at level 1 too, of which there are none in IA-32e mode.
    case Int32(CHOST_LIGHT_IRET): return level == 0 || level == 1 && block.mode & UInt32(CHOST_MODE_LMA) == 0
    default: return level == 0
    }
  }

  /// A string instruction: the operation's fields, and T1 the information word.
  @inline(__always)
  private var isStringCall: Bool {
    let operation = state[CheckedState.string].head, word = state[Role.t1]
    guard operation >> 32 == 1, word.isConstant,
      word.offset >> Int(CHOST_INFO_REASON_SHIFT) == Int(CHOST_EXIT_MEMORY)
    else { return false }
    let bits = UInt32(truncatingIfNeeded: operation)
    return bits & 15 <= UInt32(CHOST_STRING_CMPS) && bits >> 8 & 3 != 0 && bits >> 12 & 3 < 3 && bits >> 16 & 7 < 6
      && bits & ~0x107_33_3F == 0 && (bits >> 24 & 1 != 0) == isUser
  }

  // MARK: The jump cache

  /// CMP T0 with the tag that an index leads to.
  mutating func compareJumpTag() {
    let value = state[host.reg], index = state[host.index]
    guard host.scale == 3, value.isSum, index.isKind(.jumpIndex), index.isOf(value), host.reg == Role.t0,
      host.displacement == Int(CHOST_JUMP_TAGS) &+ jumpCache
    else { return refuse(.place) }
    state[CheckedState.flags] = CheckedValue(.jumpTag, value.id, value.offset, more: 5)
  }

  /// Where this privilege's jump cache is among those.
  var jumpCache: Int { isUser ? 2 * 8 * Int(CHOST_JUMP_ENTRIES) : 0 }

  /// JMP or CALL through the jump cache. Returns false if no path is left.
  mutating func indirect() -> Bool {
    let flags = state[CheckedState.flags]
    guard host.isMemory, host.base == Role.env, host.index >= 0, host.scale == 3, !host.has66,
      host.displacement == Int(CHOST_JUMP_TARGETS) &+ jumpCache, flags.isKind(.jumpTag), hasPassed(flags),
      state[host.index].isKind(.jumpIndex), state[host.index].isOf(flags), state[Role.t0].isSum,
      state[Role.t0].isOf(flags)
    else {
      refuse(.jump)
      return false
    }
    hideSecrets(Role.t0)
    if host.digit == 4 {
      if isPushed { refuse(.frame) }
      return endPath()
    }
    if !isPushed { refuse(.frame) }
    returned()
    return problem == nil
  }

  // MARK: The shadow stack

  /// PUSH of the guest's return address.
  mutating func push() {
    if Role.isReserved(host.rm) { return refuse(.reserved) }
    if isPushed || host.has66 { return refuse(.frame) }
    let value = state[host.rm]
    if value.isSecret { return refuse(.secret) }
    let isInPage = (value.isSum || value.isKind(.low)) && value.id == CheckPass.pageID
    let address = unknown()
    state[CheckedState.stack] = CheckedValue(
      head: 1 | (isInPage ? UInt64(value.offset & 4095) &+ 1 : 0) << 32, offset: Int(address.id))
  }

  /// LEA RSP, [RSP + 8 or 16].
  mutating func moveShadowStack() {
    guard host.reg == Role.rsp, host.base == Role.rsp, host.index < 0, host.isWide, !host.has66 else {
      return refuse(.reserved)
    }
    if isPushed {
      guard host.displacement == 8 else { return refuse(.frame) }
      state[CheckedState.stack].head &= ~1
      return
    }
    // A frame is dropped if there is one.
    let flags = state[CheckedState.flags]
    guard host.displacement == 16, flags.isKind(.top), hasPassed(flags) else { return refuse(.frame) }
    loseFlags()
  }

  /// CMP T0 with the frame's return address, or RSP with the top.
  mutating func compareShadowStack() {
    if isPushed { return refuse(.frame) }
    let value = state[Role.t0]
    if host.reg == Role.t0 && host.base == Role.rsp && host.index < 0 && host.displacement == 8 && value.isSum {
      // The guest chooses the address in the frame, and the flags tell which is higher.
      if value.isSecret { return refuse(.secret) }
      state[CheckedState.flags] = CheckedValue(.frame, value.id, value.offset, more: 5)
    } else if host.reg == Role.rsp && host.base == Role.env && host.index < 0
      && host.displacement == page.shadowTop &+ (isUser ? 8 : 0)
    {
      state[CheckedState.flags] = CheckedValue(.top, more: 3)
    } else {
      refuse(.frame)
    }
  }

  /// RET: to the frame whose return address is T0.
  mutating func ret() -> Bool {
    let flags = state[CheckedState.flags]
    guard !isPushed, flags.isKind(.frame), hasPassed(flags), state[Role.t0].isSum, state[Role.t0].isOf(flags) else {
      refuse(.frame)
      return false
    }
    hideSecrets(Role.t0)
    return endPath()
  }
}

// SPDX-License-Identifier: Apache-2.0
// What each instruction does to what is known: the shape of a check of the software TLB or a slot, instruction by
// instruction, and the arithmetic that moves addresses. Everything else leaves unknowns in what it writes.

import CHost

extension CheckPass {
  /// Judges the instruction at `place` and what it leads to. Returns false if no path is left, or something is wrong.
  @inline(__always)
  mutating func step() -> Bool {
    guard decode() || decodeNarrowLoop() else {
      refuse(host.action == .refuse ? .instruction : .encoding)
      return false
    }
    clearing = clearingNext
    clearingNext = 0
    // Cold code is entered anywhere: what is patched is no part of another instruction than the edge's branch.
    if isCold && isPatched(place, next, but: isNearTransfer ? next : -1) { refuse(.middle) }
    switch host.action {
    case .refuse: refuse(.instruction)
    case .nothing:
      // With REX.B it is XCHG RAX, R8.
      if host.opcode == 0x90 && host.extend & 1 != 0 { exchange() }
    case .general: general()
    case .move: move()
    case .load: load()
    case .lea: lea()
    case .add: addFromPage()
    case .subtract: subtractFromPage()
    case .compare: compare()
    case .and: and()
    case .immediate: immediate()
    case .shift: shift()
    case .step: addConstant(host.digit == 0 ? 1 : -1)
    case .multiply: multiply()
    case .test: test()
    case .constant: constant()
    case .storeConstant: storeConstant()
    case .bit: bit()
    case .fxsave: saveImage()
    case .xsave: xsave()
    case .state: if block.isScratch { general() } else { environment() }
    case .branch: branch()
    case .loop:
      // LOOP counts in RCX; JRCXZ does not.
      if host.opcode != 0xE3 { lose(Role.rcx) }
      mayBranch(to: next &+ host.immediate)
    case .jump:
      if encoding.immediate == .long { checkEdge(next &+ host.immediate) }
      return jump(to: next &+ host.immediate)
    case .call: call()
    case .indirect: return indirect()
    case .ret: return ret()
    case .push: push()
    }
    return problem == nil
  }

  /// Jcc, JMP or CALL with a distance of 32 bits: what an edge may be.
  @inline(__always)
  private var isNearTransfer: Bool {
    switch host.action {
    case .branch, .jump, .call: encoding.immediate == .long
    default: false
    }
  }

  /// XCHG RAX, R8.
  private mutating func exchange() {
    for register in [Role.rax, 8] {
      if state[register].isSecret { refuse(.secret) }
      lose(register)
    }
  }

  /// RAX, RCX, RDX and RBX never tell where something of the host's lies: instructions read them without naming them.
  @inline(__always)
  mutating func hideFrom(_ register: Int) {
    if register < 4 && state[register].isSecret { refuse(.secret) }
  }

  /// Neither 66 nor LOCK, and W.
  @inline(__always)
  var isQuad: Bool { host.isWide && !host.has66 && !host.isLocked }

  /// The same without W.
  @inline(__always)
  var isLong: Bool { !host.isWide && !host.has66 && !host.isLocked }

  /// A named place of the vCPU page.
  @inline(__always)
  var isOnPage: Bool { host.isMemory && host.base == Role.env && host.index < 0 }

  /// An entry of a table of the vCPU page, which the register `index` leads to.
  @inline(__always)
  var isInTable: Bool {
    host.isMemory && host.base == Role.env && host.index >= 0 && host.scale == 0
  }

  // MARK: Operands that registers choose

  /// BT, BTS, BTR, BTC with a bit offset in a register: one that stays in the operand.
  private mutating func bit() {
    if host.isMemory {
      let bits = state[host.reg]
      guard bits.isSum, bits.extra > 0, bits.extra <= size &* 8 else { return refuse(.unchecked) }
    }
    general()
  }

  /// XSAVE, XRSTOR: of components that the guest's XCR0 allows, which are x87, SSE and AVX.
  private mutating func xsave() {
    if !block.isScratch {
      let high = state[Role.rdx]
      guard state[Role.rax].isKind(.components), high.isConstant, high.offset == 0 else { return refuse(.components) }
    }
    if host.digit == 4 { saveImage() } else { general() }
  }

  /// FXSAVE, XSAVE: of pointers that were cleared right before.
  private mutating func saveImage() {
    if !block.isScratch && clearing != 4 { return refuse(.pointers) }
    general()
  }

  /// FNSTENV and FLDENV in the vCPU page.
  private mutating func environment() {
    guard isOnPage, host.displacement == page.environment, host.opcode == 0xD9, !host.has66 else {
      return refuse(.instruction)
    }
    switch (host.digit, clearing) {
    case (6, _): clearingNext = 1
    case (4, 3): clearingNext = 4
    default: refuse(.instruction)
    }
  }
}

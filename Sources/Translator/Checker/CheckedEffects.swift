// SPDX-License-Identifier: Apache-2.0
// What each instruction does to what is known: the shape of a check of the software TLB or a slot, instruction by
// instruction, and the arithmetic that moves addresses. Everything else leaves unknowns in what it writes.

import CHost

extension CheckPass {
  /// Judges the instruction at `place` and what it leads to. Returns false if no path is left, or something is wrong.
  mutating func step() -> Bool {
    var i = HostInstruction()
    guard decode(&i) || decodeNarrowLoop(&i) else {
      refuse(i.encoding.action == .refuse ? .instruction : .encoding)
      return false
    }
    switch i.encoding.action {
    case .refuse: refuse(.instruction)
    case .nothing: break
    case .general: general(i)
    case .move: move(i)
    case .load: load(i)
    case .lea: lea(i)
    case .add: addFromPage(i)
    case .subtract: subtractFromPage(i)
    case .compare: compare(i)
    case .and: and(i)
    case .immediate: immediate(i)
    case .shift: shift(i)
    case .step: addConstant(i, i.digit == 0 ? 1 : -1)
    case .multiply: multiply(i)
    case .constant: constant(i)
    case .storeConstant: storeConstant(i)
    case .bit: bit(i)
    case .xsave: xsave(i)
    case .state: if block.isScratch { general(i) } else { refuse(.instruction) }
    case .branch: branch(i)
    case .loop:
      // LOOP counts in RCX; JRCXZ does not.
      if i.opcode != 0xE3 { lose(Role.rcx) }
      mayBranch(to: next &+ i.immediate)
    case .jump:
      if i.encoding.immediate == .long { checkEdge(next &+ i.immediate) }
      return jump(to: next &+ i.immediate)
    case .call: call(i)
    case .indirect: return indirect(i)
    case .ret: return ret()
    case .push: push(i)
    }
    return problem == nil
  }

  /// Neither 66 nor LOCK, and W.
  @inline(__always)
  private func isQuad(_ i: HostInstruction) -> Bool { i.isWide && !i.has66 && !i.isLocked }

  /// The same without W.
  @inline(__always)
  private func isLong(_ i: HostInstruction) -> Bool { !i.isWide && !i.has66 && !i.isLocked }

  /// A named place of the vCPU page.
  @inline(__always)
  private func isOnPage(_ i: HostInstruction) -> Bool { i.isMemory && i.base == Role.env && i.index < 0 }

  /// An entry of a table of the vCPU page, which the register `index` leads to.
  @inline(__always)
  private func isInTable(_ i: HostInstruction) -> Bool {
    i.isMemory && i.base == Role.env && i.index >= 0 && i.scale == 0
  }

  // MARK: Moves

  /// MOV r/m, r.
  private mutating func move(_ i: HostInstruction) {
    if Role.isReserved(i.reg) { return refuse(.reserved) }
    if i.isMemory {
      if isOnPage(i) { return storeRegister(i) }
      if state[i.reg].isSecret { return refuse(.secret) }
      return general(i)
    }
    if Role.isReserved(i.rm) { return refuse(.reserved) }
    if isQuad(i) {
      state[i.rm] = state[i.reg]
    } else if isLong(i) && i.rm == Role.t1 && i.reg != i.rm && state[i.reg].isSum {
      state[i.rm] = state[i.reg].turned(.low)
    } else {
      lose(i.rm, from: i.has66 && state[i.rm].isSecret ? state[i.rm] : state[i.reg])
    }
  }

  /// A register to the vCPU page.
  private mutating func storeRegister(_ i: HostInstruction) {
    let value = state[i.reg]
    if isQuad(i) {
      let kept = page.kept(i.displacement)
      if kept >= 0 {
        state[kept] = value
        return
      }
      if i.displacement == page.pageAddress {
        // On the way in: T0 minus the offset in its page that it is known to have.
        let isRight = value.isSum && value.id == CheckPass.entryID && value.offset == 0 &- block.offset
        return isRight ? () : refuse(.place)
      }
    }
    if value.isSecret { return refuse(.secret) }
    accessPage(i.displacement, i.size, write: true)
  }

  /// MOV r, r/m.
  private mutating func load(_ i: HostInstruction) {
    guard isQuad(i), i.isMemory, i.base == Role.env, !Role.isReserved(i.reg) else { return general(i) }
    let flags = state[CheckedState.flags]
    if i.index < 0 {
      let kept = page.kept(i.displacement)
      if kept >= 0 {
        state[i.reg] = state[kept]
      } else if i.displacement == page.pageAddress {
        state[i.reg] = CheckedValue(.sum, CheckPass.pageID)
      } else if hasPassed(flags), i.displacement == comparedPlace(flags) &+ 8 {
        let slot = CheckedSlot(comparedPlace(flags), stack: stackSlot, slots: slots)
        let size = comparedSize(flags), more = slot.isWritable ? CheckedValue.writable : 0
        if flags.isKind(.region) && slot.kind == .region {
          state[i.reg] = CheckedValue(.host, 0, 0, more: more, extra: size)
        } else if flags.isKind(.compared) && (slot.kind == .stack || slot.kind == .site) {
          state[i.reg] = CheckedValue(.addend, flags.id, flags.offset, more: more, extra: size)
        } else {
          refuse(.place)
        }
      } else {
        general(i)
      }
      return
    }
    // The addend of a TLB entry.
    guard isInTable(i), state[i.index].isKind(.entry), flags.isKind(.compared), hasPassed(flags),
      flags.isOf(state[i.index]), i.displacement == comparedPlace(flags) &+ 8, let writes = table(comparedPlace(flags))
    else { return refuse(.place) }
    state[i.reg] = CheckedValue(
      .addend, flags.id, flags.offset, more: writes ? CheckedValue.writable : 0, extra: comparedSize(flags))
  }

  /// Whether a table at a displacement, which is one of this privilege's, may be written through; nil if it is none.
  private func table(_ displacement: Int) -> Bool? {
    let read = Int(CHOST_TLB_READ) &+ (isUser ? 2 &* Int(CHOST_TLB_BYTES) : 0)
    if displacement == read { return false }
    return displacement == read &+ Int(CHOST_TLB_BYTES) ? true : nil
  }

  /// LEA.
  private mutating func lea(_ i: HostInstruction) {
    if i.index >= 0 && Role.isReserved(i.index) { return refuse(.reserved) }
    if i.reg == Role.rsp || i.base == Role.rsp { return moveShadowStack(i) }
    if i.base == Role.env {
      guard block.isScratch, isQuad(i), i.index < 0, i.displacement == Int(CHOST_BOUNCE), !Role.isReserved(i.reg) else {
        return refuse(.reserved)
      }
      state[i.reg] = CheckedValue(.host, 0, 0, more: CheckedValue.writable, extra: 1024)
      return
    }
    if Role.isReserved(i.reg) { return refuse(.reserved) }
    guard i.base >= 0, !i.has66 else {
      return i.base >= 0 || i.index >= 0 ? lose(i.reg, from: state[max(i.base, i.index)]) : lose(i.reg)
    }
    let base = state[i.base]
    if !i.isWide {
      // Outside 64-bit mode a return address in the page is computed so.
      let isAddress = i.reg == Role.t2 && i.index < 0 && base.isSum && base.id == CheckPass.pageID
      let (sum, overflow) = base.offset.addingReportingOverflow(i.displacement)
      if isAddress && !overflow {
        state[i.reg] = CheckedValue(.low, base.id, sum)
      } else {
        lose(i.reg, from: base.isSecret || i.index < 0 ? base : state[i.index])
      }
      return
    }
    if i.index < 0 {
      if base.isSum {
        let (sum, overflow) = base.offset.addingReportingOverflow(i.displacement)
        if overflow { lose(i.reg, from: base) } else { state[i.reg] = CheckedValue(.sum, base.id, sum) }
      } else if base.isKind(.host) {
        // A few thousand displacements do not overflow.
        state[i.reg] = CheckedValue(head: base.head, offset: base.offset &- i.displacement)
      } else {
        lose(i.reg, from: base)
      }
      return
    }
    let addend = state[i.index]
    guard i.scale == 0, base.isSum, addend.isKind(.addend), base.id == addend.id else {
      return lose(i.reg, from: base.isSecret ? base : addend)
    }
    let (sum, overflow) = base.offset.addingReportingOverflow(i.displacement)
    let (low, overflowToo) = addend.offset.subtractingReportingOverflow(sum)
    // What is far from what was checked is of no use.
    guard !overflow, !overflowToo, low > -(1 << 32), low < 1 << 32 else { return lose(i.reg, from: addend) }
    state[i.reg] = CheckedValue(
      .host, 0, low, more: addend.isWritable ? CheckedValue.writable : 0, extra: addend.extra)
  }

  /// MOV r, immediate.
  private mutating func constant(_ i: HostInstruction) {
    if Role.isReserved(i.rm) { return refuse(.reserved) }
    guard !i.has66 else { return lose(i.rm) }
    state[i.rm] = CheckedValue(.sum, 0, i.isWide ? i.immediate : i.immediate & 0xFFFF_FFFF)
  }

  /// MOV r/m, immediate.
  private mutating func storeConstant(_ i: HostInstruction) {
    if !i.isMemory {
      if Role.isReserved(i.rm) { return refuse(.reserved) }
      if isQuad(i) { state[i.rm] = CheckedValue(.sum, 0, i.immediate) } else { lose(i.rm) }
      return
    }
    guard isOnPage(i), isLong(i) else { return general(i) }
    let word = UInt64(i.immediate & 0xFFFF_FFFF)
    switch page[i.displacement] {
    case .exitInfo where i.displacement == page.exitInfo:
      state[CheckedState.exit] = CheckedValue(head: word | 1 << 32, offset: state[CheckedState.exit].offset)
    case .exitData where i.displacement == page.exitData:
      state[CheckedState.exit] = CheckedValue(head: state[CheckedState.exit].head, offset: Int(word) &+ 1)
    case .string where i.displacement == page.string:
      state[CheckedState.string] = CheckedValue(head: word | 1 << 32, offset: 0)
    default: general(i)
    }
  }

  // MARK: Arithmetic

  /// ADD r, r/m: undoes the subtraction of a tag.
  private mutating func addFromPage(_ i: HostInstruction) {
    let value = state[i.reg]
    guard isQuad(i), i.isMemory, i.base == Role.env, value.isKind(.distance), i.displacement == value.extra else {
      return general(i)
    }
    if i.index >= 0 {
      guard i.scale == 0, state[i.index].isKind(.entry), state[i.index].isOf(value) else { return refuse(.place) }
    }
    state[i.reg] = value.turned(.sum)
    loseFlags()
  }

  /// SUB r, r/m: a tag from a linear address.
  private mutating func subtractFromPage(_ i: HostInstruction) {
    let value = state[i.reg]
    guard isQuad(i), i.isMemory, i.base == Role.env, !Role.isReserved(i.reg) else { return general(i) }
    if i.index < 0 {
      let kind = CheckedSlot(i.displacement, stack: stackSlot, slots: slots).kind
      guard kind == .stack || kind == .site, value.isSum else { return general(i) }
    } else {
      guard isInTable(i), table(i.displacement) != nil, value.isSum, state[i.index].isKind(.entry),
        state[i.index].isOf(value)
      else { return refuse(.place) }
    }
    state[i.reg] = value.turned(.distance, extra: i.displacement)
    loseFlags()
  }

  /// CMP r, r/m.
  private mutating func compare(_ i: HostInstruction) {
    guard isQuad(i), i.isMemory else { return general(i) }
    if i.reg == Role.rsp || i.base == Role.rsp { return compareShadowStack(i) }
    guard i.base == Role.env, !Role.isReserved(i.reg) else { return general(i) }
    let value = state[i.reg]
    if i.index >= 0 { return compareJumpTag(i) }
    let slot = CheckedSlot(i.displacement, stack: stackSlot, slots: slots)
    switch slot.kind {
    case .region:
      // A page's start is known to be a multiple of its size; chunks of 64 bytes begin anywhere.
      guard value.isSum else { return refuse(.place) }
      let isPage = value.id <= CheckPass.pageID && value.offset & 4095 == 0
      setCompared(.region, value, i.displacement, size: isPage ? 4096 : 64, unless: 5)
    case .none:
      // A site's distance with the bound beside its tag.
      guard value.isKind(.distance), i.displacement == value.extra &+ 16 else { return general(i) }
      let site = CheckedSlot(value.extra, stack: stackSlot, slots: slots)
      guard site.kind == .site else { return refuse(.place) }
      setCompared(.compared, value, value.extra, size: site.most, unless: 3)
    default: refuse(.place)
    }
  }

  /// Notes a comparison: `size` bytes are shown to be there unless `condition` holds.
  private mutating func setCompared(
    _ kind: CheckedValue.Kind, _ value: CheckedValue, _ displacement: Int, size: Int, unless condition: UInt64
  ) {
    state[CheckedState.flags] = CheckedValue(
      kind, value.id, value.offset, more: condition, extra: displacement | (size &- 1) << 20)
  }

  @inline(__always)
  private func comparedPlace(_ flags: CheckedValue) -> Int { flags.extra & 0xF_FFFF }
  @inline(__always)
  private func comparedSize(_ flags: CheckedValue) -> Int { flags.extra >> 20 &+ 1 }
  @inline(__always)
  func hasPassed(_ flags: CheckedValue) -> Bool { flags.head & CheckedValue.passed << 8 != 0 }

  /// AND r, r/m.
  private mutating func and(_ i: HostInstruction) {
    guard isLong(i), isOnPage(i), i.displacement == page.xcr0, i.reg == Role.rax else { return general(i) }
    state[i.reg] = CheckedValue(.components)
    loseFlags()
  }

  /// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP r/m, immediate.
  private mutating func immediate(_ i: HostInstruction) {
    if i.isMemory {
      guard isOnPage(i), i.displacement == page.systemFlags, i.digit == 1 || i.digit == 4 else { return general(i) }
      return changeFlags(i)
    }
    if Role.isReserved(i.rm) { return refuse(.reserved) }
    let value = state[i.rm]
    switch i.digit {
    case 0 where isQuad(i): addConstant(i, i.immediate)
    case 5 where isQuad(i): addConstant(i, 0 &- i.immediate)
    case 4 where i.immediate >= 0 && !i.has66:
      if value.isKind(.shifted) && i.immediate == (Int(CHOST_TLB_ENTRIES) &- 1) << 4 {
        state[i.rm] = value.turned(.entry)
      } else {
        lose(i.rm, from: value)
        state[i.rm].head |= UInt64(truncatingIfNeeded: i.immediate &+ 1) << 32
      }
      loseFlags()
    case 7:
      loseFlags()
      // A distance with 4096 less the size.
      guard value.isKind(.distance), isQuad(i), i.immediate >= 0, i.immediate < 4096 else { return }
      if CheckedSlot(value.extra, stack: stackSlot, slots: slots).kind == .site { return }
      setCompared(.compared, value, value.extra, size: 4096 &- i.immediate, unless: 7)
    default: general(i)
    }
  }

  /// AND or OR of the guest's RFLAGS: IF, DF and AC alone, and of level 3 DF alone.
  private mutating func changeFlags(_ i: HostInstruction) {
    let allowed = isUser ? 0x400 : 0x4_0600
    let changed = (i.digit == 4 ? ~i.immediate : i.immediate) & 0xFFFF_FFFF
    guard isLong(i), changed & ~allowed == 0 else { return refuse(.place) }
    loseFlags()
  }

  /// r += constant.
  private mutating func addConstant(_ i: HostInstruction, _ constant: Int) {
    guard isQuad(i), !i.isMemory else { return general(i) }
    if Role.isReserved(i.rm) { return refuse(.reserved) }
    let value = state[i.rm]
    let (sum, overflow) = value.offset.addingReportingOverflow(constant)
    if value.isSum && !overflow {
      state[i.rm] = CheckedValue(.sum, value.id, sum)
    } else {
      lose(i.rm, from: value)
    }
    loseFlags()
  }

  /// SHR r/m, immediate.
  private mutating func shift(_ i: HostInstruction) {
    guard isLong(i), !i.isMemory, !Role.isReserved(i.rm) else { return general(i) }
    let value = state[i.rm]
    if value.isKind(.low) && i.immediate == 8 {
      state[i.rm] = value.turned(.shifted)
    } else if value.isKind(.product) && i.immediate == Int(CHOST_JUMP_SHIFT) {
      state[i.rm] = value.turned(.jumpIndex)
    } else {
      lose(i.rm, from: value)
    }
    loseFlags()
  }

  /// IMUL r, r/m, immediate.
  private mutating func multiply(_ i: HostInstruction) {
    guard isLong(i), !i.isMemory, i.immediate == Int(CHOST_JUMP_FACTOR), state[i.rm].isSum, i.reg == Role.t1,
      !Role.isReserved(i.rm)
    else { return general(i) }
    state[i.reg] = state[i.rm].turned(.product)
    loseFlags()
  }

  // MARK: Operands that registers choose

  /// BT, BTS, BTR, BTC with a bit offset in a register: one that stays in the operand.
  private mutating func bit(_ i: HostInstruction) {
    if i.isMemory {
      let bits = state[i.reg]
      guard bits.isSum, bits.extra > 0, bits.extra <= i.size &* 8 else { return refuse(.unchecked) }
    }
    general(i)
  }

  /// XSAVE, XRSTOR: of components that the guest's XCR0 allows, which are x87, SSE and AVX.
  private mutating func xsave(_ i: HostInstruction) {
    if !block.isScratch {
      let high = state[Role.rdx]
      guard state[Role.rax].isKind(.components), high.isConstant, high.offset == 0 else { return refuse(.components) }
    }
    general(i)
  }
}

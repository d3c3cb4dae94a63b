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
  private mutating func hideFrom(_ register: Int) {
    if register < 4 && state[register].isSecret { refuse(.secret) }
  }

  /// Neither 66 nor LOCK, and W.
  @inline(__always)
  private var isQuad: Bool { host.isWide && !host.has66 && !host.isLocked }

  /// The same without W.
  @inline(__always)
  private var isLong: Bool { !host.isWide && !host.has66 && !host.isLocked }

  /// A named place of the vCPU page.
  @inline(__always)
  private var isOnPage: Bool { host.isMemory && host.base == Role.env && host.index < 0 }

  /// An entry of a table of the vCPU page, which the register `index` leads to.
  @inline(__always)
  private var isInTable: Bool {
    host.isMemory && host.base == Role.env && host.index >= 0 && host.scale == 0
  }

  // MARK: Moves

  /// MOV r/m, r.
  private mutating func move() {
    if Role.isReserved(host.reg) { return refuse(.reserved) }
    if host.isMemory {
      if isOnPage { return storeRegister() }
      if state[host.reg].isSecret { return refuse(.secret) }
      return general()
    }
    if Role.isReserved(host.rm) { return refuse(.reserved) }
    defer { hideFrom(host.rm) }
    if isQuad {
      // A distance stays where it was made.
      if state[host.reg].isKind(.distance) { return lose(host.rm) }
      state[host.rm] = state[host.reg]
      if host.reg == Role.rax && (host.rm == Role.t1 || host.rm == Role.t2) { passFlagMoves(host.rm) }
    } else if isLong && host.rm == Role.t1 && host.reg != host.rm && state[host.reg].isSum {
      if host.reg == Role.t0 && checksTable() { return }
      state[host.rm] = state[host.reg].turned(.low)
    } else {
      // With 66 a part stays.
      lose(host.rm, from: host.has66 && state[host.rm].isSecret ? state[host.rm] : state[host.reg])
    }
  }

  /// A register to the vCPU page.
  private mutating func storeRegister() {
    let value = state[host.reg]
    if isQuad {
      let kept = page.kept(host.displacement)
      if kept >= 0 {
        return keep(kept, value.isKind(.distance) ? unknown() : value)
      }
      if host.displacement == page.pageAddress {
        // On the way in: T0 minus the offset in its page that it is known to have.
        let isRight = value.isSum && value.id == CheckPass.entryID && value.offset == 0 &- block.offset
        return isRight ? () : refuse(.place)
      }
    }
    if value.isSecret { return refuse(.secret) }
    accessPage(host.displacement, size, write: true)
  }

  /// MOV r, r/m.
  private mutating func load() {
    guard isQuad, host.isMemory, host.base == Role.env, !Role.isReserved(host.reg) else { return general() }
    let flags = state[CheckedState.flags]
    defer { hideFrom(host.reg) }
    if host.index < 0 {
      let kept = page.kept(host.displacement)
      if kept >= 0 {
        state[host.reg] = self.kept(kept)
      } else if host.displacement == page.pageAddress {
        state[host.reg] = CheckedValue(.sum, CheckPass.pageID)
      } else if hasPassed(flags), host.displacement == comparedPlace(flags) &+ 8 {
        let slot = CheckedSlot(comparedPlace(flags), stack: stackSlot, slots: slots)
        let size = comparedSize(flags), more = slot.isWritable ? CheckedValue.writable : 0
        if flags.isKind(.region) && slot.kind == .region {
          state[host.reg] = CheckedValue(.host, 0, 0, more: more, extra: size)
        } else if flags.isKind(.compared) && (slot.kind == .stack || slot.kind == .site) {
          state[host.reg] = CheckedValue(.addend, flags.id, flags.offset, more: more, extra: size)
        } else {
          refuse(.place)
        }
      } else {
        general()
      }
      return
    }
    // The addend of a TLB entry.
    guard isInTable, state[host.index].isKind(.entry), flags.isKind(.compared), hasPassed(flags),
      flags.isOf(state[host.index]), host.displacement == comparedPlace(flags) &+ 8,
      let writes = table(comparedPlace(flags))
    else { return refuse(.place) }
    state[host.reg] = CheckedValue(
      .addend, flags.id, flags.offset, more: writes ? CheckedValue.writable : 0, extra: comparedSize(flags))
  }

  /// Whether a table at a displacement, which is one of this privilege's, may be written through; nil if it is none.
  func table(_ displacement: Int) -> Bool? {
    let read = Int(CHOST_TLB_READ) &+ (isUser ? 2 &* Int(CHOST_TLB_BYTES) : 0)
    if displacement == read { return false }
    return displacement == read &+ Int(CHOST_TLB_BYTES) ? true : nil
  }

  /// LEA.
  private mutating func lea() {
    if host.index >= 0 && Role.isReserved(host.index) { return refuse(.reserved) }
    if host.reg == Role.rsp || host.base == Role.rsp { return moveShadowStack() }
    if host.base == Role.env {
      guard block.isScratch, isQuad, host.index < 0, host.displacement == Int(CHOST_BOUNCE), !Role.isReserved(host.reg)
      else {
        return refuse(.reserved)
      }
      state[host.reg] = CheckedValue(.host, 0, 0, more: CheckedValue.writable, extra: 1024)
      return
    }
    if Role.isReserved(host.reg) { return refuse(.reserved) }
    defer { hideFrom(host.reg) }
    guard host.base >= 0, !host.has66 else {
      var source = host.base >= 0 ? state[host.base] : CheckedValue(.sum)
      if host.index >= 0 && !source.isSecret { source = state[host.index] }
      // With 66 a part stays.
      if host.has66 && state[host.reg].isSecret { source = state[host.reg] }
      return lose(host.reg, from: source)
    }
    let base = state[host.base]
    if !host.isWide {
      // Outside 64-bit mode a return address in the page is computed so.
      let isAddress = host.reg == Role.t2 && host.index < 0 && base.isSum && base.id == CheckPass.pageID
      let (sum, overflow) = base.offset.addingReportingOverflow(host.displacement)
      if isAddress && !overflow {
        state[host.reg] = CheckedValue(.low, base.id, sum)
      } else {
        lose(host.reg, from: base.isSecret || host.index < 0 ? base : state[host.index])
      }
      return
    }
    if host.index < 0 {
      if base.isSum {
        let (sum, overflow) = base.offset.addingReportingOverflow(host.displacement)
        if overflow { lose(host.reg, from: base) } else { state[host.reg] = CheckedValue(.sum, base.id, sum) }
      } else if base.isKind(.host) {
        // A few thousand displacements do not overflow.
        state[host.reg] = CheckedValue(head: base.head, offset: base.offset &- host.displacement)
      } else {
        lose(host.reg, from: base)
      }
      return
    }
    let addend = state[host.index]
    guard host.scale == 0, base.isSum, addend.isKind(.addend), base.id == addend.id else {
      return lose(host.reg, from: base.isSecret ? base : addend)
    }
    let (sum, overflow) = base.offset.addingReportingOverflow(host.displacement)
    let (low, overflowToo) = addend.offset.subtractingReportingOverflow(sum)
    // What is far from what was checked is of no use.
    guard !overflow, !overflowToo, low > -(1 << 32), low < 1 << 32 else { return lose(host.reg, from: addend) }
    state[host.reg] = CheckedValue(
      .host, 0, low, more: addend.isWritable ? CheckedValue.writable : 0, extra: addend.extra)
  }

  /// MOV r, immediate.
  private mutating func constant() {
    if Role.isReserved(host.rm) { return refuse(.reserved) }
    guard !host.has66 else { return lose(host.rm, from: state[host.rm]) }
    state[host.rm] = CheckedValue(.sum, 0, host.isWide ? host.immediate : host.immediate & 0xFFFF_FFFF)
  }

  /// MOV r/m, immediate.
  private mutating func storeConstant() {
    if !host.isMemory {
      if Role.isReserved(host.rm) { return refuse(.reserved) }
      if isQuad {
        state[host.rm] = CheckedValue(.sum, 0, host.immediate)
      } else if host.has66 {
        lose(host.rm, from: state[host.rm])
      } else {
        lose(host.rm)
      }
      return
    }
    guard isOnPage, isLong else { return general() }
    let word = UInt64(host.immediate & 0xFFFF_FFFF)
    switch page[host.displacement] {
    case .forbidden where host.displacement == page.environment &+ 12 && clearing == 1 && word == 0: clearingNext = 2
    case .forbidden where host.displacement == page.environment &+ 20 && clearing == 2 && word == 0: clearingNext = 3
    case .exitInfo where host.displacement == page.exitInfo:
      state[CheckedState.exit] = CheckedValue(head: word | 1 << 32, offset: state[CheckedState.exit].offset)
    case .exitData where host.displacement == page.exitData:
      state[CheckedState.exit] = CheckedValue(head: state[CheckedState.exit].head, offset: Int(word) &+ 1)
    case .string where host.displacement == page.string:
      state[CheckedState.string] = CheckedValue(head: word | 1 << 32, offset: 0)
    default: general()
    }
  }

  // MARK: Arithmetic

  /// ADD r, r/m: undoes the subtraction of a tag.
  private mutating func addFromPage() {
    let value = state[host.reg]
    guard isQuad, host.isMemory, host.base == Role.env, value.isKind(.distance), host.displacement == value.extra else {
      return general()
    }
    if host.index >= 0 {
      guard host.scale == 0, state[host.index].isKind(.entry), state[host.index].isOf(value) else {
        return refuse(.place)
      }
    } else if table(value.extra) != nil {
      return refuse(.place)
    }
    state[host.reg] = value.turned(.sum)
    loseFlags()
  }

  /// SUB r, r/m: a tag from a linear address.
  private mutating func subtractFromPage() {
    let value = state[host.reg]
    guard isQuad, host.isMemory, host.base == Role.env, host.reg == Role.t0 || host.reg == Role.t2, !value.isSecret
    else { return general() }
    if host.index < 0 {
      let kind = CheckedSlot(host.displacement, stack: stackSlot, slots: slots).kind
      guard kind == .stack || kind == .site, value.isSum else { return general() }
    } else {
      guard isInTable, table(host.displacement) != nil, value.isSum, state[host.index].isKind(.entry),
        state[host.index].isOf(value)
      else { return refuse(.place) }
    }
    state[host.reg] = value.turned(.distance, extra: host.displacement)
    loseFlags()
  }

  /// CMP r, r/m.
  private mutating func compare() {
    guard isQuad, host.isMemory else { return general() }
    if host.reg == Role.rsp || host.base == Role.rsp { return compareShadowStack() }
    guard host.base == Role.env, !Role.isReserved(host.reg), !state[host.reg].isSecret else { return general() }
    let value = state[host.reg]
    if host.index >= 0 { return compareJumpTag() }
    let slot = CheckedSlot(host.displacement, stack: stackSlot, slots: slots)
    switch slot.kind {
    case .region:
      // A page's start is known to be a multiple of its size; chunks of 64 bytes begin anywhere.
      guard value.isSum else { return refuse(.place) }
      let isPage = value.id <= CheckPass.pageID && value.offset & 4095 == 0
      setCompared(.region, value, host.displacement, size: isPage ? 4096 : 64, unless: 5)
    case .none:
      // A site's distance with the bound beside its tag.
      guard value.isKind(.distance), host.displacement == value.extra &+ 16 else { return general() }
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
  private mutating func and() {
    guard isLong, isOnPage, host.displacement == page.xcr0, host.reg == Role.rax else { return general() }
    state[host.reg] = CheckedValue(.components)
    loseFlags()
  }

  /// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP r/m, immediate.
  private mutating func immediate() {
    if host.isMemory {
      guard isOnPage, host.displacement == page.systemFlags, host.digit == 1 || host.digit == 4 else {
        return general()
      }
      return changeFlags()
    }
    if Role.isReserved(host.rm) { return refuse(.reserved) }
    let value = state[host.rm]
    // The flags would tell.
    if value.isSecret { return refuse(.secret) }
    switch host.digit {
    case 0 where isQuad: addConstant(host.immediate)
    case 5 where isQuad: addConstant(0 &- host.immediate)
    case 4 where host.immediate >= 0 && !host.has66:
      if value.isKind(.shifted) && host.immediate == (Int(CHOST_TLB_ENTRIES) &- 1) << 4 {
        state[host.rm] = value.turned(.entry)
      } else {
        lose(host.rm, from: value)
        state[host.rm].head |= UInt64(truncatingIfNeeded: host.immediate &+ 1) << 32
      }
      loseFlags()
    case 7:
      loseFlags()
      // A distance with 4096 less the size.
      guard value.isKind(.distance), isQuad, host.immediate >= 0, host.immediate < 4096 else { return }
      if CheckedSlot(value.extra, stack: stackSlot, slots: slots).kind == .site { return }
      setCompared(.compared, value, value.extra, size: 4096 &- host.immediate, unless: 7)
    default: general()
    }
  }

  /// AND or OR of the guest's RFLAGS: IF, DF and AC alone, and of level 3 DF alone.
  private mutating func changeFlags() {
    let allowed = isUser ? 0x400 : 0x4_0600
    let changed = (host.digit == 4 ? ~host.immediate : host.immediate) & 0xFFFF_FFFF
    guard isLong, changed & ~allowed == 0 else { return refuse(.place) }
    loseFlags()
  }

  /// r += constant.
  private mutating func addConstant(_ constant: Int) {
    guard isQuad, !host.isMemory else { return general() }
    if Role.isReserved(host.rm) { return refuse(.reserved) }
    let value = state[host.rm]
    if value.isSecret { return refuse(.secret) }
    let (sum, overflow) = value.offset.addingReportingOverflow(constant)
    if value.isSum && !overflow {
      state[host.rm] = CheckedValue(.sum, value.id, sum)
    } else {
      lose(host.rm, from: value)
    }
    loseFlags()
  }

  /// SHR r/m, immediate.
  private mutating func shift() {
    guard isLong, !host.isMemory, !Role.isReserved(host.rm) else { return general() }
    let value = state[host.rm]
    if value.isSecret { return refuse(.secret) }
    if value.isKind(.low) && host.immediate == 8 {
      state[host.rm] = value.turned(.shifted)
    } else if value.isKind(.product) && host.immediate == Int(CHOST_JUMP_SHIFT) {
      state[host.rm] = value.turned(.jumpIndex)
    } else {
      lose(host.rm, from: value)
    }
    loseFlags()
  }

  /// TEST r/m, immediate: where in its page a host address lies is no secret.
  private mutating func test() {
    let isAlignment = !host.isMemory && isLong && host.immediate >= 0 && host.immediate < 4096
    guard isAlignment, !Role.isReserved(host.rm) else { return general() }
    loseFlags()
  }

  /// IMUL r, r/m, immediate.
  private mutating func multiply() {
    guard isLong, !host.isMemory, host.immediate == Int(CHOST_JUMP_FACTOR), state[host.rm].isSum, host.reg == Role.t1,
      !Role.isReserved(host.rm), !state[host.rm].isSecret
    else { return general() }
    if host.rm == Role.t0 && probesJumpCache() { return }
    state[host.reg] = state[host.rm].turned(.product)
    loseFlags()
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

// SPDX-License-Identifier: Apache-2.0
// Arithmetic, as the checker sees it: comparisons with tags and bounds, the index of a table, and addresses that move by
// constants.

import CHost

extension CheckPass {
  /// ADD r, r/m: undoes the subtraction of a tag.
  mutating func addFromPage() {
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
  mutating func subtractFromPage() {
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
  mutating func compare() {
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
  mutating func setCompared(
    _ kind: CheckedValue.Kind, _ value: CheckedValue, _ displacement: Int, size: Int, unless condition: UInt64
  ) {
    state[CheckedState.flags] = CheckedValue(
      kind, value.id, value.offset, more: condition, extra: displacement | (size &- 1) << 20)
  }

  @inline(__always)
  func comparedPlace(_ flags: CheckedValue) -> Int { flags.extra & 0xF_FFFF }
  @inline(__always)
  func comparedSize(_ flags: CheckedValue) -> Int { flags.extra >> 20 &+ 1 }
  @inline(__always)
  func hasPassed(_ flags: CheckedValue) -> Bool { flags.head & CheckedValue.passed << 8 != 0 }

  /// AND r, r/m.
  mutating func and() {
    guard isLong, isOnPage, host.displacement == page.xcr0, host.reg == Role.rax else { return general() }
    state[host.reg] = CheckedValue(.components)
    loseFlags()
  }

  /// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP r/m, immediate.
  mutating func immediate() {
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

  /// AND or OR of the guest's RFLAGS: IF, DF and AC alone, and DF alone of levels 1 to 3.
  mutating func changeFlags() {
    let allowed = isKernel ? 0x4_0600 : 0x400
    let changed = (host.digit == 4 ? ~host.immediate : host.immediate) & 0xFFFF_FFFF
    guard isLong, changed & ~allowed == 0 else { return refuse(.place) }
    loseFlags()
  }

  /// r += constant.
  mutating func addConstant(_ constant: Int) {
    guard isQuad, !host.isMemory else { return general() }
    if Role.isReserved(host.rm) { return refuse(.reserved) }
    let value = state[host.rm]
    if value.isSecret { return refuse(.secret) }
    if value.isSum {
      state[host.rm] = CheckedValue(.sum, value.id, value.offset &+ constant)
    } else {
      lose(host.rm, from: value)
    }
    loseFlags()
  }

  /// SHR r/m, immediate.
  mutating func shift() {
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
  mutating func test() {
    let isAlignment = !host.isMemory && isLong && host.immediate >= 0 && host.immediate < 4096
    guard isAlignment, !Role.isReserved(host.rm) else { return general() }
    loseFlags()
  }

  /// IMUL r, r/m, immediate.
  mutating func multiply() {
    guard isLong, !host.isMemory, host.immediate == Int(CHOST_JUMP_FACTOR), state[host.rm].isSum, host.reg == Role.t1,
      !Role.isReserved(host.rm), !state[host.rm].isSecret
    else { return general() }
    if host.rm == Role.t0 && probesJumpCache() { return }
    state[host.reg] = state[host.rm].turned(.product)
    loseFlags()
  }
}

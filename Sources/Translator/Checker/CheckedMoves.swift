// SPDX-License-Identifier: Apache-2.0
// Moves, as the checker sees them: loads of what a check has shown, stores to the vCPU page, LEA and constants.

import CHost

extension CheckPass {
  /// MOV r/m, r.
  mutating func move() {
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
  mutating func storeRegister() {
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
  mutating func load() {
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
  mutating func lea() {
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
        state[host.reg] = CheckedValue(.sum, base.id, base.offset &+ host.displacement)
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
    let low = addend.offset &- (base.offset &+ host.displacement)
    // What is far from what was checked is of no use.
    guard low > -(1 << 32), low < 1 << 32 else { return lose(host.reg, from: addend) }
    state[host.reg] = CheckedValue(
      .host, 0, low, more: addend.isWritable ? CheckedValue.writable : 0, extra: addend.extra)
  }

  /// MOV r, immediate.
  mutating func constant() {
    if Role.isReserved(host.rm) { return refuse(.reserved) }
    guard !host.has66 else { return lose(host.rm, from: state[host.rm]) }
    state[host.rm] = CheckedValue(.sum, 0, host.isWide ? host.immediate : host.immediate & 0xFFFF_FFFF)
  }

  /// MOV r/m, immediate.
  mutating func storeConstant() {
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
}

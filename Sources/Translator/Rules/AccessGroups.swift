// SPDX-License-Identifier: Apache-2.0
// Groups of accesses: one check serves several operands that lie close together, and T1 keeps what it found.

import CHost
import X86

extension BlockBuilder {
  /// An access at `position` of group `number`: guest register `base` + displacement if it has one.
  mutating func groupAccess(_ number: Int8, position: Int64, base: UInt8, displacement: Int32) -> HostMemory {
    let group = groups[Int(number)]
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    let found = HostMemory.env(Slot.groups &+ Int32(number) &* 8)
    if !group.isOpen { open(number, position: position, displacement: displacement) }
    groups[Int(number)].count &-= 1
    defer { closeAfterLast(number) }
    if group.base.kind == .region {
      loadT1(number, found)
      return HostMemory(t1, Int32(truncatingIfNeeded: position))
    }
    let host = RegisterMap.host(base)
    if group.isPlain && !group.isMoving {
      loadT1(number, found)
      return HostMemory(host, index: t1, base == 4 ? displacement &+ pendingStack : displacement)
    }
    let contents = BlockBuilder.contents(group: number)
    if !hot.holds(contents, in: t0) {
      hot.load(t0, found)
      hot.keep(contents, in: t0)
    }
    return HostMemory(t0, Int32(truncatingIfNeeded: position &- group.low))
  }

  private mutating func loadT1(_ number: Int8, _ found: HostMemory) {
    let t1 = RegisterMap.t1
    let contents = BlockBuilder.contents(group: number)
    if hot.holds(contents, in: t1) { return }
    hot.load(t1, found)
    hot.keep(contents, in: t1)
  }

  /// Emits the check of a group in front of its first access, and keeps what it finds for the others.
  private mutating func open(_ number: Int8, position: Int64, displacement: Int32) {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    let group = groups[Int(number)]
    settleStackPointer()
    groups[Int(number)].isOpen = true
    clobberFlags()
    let size = Int(group.high &- group.low)
    if group.base.kind == .region {
      checkRegion(group.base.region, group.low..<group.high, write: group.writes, group: number)
    } else if group.isPlain {
      let base = RegisterMap.host(group.base.base)
      let low = Int32(truncatingIfNeeded: Int64(displacement) &+ group.low &- position)
      addressInT0(base, low)
      check(keepsAddress: false, size: size, write: group.writes, slot: slot(for: base, size: 1), group: true)
      if group.isMoving {
        hot.lea(t0, HostMemory(base, index: t1, low))
        return keep(number, in: t0)
      }
    } else {
      // In a flat segment the group's beginning is the operand moved: one addition, which wraps as the operand's does.
      let below = Int32(truncatingIfNeeded: group.low &- position)
      let (moved, overflow) = instruction.displacement.addingReportingOverflow(below)
      if isFlat(instruction.segment, write: group.writes) && !overflow {
        current.instruction.displacement = moved
        effectiveAddress()
        current.instruction.displacement = displacement
      } else {
        linearAddress(size: size, write: group.writes)
        addressInT0(t0, below)
      }
      let base = group.base.base == 4 ? RegisterMap.stackPointer : t0
      check(keepsAddress: true, size: size, write: group.writes, slot: slot(for: base, size: 1), group: true)
      hot.lea(t0, HostMemory(t0, index: t1))
      return keep(number, in: t0)
    }
    keep(number, in: t1)
  }

  /// What the check of a group has found is in T0 or T1, and needed by its other accesses.
  private mutating func keep(_ number: Int8, in register: HostRegister) {
    hot.keep(BlockBuilder.contents(group: number), in: register)
    hot.owe(register, to: Slot.groups &+ Int32(number) &* 8)
  }

  /// After the last access of a group nothing of it needs to be kept.
  private mutating func closeAfterLast(_ number: Int8) {
    guard groups[Int(number)].count <= 0 else { return }
    let contents = BlockBuilder.contents(group: number)
    if hot.holds(contents, in: RegisterMap.t0) { hot.owe(RegisterMap.t0, to: 0) }
    if hot.holds(contents, in: RegisterMap.t1) { hot.owe(RegisterMap.t1, to: 0) }
  }
}

extension AccessGroup {
  /// Whether its members' addresses are a host register plus a displacement.
  fileprivate var isPlain: Bool {
    base.index == 0xFF && !base.wraps && RegisterMap.host(base.base) != RegisterMap.inMemory
  }
}

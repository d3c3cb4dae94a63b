// SPDX-License-Identifier: Apache-2.0
// The memory rule: an operand is redirected through the software TLB. One subtraction and one comparison prove
// that the whole operand lies in one page that the table allows; the table's addend then turns the linear address
// into a host address. Everything else is the slow path's. Accesses to the stack, and to places that do not depend on
// general registers, have slots of their own instead of the table, which cost no index; accesses close together
// share one check (AccessPlan.swift).

import CHost
import X86

extension BlockBuilder {
  /// Whether memory operands are served in line: not while breakpoints are armed or alignment is checked.
  var isInline: Bool { !has(Int(CHOST_MODE_ALIGN)) && !has(Int(CHOST_MODE_STEP)) }

  /// Whether offsets in `segment` are linear addresses, with nothing to add and nothing to check.
  func isFlat(_ segment: UInt8, write: Bool = false) -> Bool {
    // Outside 64-bit mode the code segment cannot be written.
    isLong ? segment < 4 : segment < 4 && !has(Int(CHOST_MODE_SEGMENTED)) && !(write && segment == 1)
  }

  /// Whether RSP, and a register plus a displacement, are linear addresses as they stand in 64-bit registers. Outside
  /// IA-32e mode the table has no address beyond 4 GiB: a sum that wraps, or a register with something in its upper
  /// half, misses, and Swift computes what it means.
  var hasPlainAddresses: Bool {
    isLong || !has(Int(CHOST_MODE_LMA)) && !has(Int(CHOST_MODE_SEGMENTED)) && has(Int(CHOST_MODE_STACK32))
  }

  /// Whether the current operand is a register plus a displacement that is its own linear address. Displacements that
  /// may be addresses of tables in the upper half wrap as a rule, not by accident.
  @inline(__always)
  private func isPlain(write: Bool) -> Bool {
    let i = instruction
    guard i.index == 0xFF, i.base != 0xFF, !i.isRIPRelative, isFlat(i.segment, write: write) else { return false }
    if isLong { return i.addressSize == 8 }
    return hasPlainAddresses && i.addressSize == 4 && i.displacement > BlockBuilder.farthestBelow
  }

  /// Displacements down to here, not included, are not taken for addresses of tables.
  static let farthestBelow: Int32 = -0x1_0000

  /// Displacement from ENV of a table.
  func table(write: Bool) -> Int32 {
    (write ? Int32(CHOST_TLB_WRITE) : Int32(CHOST_TLB_READ))
      &+ (privilege == 3 ? 2 &* Int32(CHOST_TLB_BYTES) : 0)
  }

  /// Whether operands in flat segments may be served by slots of regions: 64-bit mode, and 32-bit code.
  private var hasRegions: Bool { isLong || hasPlainAddresses && has(Int(CHOST_MODE_CODE32)) }

  /// Whether accesses of this block may share checks.
  var canGroup: Bool {
    hasRegions && !has(Int(CHOST_MODE_ALIGN)) && !has(Int(CHOST_MODE_STEP)) && !has(Int(CHOST_MODE_SPLIT))
      && form == .full
  }

  /// Redirects the instruction's ModRM operand. Returns where it is on the host; T1 and perhaps T0 are in use.
  /// Destroys EFLAGS (saved if live) unless its group has been checked.
  mutating func access(size: Int, write: Bool) -> HostMemory {
    let i = instruction
    if current.operandGroup >= 0 {
      return groupAccess(
        current.operandGroup, position: current.operandPosition, base: i.base, displacement: i.displacement)
    }
    clobberFlags()
    if let (region, offset) = operandRegion(size: size, write: write) {
      checkRegion(region, offset..<offset &+ Int64(size), write: write, group: nil)
      return HostMemory(RegisterMap.t1, Int32(truncatingIfNeeded: offset))
    }
    if isPlain(write: write) && form == .full {
      let base = RegisterMap.host(i.base)
      if base != RegisterMap.inMemory {
        return access(base: base, displacement: i.displacement, size: size, write: write)
      }
    }
    linearAddress(size: size, write: write)
    check(
      keepsAddress: true, size: size, write: write,
      slot: slot(for: i.base == 4 ? RegisterMap.stackPointer : RegisterMap.t0, size: size))
    return HostMemory(RegisterMap.t0, index: RegisterMap.t1)
  }

  /// The same for the operand of the moffs rule.
  mutating func accessOffset(size: Int, write: Bool) -> HostMemory {
    let i = instruction
    if current.operandGroup >= 0 {
      return groupAccess(current.operandGroup, position: current.operandPosition, base: 0xFF, displacement: 0)
    }
    clobberFlags()
    if let (region, offset) = operandRegion(size: size, write: write, isOffset: true) {
      checkRegion(region, offset..<offset &+ Int64(size), write: write, group: nil)
      return HostMemory(RegisterMap.t1, Int32(truncatingIfNeeded: offset))
    }
    hot.mov(RegisterMap.t0, immediate: i.immediate)
    toLinear(i.segment, size: size, write: write)
    return accessAtT0(size: size, write: write)
  }

  /// The region that the current instruction's operand lies in, and where, if its slot may serve it.
  @inline(__always)
  func operandRegion(size: Int, write: Bool, isOffset: Bool = false) -> (Region, Int64)? {
    guard hasRegions, !has(Int(CHOST_MODE_STEP)), form == .full, isLong || isFlat(instruction.segment, write: write)
    else {
      return nil
    }
    return current.region(size: size, isLong: isLong, isOffset: isOffset)
  }

  /// The same for [base + displacement], base in a host register: the guest's own addressing form survives.
  mutating func access(base: HostRegister, displacement: Int32, size: Int, write: Bool) -> HostMemory {
    addressInT0(base, displacement)
    if form != .full { return accessAtT0(size: size, write: write) }
    check(keepsAddress: false, size: size, write: write, slot: slot(for: base, size: size))
    return HostMemory(base, index: RegisterMap.t1, displacement)
  }

  /// The same for `size` bytes at RSP + displacement: what PUSH and its like access. In a group if it was planned so.
  mutating func accessStack(displacement: Int32, size: Int, write: Bool) -> HostMemory {
    site = nil
    if current.stackGroup >= 0 {
      return groupAccess(current.stackGroup, position: current.stackPosition, base: 4, displacement: displacement)
    }
    settleStackPointer()
    clobberFlags()
    return access(base: RegisterMap.stackPointer, displacement: displacement, size: size, write: write)
  }

  /// The same for the linear address in T0, which stays there; T2 is destroyed.
  mutating func accessAtT0(size: Int, write: Bool) -> HostMemory {
    check(keepsAddress: true, size: size, write: write, slot: nil)
    return HostMemory(RegisterMap.t0, index: RegisterMap.t1)
  }

  /// T0 = base + displacement.
  mutating func addressInT0(_ base: HostRegister, _ displacement: Int32) {
    if displacement == 0 {
      if base != RegisterMap.t0 { hot.mov(RegisterMap.t0, base) }
    } else {
      hot.lea(RegisterMap.t0, HostMemory(base, displacement))
    }
  }

  /// Whether a slot of its own would serve the current instruction's operand better than what it has.
  var needsSite: Bool {
    if has(Int(CHOST_MODE_ALIGN)) || has(Int(CHOST_MODE_STEP)) { return false }
    if current.operandGroup >= 0 {
      let group = groups[Int(current.operandGroup)]
      return !group.isOpen && group.base.kind == .registers
    }
    return operandRegion(size: traits.memoryBytes(instruction), write: traits.memoryWrites) == nil
  }

  /// Displacement of the slot for an access relative to a host register, if it has one: the operand's own, or that of
  /// the stack's page.
  func slot(for base: HostRegister, size: Int) -> Int32? {
    if let site { return site }
    if form != .full { return nil }
    guard base == RegisterMap.stackPointer, size <= 64 else { return nil }
    return Slot.stack &+ (privilege == 3 ? 16 : 0)
  }

  /// What a miss is told about the current access.
  func request(size: Int, write: Bool, slot: Int32?, offset: Int64 = 0) -> UInt64 {
    let word = UInt64(
      info(Int(CHOST_EXIT_MEMORY), offset: current.offset, size: size, write: write, flagsSaved: true))
    return word | UInt64(slot ?? 0) << UInt64(CHOST_REQUEST_SLOT_SHIFT)
      | UInt64(bitPattern: offset) << UInt64(CHOST_REQUEST_OFFSET_SHIFT)
  }

  /// In the cold half: asks for the access whose linear address is in T0, and returns to the hot half with T1.
  mutating func coldMiss(_ request: UInt64, slot: Int32?, group: Bool) {
    if group {
      // Most refusals are frames across two pages, which may be met in every call.
      let t1 = RegisterMap.t1
      let size = Int32(truncatingIfNeeded: request >> UInt64(CHOST_INFO_SIZE_SHIFT) & 255)
      cold.mov32(t1, RegisterMap.t0)
      cold.alu(.and, t1, immediate: 4095, w: false)
      cold.alu(.cmp, t1, immediate: 4096 &- size, w: false)
      cold.jump(if: CodeEmitter.above, to: cold.address)
      let crossing = cold.address
      cold.mov(t1, immediate: request)
      cold.call(stubs.groupMiss)
      cold.jump(to: hot.address)  // five bytes, which a refusal skips
      cold.patch(crossing, to: cold.address)
      coldSplit()
    } else {
      cold.mov(RegisterMap.t1, immediate: request)
      cold.call(slot == nil ? stubs.tlbMiss : stubs.slotMiss)
      cold.jump(to: hot.address)
    }
  }

  /// Checks `size` bytes at the linear address in T0; T1 = addend. T0 survives if told to, at the cost of T2.
  mutating func check(keepsAddress: Bool, size: Int, write: Bool, slot: Int32?, group: Bool = false) {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    hot.settle(t1)
    let offset = keepsAddress ? RegisterMap.t2 : t0
    let tag: HostMemory, addend: HostMemory
    if let slot {
      tag = .env(slot)
      addend = .env(slot &+ Int32(CHOST_SLOT_VALUE))
    } else {
      let table = table(write: write)
      tag = HostMemory(RegisterMap.env, index: t1, table)
      addend = HostMemory(RegisterMap.env, index: t1, table &+ 8)
      hot.mov32(t1, t0)
      hot.shiftRight32(t1, 8)
      hot.alu(.and, t1, immediate: (Int32(CHOST_TLB_ENTRIES) &- 1) &<< 4, w: false)
    }
    if keepsAddress { hot.mov(offset, t0) }
    hot.alu(.sub, offset, tag)
    if let slot, slot >= Int32(CHOST_SLOTS) {
      hot.alu(.cmp, offset, .env(slot &+ Int32(CHOST_SLOT_BOUND)))
      hot.jump(if: CodeEmitter.aboveOrEqual, to: cold.address)
    } else {
      hot.alu(.cmp, offset, immediate: 4096 &- Int32(truncatingIfNeeded: size), w: true)
      hot.jump(if: CodeEmitter.above, to: cold.address)
    }
    if !keepsAddress { cold.alu(.add, t0, tag) }
    hot.load(t1, addend)
    coldMiss(request(size: size, write: write, slot: slot), slot: slot, group: group)
  }

  /// Checks `range` of a region; T1 = the region's host address. T0 is destroyed.
  mutating func checkRegion(_ region: Region, _ range: Range<Int64>, write: Bool, group: Int8?) {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    hot.settle(t1)
    let start = region.number &* Int64(region.size)
    switch region.kind {
    case .page:
      hot.load(t0, .env(Slot.pageAddress))
      add(start, to: t0)
    case .absolute: hot.mov(t0, immediate: UInt64(bitPattern: start))
    case .fs, .gs:
      hot.load(t0, .env(BlockBuilder.segmentBase(region.kind == .fs ? 4 : 5)))
      add(start, to: t0)
    }
    let slot = regionSlot(region, write: write)
    hot.alu(.cmp, t0, .env(slot))
    hot.jump(if: CodeEmitter.notEqual, to: cold.address)
    hot.load(t1, .env(slot &+ Int32(CHOST_SLOT_VALUE)))
    let size = Int(range.upperBound &- range.lowerBound)
    if range.lowerBound != 0 { cold.lea(t0, HostMemory(t0, Int32(truncatingIfNeeded: range.lowerBound))) }
    coldMiss(request(size: size, write: write, slot: slot, offset: range.lowerBound), slot: slot, group: group != nil)
  }

  /// Displacement of a region's slot. Blocks that reach the same page from neighbouring ones share it; regions that
  /// share one by accident only miss.
  private func regionSlot(_ region: Region, write: Bool) -> Int32 {
    var number = UInt64(bitPattern: region.number)
    switch region.kind {
    case .page: number &+= pageNumber
    case .absolute: number = number &* 31
    case .fs: number &+= 64
    case .gs: number &+= 128
    }
    let index = Int32(truncatingIfNeeded: number & (UInt64(CHOST_REGIONS) &- 1))
    let first = 2 &* Int32(CHOST_SITES) &+ (write ? Int32(CHOST_REGIONS) : 0)
    return Int32(CHOST_SLOTS) &+ (privilege == 3 ? Int32(CHOST_SLOT_BYTES) : 0) &+ (first &+ index)
      &* Int32(CHOST_SLOT_SIZE)
  }
}

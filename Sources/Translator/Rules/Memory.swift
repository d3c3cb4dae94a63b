// SPDX-License-Identifier: Apache-2.0
// The memory rule: an operand is redirected through the software TLB. One subtraction and one comparison prove
// that the whole operand lies in one page that the table allows; the table's addend then turns the linear address
// into a host address. Everything else is the slow path's.

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
  /// IA-32e mode the table has no address beyond 4 GiB: a sum that wraps, or a register with something in its upper half,
  /// misses, and Swift computes what it means.
  var hasPlainAddresses: Bool {
    isLong || !has(Int(CHOST_MODE_LMA)) && !has(Int(CHOST_MODE_SEGMENTED)) && has(Int(CHOST_MODE_STACK32))
  }

  /// Whether the current operand is a register plus a displacement that is its own linear address. Displacements that may
  /// be addresses of tables in the upper half wrap as a rule, not by accident.
  private func isPlain(write: Bool) -> Bool {
    let i = instruction
    guard i.index == 0xFF, i.base != 0xFF, !i.isRIPRelative, isFlat(i.segment, write: write) else { return false }
    if isLong { return i.addressSize == 8 }
    return hasPlainAddresses && i.addressSize == 4 && i.displacement > -0x1_0000
  }

  /// Displacement from ENV of a table.
  private func table(write: Bool) -> Int32 {
    (write ? Int32(CHOST_TLB_WRITE) : Int32(CHOST_TLB_READ))
      &+ (privilege == 3 ? 2 &* Int32(CHOST_TLB_BYTES) : 0)
  }

  /// Redirects the instruction's ModRM operand. Returns where it is on the host; T1 and perhaps T0 are in use.
  /// Destroys EFLAGS (saved if live).
  mutating func access(size: Int, write: Bool) -> HostMemory {
    let i = instruction
    clobberFlags()
    if isPlain(write: write) {
      let base = RegisterMap.host(i.base)
      if base != RegisterMap.inMemory { return access(base: base, displacement: i.displacement, size: size, write: write) }
    }
    effectiveAddress()
    toLinear(i.segment, size: size, write: write)
    return accessAtT0(size: size, write: write)
  }

  /// The same for [base + displacement], base in a host register: the guest's own addressing form survives.
  mutating func access(base: HostRegister, displacement: Int32, size: Int, write: Bool) -> HostMemory {
    if displacement == 0 {
      hot.mov(RegisterMap.t0, base)
    } else {
      hot.lea(RegisterMap.t0, HostMemory(base, displacement))
    }
    check(keepsAddress: false, size: size, write: write)
    return HostMemory(base, index: RegisterMap.t1, displacement)
  }

  /// The same for the linear address in T0, which stays there; T2 is destroyed.
  mutating func accessAtT0(size: Int, write: Bool) -> HostMemory {
    check(keepsAddress: true, size: size, write: write)
    return HostMemory(RegisterMap.t0, index: RegisterMap.t1)
  }

  private mutating func check(keepsAddress: Bool, size: Int, write: Bool) {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    let offset = keepsAddress ? RegisterMap.t2 : t0
    let table = table(write: write)
    let tag = HostMemory(RegisterMap.env, index: t1, table)
    hot.mov32(t1, t0)
    hot.shiftRight32(t1, 8)
    hot.alu(.and, t1, immediate: (Int32(CHOST_TLB_ENTRIES) &- 1) &<< 4, w: false)
    if keepsAddress { hot.mov(offset, t0) }
    hot.alu(.sub, offset, tag)
    hot.alu(.cmp, offset, immediate: 4096 &- Int32(truncatingIfNeeded: size), w: true)
    hot.jump(if: CodeEmitter.above, to: cold.address)
    if !keepsAddress { cold.alu(.add, t0, tag) }
    hot.load(t1, HostMemory(RegisterMap.env, index: t1, table &+ 8))
    cold.mov(
      t1,
      immediate: UInt64(
        info(Int(CHOST_EXIT_MEMORY), offset: current.offset, size: size, write: write, flagsSaved: true)))
    cold.call(stubs.tlbMiss)
    cold.jump(to: hot.address)
  }

  /// Wraps the offset in T0 to the address size. Keeps EFLAGS.
  mutating func wrapAddress() {
    switch instruction.addressSize {
    case 4: hot.mov32(RegisterMap.t0, RegisterMap.t0)
    case 2: hot.zeroExtend16(RegisterMap.t0, RegisterMap.t0)
    default: break
    }
  }

  /// Turns the offset in T0 of an operand into its linear address; Swift executes the instruction if the segment does
  /// not allow the access. Destroys EFLAGS, and T2 outside 64-bit mode, unless the segment is flat.
  mutating func toLinear(_ segment: UInt8, size: Int, write: Bool) {
    if isFlat(segment, write: write) { return }
    let t0 = RegisterMap.t0, t2 = RegisterMap.t2
    if !isLong {
      let refused = coldExitInstruction()
      hot.lea(t2, HostMemory(t0, Int32(truncatingIfNeeded: size)))
      hot.alu(.cmp, t2, .env((write ? Slot.writeBounds : Slot.readBounds) &+ Int32(segment) &* 8))
      hot.jump(if: CodeEmitter.above, to: refused)
    }
    hot.alu(.add, t0, .env(BlockBuilder.segmentBase(segment)))
    if !isLong { hot.mov32(t0, t0) }
  }

  /// Displacement from ENV of a segment's base.
  static func segmentBase(_ segment: UInt8) -> Int32 {
    Slot.segments &+ Int32(segment) &* Int32(MemoryLayout<chost_segment>.stride)
  }

  /// Displacement from ENV of a segment's selector.
  static func selector(_ segment: UInt8) -> Int32 { segmentBase(segment) &+ 16 }

  /// Computes the ModRM operand's effective address (offset in its segment) into T0, wrapped to the address
  /// size. May use T2; keeps EFLAGS.
  mutating func effectiveAddress() {
    let i = instruction
    let t0 = RegisterMap.t0, t2 = RegisterMap.t2
    if i.isRIPRelative {
      hot.load(t0, .env(Slot.pageAddress))
      hot.lea(t0, HostMemory(t0, nextOffset &+ i.displacement))
      if i.addressSize == 4 { hot.mov32(t0, t0) }
      return
    }
    if i.base == 0xFF && i.index == 0xFF {
      let value = UInt64(bitPattern: Int64(i.displacement))
      hot.mov(t0, immediate: i.addressSize == 8 ? value : (i.addressSize == 4 ? value & 0xFFFF_FFFF : value & 0xFFFF))
      return
    }
    var base = i.base == 0xFF ? RegisterMap.inMemory : RegisterMap.host(i.base)
    if i.base != 0xFF && base == RegisterMap.inMemory {
      hot.load(t0, .env(RegisterMap.slot(i.base)))
      base = t0
    }
    var memory: HostMemory
    if i.index != 0xFF {
      var index = RegisterMap.host(i.index)
      if index == RegisterMap.inMemory {
        hot.load(t2, .env(RegisterMap.slot(i.index)))
        index = t2
      }
      if i.base == 0xFF {
        scaledIndex(t0, index, i.scale, i.displacement, wide: i.addressSize == 8)
        if i.addressSize == 2 { hot.zeroExtend16(t0, t0) }
        return
      }
      memory = HostMemory(base, index: index, scale: i.scale, i.displacement)
    } else {
      memory = HostMemory(base, i.displacement)
    }
    if i.addressSize == 8 { hot.lea(t0, memory) } else { hot.lea32(t0, memory) }
    if i.addressSize == 2 { hot.zeroExtend16(t0, t0) }
  }

  /// LEA target, [index << scale + displacement]: the form without a base.
  private mutating func scaledIndex(
    _ target: HostRegister, _ index: HostRegister, _ scale: UInt8, _ displacement: Int32, wide: Bool
  ) {
    hot.rex(w: wide, reg: target, memory: HostMemory(0, index: index))
    hot.byte(0x8D)
    hot.byte((target & 7) << 3 | 4)
    hot.byte(scale << 6 | (index & 7) << 3 | 5)
    hot.long(displacement)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Effective addresses: base, index and displacement become a linear address in T0.

import CHost
import X86

extension BlockBuilder {
  /// Computes the ModRM operand's linear address into T0; `size` bytes there are to be accessed. May use T2; destroys
  /// EFLAGS unless the segment is flat.
  mutating func linearAddress(size: Int, write: Bool) {
    effectiveAddress()
    toLinear(instruction.segment, size: size, write: write)
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
  static func selector(_ segment: UInt8) -> Int32 { segmentBase(segment) &+ Int32(CHOST_SEGMENT_SELECTOR) }

  /// Computes the ModRM operand's effective address (offset in its segment) into T0, wrapped to the address
  /// size. May use T2; keeps EFLAGS.
  mutating func effectiveAddress() {
    let i = instruction
    let t0 = RegisterMap.t0, t2 = RegisterMap.t2
    if i.isRIPRelative {
      hot.load(t0, .env(Slot.pageAddress))
      add(Int64(nextOffset) &+ Int64(i.displacement), to: t0)
      if i.addressSize == 4 { hot.mov32(t0, t0) }
      return
    }
    if i.base == 0xFF && i.index == 0xFF {
      let value = UInt64(bitPattern: Int64(i.displacement))
      hot.mov(t0, immediate: i.addressSize == 8 ? value : (i.addressSize == 4 ? value & 0xFFFF_FFFF : value & 0xFFFF))
      return
    }
    var base = i.base == 0xFF ? RegisterMap.inMemory : RegisterMap.host(i.base)
    if i.base != 0xFF && base == RegisterMap.inMemory { base = held(i.base, or: t0) }
    var memory: HostMemory
    if i.index != 0xFF {
      var index = RegisterMap.host(i.index)
      if index == RegisterMap.inMemory { index = held(i.index, or: base == t2 ? t0 : t2) }
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

  /// Adds a constant of up to 33 bits, which one displacement may not hold: an offset in the page plus a displacement or
  /// a branch's. Keeps EFLAGS.
  mutating func add(_ constant: Int64, to register: HostRegister) {
    let part = Int32(clamping: constant)
    if part != 0 { hot.lea(register, HostMemory(register, part)) }
    let rest = Int32(truncatingIfNeeded: constant &- Int64(part))
    if rest != 0 { hot.lea(register, HostMemory(register, rest)) }
  }

  /// LEA target, [index << scale + displacement]: the form without a base.
  private mutating func scaledIndex(
    _ target: HostRegister, _ index: HostRegister, _ scale: UInt8, _ displacement: Int32, wide: Bool
  ) {
    hot.note(target)
    hot.rex(w: wide, reg: target, memory: HostMemory(0, index: index))
    hot.byte(0x8D)
    hot.byte((target & 7) << 3 | 4)
    hot.byte(scale << 6 | (index & 7) << 3 | 5)
    hot.long(displacement)
  }
}

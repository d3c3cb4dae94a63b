// SPDX-License-Identifier: Apache-2.0
// What a case of 16- and 32-bit code needs beside its memory operand: selectors to load, a stack, strings, targets of
// branches.

import CNative
import X86

@testable import Translator

extension LegacyGenerator {
  /// A selector to load: of an entry of the LDT, null, or one that is refused.
  private mutating func selector() -> UInt16 {
    switch generator.random.below(10) {
    case 0: UInt16(generator.random.below(4))
    case 1: generator.random.pick([0x2B, 0x2A, 0x28, 0x23, 0x33, 0x10, 0x1B, 0x43])
    case 2: UInt16(generator.random.pick([30, 100, 8191])) << 3 | 7
    case 3, 4: UInt16(6 + generator.random.below(LegacySegments.others.count)) << 3 | 7
    default:
      UInt16(generator.random.below(6)) << 3 | (generator.random.chance(80) ? 7 : 4 | UInt16(generator.random.below(4)))
    }
  }

  /// Puts the selector (and, of a far pointer, the offset) where the instruction finds it.
  private mutating func tuneSegmentLoad(_ c: inout Case) -> Bool {
    let i = c.instruction
    c.privilege = 3
    let selector = UInt64(selector())
    // An entry that nothing has written is another on each side.
    if selector & 4 != 0, selector >> 3 < 6, segments.isFlat(Int(selector >> 3)) { return false }
    if c.row.rule == .popSegment {
      // How many of four bytes are read is the processor's choice.
      guard placeStack(&c, pops: Int(i.operandSize), pushes: 0, faults: i.operandSize == 2) else { return false }
      guard generator.isWritable(stackTop, 8) else { return !generator.isReadable(stackTop, 4) }
      generator.store(selector | generator.random.next() & ~0xFFFF, at: stackTop)
      return true
    }
    guard i.isMemory else {
      bench[Int(i.rm)] = selector | generator.random.next() & ~0xFFFF
      return true
    }
    guard let target = c.target else { return false }
    let before = c.row.byte == 0x8E ? 0 : UInt64(i.operandSize) * 8
    // What cannot be written here holds any selector, and must not be read.
    guard generator.isWritable(target, 8) else { return !generator.isReadable(target, Int(before / 8) + 2) }
    let offset = before == 0 ? 0 : generator.random.next() & (1 << before - 1)
    generator.store(selector << before | offset, at: target)
    return true
  }

  /// Puts the stack where bytes can be pushed (or popped), mostly.
  private mutating func placeStack(_ c: inout Case, pops: Int, pushes: Int, faults: Bool = true) -> Bool {
    let alignment = generator.random.chance(70) || !faults ? 4 : 1
    let top = generator.place(pops + pushes, alignment: alignment, low: true, faults: faults)
    if top + UInt64(pops + pushes) > 0x1_0000_0000 { return false }
    c.touched.append(top)
    if segments.isFlat(2) {
      bench[4] = top &+ UInt64(pushes)
      return true
    }
    let mask: UInt64 = segments.registers[2].is32 ? 0xFFFF_FFFF : 0xFFFF
    let bottom = ((bench[4] & mask) &- UInt64(pushes)) & mask
    // A frame that wraps in the middle is the processor's choice of faults.
    if bottom &+ UInt64(pushes + pops) > mask + 1 { return false }
    return place(2, offset: bottom, count: pops + pushes, at: top, write: pushes > 0, limits: faults)
  }

  /// The linear address of the top of the stack.
  private var stackTop: UInt64 {
    let mask: UInt64 = segments.isFlat(2) || segments.registers[2].is32 ? 0xFFFF_FFFF : 0xFFFF
    return (UInt64(segments.registers[2].base) &+ (bench[4] & mask)) & 0xFFFF_FFFF
  }

  /// What the operand's place may depend on.
  mutating func tuneBefore(_ encoding: inout Encoding, _ c: inout Case) -> Bool {
    let i = c.instruction
    switch c.row.rule {
    case .bitMemory:
      guard i.isMemory else { break }
      if i.reg == i.base || i.reg == i.index { return false }
      let bits: UInt64 = i.operandSize == 2 ? 0xFFFF : 0xFFFF_FFFF
      bench[Int(i.reg)] =
        UInt64(bitPattern: Int64(generator.random.below(6000) - 3000)) & bits | generator.random.next() & ~bits
    case .pushSegment, .movSegment, .popFlags, .cli, .sti, .arpl: c.privilege = 3
    default: break
    }
    return true
  }

  /// An offset in the code segment to go to: a HLT not in the instruction.
  private mutating func landing(_ c: Case, _ length: Int) -> UInt64 {
    generator.landing(c, length) &- UInt64(segments.registers[1].base)
  }

  mutating func tune(_ encoding: inout Encoding, _ c: inout Case) -> Bool {
    let i = c.instruction
    let size = Int(i.operandSize)
    let ip = UInt64(UInt32(truncatingIfNeeded: c.code) &- segments.registers[1].base)
    switch c.row.rule {
    case .copy, .cmpxchgWide: generator.tuneCopy(&c)
    case .bitMemory:
      guard i.isMemory, let target = c.target else { break }
      let value = bench[Int(i.reg)]
      let signed = size == 2 ? Int64(Int16(truncatingIfNeeded: value)) : Int64(Int32(truncatingIfNeeded: value))
      c.touched.append(target &+ UInt64(bitPattern: signed >> 3))
    case .jcc, .jump, .call, .loop:
      if c.row.rule == .call, !placeStack(&c, pops: 0, pushes: size) { return false }
      if c.row.rule == .loop && generator.random.chance(80) { bench[1] = UInt64(generator.random.below(4)) }
      let next = ip &+ UInt64(encoding.length)
      if encoding.immediate.count == 1 {
        let target = next &+ UInt64(bitPattern: Int64(Int8(bitPattern: encoding.immediate[0])))
        return target < ip || target >= next
      }
      let displacement = landing(c, encoding.length) &- next
      for position in encoding.immediate.indices {
        encoding.immediate[position] = UInt8(truncatingIfNeeded: displacement >> UInt64(position * 8))
      }
    case .jumpIndirect, .callIndirect:
      let target = landing(c, encoding.length)
      if c.row.rule == .callIndirect {
        if i.isMemory && (i.base == 4 || i.index == 4 || i.segment == 2) { return false }
        if !placeStack(&c, pops: 0, pushes: size) { return false }
      }
      if i.isMemory {
        guard let operand = c.target, generator.isWritable(operand, 8) else { return c.target == nil }
        generator.store(target, at: operand)
      } else if i.rm == 4 {
        return false
      } else {
        bench[Int(i.rm)] = target
      }
    case .ret:
      guard placeStack(&c, pops: size, pushes: 0) else { return false }
      guard generator.isWritable(stackTop, 8) else { return !generator.isReadable(stackTop, size) }
      generator.store(landing(c, encoding.length), at: stackTop)
    case .push:
      if i.isMemory && (i.base == 4 || i.index == 4 || i.segment == 2) { break }
      return placeStack(&c, pops: 0, pushes: size)
    case .pushFlags: return placeStack(&c, pops: 0, pushes: size)
    // How many of four bytes are checked is the processor's choice, as is how many are written.
    case .pushSegment: return placeStack(&c, pops: 0, pushes: size, faults: size == 2)
    case .pushAll: return placeStack(&c, pops: 0, pushes: size * 8)
    case .popAll: return placeStack(&c, pops: size * 8, pushes: 0)
    case .pop:
      if i.isMemory && (i.base == 4 || i.index == 4 || i.segment == 2) { return false }
      return placeStack(&c, pops: size, pushes: 0)
    case .popFlags:
      guard placeStack(&c, pops: size, pushes: 0), generator.isWritable(stackTop, 8) else { return false }
      generator.store(generator.random.next() & (RFLAGS.arithmetic | RFLAGS.df) | 0x202, at: stackTop)
    case .leave:
      guard placeStack(&c, pops: size, pushes: 0) else { return false }
      bench[5] = bench[4]
    case .enter:
      let levels = generator.random.chance(60) ? 0 : generator.random.below(4)
      encoding.immediate = [
        UInt8(truncatingIfNeeded: generator.random.next()), UInt8(generator.random.below(2)), UInt8(levels),
      ]
      // A display at another place than the frame would have to be in the same segment.
      if levels > 1 { return false }
      return placeStack(&c, pops: 0, pushes: (levels + 1) * size)
    case .movs, .stos, .lods, .scas, .cmps: return tuneString(&c)
    case .xlat, .moffs: return tuneImplicit(&encoding, &c)
    case .saveState, .restoreState: return generator.tuneState(&c)
    case .sse where c.row.loadsMXCSR, .avx where c.row.loadsMXCSR: return generator.tuneState(&c)
    case .maskMove: return i.isMemory || tuneMaskedStore(&c)
    case .system, .popSegment: return tuneSegmentLoad(&c)
    case .bound:
      if let target = c.target, generator.isWritable(target, 8), generator.random.chance(50) {
        generator.store(size == 4 ? 0x7FFF_FFFF_8000_0000 : 0x7FFF_8000, at: target)
      }
    case .decimal:
      // AAM by 0 is a fault of its own.
      if c.row.byte == 0xD4 && generator.random.chance(20) { encoding.immediate = [0] }
    default: break
    }
    return true
  }

  private mutating func tuneString(_ c: inout Case) -> Bool {
    let i = c.instruction
    let element = i.opcode & 1 == 0 ? 1 : Int(i.operandSize)
    let mask: UInt64 = i.addressSize == 2 ? 0xFFFF : 0xFFFF_FFFF
    let count = i.repeatPrefix == 0 ? 1 : generator.random.below(40)
    if i.repeatPrefix != 0 { bench[1] = UInt64(count) | generator.random.next() & ~mask }
    let backwards = generator.random.chance(40)
    if backwards { unsafe bench.input.pointee.rflags |= RFLAGS.df }
    let bytes = max(count, 1) * element
    let start = backwards ? UInt64(bytes - element) : 0
    let sourceSegment = i.segmentPrefix == 0xFF ? 3 : Int(i.segmentPrefix)
    if sourceSegment == 1 { return false }
    let usesSource = c.row.rule == .movs || c.row.rule == .lods || c.row.rule == .cmps
    let usesTarget = c.row.rule != .lods
    let source = generator.place(bytes, alignment: 1, low: true)
    let target =
      generator.random.chance(20)
      ? source &+ UInt64(generator.random.below(32)) : generator.place(bytes, alignment: 1, low: true)
    if source + UInt64(bytes) > 0x1_0000_0000 || target + UInt64(bytes) > 0x1_0000_0000 { return false }
    c.touched += [source, target, source &+ UInt64(bytes), target &+ UInt64(bytes)]
    if c.row.rule == .cmps, generator.random.chance(60), generator.isWritable(source, bytes),
      generator.isReadable(target, bytes)
    {
      let same = generator.random.below(bytes + 1)
      try? bench.arena.store(
        (0..<same).map { unsafe bench.arena.native(target + UInt64($0)).load(as: UInt8.self) }, at: source)
    }
    if usesSource && !point(6, segment: sourceSegment, at: source, bytes: bytes, start: start, mask: mask) {
      return false
    }
    if usesTarget && !point(7, segment: 0, at: target, bytes: bytes, start: start, mask: mask) { return false }
    return true
  }

  /// Makes ESI or EDI point at `bytes` at `target`, `start` bytes in.
  private mutating func point(
    _ register: Int, segment: Int, at target: UInt64, bytes: Int, start: UInt64, mask: UInt64
  ) -> Bool {
    if segments.isFlat(segment) {
      if mask == 0xFFFF { return true }
      bench[register] = target &+ start | generator.random.next() << 32
      return true
    }
    let first = ((bench[register] & mask) &- start) & mask
    // Runs that wrap are a matter of single elements; whole ones mostly.
    if first &+ UInt64(bytes) > mask + 1 && generator.random.chance(80) { return false }
    if first &+ UInt64(bytes) > mask + 1 { return segment != 2 }
    return place(segment, offset: first, count: bytes, at: target, write: false)
  }

  /// MASKMOVQ and MASKMOVDQU: whether bytes that are not selected may fault is the processor's choice.
  private mutating func tuneMaskedStore(_ c: inout Case) -> Bool {
    let i = c.instruction
    let segment = i.segmentPrefix == 0xFF ? 3 : Int(i.segmentPrefix)
    let mask: UInt64 = i.addressSize == 2 ? 0xFFFF : 0xFFFF_FFFF
    let target = generator.place(16, alignment: 1, low: true, faults: false)
    if segment == 1 || target + 16 > 0x1_0000_0000 || segments.isFlat(segment) && mask == 0xFFFF { return false }
    c.touched.append(target)
    if segments.isFlat(segment) {
      bench[7] = target | generator.random.next() << 32
      return true
    }
    let offset = bench[7] & mask
    if offset + 16 > mask + 1 { return false }
    return place(segment, offset: offset, count: 16, at: target, write: true, limits: false)
  }

  private mutating func tuneImplicit(_ encoding: inout Encoding, _ c: inout Case) -> Bool {
    let i = c.instruction
    let size = c.row.rule == .xlat || i.opcode & 1 == 0 ? 1 : Int(i.operandSize)
    let segment = i.segmentPrefix == 0xFF ? 3 : Int(i.segmentPrefix)
    if segment == 1 { return false }
    let target = generator.place(size, alignment: 1, low: true)
    if target + UInt64(size) > 0x1_0000_0000 { return false }
    c.touched.append(target)
    let mask: UInt64 = i.addressSize == 2 ? 0xFFFF : 0xFFFF_FFFF
    if segments.isFlat(segment) {
      if mask == 0xFFFF { return true }
      if c.row.rule == .xlat {
        bench[3] = (target &- (bench[0] & 0xFF)) & mask
      } else {
        for position in encoding.immediate.indices {
          encoding.immediate[position] = UInt8(truncatingIfNeeded: target >> UInt64(position * 8))
        }
      }
      return true
    }
    let offset = c.row.rule == .xlat ? (bench[3] &+ (bench[0] & 0xFF)) & mask : i.immediate & mask
    return place(segment, offset: offset, count: size, at: target, write: c.row.rule == .moffs && i.opcode & 2 != 0)
  }
}

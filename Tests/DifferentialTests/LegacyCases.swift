// SPDX-License-Identifier: Apache-2.0
// Cases of one instruction in 16- and 32-bit code. Where a segment has a base, the base is chosen so that the operand
// lies where the test wants it, whatever the registers hold: offsets wrap at 2^16 and 2^32 and limits are met by
// themselves.

import CNative
import X86

@testable import Translator

@safe struct LegacyGenerator {
  var generator: Generator
  let mode: LegacyMode
  private(set) var segments: LegacySegments
  /// Segments whose base this case has chosen.
  private var chosen: Set<Int> = []

  init(_ bench: Bench, mode: LegacyMode, seed: UInt64) {
    generator = Generator(bench, seed: seed)
    self.mode = mode
    segments = LegacySegments(mode)
  }

  private var bench: Bench { generator.bench }

  /// MOV Sreg, POP Sreg, LDS and its like.
  static func loadsSegment(_ row: Opcode) -> Bool {
    switch row.map {
    case .one: row.rule == .popSegment || [0x8E, 0xC4, 0xC5].contains(row.byte) && row.rule == .system
    case .x0F: row.rule == .popSegment || [0xB2, 0xB4, 0xB5].contains(row.byte) && row.rule == .system
    default: false
    }
  }

  /// Whether a row's instructions can run on both sides.
  static func isComparable(_ row: Opcode) -> Bool {
    if loadsSegment(row) { return true }
    return switch row.rule {
    case .undefined, .system, .hypercall, .cpuid, .syscall, .sysret, .swapgs, .rdtsc, .rdtscp, .stac, .clac, .ins,
      .outs,
      .popSegment, .rdfsbase, .wrfsbase:
      false
    case .nop: !(row.byte == 0x0D && row.form == .register)
    default: row.attribute != .only64 && row.attribute != .privileged
    }
  }

  private func decode(_ encoding: Encoding) -> Instruction? {
    let bytes = encoding.bytes
    guard bytes.count <= 15 else { return nil }
    let padded = bytes + [UInt8](repeating: 0xF4, count: 16)
    guard case .complete(let i) = generator.decoder.decode(padded.span, code: mode.is16 ? .code16 : .code32),
      Int(i.length) == bytes.count
    else { return nil }
    return i
  }

  /// A case of row `number`, or nil if the random choices do not make one. Its `code` is a linear address.
  mutating func makeCase(_ number: UInt16) -> Case? {
    let row = generator.table[number]
    var encoding = generator.random.encodeLegacy(row, is16: mode.is16)
    let code = generator.codeAddress(encoding.length)
    guard let i = decode(encoding), i.row == number else { return nil }
    generator.randomizeState(
      unmasked: (row.rule == .x87 || row.rule == .sse || row.rule == .avx) && generator.random.chance(15))
    chooseSegments()
    var result = Case(bytes: [], code: code, instruction: i, row: row, privilege: generator.random.chance(65) ? 3 : 0)
    if !tuneBefore(&encoding, &result) { return nil }
    let traits = RowTraits(row)
    if row.hasVSIB {
      guard aimGather(encoding, &result) else { return nil }
    } else if i.isMemory && row.rule != .lea && row.rule != .nop {
      guard aimOperand(&encoding, &result, traits) else { return nil }
    }
    guard tune(&encoding, &result) else { return nil }
    result.bytes = encoding.bytes
    guard let again = decode(encoding), again.row == number, again.length == i.length else { return nil }
    result.instruction = again
    unsafe bench.input.pointee.rip = UInt64(UInt32(truncatingIfNeeded: code) &- segments.registers[1].base)
    return result
  }

  // MARK: Segments

  private mutating func chooseSegments() {
    segments = LegacySegments(mode)
    chosen = []
    guard mode != .flat32 else {
      for number in 4..<6 { segments.registers[number].base = UInt32(truncatingIfNeeded: generator.random.next()) }
      return
    }
    segments.registers[1].is32 = !mode.is16
    // The first byte of code is offset 0, or 100.
    segments.registers[1].base = UInt32(Arena.codeBase) - (generator.random.chance(50) ? 0x100 : 0)
    if mode.is16 {
      segments.registers[1].limit = 0xFFFF
      segments.registers[1].pages = false
    }
    for number in [0, 2, 3, 4, 5] {
      segments.registers[number].base = UInt32(truncatingIfNeeded: generator.random.next())
    }
    segments.registers[2].is32 = generator.random.chance(mode.is16 ? 30 : 70)
  }

  /// Makes `count` bytes at `offset` of a segment lie at `target`, and chooses a limit. False where that cannot be.
  private mutating func place(
    _ number: Int, offset: UInt64, count: Int, at target: UInt64, write: Bool, limits: Bool = true
  ) -> Bool {
    let last = offset + UInt64(max(count, 1)) - 1
    // Beyond a limit of 4 GiB the processor may do either.
    if last > 0xFFFF_FFFF { return false }
    if segments.isFlat(number) { return offset == target }
    if number == 1 || chosen.contains(number) {
      return (UInt64(segments.registers[number].base) &+ offset) & 0xFFFF_FFFF == target & 0xFFFF_FFFF
    }
    chosen.insert(number)
    segments.registers[number].base = UInt32(truncatingIfNeeded: target &- offset)
    let isStack = number == 2
    var wanted: UInt64
    switch limits ? generator.random.below(12) : 11 {
    case 0, 1: wanted = last
    case 2: wanted = last &- 1 &- (count > 1 ? UInt64(generator.random.below(count - 1)) : 0)
    case 3: wanted = 0xFFFF
    case 4:
      // Expand-down: offsets above the limit.
      segments.registers[number].kind = .expandDown
      segments.registers[number].limit = UInt32(truncatingIfNeeded: offset >> 12) &- UInt32(generator.random.below(3))
      segments.registers[number].limit &= 0xF_FFFF
      if !isStack { segments.registers[number].is32 = generator.random.chance(70) }
      return true
    default: return true
    }
    if wanted > 0xFFFF_FFFF { wanted = 0 }
    let pages = wanted > 0xF_FFFF
    segments.registers[number].pages = pages
    segments.registers[number].limit = UInt32(truncatingIfNeeded: pages ? wanted >> 12 : wanted)
    return true
  }

  // MARK: Operands

  /// The operand's offset, as the registers are now.
  private func offset(_ i: Instruction) -> UInt64 {
    var offset = UInt64(bitPattern: Int64(i.displacement))
    if i.base != 0xFF { offset &+= bench[Int(i.base)] }
    if i.index != 0xFF { offset &+= bench[Int(i.index)] << UInt64(i.scale) }
    return offset & (i.addressSize == 2 ? 0xFFFF : 0xFFFF_FFFF)
  }

  private mutating func aimOperand(_ encoding: inout Encoding, _ c: inout Case, _ traits: RowTraits) -> Bool {
    let i = c.instruction
    let size = max(traits.memoryBytes(i), 1)
    var alignment = c.row.attribute == .aligned ? size : 1
    switch traits.memorySize {
    case .fxsave: alignment = 16
    case .xsave: alignment = 64
    default: break
    }
    let rule = c.row.rule
    let isBranch = rule == .jumpIndirect || rule == .callIndirect
    let target = generator.place(size, alignment: alignment, low: true, faults: !isBranch)
    // AMD's processors do not always mind SHA's alignment.
    if c.row.feature == .sha && target % 16 != 0 { return false }
    // What crosses 4 GiB wraps to a page that neither side has, in parts that are the processor's choice.
    if target + UInt64(size) > 0x1_0000_0000 { return false }
    if segments.isFlat(Int(i.segment)) && i.addressSize == 4 {
      guard generator.aim(&encoding, i, at: target, code: c.code, avoiding: rule == .bitMemory ? [i.reg] : []) else {
        return false
      }
      c.target = target
    } else {
      let offset = offset(i)
      // Parts of a large operand wrap by themselves.
      if i.addressSize == 2 && offset + UInt64(size) > 0x1_0000
        && (rule == .bound || traits.memorySize == .farPointer || size > 8 && c.row.attribute != .aligned)
      {
        return false
      }
      if segments.isFlat(Int(i.segment)) {
        // The first 64 KiB are nobody's.
        c.target = nil
      } else {
        if i.segment == 1 { return false }
        // How much of an XSAVE image must be inside the limit depends on what is in it, and of a masked operand on the
        // mask.
        let limits = traits.memorySize != .xsave && rule != .maskMove
        guard place(Int(i.segment), offset: offset, count: size, at: target, write: traits.memoryWrites, limits: limits)
        else {
          return false
        }
        c.target = target
      }
    }
    c.size = size
    if let target = c.target {
      if c.size > 64 { c.touched.append(target &+ UInt64(size)) }
      c.touched.append(target)
    }
    return true
  }

  /// Indices of a gather around a place in RAM, in a segment without a limit.
  private mutating func aimGather(_ encoding: Encoding, _ c: inout Case) -> Bool {
    let i = c.instruction
    guard i.addressSize == 4, i.segment != 1 || segments.isFlat(1), generator.tuneGather(encoding, &c) else {
      return false
    }
    if segments.isFlat(Int(i.segment)) { return true }
    chosen.insert(Int(i.segment))
    let base = UInt32(truncatingIfNeeded: generator.random.next())
    segments.registers[Int(i.segment)].base = base
    bench[Int(i.base)] = (bench[Int(i.base)] &- UInt64(base)) & 0xFFFF_FFFF
    return true
  }

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
  private mutating func tuneBefore(_ encoding: inout Encoding, _ c: inout Case) -> Bool {
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

  private mutating func tune(_ encoding: inout Encoding, _ c: inout Case) -> Bool {
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

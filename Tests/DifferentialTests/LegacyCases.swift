// SPDX-License-Identifier: Apache-2.0
// Cases of one instruction in 16- and 32-bit code: segments and memory operands. Where a segment has a base, the base is chosen so that the operand
// lies where the test wants it, whatever the registers hold: offsets wrap at 2^16 and 2^32 and limits are met by
// themselves.

import CNative
import X86

@testable import Translator

@safe struct LegacyGenerator {
  var generator: Generator
  let mode: LegacyMode
  var segments: LegacySegments
  /// Segments whose base this case has chosen.
  var chosen: Set<Int> = []

  init(_ bench: Bench, mode: LegacyMode, seed: UInt64) {
    generator = Generator(bench, seed: seed)
    self.mode = mode
    segments = LegacySegments(mode)
  }

  var bench: Bench { generator.bench }

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
  mutating func place(
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
}

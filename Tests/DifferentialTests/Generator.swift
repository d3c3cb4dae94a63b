// SPDX-License-Identifier: Apache-2.0
// Makes cases: an encoding of a row, registers that make its operands lie at interesting places, and a starting state
// of everything else.

import CNative
import X86

@testable import Translator

/// One instruction, ready to run from the bench's input state.
struct Case {
  var bytes: [UInt8]
  var code: UInt64
  var instruction: Instruction
  var row: Opcode
  var privilege: Int
  /// Where memory may have changed.
  var touched: [UInt64] = []
  /// The ModRM operand, if it is in memory.
  var target: UInt64?
  var size = 0
}

/// Where an operand is put.
struct Placement {
  var address: UInt64
}

@safe struct Generator {
  let bench: Bench
  var random: Random
  let table = OpcodeTable.shared
  let decoder = Decoder()

  init(_ bench: Bench, seed: UInt64) {
    self.bench = bench
    random = Random(seed: seed)
  }

  // MARK: State

  /// Fills the input state.
  mutating func randomizeState(unmasked: Bool) {
    for number in 0..<16 { bench[number] = random.value() }
    bench[4] = Arena.low.base + 0x1000 + UInt64(random.below(0x200)) * 8
    unsafe bench.input.pointee.rflags = random.next() & RFLAGS.arithmetic | 0x202
    unsafe bench.input.pointee.fs_base = random.next() >> 18
    unsafe bench.input.pointee.gs_base = random.next() >> 18
    // x87: mostly the usual control word; pending exceptions only if they are masked or wanted.
    var control: UInt16 = 0x37F
    if random.chance(30) { control = 0x7F | UInt16(random.below(16)) << 8 & 0xF00 }
    if unmasked && random.chance(40) { control &= ~UInt16(1 << random.below(6)) }
    var status = UInt16(random.below(8)) << 11 | UInt16(truncatingIfNeeded: random.next()) & 0x4700
    if random.chance(20) {
      status |= UInt16(truncatingIfNeeded: random.next()) & 0x7F
      if status & ~control & 0x3F != 0 {
        if unmasked { status |= 0x8080 } else { status &= 0xFF80 | control & 0x3F }
      }
    }
    bench.setImage(0, control)
    bench.setImage(2, status)
    bench.setImage(4, UInt32(random.chance(70) ? 0xFF : random.below(256)))
    for offset in [8, 16] { bench.setImage(offset, UInt64(0)) }
    var mxcsr: UInt32 = 0x1F80
    if random.chance(30) { mxcsr |= UInt32(truncatingIfNeeded: random.next()) & 0xE07F }
    if unmasked && random.chance(40) { mxcsr &= ~UInt32(0x80 << random.below(6)) }
    bench.setImage(24, UInt64(mxcsr))
    for number in 0..<8 {
      let exponent: UInt16 =
        random.chance(80)
        ? 0x3FC0 + UInt16(random.below(128)) : random.pick([0, 1, 0x7FFF, 0x7FFE, 0x3FFF, 0x401D, 0x403E])
      var mantissa = random.lane()
      if exponent != 0 && random.chance(95) { mantissa |= 1 << 63 }
      bench.setImage(32 + number * 16, mantissa)
      bench.setImage(40 + number * 16, UInt64(exponent | UInt16(random.below(2)) << 15))
    }
    for number in 0..<32 { bench.setImage(160 + number * 8, random.lane()) }
    for number in 0..<32 { bench.setImage(576 + number * 8, random.lane()) }
    bench.setImage(512, UInt64(7))
    for offset in stride(from: 520, to: 576, by: 8) { bench.setImage(offset, UInt64(0)) }
  }

  // MARK: Placement

  /// An address for an operand of `size` bytes. `low`: below 4 GiB.
  mutating func place(_ size: Int, alignment: Int, low: Bool, faults: Bool = true, device: Bool = true) -> UInt64 {
    let size = UInt64(max(size, 1))
    let window = low || random.chance(60) ? Arena.low : Arena.high
    func page(_ number: Int) -> UInt64 { window.base + UInt64(number) << 12 }
    let align = UInt64(alignment) - 1
    switch random.below(faults ? 20 : 12) {
    case 0...4: return page(random.pick([0, 1, 2, 8, 10])) + UInt64(random.below(4096 - Int(size))) & ~align
    case 5, 6: return page(random.pick([0, 1, 2])) + UInt64(random.below(4096 - Int(size))) & ~7 & ~align
    case 7: return page(random.pick([1, 2, 3, 9])) - size  // the last bytes of a page
    case 8, 9:  // across two pages
      if size == 1 || alignment > 1 && random.chance(80) { return page(1) }
      return page(random.pick([1, 2])) - 1 - UInt64(random.below(Int(size - 1)))
    case 10: return page(9) + UInt64(random.below(4096 - Int(size))) & ~align
    case 11:
      if size > 1 && alignment == 1 { return page(random.pick([9, 10])) - 1 - UInt64(random.below(Int(size - 1))) }
      return page(9) + 0x100
    case 12: return page(random.pick([3, 7, 11])) + UInt64(random.below(4096 - Int(size))) & ~align
    case 13, 14:  // the second page is absent, the first one is, read-only behind RAM and before it
      if size == 1 { return page(3) }
      return page(random.pick([3, 4, 5, 6, 7, 11])) - 1 - UInt64(random.below(Int(size - 1)))
    case 15, 16: return page(5) + UInt64(random.below(4096 - Int(size))) & ~align
    case 17:
      guard device else { return page(3) - size }
      return page(12) + UInt64(random.below(4096 - Int(size))) & ~align & ~7
    case 18:
      // Unaligned on a device, or across 4 GiB.
      if size > 1 && random.chance(50) && alignment == 1 {
        return 0x1_0000_0000 - 1 - UInt64(random.below(Int(size - 1)))
      }
      return page(device ? 12 : 1) + UInt64(random.below(4096 - Int(size))) & ~align
    default:
      // Not canonical, or misaligned.
      if !low && random.chance(50) { return (0x0000_8000_0000_0000 &+ random.next() >> 18) & ~align }
      return page(0) + UInt64(random.below(4096 - Int(size)))
    }
  }

  /// Makes the ModRM operand of `instruction` lie at `target`, by registers or displacement; false if it cannot.
  mutating func aim(
    _ encoding: inout Encoding, _ i: Instruction, at target: UInt64, code: UInt64, avoiding: Set<UInt8> = []
  ) -> Bool {
    let mask: UInt64 = i.addressSize == 4 ? 0xFFFF_FFFF : .max
    let junk = i.addressSize == 4 ? random.next() << 32 : 0
    var base: UInt64 = 0
    let segmented = i.segment >= 4
    if segmented { base = i.addressSize == 4 ? target &- (random.next() >> 33) : target &- (random.value() >> 17) }
    // FS and GS bases must be canonical, and are user addresses natively.
    func segmentBase(_ base: UInt64) -> Bool {
      guard segmented else { return base == 0 }
      guard base < 1 << 47 else { return false }
      if i.segment == 4 { unsafe bench.input.pointee.fs_base = base } else { unsafe bench.input.pointee.gs_base = base }
      return true
    }
    let wanted = (target &- base) & mask
    if (wanted &+ base) != target { return false }
    if i.isRIPRelative {
      let next = code &+ UInt64(encoding.length)
      if segmented || Int64(bitPattern: wanted &- next) != Int64(Int32(truncatingIfNeeded: wanted &- next)) {
        let offset = (next &+ UInt64(bitPattern: Int64(encoding.displacement))) & mask
        return segmented && segmentBase(target &- offset)
      }
      encoding.displacement = Int32(truncatingIfNeeded: wanted &- next)
      return true
    }
    let d = UInt64(bitPattern: Int64(encoding.displacement))
    if i.base == 0xFF && i.index == 0xFF {
      if segmented { return segmentBase(target &- (d & mask)) }
      encoding.displacement = Int32(truncatingIfNeeded: wanted)
      return UInt64(bitPattern: Int64(encoding.displacement)) & mask == wanted
    }
    guard segmentBase(base) else { return false }
    if i.base != 0xFF && avoiding.contains(i.base) || i.index != 0xFF && avoiding.contains(i.index) { return false }
    if i.base == 0xFF || i.base == i.index {
      // Only the index: what does not divide goes to the displacement.
      let factor: UInt64 = (1 << UInt64(i.scale)) + (i.base == 0xFF ? 0 : 1)
      if encoding.displacementBytes == 0 { return false }
      let start = Int64(bitPattern: wanted &- d)
      let quotient = UInt64(bitPattern: start) / factor
      let rest = UInt64(bitPattern: start) % factor
      let displacement = Int64(encoding.displacement) + Int64(rest)
      if encoding.displacementBytes == 1 && displacement > 127 { return false }
      if displacement > Int64(Int32.max) { return false }
      encoding.displacement = Int32(displacement)
      bench[Int(i.index)] = i.addressSize == 4 ? quotient & mask | junk : quotient
      return true
    }
    let scaled = i.index == 0xFF ? 0 : bench[Int(i.index)] << UInt64(i.scale)
    bench[Int(i.base)] = (wanted &- scaled &- d) & mask | junk
    return true
  }
}

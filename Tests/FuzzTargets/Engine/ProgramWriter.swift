// SPDX-License-Identifier: Apache-2.0
// Guest code from an input: shaped like instructions, so that most of it decodes, with displacements near every limit,
// registers that move between accesses, system instructions, branches nearby, or the input's bytes as they are.

/// Writes code.
struct ProgramWriter {
  /// What is written often.
  struct Taste {
    var is64 = true
    /// System instructions: one in so many.
    var system = 12
    /// Stores to the code itself: one in so many, or never.
    var changes: Int?
  }

  private(set) var bytes: [UInt8] = []
  private let taste: Taste

  private init(_ taste: Taste) { self.taste = taste }

  /// A program of about `count` bytes.
  static func program(_ input: inout FuzzInput, count: Int, _ taste: Taste) -> [UInt8] {
    if input.chance(8) { return input.take(count) }
    var writer = ProgramWriter(taste)
    while writer.bytes.count < count, !input.isOver { writer.instruction(&input) }
    return writer.bytes
  }

  private mutating func put<T: FixedWidthInteger>(_ value: T) {
    for shift in stride(from: 0, to: T.bitWidth, by: 8) {
      bytes.append(UInt8(truncatingIfNeeded: value >> T(shift)))
    }
  }

  private mutating func instruction(_ input: inout FuzzInput) {
    if let changes = taste.changes, input.chance(changes) { return change(&input) }
    if input.chance(taste.system) { return system(&input) }
    switch input.byte() % 16 {
    case 0: move(&input)
    case 1: branch(&input)
    case 2, 3:
      // A vector instruction.
      let escapes: [[UInt8]] = [
        [0x0F], [0x66, 0x0F], [0xF3, 0x0F], [0xF2, 0x0F], [0x0F, 0x38], [0x66, 0x0F, 0x38], [0x66, 0x0F, 0x3A],
        [0xC5, 0xF8], [0xC5, 0xFD], [0xC5, 0xFB], [0xC4, 0xE2, 0x79], [0xC4, 0xE2, 0xF9], [0xC4, 0xE2, 0x7D],
        [0xC4, 0xE3, 0x7D], [0xC4, 0xE3, 0xFD],
      ]
      bytes += input.choose(escapes)
      bytes.append(input.byte())
      operand(&input)
      if input.chance(3) { bytes.append(input.byte()) }
    case 4:
      // x87.
      prefixes(&input, rex: false)
      bytes.append(0xD8 | input.byte() & 7)
      operand(&input)
    case 5:
      // Strings.
      if input.chance(2) { bytes.append(input.byte() & 1 == 0 ? 0xF3 : 0xF2) }
      prefixes(&input, rex: taste.is64)
      bytes.append(input.choose([0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0x6C, 0x6E]))
    default:
      prefixes(&input, rex: taste.is64)
      let opcode = input.byte()
      if opcode == 0x0F {
        bytes.append(0x0F)
        bytes.append(input.byte())
      } else {
        bytes.append(opcode)
      }
      let modRM = bytes.count
      operand(&input)
      // XCHG locks: across cache lines the host may let it take a second (OS bus-lock detection, SDM volume 3, 18.3.1.6).
      if opcode & 0xFE == 0x86, !input.chance(16) {
        bytes.removeSubrange((modRM + 1)...)
        bytes[modRM] |= 0xC0
      }
      switch opcode {
      case 0x69, 0x81, 0xC7: put(UInt32(truncatingIfNeeded: input.value()))
      case 0x6B, 0x80, 0x83, 0xC0, 0xC1, 0xC6: bytes.append(input.byte())
      default: break
      }
    }
  }

  private mutating func prefixes(_ input: inout FuzzInput, rex: Bool) {
    while input.chance(5) {
      let prefixes: [UInt8] = [0x66, 0x67, 0xF2, 0xF3, 0x64, 0x65, 0x2E, 0x36, 0x3E]
      bytes.append(input.chance(128) ? 0xF0 : input.choose(prefixes))
    }
    if rex, input.chance(2) { bytes.append(0x40 | input.byte() & 15) }
  }

  /// ModRM and what follows it.
  private mutating func operand(_ input: inout FuzzInput) {
    let modRM = input.byte()
    bytes.append(modRM)
    guard modRM >> 6 != 3 else { return }
    if modRM & 7 == 4 { bytes.append(input.byte()) }
    switch modRM >> 6 {
    case 1: bytes.append(UInt8(truncatingIfNeeded: input.displacement()))
    case 2: put(input.displacement())
    default: if modRM & 7 == 5 { put(input.displacement()) }
    }
  }

  /// A register goes somewhere by a known distance.
  private mutating func move(_ input: inout FuzzInput) {
    let register = input.byte() & 7
    let wide: [UInt8] = taste.is64 && !input.chance(4) ? [0x48] : []
    switch input.byte() % 7 {
    case 6:
      bytes += wide + [0xB8 | register]
      wide.isEmpty ? put(UInt32(truncatingIfNeeded: input.value())) : put(input.value())
    case 0:
      bytes += wide + [0x81, 0xC0 | register]
      put(input.displacement())
    case 1:
      bytes += wide + [0x81, 0xE8 | register]
      put(input.displacement())
    case 2:
      bytes += wide + [0x8D, 0x80 | register << 3 | register]
      if register == 4 { bytes.append(0x24) }
      put(input.displacement())
    case 3: bytes += wide + [0xFF, 0xC0 | register]
    case 4: bytes.append(0x50 | register)
    default: bytes.append(0x58 | register)
    }
  }

  /// Goes somewhere near.
  private mutating func branch(_ input: inout FuzzInput) {
    let distance = Int8(truncatingIfNeeded: Int(input.byte()) % 96 - 40)
    switch input.byte() % 8 {
    case 0: bytes += [0xEB, UInt8(bitPattern: distance)]
    case 1:
      bytes.append(0xE8)
      put(Int32(distance))
    case 2: bytes.append(0xC3)
    case 3: bytes += [0xE0 | input.byte() & 3, UInt8(bitPattern: distance)]
    case 4:
      bytes += [0x0F, 0x80 | input.byte() & 15]
      put(input.chance(8) ? input.displacement() : Int32(distance))
    case 5: bytes += [0xFF, 0xD0 | input.byte() & 0x17]
    default: bytes += [0x70 | input.byte() & 15, UInt8(bitPattern: distance)]
    }
  }

  /// A system instruction.
  private mutating func system(_ input: inout FuzzInput) {
    switch input.byte() % 20 {
    case 0, 1:
      // Groups 6, 7, 9 and 15.
      bytes += [0x0F, input.choose([0x00, 0x01, 0xC7, 0xAE])]
      operand(&input)
    case 2, 3:
      bytes += [0x0F, 0x20 | input.byte() & 3, 0xC0 | input.byte() & 0x3F]
    case 4:
      // CR0, CR3 and CR4 read, changed in one bit and written.
      let register = input.choose([0, 3, 4] as [UInt8])
      bytes += [0x0F, 0x20, 0xC0 | register << 3, 0x0F, 0xBA, input.byte() & 1 == 0 ? 0xF8 : 0xE8, input.byte() & 31]
      bytes += [0x0F, 0x22, 0xC0 | register << 3]
    case 5, 6:
      // A register by number.
      let registers: [UInt32] = [
        0x10, 0x1B, 0x3B, 0x174, 0x175, 0x176, 0x1D9, 0x277, 0x200, 0x6E0, 0x80B, 0xC000_0080, 0xC000_0081, 0xC000_0082,
        0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103, 0x4B56_4D00, 0x4B56_4D01,
      ]
      bytes.append(0xB9)
      put(input.chance(8) ? input.word(UInt32.self) : input.choose(registers))
      bytes += [0x0F, input.byte() & 1 == 0 ? 0x30 : 0x32]
    case 7:
      // A segment register.
      bytes += [0x66, 0xB8]
      put(UInt16(input.byte() & 0x1F) << 3 | UInt16(input.byte() & 7))
      bytes += [0x8E, 0xC0 | input.byte() & 0x38]
    case 8: bytes += [0xCD, input.chance(2) ? input.byte() : input.choose([3, 4, 0x80])]
    case 9: bytes += input.choose([[0x0F, 0x05], [0x0F, 0x34], [0x0F, 0x35], [0x48, 0x0F, 0x07], [0x0F, 0x07]])
    case 10:
      // A frame for IRET or RETF.
      for _ in 0..<(2 + input.below(4)) {
        if input.chance(2) {
          bytes += [0x6A, input.byte()]
        } else {
          bytes.append(0x68)
          put(
            input.choose([0x10000, 0x10040, 0x20000, 0x80000, 0x202, 0x3202, 0x2_0202, 0x33, 0x23, 0x2B, 0x10, 0x18])
              as UInt32)
        }
      }
      bytes += taste.is64 && input.chance(2) ? [0x48] : []
      bytes.append(input.choose([0xCF, 0xCB, 0xCA]))
    case 11:
      // Far transfers.
      if taste.is64 {
        bytes += [0xFF, input.choose([0x1D, 0x2D])]
        put(Int32(input.byte()))
      } else {
        bytes.append(input.choose([0x9A, 0xEA]))
        put(UInt32(0x10000) | UInt32(input.byte()))
        put(UInt16(input.byte() & 0x1F) << 3 | UInt16(input.byte() & 7))
      }
    case 12: bytes += input.choose([[0x9C], [0x9D], [0xFA], [0xFB], [0xF4], [0xF1], [0xCC], [0xCE]])
    case 13:
      bytes.append(input.choose([0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF]))
      if bytes.last! & 8 == 0 { bytes.append(input.byte()) }
    case 14:
      bytes += input.choose([[0x0F, 0xA2], [0x0F, 0x31], [0x0F, 0x33], [0x0F, 0x06], [0x0F, 0x09], [0x0F, 0x0B]])
    case 15:
      // XSETBV, SWAPGS, RDTSCP, CLAC, STAC, VMCALL, VMMCALL, MONITOR, MWAIT, XGETBV.
      bytes += [0x0F, 0x01, input.choose([0xD1, 0xF8, 0xF9, 0xCA, 0xCB, 0xC1, 0xD9, 0xC8, 0xC9, 0xD0])]
    case 16: bytes += [0xF3, 0x0F, 0xAE, 0xC0 | input.byte() & 0x1F]
    case 17: bytes += [0x66, 0x0F, 0x38, 0x82, input.byte() & 0x3F]
    case 18:
      // An image of the state: FXSAVE to XSAVEOPT, at an aligned place.
      bytes.append(0xBB)
      put(UInt32(0x2_0000))
      bytes += [0x0F, 0xAE, 0x03 | (input.byte() & 0x38)]
    default:
      bytes.append(input.choose([0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x37, 0x62, 0x63, 0xC4, 0xC8, 0xC9]))
    }
  }

  /// A displacement from the end of its instruction to a multiple of eight bytes: see above.
  private func aligned(_ distance: Int32) -> Int32 {
    let end = Int32(bytes.count + 4)
    return (end + distance) & ~7 - end
  }

  /// A store into the code around.
  private mutating func change(_ input: inout FuzzInput) {
    let distance = Int32(Int(input.byte()) * (input.chance(8) ? 16 : 1) - 100)
    let patch = input.choose([0x90, 0xC3, 0xF4, 0x40, 0x50, 0x58, 0xEB, 0x75, 0xFF, 0x48] as [UInt8])
    switch input.byte() % 8 {
    case 0, 1:
      bytes += [0xC6, 0x05]
      put(distance)
      bytes.append(patch)
    case 2:
      bytes += [0xC7, 0x05]
      put(distance)
      put(input.word(UInt32.self))
    case 3:
      bytes += [0xF0, 0x48, 0x0F, 0xC1, 0x05]
      put(aligned(distance))
    case 4:
      bytes += [0x48, 0x87, 0x05]
      put(aligned(distance))
    case 5:
      // REP STOS over some of it.
      bytes += [0x48, 0x8D, 0x3D]
      put(distance)
      bytes += [0xB9, input.byte() & 31, 0, 0, 0, 0xB0, patch, 0xF3, 0xAA]
    case 6:
      // Through the alias.
      bytes += [0x48, 0x8D, 0x1D]
      put(distance)
      bytes += [0xC6, 0x83]
      put(UInt32(0x2_0000))
      bytes.append(patch)
    default:
      bytes += [0x0F, 0x11, 0x05]
      put(distance)
    }
  }
}

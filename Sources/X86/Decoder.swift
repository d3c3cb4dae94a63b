// SPDX-License-Identifier: Apache-2.0
// Bytes to `Instruction`. Knows prefixes, REX, VEX, ModRM, SIB and immediates, and no instruction: what follows
// an opcode byte is in its row. It runs once for each instruction that is translated, on bytes that may end in
// the middle of one because the next page has not been looked up yet.

/// What came of decoding.
public enum DecodeResult: Sendable {
  /// An instruction; if its row is 0, the bytes are no instruction (#UD) and its length is what was looked at.
  case complete(Instruction)
  /// The bytes given end inside the instruction.
  case needsMore
  /// Over 15 bytes: #GP.
  case tooLong
}

extension Instruction {
  /// Whether the encoding exists in this mode. If not: #UD.
  @inlinable public var isValid: Bool { row != 0 }
}

/// Decodes instructions of all modes. A decoder has no state: one serves all threads.
public struct Decoder: Sendable {
  public let table: OpcodeTable

  public init(table: OpcodeTable = .shared) { self.table = table }

  /// Decodes the instruction that begins `bytes`.
  ///
  /// VEX encodings are accepted in 16-bit code as in 32-bit code; in real and virtual-8086 mode the caller owes #UD.
  /// - Parameter count: How many bytes may be read; more than `Instruction.maximumLength` are not looked at.
  public func decode(_ bytes: UnsafeRawPointer, count: Int, code: CodeSize) -> DecodeResult {
    var stream = unsafe ByteStream(bytes, limit: min(count, Instruction.maximumLength))
    var instruction = Instruction()
    instruction.code = code
    decode(&stream, &instruction)
    if stream.isExhausted { return count >= Instruction.maximumLength ? .tooLong : .needsMore }
    instruction.length = UInt8(truncatingIfNeeded: stream.position)
    return .complete(instruction)
  }

  /// Decodes the instruction that begins `bytes`.
  public func decode(_ bytes: Span<UInt8>, code: CodeSize) -> DecodeResult {
    // SAFETY: the pointer is used during the call only.
    unsafe bytes.withUnsafeBytes {
      guard let start = $0.baseAddress else { return .needsMore }
      return unsafe decode(start, count: $0.count, code: code)
    }
  }

  /// Fills in `i`, or leaves its row 0. After the last byte the stream gives zeroes; the caller notices.
  @inline(__always)
  private func decode(_ stream: inout ByteStream, _ i: inout Instruction) {
    let is64 = i.code.bits == 64

    // Prefixes, in any order; REX counts only right before the opcode.
    var byte = stream.byte()
    prefixes: while true {
      switch byte {
      case 0x66: i.hasOperandSizePrefix = true
      case 0x67: i.hasAddressSizePrefix = true
      case 0xF0: i.hasLock = true
      case 0xF2, 0xF3: i.repeatPrefix = byte
      case 0x64: i.segmentPrefix = 4
      case 0x65: i.segmentPrefix = 5
      case 0x26, 0x2E, 0x36, 0x3E: if !is64 { i.segmentPrefix = (byte &- 0x26) >> 3 }
      case 0x40...0x4F:
        if !is64 { break prefixes }
        i.rex = byte
        byte = stream.byte()
        continue prefixes
      default: break prefixes
      }
      i.rex = 0
      byte = stream.byte()
    }

    // Map and mandatory prefix. `extend` is REX.RXB, or VEX's, as R 4, X 2, B 1.
    var map = 0
    var prefix = i.repeatPrefix == 0xF3 ? 2 : i.repeatPrefix == 0xF2 ? 3 : i.hasOperandSizePrefix ? 1 : 0
    var extend = i.rex & 7
    if byte == 0x0F {
      byte = stream.byte()
      map = 1
      if byte == 0x38 || byte == 0x3A {
        map = byte == 0x38 ? 2 : 3
        byte = stream.byte()
      }
    } else if byte == 0xC5 || byte == 0xC4, is64 || stream.peek() >= 0xC0 {
      if i.rex != 0 || i.hasLock || prefix != 0 || i.hasOperandSizePrefix { return }
      i.hasVEX = true
      var last = stream.byte()
      extend = (~last >> 5) & 4
      map = 1
      if byte == 0xC4 {
        extend = ~last >> 5
        map = Int(last & 0x1F)
        if map == 0 || map > 3 { return }
        last = stream.byte()
        i.vexW = last & 0x80 != 0
      }
      i.vexL = last & 4 != 0
      i.vvvv = (~last >> 3) & 15
      prefix = Int(last & 3)
      map += 3
      if !is64 { extend = 0 }
      byte = stream.byte()
      if !is64 {
        if Decoder.widensGeneral(map: map - 3, byte) { i.vexW = false }
        // VPEXTRQ and VPINSRQ do not become VPEXTRD and VPINSRD.
        if i.vexW && map == 6 && (byte == 0x16 || byte == 0x22) { return }
      }
    }
    i.opcode = byte

    // The row.
    let isWide = i.w
    // 90 with REX.B is XCHG, which 91 finds.
    let key = byte == 0x90 && map == 0 && i.rex & 1 != 0 ? 0x91 : Int(byte)
    var row = unsafe table.cells[(map * 4 + prefix) * 256 + key]
    if row & OpcodeTable.groupFlag != 0 {
      i.modRM = stream.byte()
      let entry = i.modRM >= 0xC0 ? Int(i.modRM) - 0xC0 + 8 : Int(i.modRM >> 3) & 7
      row = unsafe table.groups[Int(row & ~OpcodeTable.groupFlag) * OpcodeTable.groupSize + entry]
      i.hasModRM = true
    }
    let state =
      (is64 ? RowShape.in64 : RowShape.outside64) | (i.vexL ? RowShape.l1 : RowShape.l0)
      | (isWide ? RowShape.w1 : RowShape.w0)
    while row != 0, unsafe table.shapes[Int(row)].forbidden & state != 0 { row = unsafe table.shapes[Int(row)].next }
    if row == 0 { return }
    let shape = unsafe table.shapes[Int(row)]
    if shape.hasModRM && !i.hasModRM {
      i.modRM = stream.byte()
      i.hasModRM = true
    }
    if shape.ignoresMod { i.modRM |= 0xC0 }

    // Sizes.
    if is64 {
      i.addressSize = i.hasAddressSizePrefix ? 4 : 8
      i.operandSize = isWide ? 8 : i.hasOperandSizePrefix ? 2 : 4
      if shape.sizing != .normal, i.operandSize == 4 || shape.sizing == .always64 { i.operandSize = 8 }
    } else {
      let is16 = i.code.bits == 16
      i.addressSize = i.hasAddressSizePrefix == is16 ? 4 : 2
      i.operandSize = i.hasOperandSizePrefix == is16 ? 4 : 2
    }
    i.segment = i.segmentPrefix == 0xFF ? 3 : i.segmentPrefix

    // ModRM and what hangs on it.
    if i.hasModRM {
      let reg = (i.modRM >> 3) & 7
      i.reg = shape.narrowReg ? reg : reg | (extend & 4) << 1
      if i.modRM >= 0xC0 {
        i.rm = shape.narrowRM ? i.modRM & 7 : i.modRM & 7 | (extend & 1) << 3
      } else if i.addressSize == 2 {
        if shape.hasVSIB { return }
        address16(&stream, &i)
      } else {
        if shape.hasVSIB && i.modRM & 7 != 4 { return }
        address(&stream, &i, extend: extend, isVSIB: shape.hasVSIB)
        // A gather's destination, index and mask must differ.
        if shape.hasVSIB {
          let mask = is64 ? i.vvvv : i.vvvv & 7
          if i.index == i.reg || i.index == mask || i.reg == mask { return }
        }
      }
      // There are six segment registers, and CS is not loaded by MOV.
      if shape.hasSegmentRegister, reg > 5 || (reg == 1 && byte == 0x8E) { return }
    } else {
      i.rm = byte & 7 | (extend & 1) << 3
    }
    immediate(&stream, &i, shape.immediate)

    if i.hasLock && !(shape.isLockable && i.isMemory) { return }
    if i.hasVEX && !shape.usesVvvv && i.vvvv != 0 { return }
    if !is64 { i.vvvv &= 7 }
    i.row = row
  }

  /// VEX-encoded instructions whose W is the width of a general register, and means nothing outside 64-bit mode:
  /// VCVTSI2SS and its like, VMOVD, VPCMPESTRM, VPCMPESTRI, BMI.
  private static func widensGeneral(map: Int, _ byte: UInt8) -> Bool {
    switch (map, byte) {
    case (1, 0x2A), (1, 0x2C), (1, 0x2D), (1, 0x6E), (1, 0x7E): true
    case (2, 0xF2...0xF7): true
    case (3, 0x60), (3, 0x61), (3, 0xF0): true
    default: false
    }
  }

  @inline(__always)
  private func address(_ stream: inout ByteStream, _ i: inout Instruction, extend: UInt8, isVSIB: Bool) {
    let mod = i.modRM >> 6
    var base = i.modRM & 7
    if base == 4 {
      let sib = stream.byte()
      base = sib & 7
      i.scale = sib >> 6
      let index = (sib >> 3) & 7 | (extend & 2) << 2
      if index != 4 || isVSIB { i.index = index }
      if base == 5 && mod == 0 {
        i.displacement = stream.int32()
        return
      }
    } else if base == 5 && mod == 0 {
      i.displacement = stream.int32()
      i.isRIPRelative = i.code.bits == 64
      return
    }
    i.base = base | (extend & 1) << 3
    if i.base & 14 == 4 && i.segmentPrefix == 0xFF { i.segment = 2 }
    if mod == 1 {
      i.displacement = Int32(Int8(bitPattern: stream.byte()))
    } else if mod == 2 {
      i.displacement = stream.int32()
    }
  }

  private func address16(_ stream: inout ByteStream, _ i: inout Instruction) {
    let mod = i.modRM >> 6
    let rm = i.modRM & 7
    if rm == 6 && mod == 0 {
      i.displacement = Int32(stream.int16())
      return
    }
    // BX+SI, BX+DI, BP+SI, BP+DI, SI, DI, BP, BX.
    switch rm {
    case 0, 1: i.base = 3
    case 2, 3, 6: i.base = 5
    case 4: i.base = 6
    case 5: i.base = 7
    default: i.base = 3
    }
    if rm < 4 { i.index = 6 + rm & 1 }
    if i.base == 5 && i.segmentPrefix == 0xFF { i.segment = 2 }
    if mod == 1 {
      i.displacement = Int32(Int8(bitPattern: stream.byte()))
    } else if mod == 2 {
      i.displacement = Int32(stream.int16())
    }
  }

  @inline(__always)
  private func immediate(_ stream: inout ByteStream, _ i: inout Instruction, _ kind: RowShape.Immediate) {
    switch kind {
    case .none: break
    case .byte:
      i.immediate = UInt64(bitPattern: Int64(Int8(bitPattern: stream.byte())))
      i.immediateBytes = 1
    case .word:
      i.immediate = UInt64(bitPattern: Int64(stream.int16()))
      i.immediateBytes = 2
    case .operandSize, .operandSizeOr8, .far:
      if i.operandSize == 2 {
        i.immediate = UInt64(bitPattern: Int64(stream.int16()))
        i.immediateBytes = 2
      } else if i.operandSize == 8 && kind == .operandSizeOr8 {
        i.immediate = stream.uint64()
        i.immediateBytes = 8
      } else {
        i.immediate = UInt64(bitPattern: Int64(stream.int32()))
        i.immediateBytes = 4
      }
      if kind == .far {
        i.immediate2 = UInt16(bitPattern: stream.int16())
        i.immediateBytes &+= 2
      }
    case .offset:
      switch i.addressSize {
      case 2: i.immediate = UInt64(UInt16(bitPattern: stream.int16()))
      case 4: i.immediate = UInt64(UInt32(bitPattern: stream.int32()))
      default: i.immediate = stream.uint64()
      }
      i.immediateBytes = i.addressSize
    case .enter:
      i.immediate = UInt64(UInt16(bitPattern: stream.int16()))
      i.immediate2 = UInt16(stream.byte())
      i.immediateBytes = 3
    }
  }
}

/// The bytes of one instruction. Reading past the end gives zeroes and is remembered.
@safe
private struct ByteStream {
  private let bytes: UnsafeRawPointer
  private let limit: Int
  private(set) var position = 0
  private(set) var isExhausted = false

  init(_ bytes: UnsafeRawPointer, limit: Int) {
    unsafe self.bytes = bytes
    self.limit = limit
  }

  @inline(__always)
  private mutating func load<T: FixedWidthInteger & BitwiseCopyable>(_: T.Type) -> T {
    let start = position
    guard start &+ MemoryLayout<T>.size <= limit else {
      isExhausted = true
      return 0
    }
    position = start &+ MemoryLayout<T>.size
    // SAFETY: the guard proved that the bytes lie before `limit`.
    return unsafe bytes.loadUnaligned(fromByteOffset: start, as: T.self)
  }

  @inline(__always) mutating func byte() -> UInt8 { load(UInt8.self) }
  @inline(__always) mutating func int16() -> Int16 { load(Int16.self) }
  @inline(__always) mutating func int32() -> Int32 { load(Int32.self) }
  @inline(__always) mutating func uint64() -> UInt64 { load(UInt64.self) }

  /// The next byte, not consumed.
  @inline(__always)
  mutating func peek() -> UInt8 {
    guard position < limit else {
      isExhausted = true
      return 0
    }
    // SAFETY: as in `load`.
    return unsafe bytes.load(fromByteOffset: position, as: UInt8.self)
  }
}

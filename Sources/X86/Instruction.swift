// SPDX-License-Identifier: Apache-2.0
// One decoded instruction: a plain value, small enough to live on the stack, that the translator, the slow
// path, the system instructions and the checker all work from. It repeats nothing the opcode row says.

/// The sizes that the mode gives an instruction.
public struct CodeSize: Sendable, Equatable {
  /// 16, 32 or 64.
  public let bits: UInt8
  @inlinable public init(bits: UInt8) { self.bits = bits }
  public static let code16 = CodeSize(bits: 16)
  public static let code32 = CodeSize(bits: 32)
  public static let code64 = CodeSize(bits: 64)
}

/// A decoded instruction.
public struct Instruction: Sendable {
  /// Bytes of an instruction at most (SDM volume 2, 2.3.11).
  public static let maximumLength = 15

  /// The number of its row; see `OpcodeTable`. 0 is "no such encoding".
  public var row: UInt16 = 0
  /// Bytes, 1...`maximumLength`.
  public var length: UInt8 = 0
  public var code: CodeSize = .code64

  // Prefixes as they stood.
  public var hasOperandSizePrefix = false
  public var hasAddressSizePrefix = false
  public var hasLock = false
  /// 0, 0xF2 or 0xF3: the last repeat prefix.
  public var repeatPrefix: UInt8 = 0
  /// The segment that a prefix names (0...5), or 0xFF. ES, CS, SS, DS are ignored (not recorded) in 64-bit mode.
  public var segmentPrefix: UInt8 = 0xFF
  /// REX byte, or 0.
  public var rex: UInt8 = 0

  // VEX.
  public var hasVEX = false
  public var vexW = false
  /// VEX.L: 256 bits.
  public var vexL = false
  /// The register in VEX.vvvv, already inverted, 0...15.
  public var vvvv: UInt8 = 0

  /// The opcode byte, after any escape.
  public var opcode: UInt8 = 0
  public var hasModRM = false
  /// As it stood, but MOV CR and DR, which ignore the mod field, always show the register form.
  public var modRM: UInt8 = 0

  /// Register numbers with their REX or VEX extension, 0...15. For byte operands without REX, 4...7 in a
  /// general-register field mean AH CH DH BH: `isHighByte(_:)`. MMX, x87 and segment registers have no extension
  /// and are 0...7. `rm` is also the register of `Form.plus`; it means nothing when the operand is in memory.
  public var reg: UInt8 = 0
  public var rm: UInt8 = 0
  /// Memory operand: base and index register, or 0xFF. 16-bit forms use BX BP SI DI here too. With VSIB `index`
  /// is a vector register.
  public var base: UInt8 = 0xFF
  public var index: UInt8 = 0xFF
  /// 0...3: index is scaled by 1 << scale.
  public var scale: UInt8 = 0
  public var displacement: Int32 = 0
  public var isRIPRelative = false
  /// The segment of the memory operand (0...5) after defaults and prefixes; for string instructions, XLAT, moffs
  /// and MASKMOV that of the DS operand.
  public var segment: UInt8 = 3

  /// 2, 4 or 8 bytes. Near branches in 64-bit mode: always 8.
  public var operandSize: UInt8 = 4
  /// 2, 4 or 8 bytes.
  public var addressSize: UInt8 = 8

  /// The first immediate, sign-extended from its size; `Ob`/`Ov` offsets and 64-bit immediates as they are.
  public var immediate: UInt64 = 0
  /// Size of all immediate bytes in the encoding.
  public var immediateBytes: UInt8 = 0
  /// ENTER's nesting level or a far pointer's selector.
  public var immediate2: UInt16 = 0

  @inlinable public init() {}

  /// Whether the ModRM operand is in memory.
  @inlinable public var isMemory: Bool { hasModRM && modRM < 0xC0 }
  /// REX.W or VEX.W.
  @inlinable public var w: Bool { hasVEX ? vexW : rex & 8 != 0 }
  @inlinable public var isRepeated: Bool { repeatPrefix != 0 }
  /// Whether byte register `number` of this instruction is AH, CH, DH or BH.
  @inlinable public func isHighByte(_ number: UInt8) -> Bool { rex == 0 && !hasVEX && number >= 4 && number < 8 }
}

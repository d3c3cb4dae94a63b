// SPDX-License-Identifier: Apache-2.0
// What each `FlagEffect` means, as masks: the translator's flag liveness and the differential tests' comparison
// of results both come from here.

/// The six arithmetic flags as bits of one byte: where LAHF puts five of them, and OF in bit 5, which LAHF leaves 0.
public enum ArithmeticFlags {
  public static let cf: UInt8 = 0x01
  public static let pf: UInt8 = 0x04
  public static let af: UInt8 = 0x10
  public static let of: UInt8 = 0x20
  public static let zf: UInt8 = 0x40
  public static let sf: UInt8 = 0x80
  public static let all: UInt8 = cf | pf | af | of | zf | sf
  public static let none: UInt8 = 0

  /// The flags that a condition (the low four bits of a Jcc, SETcc or CMOVcc opcode) depends on.
  @inlinable
  public static func read(byCondition condition: UInt8) -> UInt8 {
    switch (condition >> 1) & 7 {
    case 0: of
    case 1: cf
    case 2: zf
    case 3: cf | zf
    case 4: sf
    case 5: pf
    case 6: sf | of
    default: zf | sf | of
    }
  }
}

extension FlagEffect {
  private typealias F = ArithmeticFlags

  /// Flags whose old value matters.
  ///
  /// - Parameter condition: The opcode byte (its low four bits), for `.condition`.
  public func reads(condition: UInt8) -> UInt8 {
    switch self {
    case .arithCarry, .rotateCarry, .rotateCarryOne, .complementCarry, .adcx, .readsCarry: F.cf
    case .adox, .readsOverflow: F.of
    case .ascii: F.af
    case .decimal: F.af | F.cf
    case .lahf: F.all & ~F.of
    case .readsAll: F.all
    case .readsZero: F.zf
    case .readsFcmov: F.cf | F.zf | F.pf
    case .condition: F.read(byCondition: condition)
    case .none, .arith, .logic, .increment, .shift, .shiftOne, .rotate, .rotateOne, .doubleShift, .multiply, .divide,
      .bitTest, .bitScan, .countZeros, .popcount, .andn, .bls, .bextr, .setCarry, .sahf, .zero, .compare, .random,
      .asciiMultiply, .writesAll:
      F.none
    }
  }

  /// Flags that are overwritten whatever the operands are, with a defined or an undefined value. Shifts and rotates,
  /// whose count may be 0, overwrite none; `Opcode.overwrites` also looks at the count.
  public var writes: UInt8 {
    switch self {
    case .none, .shift, .rotate, .rotateCarry, .doubleShift, .lahf, .readsAll, .condition, .readsZero, .readsOverflow,
      .readsCarry, .readsFcmov:
      F.none
    case .arith, .arithCarry, .logic, .shiftOne, .multiply, .divide, .bitScan, .countZeros, .popcount, .andn, .bls,
      .bextr, .compare, .random, .ascii, .decimal, .asciiMultiply, .writesAll:
      F.all
    case .increment: F.all & ~F.cf
    case .rotateOne, .rotateCarryOne: F.cf | F.of
    case .bitTest: F.all & ~F.zf
    case .adcx, .setCarry, .complementCarry: F.cf
    case .adox: F.of
    case .sahf: F.all & ~F.of
    case .zero: F.zf
    }
  }

  /// Flags that may differ afterwards: `writes`, and what a shift changes if its count is not 0.
  public var writesMaybe: UInt8 {
    switch self {
    case .shift, .doubleShift: F.all
    case .rotate, .rotateCarry: F.cf | F.of
    default: writes
    }
  }

  /// Flags whose value afterwards the manual does not define (for shifts and rotates: for
  /// some count; a count beyond the operand's size leaves more undefined: CF of SHL and SHR, all of SHLD and SHRD).
  public var undefined: UInt8 {
    switch self {
    case .logic, .shiftOne: F.af
    case .shift, .doubleShift: F.of | F.af
    case .rotate, .rotateCarry, .decimal: F.of
    case .multiply: F.sf | F.zf | F.af | F.pf
    case .divide: F.all
    case .bitTest, .countZeros: F.of | F.sf | F.af | F.pf
    case .bitScan: F.all & ~F.zf
    case .andn, .bls: F.af | F.pf
    case .bextr: F.sf | F.af | F.pf
    case .ascii: F.of | F.sf | F.zf | F.pf
    case .asciiMultiply: F.of | F.af | F.cf
    default: F.none
    }
  }
}

extension Opcode {
  /// Flags that an instruction of this row certainly overwrites, with a defined or an undefined value: dead before it
  /// unless it reads them.
  public func overwrites(_ instruction: Instruction) -> UInt8 {
    switch flags {
    case .shift, .doubleShift, .rotate:
      // By CL there is no immediate. The count is masked to six bits for a 64-bit operand, to five for others (SDM
      // volume 2, SAL/SAR/SHL/SHR and RCL/RCR/ROL/ROR); 0xC0 has a byte operand.
      let isWide = instruction.operandSize == 8 && instruction.opcode != 0xC0
      let count = instruction.immediateBytes == 0 ? 0 : instruction.immediate & (isWide ? 63 : 31)
      return count == 0 ? ArithmeticFlags.none : flags.writesMaybe
    default:
      // SCAS and CMPS repeated no times overwrite none.
      return (rule == .scas || rule == .cmps) && instruction.isRepeated ? ArithmeticFlags.none : flags.writes
    }
  }
}

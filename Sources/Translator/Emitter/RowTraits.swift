// SPDX-License-Identifier: Apache-2.0
// What the translator must know about a row's operands, worked out once from the operand letters: which ModRM
// fields are general registers, which of them are read and written, what else is written, and how large the memory
// operand is.

import X86

/// How a general-purpose register field is used.
struct FieldUse {
  /// The field names a general register (not a vector, segment, control or x87 register).
  var isGeneral = false
  var isByte = false
  var reads = false
  var writes = false
}

/// The size of a memory operand: fixed, or by the mode.
enum MemorySize: UInt8 {
  case none, fixed, operandSize, atMost4, y, vector, halfVector, quarterVector, eighthVector, doubleOperand
  case farPointer, descriptorTable, fxsave, xsave, fsave, fenv, wide
}

/// The traits of one row.
struct RowTraits {
  var reg = FieldUse()
  var rm = FieldUse()
  var vvvv = FieldUse()
  /// The register in the opcode's low bits.
  var plus = FieldUse()
  var memorySize = MemorySize.none
  /// Bytes, for `MemorySize.fixed`.
  var fixedSize: UInt8 = 0
  var memoryReads = false
  var memoryWrites = false
  /// 66 selects 16-bit operands (it is not a mandatory prefix).
  var usesOperandSize = false
  /// General registers, a bit each, that are written though no field names them.
  var unnamedWrites: UInt8 = 0
  /// Those of its rule.
  let rule: RuleTraits

  init(_ row: Opcode) {
    rule = row.rule.traits
    unnamedWrites = row.implicit.registers
    let operands = (row.operand1, row.operand2, row.operand3, row.operand4)
    add(
      operands.0, reads: row.access == .read || row.access == .readWrite,
      writes: row.access == .write || row.access == .readWrite)
    let second = row.attribute == .exchange || row.attribute == .secondWritten
    add(operands.1, reads: row.attribute != .secondWritten, writes: second)
    add(operands.2, reads: true, writes: false)
    add(operands.3, reads: true, writes: false)
    // CBW and CWD name no operands.
    if row.map == .one && (row.byte == 0x98 || row.byte == 0x99) { usesOperandSize = true }
  }

  private mutating func add(_ operand: Operand, reads: Bool, writes: Bool) {
    func use(byte: Bool) -> FieldUse { FieldUse(isGeneral: true, isByte: byte, reads: reads, writes: writes) }
    switch operand {
    case .Gb: reg = use(byte: true)
    case .Gv:
      reg = use(byte: false)
      usesOperandSize = true
    case .Gw, .Gd, .Gy: reg = use(byte: false)
    case .By: vvvv = use(byte: false)
    case .Ry, .Rd: rm = use(byte: false)
    case .Zb: plus = use(byte: true)
    case .Zv:
      plus = use(byte: false)
      usesOperandSize = true
    case .Zq: plus = use(byte: false)
    case .Eb:
      rm = use(byte: true)
      memory(.fixed, 1, reads, writes)
    case .Ew:
      rm = use(byte: false)
      memory(.fixed, 2, reads, writes)
    case .Ed:
      rm = use(byte: false)
      memory(.fixed, 4, reads, writes)
    case .Eq:
      rm = use(byte: false)
      memory(.fixed, 8, reads, writes)
    case .Ev, .Ef:
      rm = use(byte: false)
      memory(.operandSize, 0, reads, writes)
      usesOperandSize = true
    case .Ez:
      rm = use(byte: false)
      memory(.atMost4, 0, reads, writes)
      usesOperandSize = true
    case .Evw:
      rm = use(byte: false)
      memory(.fixed, 2, reads, writes)
      usesOperandSize = true
    case .Ey:
      rm = use(byte: false)
      memory(.y, 0, reads, writes)
    case .Mb, .Wb: memory(.fixed, 1, reads, writes)
    case .Mw, .Ww: memory(.fixed, 2, reads, writes)
    case .Md, .Wd, .Qd: memory(.fixed, 4, reads, writes)
    case .Mq, .Wq, .Qq: memory(.fixed, 8, reads, writes)
    case .Mo, .Wo: memory(.fixed, 16, reads, writes)
    case .Mt: memory(.fixed, 10, reads, writes)
    case .Mx, .Wx: memory(.vector, 0, reads, writes)
    case .Wh: memory(.halfVector, 0, reads, writes)
    case .Wf: memory(.quarterVector, 0, reads, writes)
    case .We: memory(.eighthVector, 0, reads, writes)
    case .Mv:
      memory(.operandSize, 0, reads, writes)
      usesOperandSize = true
    case .My: memory(.y, 0, reads, writes)
    case .Ma:
      memory(.doubleOperand, 0, reads, writes)
      usesOperandSize = true
    case .Mdq: memory(.wide, 0, reads, writes)
    case .Mp: memory(.farPointer, 0, reads, writes)
    case .Ms: memory(.descriptorTable, 0, reads, writes)
    case .Mfx: memory(.fxsave, 0, reads, writes)
    case .Mxsave: memory(.xsave, 0, reads, writes)
    case .Mfsave:
      memory(.fsave, 0, reads, writes)
      usesOperandSize = true
    case .Mfenv:
      memory(.fenv, 0, reads, writes)
      usesOperandSize = true
    case .rAX, .eAX:
      usesOperandSize = true
      if writes { unnamedWrites |= ImplicitWrite.rAX.registers }
    case .AL, .AX: if writes { unnamedWrites |= ImplicitWrite.rAX.registers }
    case .rDX, .Iz, .Iv, .Ov: usesOperandSize = true
    default: break
    }
  }

  private mutating func memory(_ size: MemorySize, _ bytes: UInt8, _ reads: Bool, _ writes: Bool) {
    memorySize = size
    fixedSize = bytes
    memoryReads = reads
    memoryWrites = writes
  }

  /// The general registers that `instruction` writes, a bit each, if its rule writes those alone that its row says
  /// (`RuleTraits.writesNamed`).
  @inline(__always)
  func writtenRegisters(_ instruction: Instruction) -> UInt16 {
    let i = instruction
    func bit(_ use: FieldUse, _ number: UInt8) -> UInt16 {
      guard use.isGeneral && use.writes else { return 0 }
      return 1 << UInt16((use.isByte && i.isHighByte(number) ? number & 3 : number) & 15)
    }
    return UInt16(unnamedWrites) | bit(reg, i.reg) | (i.isMemory ? 0 : bit(rm, i.rm)) | bit(vvvv, i.vvvv)
      | bit(plus, i.plusRegister)
  }

  /// Bytes of the memory operand of `instruction`.
  func memoryBytes(_ instruction: Instruction) -> Int {
    let vector = instruction.vexL ? 32 : 16
    switch memorySize {
    case .none: return 0
    case .fixed: return Int(fixedSize)
    case .operandSize: return Int(instruction.operandSize)
    case .atMost4: return Int(min(instruction.operandSize, 4))
    case .y: return instruction.w ? 8 : 4
    case .vector: return vector
    case .halfVector: return vector / 2
    case .quarterVector: return vector / 4
    case .eighthVector: return vector / 8
    case .doubleOperand: return Int(instruction.operandSize) * 2
    case .wide: return instruction.w ? 16 : 8
    case .farPointer: return Int(instruction.operandSize) + 2
    case .descriptorTable: return instruction.code.bits == 64 ? 10 : 6
    case .fxsave: return 512
    case .xsave: return 832
    case .fsave: return instruction.operandSize == 2 ? 94 : 108
    case .fenv: return instruction.operandSize == 2 ? 14 : 28
    }
  }
}

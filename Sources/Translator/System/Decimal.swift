// SPDX-License-Identifier: Apache-2.0
// Decimal adjustment, BOUND and SALC: instructions without a 64-bit encoding, so the host cannot run them (SDM
// volume 2). Undefined flags are left as Intel CPUs leave them.

import CHost
import X86

extension Processor {
  private var al: UInt64 { page[register: GPR.rax] & 0xFF }
  private var ah: UInt64 { page[register: GPR.rax] >> 8 & 0xFF }

  /// Replaces the arithmetic flags and no other.
  private func setArithmeticFlags(_ set: UInt64) { page.rflags = page.rflags & ~RFLAGS.arithmetic | set }

  /// DAA (27) and DAS (2F).
  func decimalAdjust(subtract: Bool) {
    let flags = page.rflags
    let old = al
    var result = old
    var set: UInt64 = 0
    if old & 15 > 9 || flags & RFLAGS.af != 0 {
      result = subtract ? result &- 6 : result &+ 6
      set |= RFLAGS.af
      if subtract && old < 6 { set |= RFLAGS.cf }
    }
    if old > 0x99 || flags & RFLAGS.cf != 0 {
      result = subtract ? result &- 0x60 : result &+ 0x60
      set |= RFLAGS.cf
    }
    setRegister(GPR.rax, result, size: 1)
    setArithmeticFlags(set | Processor.resultFlags(result, size: 1))
  }

  /// AAA (37) and AAS (3F).
  func asciiAdjust(subtract: Bool) {
    var set: UInt64 = 0
    var ax = page[register: GPR.rax] & 0xFFFF
    if ax & 15 > 9 || page.rflags & RFLAGS.af != 0 {
      ax = subtract ? ax &- 0x106 : ax &+ 0x106
      set = RFLAGS.af | RFLAGS.cf
    }
    setRegister(GPR.rax, ax & 0xFF0F, size: 2)
    setArithmeticFlags(set | Processor.resultFlags(ax & 0x0F, size: 1))
  }

  /// AAM (D4).
  func asciiMultiply(_ base: UInt8) throws(Fault) {
    guard base != 0 else { throw .divideError }
    let value = UInt8(truncatingIfNeeded: al)
    let (quotient, remainder) = value.quotientAndRemainder(dividingBy: base)
    setRegister(GPR.rax, UInt64(quotient) << 8 | UInt64(remainder), size: 2)
    setArithmeticFlags(Processor.resultFlags(UInt64(remainder), size: 1))
  }

  /// AAD (D5).
  func asciiDivide(_ base: UInt8) {
    let result = (al &+ ah &* UInt64(base)) & 0xFF
    setRegister(GPR.rax, result, size: 2)
    setArithmeticFlags(Processor.resultFlags(result, size: 1))
  }

  /// SALC (D6): AL becomes all ones or zero by CF.
  func setALFromCarry() { setRegister(GPR.rax, page.rflags & RFLAGS.cf != 0 ? 0xFF : 0, size: 1) }

  /// BOUND. Intel's CPUs do not look at the upper bound of an index that is below the lower one, AMD's read both first
  /// (measured: it shows where the second half of the operand faults; SDM volume 2, BOUND, leaves it open).
  func bound(_ instruction: Instruction) throws(Fault) {
    let size = instruction.operandSize
    let both = Int(size) &* 2
    let operand = effectiveAddress(instruction)
    func signed(_ value: UInt64) -> Int64 { Int64(bitPattern: Processor.signExtend(value, size: size)) }
    let index = signed(register(instruction.reg, size: size))
    let first = try span(operand, count: state.cpuid.isAMD ? both : Int(size), write: false)
    if index < signed(load(first, size: size)) { throw .boundRange }
    let memory = try span(operand, count: both, write: false)
    if index > signed(load(memory, at: Int(size), size: size)) { throw .boundRange }
  }
}

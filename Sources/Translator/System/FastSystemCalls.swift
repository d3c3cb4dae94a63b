// SPDX-License-Identifier: Apache-2.0
// SYSCALL, SYSRET, SYSENTER, SYSEXIT and the base registers that system-call code swaps (SDM volume 3, 5.8.7,
// 5.8.8; volume 2). Translated code has faster forms of these; the ones here say what they must do.

import CHost
import X86

extension Processor {
  private static let code64: UInt32 = 0xA09B, code32: UInt32 = 0xC09B, data: UInt32 = 0xC093
  private static let user: UInt32 = 0x60  // DPL 3

  private func enterFlat(code: UInt16, _ codeAttributes: UInt32, stack: UInt16, _ stackAttributes: UInt32) {
    page[.cs] = .flat(selector: code, attributes: codeAttributes)
    page[.ss] = .flat(selector: stack, attributes: stackAttributes)
  }

  // MARK: SYSCALL

  func systemCall(_ instruction: Instruction) throws(Fault) {
    guard page[\.efer] & EFER.sce != 0, page.isProtected else { throw .invalidOpcode }
    // Intel CPUs have SYSCALL in 64-bit mode only; AMD's go to CSTAR or STAR from 32-bit code.
    guard page.isLongMode || state.cpuid.isAMD else { throw .invalidOpcode }
    let selector = UInt16(truncatingIfNeeded: page[\.star] >> 32 & 0xFFFC)
    let next = next(instruction)
    page[register: GPR.rcx] = next
    if page.isLMA {
      page[register: GPR.r11] = page.rflags & ~RFLAGS.rf
      page[\.rip] = page.isLongMode ? page[\.lstar] : page[\.cstar]
      page.rflags = page.rflags & ~(page[\.sfmask] | RFLAGS.rf | RFLAGS.vm) | 2
      enterFlat(code: selector, Processor.code64, stack: selector &+ 8, Processor.data)
    } else {
      page[\.rip] = page[\.star] & 0xFFFF_FFFF
      page.rflags = page.rflags & ~(RFLAGS.if | RFLAGS.vm | RFLAGS.rf)
      enterFlat(code: selector, Processor.code32, stack: selector &+ 8, Processor.data)
    }
    page.updateMode()
  }

  func systemReturn(_ instruction: Instruction) throws(Fault) {
    guard page[\.efer] & EFER.sce != 0, page.isProtected else { throw .invalidOpcode }
    guard page.isLongMode || state.cpuid.isAMD else { throw .invalidOpcode }
    guard privilege == 0 else { throw .generalProtection() }
    let base = UInt16(truncatingIfNeeded: page[\.star] >> 48)
    if page.isLMA {
      if instruction.w {
        // Intel CPUs check the return address before leaving level 0.
        guard Processor.isCanonical(page[register: GPR.rcx]) else { throw .generalProtection() }
        page[\.rip] = page[register: GPR.rcx]
        enterFlat(
          code: (base &+ 16) | 3, Processor.code64 | Processor.user, stack: (base &+ 8) | 3,
          Processor.data | Processor.user)
      } else {
        page[\.rip] = page[register: GPR.rcx] & 0xFFFF_FFFF
        enterFlat(
          code: base | 3, Processor.code32 | Processor.user, stack: (base &+ 8) | 3, Processor.data | Processor.user)
      }
      page.rflags = page[register: GPR.r11] & 0x3C_7FD7 | 2
    } else {
      page[\.rip] = page[register: GPR.rcx] & 0xFFFF_FFFF
      page.rflags = page.rflags | RFLAGS.if
      enterFlat(
        code: base | 3, Processor.code32 | Processor.user, stack: (base &+ 8) | 3, Processor.data | Processor.user)
    }
    page.updateMode()
  }

  // MARK: SYSENTER

  func sysenter() throws(Fault) {
    guard page.isProtected else { throw .generalProtection() }
    if page.isLMA && state.cpuid.isAMD { throw .invalidOpcode }
    let selector = UInt16(truncatingIfNeeded: page[\.sysenter_cs]) & 0xFFFC
    guard selector != 0 else { throw .generalProtection() }
    let mask: UInt64 = page.isLMA ? .max : 0xFFFF_FFFF
    page[register: GPR.rsp] = page[\.sysenter_esp] & mask
    page[\.rip] = page[\.sysenter_eip] & mask
    page.rflags = page.rflags & ~(RFLAGS.vm | RFLAGS.if | RFLAGS.rf)
    enterFlat(
      code: selector, page.isLMA ? Processor.code64 : Processor.code32, stack: selector &+ 8, Processor.data)
    page.updateMode()
  }

  func sysexit(_ instruction: Instruction) throws(Fault) {
    guard page.isProtected, privilege == 0 else { throw .generalProtection() }
    if page.isLMA && state.cpuid.isAMD { throw .invalidOpcode }
    let base = UInt16(truncatingIfNeeded: page[\.sysenter_cs]) & 0xFFFC
    guard base != 0 else { throw .generalProtection() }
    let rip = page[register: GPR.rdx]
    let rsp = page[register: GPR.rcx]
    if instruction.w && page.isLongMode {
      guard Processor.isCanonical(rip), Processor.isCanonical(rsp) else { throw .generalProtection() }
      page[\.rip] = rip
      page[register: GPR.rsp] = rsp
      enterFlat(
        code: (base &+ 32) | 3, Processor.code64 | Processor.user, stack: (base &+ 40) | 3,
        Processor.data | Processor.user)
    } else {
      page[\.rip] = rip & 0xFFFF_FFFF
      page[register: GPR.rsp] = rsp & 0xFFFF_FFFF
      enterFlat(
        code: (base &+ 16) | 3, Processor.code32 | Processor.user, stack: (base &+ 24) | 3,
        Processor.data | Processor.user)
    }
    clearResume()
    page.updateMode()
  }

  // MARK: FS and GS bases

  func swapGS() throws(Fault) {
    guard page.isLongMode else { throw .invalidOpcode }
    try requirePrivilege()
    var gs = page[.gs]
    let base = gs.base
    gs.base = page[\.kernel_gs_base]
    page[\.kernel_gs_base] = base
    page[.gs] = gs
  }

  /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
  func segmentBase(_ register: SegmentRegister, write: Bool, _ instruction: Instruction) throws(Fault) {
    guard page.isLongMode, page[\.cr4] & CR4.fsgsbase != 0 else { throw .invalidOpcode }
    let size: UInt8 = instruction.w ? 8 : 4
    var segment = page[register]
    if write {
      let base = self.register(instruction.rm, size: size)
      guard Processor.isCanonical(base) else { throw .generalProtection() }
      segment.base = base
      page[register] = segment
    } else {
      setRegister(instruction.rm, segment.base, size: size)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Control registers, flags and debug registers: what may be set, by whom.

import CHost
import Engine
import Testing

@testable import Translator
@testable import X86

@Suite struct RegisterTests {
  // MARK: Control registers

  @Test("CR0: combinations that are refused, and long mode's activation")
  func cr0() throws {
    let guest = TestGuest()
    guest.enterProtected()
    let processor = guest.processor
    #expect(throws: Fault.generalProtection()) { try processor.writeCR0(CR0.pg) }
    #expect(throws: Fault.generalProtection()) { try processor.writeCR0(CR0.pe | CR0.nw) }
    #expect(throws: Fault.generalProtection()) { try processor.writeCR0(1 << 32 | CR0.pe) }
    _ = try processor.writeMSR(ModelSpecificRegister.efer, EFER.lme)
    #expect(throws: Fault.generalProtection()) { try processor.writeCR0(CR0.pe | CR0.pg) }  // no PAE
    try processor.writeCR4(CR4.pae)
    try processor.writeCR3(Place.pml4)
    try processor.writeCR0(CR0.pe | CR0.pg)
    #expect(guest.page.isLMA && !guest.page.isLongMode)
    #expect(guest.page[\.efer] == EFER.lme | EFER.lma)
    #expect(throws: Fault.generalProtection()) { try processor.writeCR4(0) }
    #expect(throws: Fault.generalProtection()) { try processor.writeMSR(ModelSpecificRegister.efer, 0) }
    #expect(throws: Fault.generalProtection()) { try processor.writeCR3(1 << 45) }
    try processor.writeCR0(CR0.pe)
    #expect(!guest.page.isLMA && guest.page[\.efer] == EFER.lme)
    guest.enterLong()
    #expect(throws: Fault.generalProtection()) { try processor.writeCR0(CR0.pe) }  // from 64-bit code
  }

  @Test("CR4 accepts the model's bits only; PAE paging checks its PDPTEs")
  func cr4() throws {
    let guest = TestGuest()
    guest.enterProtected()
    let processor = guest.processor
    for bit in [11, 12, 13, 17, 21, 22, 23] as [UInt64] {
      #expect(throws: Fault.generalProtection()) { try processor.writeCR4(1 << bit) }
    }
    try processor.writeCR4(CR4.pae | CR4.osxsave | CR4.smep | CR4.fsgsbase)
    guest.poke(UInt64(0x1_1001), at: Place.pdpt)
    guest.poke(UInt64(0x1_2003), at: Place.pdpt + 8)  // bit 1 is reserved
    try processor.writeCR3(Place.pdpt)
    #expect(throws: Fault.generalProtection()) { try processor.writeCR0(CR0.pe | CR0.pg) }
    guest.poke(UInt64(0x1_2001), at: Place.pdpt + 8)
    try processor.writeCR0(CR0.pe | CR0.pg)
    #expect(guest.page[\.pdpte].1 == 0x1_2001)
  }

  @Test("MOV CR and DR are privileged; missing registers are #UD; DR4 is DR6 unless CR4.DE")
  func moves() throws {
    let guest = TestGuest()
    guest.enterLong()
    #expect(guest.fault(guest.twoByte(0x20, reg: 1), map: .x0F) == .invalidOpcode)
    guest.setRegister(GPR.rax, 5)
    try guest.execute(guest.twoByte(0x22, reg: 8), map: .x0F)
    #expect(guest.page[\.cr8] == 5)
    guest.setRegister(GPR.rax, 16)
    #expect(guest.fault(guest.twoByte(0x22, reg: 8), map: .x0F) == .generalProtection())
    try guest.execute(guest.twoByte(0x21, reg: 4), map: .x0F)
    #expect(guest.register(GPR.rax) == DR6.ones)
    guest.page[\.cr4] = guest.page[\.cr4] | CR4.de
    #expect(guest.fault(guest.twoByte(0x21, reg: 4), map: .x0F) == .invalidOpcode)
    guest.setRegister(GPR.rax, 1 << 32)
    #expect(guest.fault(guest.twoByte(0x23, reg: 7), map: .x0F) == .generalProtection())
    guest.enterLong(privilege: 3)
    for opcode in [0x20, 0x21, 0x22, 0x23] as [UInt8] {
      #expect(guest.fault(guest.twoByte(opcode, reg: 0), map: .x0F) == .generalProtection())
    }
    for opcode in [0x06, 0x08, 0x30, 0x32] as [UInt8] {
      #expect(guest.fault(guest.instruction(opcode, length: 2), map: .x0F) == .generalProtection())
    }
    #expect(guest.fault(guest.instruction(0xF4)) == .generalProtection())
  }

  @Test("XSETBV refuses what CPUID does not have and AVX without SSE")
  func xsetbv() throws {
    let guest = TestGuest()
    guest.enterLong()
    let xsetbv = guest.twoByte(0x01, reg: 2, rm: 1)
    #expect(guest.fault(xsetbv, map: .x0F) == .invalidOpcode)
    guest.page[\.cr4] = guest.page[\.cr4] | CR4.osxsave
    for (value, valid) in [(7, true), (3, true), (1, true), (5, false), (6, false), (0xF, false)] as [(UInt64, Bool)] {
      guest.setRegister(GPR.rax, value)
      #expect(guest.fault(xsetbv, map: .x0F) == (valid ? nil : .generalProtection()), "\(value)")
    }
    #expect(guest.page[\.xcr0] == 1)
    guest.setRegister(GPR.rcx, 1)
    #expect(guest.fault(xsetbv, map: .x0F) == .generalProtection())
  }

  // MARK: Flags

  @Test("POPF changes IF and IOPL only with the right to; STI shadows once; RF and VM never change")
  func flags() throws {
    let guest = TestGuest()
    guest.enterLong(privilege: 3)
    let popf = guest.instruction(0x9D)
    func pop(_ value: UInt64) throws(Fault) -> UInt64 {
      guest.poke(value, at: Place.userStack - 8)
      guest.setRegister(GPR.rsp, Place.userStack - 8)
      try guest.execute(popf)
      return guest.page.rflags
    }
    guest.page.rflags = RFLAGS.if | 2
    #expect(
      try pop(.max) == RFLAGS.arithmetic | RFLAGS.tf | RFLAGS.if | RFLAGS.df | RFLAGS.nt | RFLAGS.ac | RFLAGS.id | 2)
    #expect(try pop(0) == RFLAGS.if | 2)
    guest.page.rflags = RFLAGS.iopl | 2
    #expect(try pop(0) == RFLAGS.iopl | 2)
    #expect(guest.fault(guest.instruction(0xFB)) == nil)
    #expect(guest.state.interruptShadow == .sti && !guest.processor.acceptsInterrupts)
    #expect(guest.fault(guest.instruction(0xFB)) == nil)
    #expect(guest.state.interruptShadow == .none && guest.processor.acceptsInterrupts)
    guest.page.rflags = 2
    #expect(guest.fault(guest.instruction(0xFA)) == .generalProtection())
  }

  // MARK: Debug registers

  @Test("Debug-register matching")
  func breakpoints() {
    let guest = TestGuest()
    guest.enterLong()
    guest.page[\.dr.0] = 0x1000
    guest.page[\.dr.1] = 0x2004
    // DR0: execution; DR1: write, 4 bytes.
    guest.page[\.dr.7] = DR7.ones | 1 | 1 << 2 | 0xD << 20
    guest.page.updateMode()
    #expect(guest.processor.instructionBreakpoint(at: 0x1000) == 1)
    #expect(guest.processor.instructionBreakpoint(at: 0x1001) == 0)
    #expect(guest.processor.dataBreakpoint(at: 0x2007, count: 1, write: true) == 2)
    #expect(guest.processor.dataBreakpoint(at: 0x2008, count: 1, write: true) == 0)
    #expect(guest.processor.dataBreakpoint(at: 0x2000, count: 8, write: true) == 2)
    #expect(guest.processor.dataBreakpoint(at: 0x2004, count: 4, write: false) == 0)
    guest.page.rflags = RFLAGS.rf | 2
    #expect(guest.processor.instructionBreakpoint(at: 0x1000) == 0)
  }
}

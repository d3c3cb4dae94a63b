// SPDX-License-Identifier: Apache-2.0
// Control registers, model-specific registers, flags, CPUID, ports, and the slow forms of ordinary instructions.

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

  // MARK: MSRs

  @Test(
    "MSR validity",
    arguments: [
      (0xC000_0082, 1 << 47, false), (0xC000_0082, 0xFFFF_8000_0000_0000, true), (0x175, 1 << 63, false),
      (0x277, 0x0007_0406_0007_0406, true), (0x277, 0x0007_0406_0007_0402, false), (0x277, 8, false),
      (0x2FF, 0xC06, true), (0x2FF, 0x1000, false), (0x2FF, 2, false), (0x200, 0x8000_0006, true), (0x200, 3, false),
      (0x201, 0xFF_8000_0800, true), (0x201, 1 << 40, false), (0x250, 0x0606_0606_0606_0606, true),
      (0x26F, 0x0706, false),
      (0xFE, 0, false), (0xC000_0080, 0x901, true), (0xC000_0080, 0x1000, false), (0xC000_0103, 1 << 32, false),
      (0x1D9, 2, true), (0x1D9, 1 << 9, false), (0x17, 0, false), (0x8B, 0, true),
    ] as [(UInt32, UInt64, Bool)])
  func msrValidity(index: UInt32, value: UInt64, valid: Bool) {
    let guest = TestGuest()
    guest.enterLong()
    do throws(Fault) {
      #expect(try guest.processor.writeMSR(index, value))
      #expect(valid)
    } catch {
      #expect(!valid)
      #expect(error == .generalProtection())
    }
  }

  @Test("RDMSR and WRMSR of the machine's registers exit, and the answer finishes the instruction")
  func machineMSRs() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.setRegister(GPR.rcx, 0x4B56_4D01)
    guest.setRegister(GPR.rax, 0x1_2345_6789)
    guest.setRegister(GPR.rdx, 0xAB)
    #expect(
      try guest.execute(guest.instruction(0x30, length: 2), map: .x0F)
        == .exit(.msrWrite(index: 0x4B56_4D01, value: 0xAB_2345_6789)))
    #expect(guest.page[\.rip] == Place.kernelCode)
    guest.processor.completeWrite()
    #expect(guest.page[\.rip] == Place.kernelCode + 2)
    #expect(try guest.execute(guest.instruction(0x32, length: 2), map: .x0F) == .exit(.msrRead(index: 0x4B56_4D01)))
    try guest.processor.completeRead(0x1111_2222_3333_4444)
    #expect(guest.register(GPR.rax) == 0x3333_4444 && guest.register(GPR.rdx) == 0x1111_2222)
    #expect(guest.page[\.rip] == Place.kernelCode + 4)
  }

  @Test("TSC and TSC_ADJUST move together")
  func timestamp() throws {
    let guest = TestGuest()
    guest.enterLong()
    let processor = guest.processor
    _ = try processor.writeMSR(0x3B, 1 << 40)
    #expect(guest.page[\.tsc_offset] == 1 << 40)
    _ = try processor.writeMSR(0x10, 0)
    #expect(guest.state.tscAdjust == guest.page[\.tsc_offset])
    #expect(processor.timestampCounter < 1 << 36)
    guest.enterLong(privilege: 3)
    #expect(guest.fault(guest.instruction(0x31, length: 2), map: .x0F) == nil)
    guest.page[\.cr4] = guest.page[\.cr4] | CR4.tsd
    #expect(guest.fault(guest.instruction(0x31, length: 2), map: .x0F) == .generalProtection())
  }

  @Test("CPUID: dynamic bits and leaves outside the list")
  func cpuid() {
    let guest = TestGuest()
    guest.enterLong()
    #expect(guest.processor.cpuid(1, 0).ecx >> 27 & 1 == 0)
    guest.page[\.cr4] = guest.page[\.cr4] | CR4.osxsave
    #expect(guest.processor.cpuid(1, 0).ecx >> 27 & 1 == 1)
    #expect(guest.processor.cpuid(0xD, 0).ebx == 576)
    guest.page[\.xcr0] = 7
    #expect(guest.processor.cpuid(0xD, 0).ebx == 832)
    #expect(guest.processor.cpuid(0x20, 0).ecx == 832)  // the highest basic leaf
    #expect(guest.processor.cpuid(0x4000_0010, 0).eax == 0)
    #expect(guest.processor.cpuid(7, 1).ebx == 0)
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

  // MARK: Ports

  @Test("The I/O permission bitmap")
  func ports() throws {
    let guest = TestGuest()
    guest.enterProtected(privilege: 3)
    for index in UInt64(0)..<0x78 { guest.poke(UInt8(0xFF), at: Place.tss + 0x88 + index) }
    guest.poke(UInt8(0b1111_0011), at: Place.tss + 0x88 + 0x70 / 8)  // 72h and 73h
    guest.setRegister(GPR.rdx, 0x72)
    let byte = guest.instruction(0xEC)
    let word = guest.instruction(0xED) { $0.operandSize = 2 }
    let long = guest.instruction(0xED)
    #expect(try guest.execute(byte) == .exit(.portRead(port: 0x72, size: 1)))
    #expect(try guest.execute(word) == .exit(.portRead(port: 0x72, size: 2)))
    #expect(guest.fault(long) == .generalProtection())
    guest.setRegister(GPR.rdx, 0x3F8)
    #expect(guest.fault(byte) == .generalProtection())
    guest.page.rflags = RFLAGS.iopl | 2
    guest.setRegister(GPR.rax, 0x1234_5678)
    #expect(try guest.execute(byte) == .exit(.portRead(port: 0x3F8, size: 1)))
    try guest.processor.completeRead(0xFFAA)
    #expect(guest.register(GPR.rax) == 0x1234_56AA && guest.page[\.rip] == Place.userCode + 1)
    #expect(
      try guest.execute(guest.instruction(0xE7, length: 2) { $0.immediate = 0x80 })
        == .exit(.portWrite(port: 0x80, size: 4, value: 0x1234_56AA)))
    #expect(guest.page[\.rip] == Place.userCode + 3)
  }

  @Test("REP INSB stores elements one exit at a time")
  func inputString() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.setRegister(GPR.rdi, Place.data)
    guest.setRegister(GPR.rcx, 2)
    guest.setRegister(GPR.rdx, 0x1F0)
    let insb = guest.instruction(0x6C, length: 2) { $0.repeatPrefix = 0xF3 }
    for (index, value) in [0x41, 0x42].enumerated() {
      #expect(try guest.execute(insb) == .exit(.portRead(port: 0x1F0, size: 1)))
      try guest.processor.completeRead(UInt64(value))
      #expect(guest.page[\.rip] == Place.kernelCode + (index == 1 ? 2 : 0))
    }
    #expect(guest.peek(UInt16.self, at: Place.data) == 0x4241)
    #expect(guest.register(GPR.rcx) == 0 && guest.register(GPR.rdi) == Place.data + 2)
  }

  // MARK: Slow forms

  @Test("REP MOVSB stops exactly at the fault; REPE CMPSB at a difference")
  func strings() throws {
    let guest = TestGuest()
    guest.enterLong()
    for index in UInt64(0)..<16 { guest.poke(UInt8(index), at: Place.data + index) }
    guest.setRegister(GPR.rsi, Place.data)
    guest.setRegister(GPR.rdi, Place.unmapped - 2)
    guest.setRegister(GPR.rcx, 4)
    let movsb = guest.instruction(0xA4, length: 2) { $0.repeatPrefix = 0xF3 }
    #expect(guest.fault(movsb) == nil && guest.fault(movsb) == nil)
    #expect(guest.fault(movsb) == .pageFault(Place.unmapped, code: 2))
    #expect(guest.register(GPR.rcx) == 2 && guest.register(GPR.rsi) == Place.data + 2)
    #expect(guest.page[\.rip] == Place.kernelCode)
    guest.poke(UInt64(0x0706_05FF_0302_0100), at: Place.data + 0x100)
    guest.setRegister(GPR.rsi, Place.data)
    guest.setRegister(GPR.rdi, Place.data + 0x100)
    guest.setRegister(GPR.rcx, 8)
    let cmpsb = guest.instruction(0xA6, length: 2) { $0.repeatPrefix = 0xF3 }
    for _ in 0..<5 { #expect(guest.fault(cmpsb) == nil) }
    #expect(guest.page[\.rip] == Place.kernelCode + 2 && guest.register(GPR.rcx) == 3)
    #expect(guest.page.rflags & (RFLAGS.zf | RFLAGS.cf) == RFLAGS.cf)
  }

  @Test("CALL, RET, PUSH, POP, ENTER, LEAVE leave the state alone when they fault")
  func stack() throws {
    let guest = TestGuest()
    guest.enterLong()
    try guest.execute(
      guest.instruction(0xE8, length: 5) {
        $0.immediate = 0x100
        $0.operandSize = 8
      })
    #expect(guest.page[\.rip] == Place.kernelCode + 0x105)
    try guest.execute(
      guest.instruction(0xC2, length: 3) {
        $0.immediate = 8
        $0.operandSize = 8
      })
    #expect(guest.page[\.rip] == Place.kernelCode + 5)
    #expect(guest.register(GPR.rsp) == Place.kernelStack - 0x1000 + 8)
    guest.setRegister(GPR.rsp, Place.unmapped)
    guest.setRegister(GPR.rbp, 77)
    #expect(guest.fault(guest.instruction(0x58)) == .pageFault(Place.unmapped, code: 0))
    guest.setRegister(GPR.rsp, Place.unmapped + 0x1000)
    let enter = guest.instruction(0xC8, length: 4) {
      $0.immediate = 16
      $0.operandSize = 8
    }
    #expect(guest.fault(enter)?.vector == 14)
    #expect(guest.register(GPR.rsp) == Place.unmapped + 0x1000 && guest.register(GPR.rbp) == 77)
    guest.setRegister(GPR.rsp, Place.kernelStack)
    try guest.execute(enter)
    #expect(guest.register(GPR.rbp) == Place.kernelStack - 8 && guest.register(GPR.rsp) == Place.kernelStack - 24)
    try guest.execute(guest.instruction(0xC9) { $0.operandSize = 8 })
    #expect(guest.register(GPR.rbp) == 77 && guest.register(GPR.rsp) == Place.kernelStack)
    // POP [RSP] uses the incremented RSP.
    guest.setRegister(GPR.rsp, Place.kernelStack - 16)
    guest.poke(UInt64(0x55), at: Place.kernelStack - 16)
    try guest.execute(
      guest.instruction(0x8F, length: 3) {
        $0.hasModRM = true
        $0.modRM = 0x04
        $0.base = 4
        $0.segment = 2
      })
    #expect(guest.peek(UInt64.self, at: Place.kernelStack - 8) == 0x55)
  }

  @Test("16-bit stacks wrap")
  func stackWrap() throws {
    let guest = TestGuest()
    guest.enterReal()
    guest.setRegister(GPR.rsp, 0)
    guest.setRegister(GPR.rax, 0x1234)
    try guest.execute(guest.instruction(0x50))
    #expect(guest.register(GPR.rsp) == 0xFFFE && guest.peek(UInt16.self, at: 0xFFFE) == 0x1234)
    guest.setRegister(GPR.rsp, 6)
    guest.poke(UInt32(0x0000_0900), at: 8 * 4)
    guest.processor.deliver(8, kind: .external)
    #expect(guest.register(GPR.rsp) == 0)
    guest.setRegister(GPR.rsp, 2)
    #expect(guest.processor.deliver(8, kind: .external) == .delivered)
    #expect(guest.register(GPR.rsp) == 0xFFFC)
    guest.setRegister(GPR.rsp, 0x1_0003)
    #expect(guest.fault(guest.instruction(0x60)) == .stackFault(0))  // a word would cross the limit
    guest.setRegister(GPR.rsp, 0x1_0004)
    try guest.execute(guest.instruction(0x60))
    #expect(guest.register(GPR.rsp) == 0x1_FFF4)
  }

  @Test(
    "Decimal adjustment",
    arguments: [
      // opcode, AX, flags in, AX out, CF and AF out
      (0x27, 0x00AE, 0, 0x0014, 0x11), (0x27, 0x0079, 0x10, 0x007F, 0x10), (0x27, 0x009A, 0, 0x0000, 0x11),
      (0x2F, 0x0035, 0x10, 0x002F, 0x10), (0x2F, 0x0003, 0x10, 0x00FD, 0x11), (0x37, 0x010B, 0, 0x0201, 0x11),
      (0x3F, 0x0100, 0x10, 0xFF0A, 0x11), (0x3F, 0x0205, 0, 0x0205, 0),
    ] as [(UInt8, UInt64, UInt64, UInt64, UInt64)])
  func decimal(opcode: UInt8, input: UInt64, flags: UInt64, output: UInt64, result: UInt64) throws {
    let guest = TestGuest()
    guest.enterProtected()
    guest.setRegister(GPR.rax, input)
    let others = RFLAGS.if | RFLAGS.iopl | RFLAGS.df | RFLAGS.nt | RFLAGS.ac | RFLAGS.id | 2
    guest.page.rflags = flags | others
    try guest.execute(guest.instruction(opcode))
    #expect(guest.register(GPR.rax) == output)
    #expect(guest.page.rflags & (RFLAGS.cf | RFLAGS.af) == result)
    // The arithmetic flags and no others.
    #expect(guest.page.rflags & ~RFLAGS.arithmetic == others)
  }

  @Test("AAM by zero is #DE; AAD; BOUND; XLAT; LOOP; JRCXZ")
  func odds() throws {
    let guest = TestGuest()
    guest.enterProtected()
    #expect(guest.fault(guest.instruction(0xD4, length: 2)) == .divideError)
    guest.setRegister(GPR.rax, 0x0207)
    guest.page.rflags = RFLAGS.if | 2
    try guest.execute(guest.instruction(0xD5, length: 2) { $0.immediate = 10 })
    #expect(guest.register(GPR.rax) == 27 && guest.page.rflags & RFLAGS.if != 0)
    guest.poke(Int32(-5), at: Place.data)
    guest.poke(Int32(5), at: Place.data + 4)
    let bound = guest.instruction(0x62, length: 6) { TestGuest.memory(&$0, Place.data, reg: 1) }
    guest.setRegister(GPR.rcx, 0xFFFF_FFFB)
    #expect(guest.fault(bound) == nil)
    guest.setRegister(GPR.rcx, 6)
    #expect(guest.fault(bound) == .boundRange)
    guest.setRegister(GPR.rcx, 1)
    let rip = guest.page[\.rip]
    try guest.execute(guest.instruction(0xE2, length: 2) { $0.immediate = 0x10 })
    #expect(guest.page[\.rip] == rip + 2 && guest.register(GPR.rcx) == 0)
    try guest.execute(guest.instruction(0xE3, length: 2) { $0.immediate = UInt64(bitPattern: -2) })
    #expect(guest.page[\.rip] == rip + 2)
  }

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

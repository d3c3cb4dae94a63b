// SPDX-License-Identifier: Apache-2.0
// The slow forms of ordinary instructions: strings, stacks, decimal adjustment.

import CHost
import Engine
import Testing

@testable import Translator
@testable import X86

@Suite struct InstructionTests {
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
}

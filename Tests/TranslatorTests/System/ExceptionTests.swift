// SPDX-License-Identifier: Apache-2.0
// Delivery of exceptions and interrupts in every mode, and IRET back from them.

import CHost
import Testing

@testable import Translator
@testable import X86

@Suite struct ExceptionTests {
  @Test("64-bit mode: #PF from user mode and IRETQ back")
  func longPageFault() throws {
    let guest = TestGuest()
    guest.enterLong(privilege: 3)
    guest.setLongGate(14)
    guest.page.rflags = RFLAGS.if | RFLAGS.cf | 2
    guest.page[register: GPR.rsp] = Place.userStack - 3
    let delivery = guest.processor.deliver(.pageFault(0x1234, code: 6))
    #expect(delivery == .delivered)
    #expect(guest.page[\.cr2] == 0x1234)
    #expect(guest.page.privilege == 0)
    #expect(guest.page[\.rip] == TestGuest.handler(14))
    #expect(guest.page[.cs].selector == Selector.kernelCode)
    #expect(guest.page[.ss].selector == 0 && guest.page[.ss].isUnusable)
    #expect(guest.page.rflags == RFLAGS.cf | 2)
    let rsp = guest.register(GPR.rsp)
    #expect(rsp == Place.kernelStack - 48)
    #expect(guest.peek(UInt64.self, at: rsp) == 6)
    #expect(guest.peek(UInt64.self, at: rsp + 8) == Place.userCode)
    #expect(guest.peek(UInt64.self, at: rsp + 16) == UInt64(Selector.userCode64))
    #expect(guest.peek(UInt64.self, at: rsp + 24) == RFLAGS.if | RFLAGS.cf | RFLAGS.rf | 2)
    #expect(guest.peek(UInt64.self, at: rsp + 32) == Place.userStack - 3)
    #expect(guest.peek(UInt64.self, at: rsp + 40) == UInt64(Selector.userData))

    guest.setRegister(GPR.rsp, rsp + 8)
    try guest.execute(
      guest.instruction(0xCF, length: 2) {
        $0.operandSize = 8
        $0.rex = 0x48
      })
    #expect(guest.page.privilege == 3)
    #expect(guest.page[\.rip] == Place.userCode)
    #expect(guest.register(GPR.rsp) == Place.userStack - 3)
    #expect(guest.page.rflags == RFLAGS.if | RFLAGS.cf | RFLAGS.rf | 2)
    #expect(guest.page[.ss].selector == Selector.userData)
  }

  @Test("64-bit mode: an interrupt at the same level aligns the stack and keeps SS; IST switches it")
  func longSameLevel() {
    let guest = TestGuest()
    guest.enterLong()
    guest.setLongGate(32, access: 0x8F)
    guest.setLongGate(33, stack: 1)
    guest.page.rflags = RFLAGS.if | RFLAGS.tf | RFLAGS.nt | 2
    guest.setRegister(GPR.rsp, Place.kernelStack - 0x1008)
    guest.processor.deliver(32, kind: .external)
    #expect(guest.register(GPR.rsp) == Place.kernelStack - 0x1010 - 40)
    #expect(guest.page[.ss].selector == Selector.kernelData)
    #expect(guest.page.rflags == RFLAGS.if | 2)  // a trap gate leaves IF
    #expect(guest.peek(UInt64.self, at: guest.register(GPR.rsp) + 16) == RFLAGS.if | RFLAGS.tf | RFLAGS.nt | 2)
    guest.processor.deliver(33, kind: .external)
    #expect(guest.register(GPR.rsp) == Place.interruptStack - 40)
    #expect(guest.page.rflags == 2)
  }

  @Test("A page fault on the kernel stack becomes #DF; without a usable #DF handler, shutdown")
  func doubleFault() {
    let guest = TestGuest()
    guest.enterLong()
    guest.setLongGate(14)
    guest.setLongGate(8, stack: 1)
    guest.setRegister(GPR.rsp, Place.unmapped + 0x100)
    #expect(guest.processor.deliver(.pageFault(0x1234, code: 0)) == .delivered)
    #expect(guest.page[\.rip] == TestGuest.handler(8))
    #expect(guest.peek(UInt64.self, at: guest.register(GPR.rsp)) == 0)
    #expect(guest.page[\.cr2] >= Place.unmapped && guest.page[\.cr2] < Place.unmapped + 0x100)

    guest.poke(UInt64(0), at: Place.idt + 8 * 16)
    guest.setRegister(GPR.rsp, Place.unmapped + 0x100)
    #expect(guest.processor.deliver(.pageFault(0x1234, code: 0)) == .shutdown)
  }

  @Test(
    "Escalation follows table 6-5",
    arguments: [
      (0, 13, 8), (13, 13, 8), (14, 13, 8), (14, 14, 8), (13, 14, 14), (6, 13, 13), (1, 14, 14), (8, 6, -1),
      (8, 13, -1),
    ])
  func escalation(first: Int, second: Int, result: Int) {
    let event = Event(vector: UInt8(first), kind: .exception, returnAddress: 0)
    let next = Processor.escalate(event, Fault(vector: UInt8(second), errorCode: 0))
    #expect(next.map { Int($0.vector) } ?? -1 == result)
    let software = Event(vector: UInt8(first), kind: .software, returnAddress: 0)
    #expect(Processor.escalate(software, Fault(vector: UInt8(second), errorCode: 0))?.vector == UInt8(second))
  }

  @Test("INT n checks the gate's DPL; the error code names the gate, EXT only for events of the CPU")
  func softwareInterrupt() throws {
    let guest = TestGuest()
    guest.enterLong(privilege: 3)
    guest.setLongGate(0x80)
    guest.setLongGate(3, access: 0xEE)
    guest.setLongGate(13)
    #expect(guest.fault(guest.instruction(0xCD, length: 2) { $0.immediate = 0x80 }) == .generalProtection(0x402))
    #expect(guest.fault(guest.instruction(0xCD, length: 2) { $0.immediate = 0x90 }) == .generalProtection(0x482))
    #expect(guest.page[\.rip] == Place.userCode)
    try guest.execute(guest.instruction(0xCC))
    #expect(guest.page[\.rip] == TestGuest.handler(3))
    #expect(guest.peek(UInt64.self, at: guest.register(GPR.rsp)) == Place.userCode + 1)
    // A missing gate for an external interrupt: #GP with EXT.
    guest.processor.deliver(0x90, kind: .external)
    #expect(guest.page[\.rip] == TestGuest.handler(13))
    #expect(guest.peek(UInt64.self, at: guest.register(GPR.rsp)) == 0x483)
  }

  @Test("32-bit: a fault from user mode uses SS0:ESP0; IRETD drops data segments of level 0")
  func protectedRoundTrip() throws {
    let guest = TestGuest()
    guest.enterProtected(privilege: 3)
    guest.setGate(13)
    guest.processor.deliver(.generalProtection(0x18))
    let rsp = guest.register(GPR.rsp)
    #expect(guest.page.privilege == 0)
    #expect(rsp == Place.kernelStack - 24)
    #expect(guest.peek(UInt32.self, at: rsp) == 0x18)
    #expect(guest.peek(UInt32.self, at: rsp + 4) == UInt32(Place.userCode))
    #expect(guest.peek(UInt32.self, at: rsp + 8) == UInt32(Selector.userCode32))
    #expect(guest.peek(UInt32.self, at: rsp + 12) == UInt32(RFLAGS.rf | 2))
    #expect(guest.peek(UInt32.self, at: rsp + 16) == UInt32(Place.userStack))
    #expect(guest.peek(UInt32.self, at: rsp + 20) == UInt32(Selector.userData))
    #expect(guest.page[.ss].selector == Selector.kernelData)

    try guest.processor.loadSegment(.ds, Selector.kernelData)
    guest.setRegister(GPR.rsp, rsp + 4)
    try guest.execute(guest.instruction(0xCF))
    #expect(guest.page.privilege == 3)
    #expect(guest.page[.ds].isUnusable)
    #expect(guest.page[.es].selector == Selector.userData)
    #expect(guest.register(GPR.rsp) == Place.userStack)
  }

  @Test("Inner stacks from the TSS: bad SS is #TS, an absent one #SS, with EXT")
  func badInnerStack() {
    let guest = TestGuest()
    guest.enterProtected(privilege: 3)
    guest.setGate(10)
    guest.setGate(32)
    guest.poke(UInt16(Selector.userData), at: Place.tss + 8)
    let event = Event(vector: 32, kind: .external, returnAddress: 0)
    #expect(throws: Fault.invalidTSS(0x21)) { try guest.processor.deliverOnce(event) }
    guest.poke(UInt16(Selector.absent), at: Place.tss + 8)
    #expect(throws: Fault.stackFault(0x61)) { try guest.processor.deliverOnce(event) }
    guest.poke(UInt16(0), at: Place.tss + 8)
    #expect(throws: Fault.invalidTSS(1)) { try guest.processor.deliverOnce(event) }
    #expect(guest.page[\.rip] == Place.userCode)
  }

  @Test("Virtual-8086 mode: IRETD enters it, an interrupt leaves it with nine words and null segments")
  func virtual8086() throws {
    let guest = TestGuest()
    guest.enterProtected()
    guest.setGate(32)
    let rsp = guest.register(GPR.rsp)
    for (index, value) in [0x100, 0x2000, 0x2_0202, 0x800, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000].enumerated() {
      guest.poke(UInt32(value), at: rsp + UInt64(index * 4))
    }
    try guest.execute(guest.instruction(0xCF))
    #expect(guest.page.isVM86)
    #expect(guest.page.privilege == 3)
    #expect(guest.page[.cs].base == 0x2_0000 && guest.page[.ss].base == 0x3_0000)
    #expect(guest.page[.es].selector == 0x4000 && guest.page[.gs].selector == 0x7000)
    #expect(guest.page[\.rip] == 0x100)
    // IOPL 0: the sensitive instructions fault.
    #expect(guest.fault(guest.instruction(0xCD, length: 2) { $0.immediate = 0x21 }) == .generalProtection())
    #expect(guest.fault(guest.instruction(0x9C)) == .generalProtection())
    #expect(guest.fault(guest.instruction(0xFA)) == .generalProtection())

    guest.processor.deliver(32, kind: .external)
    #expect(!guest.page.isVM86 && guest.page.privilege == 0)
    let frame = guest.register(GPR.rsp)
    #expect(frame == Place.kernelStack - 36)
    for (index, value) in [0x100, 0x2000, 0x2_0202, 0x800, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000].enumerated() {
      #expect(guest.peek(UInt32.self, at: frame + UInt64(index * 4)) == UInt32(value))
    }
    #expect(guest.page[.ds].isUnusable && guest.page[.gs].isUnusable)
  }

  @Test("Real mode: INT and IRET")
  func realMode() throws {
    let guest = TestGuest()
    guest.enterReal()
    guest.poke(UInt32(0x1000_0234), at: 0x21 * 4)
    guest.page.rflags = RFLAGS.if | RFLAGS.zf | 2
    try guest.execute(guest.instruction(0xCD, length: 2) { $0.immediate = 0x21 })
    #expect(guest.page[\.rip] == 0x234 && guest.page[.cs].base == 0x1_0000)
    #expect(guest.register(GPR.rsp) == 0x6FFA)
    #expect(guest.page.rflags == RFLAGS.zf | 2)
    try guest.execute(guest.instruction(0xCF))
    #expect(guest.page[\.rip] == 0x802 && guest.page[.cs].base == 0)
    #expect(guest.page.rflags == RFLAGS.if | RFLAGS.zf | 2)
    #expect(guest.register(GPR.rsp) == 0x7000)
  }

  @Test("NMIs are blocked until IRET")
  func nmi() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.setLongGate(2)
    #expect(guest.processor.acceptsNMI)
    guest.processor.deliver(2, kind: .nmi)
    #expect(!guest.processor.acceptsNMI)
    try guest.execute(
      guest.instruction(0xCF, length: 2) {
        $0.operandSize = 8
        $0.rex = 0x48
      })
    #expect(guest.processor.acceptsNMI)
    #expect(guest.page[\.rip] == Place.kernelCode)
  }

  @Test("#DB clears DR7.GD; a debug-register move under GD raises it")
  func generalDetect() {
    let guest = TestGuest()
    guest.enterLong()
    guest.setLongGate(1)
    guest.page[\.dr.7] = DR7.ones | DR7.generalDetect
    #expect(guest.fault(guest.twoByte(0x21, reg: 0, rm: 0), map: .x0F) == .debug)
    #expect(guest.page[\.dr.6] & DR6.generalDetect != 0)
    guest.processor.deliver(.debug)
    #expect(guest.page[\.dr.7] & DR7.generalDetect == 0)
  }

  @Test("Task gate: a #DF task sees the old task in its link, and IRET with NT returns")
  func taskSwitch() throws {
    let guest = TestGuest()
    guest.enterProtected()
    guest.poke(TestGuest.gate(Selector.tss2, 0, access: 0x85), at: Place.idt + 8 * 8)
    guest.poke(UInt32(0x61_0000), at: Place.tss2 + 32)
    guest.poke(UInt32(2), at: Place.tss2 + 36)
    guest.poke(UInt32(0x31_0000), at: Place.tss2 + 56)
    for offset in [72, 80, 84] as [UInt64] { guest.poke(UInt32(Selector.kernelData), at: Place.tss2 + offset) }
    guest.poke(UInt32(Selector.kernelCode), at: Place.tss2 + 76)
    guest.setRegister(GPR.rbx, 0x1234)
    guest.processor.deliver(.doubleFault())
    #expect(guest.page[\.rip] == 0x61_0000)
    #expect(guest.page[.tr].selector == Selector.tss2)
    #expect(guest.peek(UInt16.self, at: Place.tss2) == Selector.tss)
    #expect(guest.page.rflags & RFLAGS.nt != 0)
    #expect(guest.register(GPR.rsp) == 0x31_0000 - 4)
    #expect(guest.peek(UInt32.self, at: Place.tss + 32) == UInt32(Place.kernelCode))
    #expect(guest.page[\.cr0] & CR0.ts != 0)
    guest.setRegister(GPR.rbx, 0)
    try guest.execute(guest.instruction(0xCF))
    #expect(guest.page[\.rip] == Place.kernelCode)
    #expect(guest.page[.tr].selector == Selector.tss)
    #expect(guest.register(GPR.rbx) == 0x1234)
    #expect(guest.page.rflags & RFLAGS.nt == 0)
    #expect(guest.peek(UInt8.self, at: Place.gdt + UInt64(Selector.tss2) + 5) == 0x89)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Corners between modes: compatibility mode, virtual-8086 mode with VME, LMSW, addresses without RAM.

import CHost
import Testing

@testable import Translator
@testable import X86

@Suite struct ModeTests {
  @Test("IRETQ to compatibility mode and a system call gate back through an interrupt")
  func compatibility() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.setLongGate(0x80, access: 0xEE)
    let rsp = guest.register(GPR.rsp)
    for (index, value) in [
      Place.userCode, UInt64(Selector.userCode32), RFLAGS.if | 2, Place.userStack, UInt64(Selector.userData),
    ].enumerated() {
      guest.poke(value, at: rsp + UInt64(index * 8))
    }
    try guest.execute(
      guest.instruction(0xCF, length: 2) {
        $0.operandSize = 8
        $0.rex = 0x48
      })
    #expect(guest.code == .code32 && guest.page.privilege == 3 && guest.page.isLMA)
    try guest.execute(guest.instruction(0xCD, length: 2) { $0.immediate = 0x80 })
    #expect(guest.code == .code64 && guest.page.privilege == 0)
    #expect(guest.peek(UInt64.self, at: guest.register(GPR.rsp) + 8) == UInt64(Selector.userCode32))
    // SYSCALL from compatibility mode does not exist on Intel CPUs.
    try guest.execute(
      guest.instruction(0xCF, length: 2) {
        $0.operandSize = 8
        $0.rex = 0x48
      })
    #expect(guest.page[\.rip] == Place.userCode + 2)
    #expect(guest.fault(guest.instruction(0x05, length: 2), map: .x0F) == .invalidOpcode)
  }

  @Test("IRETQ refuses L with D, a null SS at level 3 and non-canonical RIP")
  func badReturns() {
    let guest = TestGuest()
    guest.enterLong()
    guest.setGDT(Selector.gate, 0x00EF_FB00_0000_FFFF)
    func iret(_ rip: UInt64, _ cs: UInt16, _ ss: UInt16) -> Fault? {
      let rsp = guest.register(GPR.rsp)
      for (index, value) in [rip, UInt64(cs), 2, Place.userStack, UInt64(ss)].enumerated() {
        guest.poke(value, at: rsp + UInt64(index * 8))
      }
      return guest.fault(
        guest.instruction(0xCF, length: 2) {
          $0.operandSize = 8
          $0.rex = 0x48
        })
    }
    #expect(iret(0, Selector.gate | 3, Selector.userData) == .generalProtection(UInt32(Selector.gate)))
    #expect(iret(0, Selector.userCode64, 3) == .generalProtection())
    #expect(iret(1 << 47, Selector.userCode64, Selector.userData) == .generalProtection())
    #expect(iret(0, Selector.userCode64, Selector.kernelData) == .generalProtection(0x10))
    #expect(iret(0, 3, Selector.userData) == .generalProtection())
    #expect(guest.page[\.rip] == Place.kernelCode && guest.page.privilege == 0)
    // To level 0 a null SS is fine.
    #expect(iret(Place.handlers, Selector.kernelCode, 0) == nil)
    #expect(guest.page[.ss].isUnusable && guest.page.privilege == 0)
    guest.page.rflags = RFLAGS.nt | 2
    #expect(iret(Place.handlers, Selector.kernelCode, 0) == .generalProtection())
  }

  @Test("VME: INT goes to the program's handler where the map allows, and the flag it sees is VIF")
  func virtualModeExtensions() throws {
    let guest = TestGuest()
    guest.enterVirtual8086()
    guest.page[\.rip] = 0x100
    guest.setRegister(GPR.rsp, 0x800)
    guest.page.rflags = RFLAGS.vm | RFLAGS.vif | RFLAGS.if | 2
    guest.setGate(13)
    for index in UInt64(0)..<32 { guest.poke(UInt8(0xFF), at: Place.tss + 0x68 + index) }
    guest.poke(UInt8(0b1111_1101), at: Place.tss + 0x68 + 4)  // vector 21h
    guest.poke(UInt32(0x2000_0040), at: 0x21 * 4)
    #expect(guest.fault(guest.instruction(0xCD, length: 2) { $0.immediate = 0x22 }) == .generalProtection())
    try guest.execute(guest.instruction(0xCD, length: 2) { $0.immediate = 0x21 })
    #expect(guest.page.isVM86 && guest.page[.cs].base == 0x2_0000 && guest.page[\.rip] == 0x40)
    #expect(guest.page.rflags & (RFLAGS.vif | RFLAGS.if) == RFLAGS.if)
    #expect(guest.peek(UInt16.self, at: 0x1_07FE) == UInt16(RFLAGS.if | RFLAGS.iopl | 2))
    #expect(guest.peek(UInt16.self, at: 0x1_07FA) == 0x102)
    try guest.execute(guest.instruction(0xCF))
    #expect(guest.page[\.rip] == 0x102 && guest.page.rflags & RFLAGS.vif != 0)
    try guest.execute(guest.instruction(0xFA))
    #expect(guest.page.rflags & (RFLAGS.vif | RFLAGS.if) == RFLAGS.if)
    guest.page.rflags = guest.page.rflags | RFLAGS.vip
    #expect(guest.fault(guest.instruction(0xFB)) == .generalProtection())
  }

  @Test("LMSW sets PE but cannot clear it; SMSW is for everyone without UMIP")
  func machineStatus() throws {
    let guest = TestGuest()
    guest.enterProtected()
    guest.setRegister(GPR.rax, 0xE)
    try guest.execute(guest.twoByte(0x01, reg: 6), map: .x0F)
    #expect(guest.page[\.cr0] & 0xF == 0xF)
    guest.enterProtected(privilege: 3)
    try guest.execute(guest.twoByte(0x01, reg: 4, rm: 1), map: .x0F)
    #expect(guest.register(GPR.rcx) == guest.page[\.cr0])
    guest.page[\.cr4] = CR4.umip
    #expect(guest.fault(guest.twoByte(0x01, reg: 4, rm: 1), map: .x0F) == .generalProtection())
  }

  @Test("ENTER with a display")
  func enterDisplay() throws {
    let guest = TestGuest()
    guest.enterProtected()
    guest.setRegister(GPR.rsp, Place.kernelStack)
    guest.setRegister(GPR.rbp, Place.data + 0x100)
    guest.poke(UInt32(0xAAAA), at: Place.data + 0x100 - 4)
    try guest.execute(
      guest.instruction(0xC8, length: 4) {
        $0.immediate = 8
        $0.immediate2 = 2
      })
    #expect(guest.register(GPR.rbp) == Place.kernelStack - 4)
    #expect(guest.peek(UInt32.self, at: Place.kernelStack - 4) == UInt32(Place.data + 0x100))
    #expect(guest.peek(UInt32.self, at: Place.kernelStack - 8) == 0xAAAA)
    #expect(guest.peek(UInt32.self, at: Place.kernelStack - 12) == UInt32(Place.kernelStack - 4))
    #expect(guest.register(GPR.rsp) == Place.kernelStack - 20)
  }

  @Test("Where there is no RAM, reads give ones and writes vanish; fetches stop at limits")
  func noRAM() throws {
    let guest = TestGuest()
    guest.enterProtected()
    #expect(try guest.processor.readMemory(.ds, 0xFEE0_0000, size: 4) == 0xFFFF_FFFF)
    try guest.processor.writeMemory(.ds, 0xFEE0_0000, 1, size: 4)
    // The last byte of RAM and the first behind it.
    guest.poke(UInt8(0x12), at: UInt64(TestGuest.size - 1))
    #expect(try guest.processor.readMemory(.ds, UInt64(TestGuest.size - 1), size: 1) == 0x12)
    guest.page[.cs].limit = UInt32(Place.kernelCode) + 3
    guest.poke(UInt32(0x4433_2211), at: Place.kernelCode)
    let bytes = guest.processor.fetch(at: Place.kernelCode)
    #expect(bytes.count == 4 && bytes.low == 0x4433_2211 && bytes[3] == 0x44)
    #expect(bytes.end == .generalProtection())
  }

  @Test("AMD's SYSCALL works from compatibility mode")
  func amd() throws {
    let model = TestGuest.model.entries.filter { $0.leaf != 0 }
    let guest = TestGuest(cpuid: CPUIDTable([CPUIDEntry(0, eax: 0xD, ebx: 0x6874_7541)] + model))
    guest.enterLong(privilege: 3)
    guest.page[.cs] = Descriptor(low: 0x00CF_FB00_0000_FFFF).segment(Selector.userCode32)
    guest.page.updateMode()
    guest.page[\.star] = 0x0018_0008 << 32
    guest.page[\.cstar] = Place.handlers
    try guest.execute(guest.instruction(0x05, length: 2), map: .x0F)
    #expect(guest.page[\.rip] == Place.handlers && guest.page.isLongMode && guest.page.privilege == 0)
    #expect(guest.fault(guest.instruction(0x34, length: 2), map: .x0F) == .invalidOpcode)
  }
}

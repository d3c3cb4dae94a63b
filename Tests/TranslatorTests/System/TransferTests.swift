// SPDX-License-Identifier: Apache-2.0
// Far transfers, system calls, segment loads and the instructions about descriptors.

import CHost
import Testing

@testable import Translator
@testable import X86

@Suite struct TransferTests {
  // MARK: System calls

  @Test("SYSCALL and SYSRET")
  func systemCall() throws {
    let guest = TestGuest()
    guest.enterLong(privilege: 3)
    guest.page[\.star] = 0x0018_0008 << 32
    guest.page[\.lstar] = Place.handlers
    guest.page[\.sfmask] = RFLAGS.if | RFLAGS.tf
    guest.page.rflags = RFLAGS.if | RFLAGS.zf | 2
    try guest.execute(guest.instruction(0x05, length: 2), map: .x0F)
    #expect(guest.page.privilege == 0 && guest.page.isLongMode)
    #expect(guest.page[\.rip] == Place.handlers)
    #expect(guest.register(GPR.rcx) == Place.userCode + 2)
    #expect(guest.register(GPR.r11) == RFLAGS.if | RFLAGS.zf | 2)
    #expect(guest.page.rflags == RFLAGS.zf | 2)
    #expect(guest.page[.cs].selector == 8 && guest.page[.ss].selector == 16)
    #expect(guest.register(GPR.rsp) == Place.userStack)

    let sysret = guest.instruction(0x07, length: 3) {
      $0.rex = 0x48
      $0.operandSize = 8
    }
    guest.setRegister(GPR.rcx, 1 << 47)
    #expect(guest.fault(sysret, map: .x0F) == .generalProtection())
    #expect(guest.page.privilege == 0)
    guest.setRegister(GPR.rcx, Place.userCode + 2)
    try guest.execute(sysret, map: .x0F)
    #expect(guest.page.privilege == 3 && guest.page.isLongMode)
    #expect(guest.page[\.rip] == Place.userCode + 2)
    #expect(guest.page.rflags == RFLAGS.if | RFLAGS.zf | 2)
    #expect(guest.page[.cs].selector == 0x2B && guest.page[.ss].selector == 0x23)
    guest.page[\.efer] = guest.page[\.efer] & ~EFER.sce
    #expect(guest.fault(guest.instruction(0x05, length: 2), map: .x0F) == .invalidOpcode)
  }

  @Test("SYSENTER from compatibility mode and SYSEXIT to it")
  func sysenter() throws {
    let guest = TestGuest()
    guest.enterLong(privilege: 3)
    guest.page[.cs] = Descriptor(low: 0x00CF_FB00_0000_FFFF).segment(Selector.userCode32)
    guest.page.updateMode()
    #expect(!guest.page.isLongMode)
    let sysenter = guest.instruction(0x34, length: 2)
    #expect(guest.fault(sysenter, map: .x0F) == .generalProtection())
    guest.page[\.sysenter_cs] = 0x08
    guest.page[\.sysenter_eip] = Place.handlers
    guest.page[\.sysenter_esp] = Place.kernelStack
    guest.page.rflags = RFLAGS.if | 2
    try guest.execute(sysenter, map: .x0F)
    #expect(guest.page.isLongMode && guest.page.privilege == 0)
    #expect(guest.page[\.rip] == Place.handlers && guest.register(GPR.rsp) == Place.kernelStack)
    #expect(guest.page.rflags == 2)
    guest.setRegister(GPR.rdx, Place.userCode)
    guest.setRegister(GPR.rcx, Place.userStack)
    try guest.execute(guest.instruction(0x35, length: 2), map: .x0F)
    #expect(!guest.page.isLongMode && guest.page.privilege == 3)
    #expect(guest.page[\.rip] == Place.userCode && guest.register(GPR.rsp) == Place.userStack)
    #expect(guest.page[.cs].selector == 0x1B && guest.page[.ss].selector == 0x23)
  }

  @Test("SWAPGS, WRGSBASE: privilege, CR4.FSGSBASE, canonical addresses")
  func bases() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.page[\.kernel_gs_base] = 0xFFFF_8880_0000_0000
    try guest.execute(guest.twoByte(0x01, reg: 7, rm: 0), map: .x0F)
    #expect(guest.page[.gs].base == 0xFFFF_8880_0000_0000 && guest.page[\.kernel_gs_base] == 0)
    let write = guest.twoByte(0xAE, reg: 3, rm: 0, length: 5) {
      $0.repeatPrefix = 0xF3
      $0.rex = 0x48
      $0.operandSize = 8
    }
    #expect(guest.fault(write, map: .x0F) == .invalidOpcode)
    guest.page[\.cr4] = guest.page[\.cr4] | CR4.fsgsbase
    guest.setRegister(GPR.rax, 1 << 63)
    #expect(guest.fault(write, map: .x0F) == .generalProtection())
    guest.setRegister(GPR.rax, 0x7F00_0000_0000)
    try guest.execute(write, map: .x0F)
    #expect(guest.page[.gs].base == 0x7F00_0000_0000)
  }

  // MARK: Far transfers

  @Test("Far CALL through a 64-bit gate to level 0 and RET back")
  func longCallGate() throws {
    let guest = TestGuest()
    guest.enterLong(privilege: 3)
    guest.setGDT(Selector.gate, TestGuest.gate(Selector.kernelCode, Place.handlers, access: 0xEC), 0)
    guest.poke(UInt32(0), at: Place.data)
    guest.poke(UInt16(Selector.gate | 3), at: Place.data + 4)
    let call = guest.instruction(0xFF, length: 7) { TestGuest.memory(&$0, Place.data, reg: 3) }
    try guest.execute(call)
    #expect(guest.page.privilege == 0 && guest.page[\.rip] == Place.handlers)
    let rsp = guest.register(GPR.rsp)
    #expect(rsp == Place.kernelStack - 32)
    #expect(guest.peek(UInt64.self, at: rsp) == Place.userCode + 7)
    #expect(guest.peek(UInt64.self, at: rsp + 8) == UInt64(Selector.userCode64))
    #expect(guest.peek(UInt64.self, at: rsp + 16) == Place.userStack)
    #expect(guest.peek(UInt64.self, at: rsp + 24) == UInt64(Selector.userData))
    try guest.execute(
      guest.instruction(0xCB, length: 2) {
        $0.rex = 0x48
        $0.operandSize = 8
      })
    #expect(guest.page.privilege == 3 && guest.page[\.rip] == Place.userCode + 7)
    #expect(guest.register(GPR.rsp) == Place.userStack)
  }

  @Test("Far CALL through a 32-bit gate copies parameters; RET n drops them from both stacks")
  func protectedCallGate() throws {
    let guest = TestGuest()
    guest.enterProtected(privilege: 3)
    guest.setGDT(Selector.gate, TestGuest.gate(Selector.kernelCode, Place.handlers, access: 0xEC, extra: 2))
    guest.poke(UInt32(0x1111), at: Place.userStack - 8)
    guest.poke(UInt32(0x2222), at: Place.userStack - 4)
    guest.setRegister(GPR.rsp, Place.userStack - 8)
    try guest.execute(guest.instruction(0x9A, length: 7) { $0.immediate2 = Selector.gate | 3 })
    let rsp = guest.register(GPR.rsp)
    #expect(guest.page.privilege == 0 && rsp == Place.kernelStack - 24)
    #expect(guest.peek(UInt32.self, at: rsp) == UInt32(Place.userCode + 7))
    #expect(guest.peek(UInt32.self, at: rsp + 8) == 0x1111)
    #expect(guest.peek(UInt32.self, at: rsp + 12) == 0x2222)
    #expect(guest.peek(UInt32.self, at: rsp + 16) == UInt32(Place.userStack - 8))
    try guest.execute(guest.instruction(0xCA, length: 3) { $0.immediate = 8 })
    #expect(guest.page.privilege == 3 && guest.page[\.rip] == Place.userCode + 7)
    #expect(guest.register(GPR.rsp) == Place.userStack)
  }

  @Test("Far JMP: privilege, conforming segments, limits; and from real mode into protected mode")
  func farJump() throws {
    let guest = TestGuest()
    guest.enterProtected(privilege: 3)
    func jump(_ selector: UInt16, _ offset: UInt64 = Place.userCode + 0x100) -> Fault? {
      guest.fault(
        guest.instruction(0xEA, length: 7) {
          $0.immediate2 = selector
          $0.immediate = offset
        })
    }
    #expect(jump(Selector.kernelCode) == .generalProtection(8))
    #expect(jump(0) == .generalProtection())
    #expect(jump(Selector.userData) == .generalProtection(0x20))
    #expect(jump(0x108) == .generalProtection(0x108))
    #expect(jump(Selector.conforming) == nil)
    #expect(guest.page[.cs].selector == Selector.conforming | 3 && guest.page.privilege == 3)
    #expect(jump(Selector.userCode32) == nil)

    let real = TestGuest()
    real.enterReal()
    real.setGDT(8, 0x00CF_9B00_0000_FFFF)
    var table = chost_table()
    table.base = Place.gdt
    table.limit = 0xFF
    real.page[\.gdtr] = table
    try real.processor.writeCR0(CR0.pe)
    #expect(real.page.isProtected && real.page.privilege == 0)
    try real.execute(
      real.instruction(0xEA, length: 8) {
        $0.operandSize = 4
        $0.immediate2 = 8
        $0.immediate = 0x1_2345
      })
    #expect(real.page[\.rip] == 0x1_2345 && real.code == .code32)
  }

  // MARK: Segments

  @Test("Loading data segments: null, privilege, type, presence, accessed bit")
  func segments() throws {
    let guest = TestGuest()
    guest.enterProtected(privilege: 3)
    func load(_ register: SegmentRegister, _ selector: UInt16) -> Fault? {
      guest.setRegister(GPR.rax, UInt64(selector))
      return guest.fault(
        guest.instruction(0x8E, length: 2) {
          $0.hasModRM = true
          $0.modRM = 0xC0 | UInt8(register.rawValue) << 3
          $0.reg = UInt8(register.rawValue)
        })
    }
    #expect(load(.ds, 3) == nil)
    #expect(guest.page[.ds].isUnusable && guest.page[.ds].selector == 3)
    #expect(load(.ds, Selector.kernelData) == .generalProtection(0x10))
    #expect(load(.ds, Selector.executeOnly | 3) == .generalProtection(0x70))
    #expect(load(.ds, Selector.userCode32) == nil)
    #expect(load(.es, Selector.tss) == .generalProtection(0x30))
    #expect(load(.es, 0x104) == .generalProtection(0x104))
    guest.setGDT(Selector.absent, 0x00CF_7300_0000_FFFF)
    #expect(load(.fs, Selector.absent | 3) == .segmentNotPresent(0x60))
    #expect(load(.fs, Selector.unaccessed | 3) == nil)
    #expect(guest.peek(UInt8.self, at: Place.gdt + UInt64(Selector.unaccessed) + 5) == 0xF3)
    #expect(guest.page[.fs].type == 3)
    #expect(load(.ss, 0) == .generalProtection())
    #expect(load(.ss, Selector.kernelData) == .generalProtection(0x10))
    #expect(load(.ss, Selector.readOnly | 3) == .generalProtection(0x68))
    #expect(load(.ss, Selector.absent | 3) == .stackFault(0x60))
    #expect(load(.ss, Selector.userData) == nil)
    #expect(guest.state.interruptShadow == .movSS)
    #expect(load(.cs, Selector.userCode32) == .invalidOpcode)
    // A null DS faults on use, SS beyond its limit as #SS.
    #expect(load(.ds, 0) == nil)
    #expect(throws: Fault.generalProtection()) { try guest.processor.linear(.ds, 0, size: 1, write: false) }
    #expect(throws: Fault.generalProtection()) { try guest.processor.linear(.cs, 0, size: 1, write: true) }
    guest.setGDT(Selector.userData, 0x0040_F300_0000_0FFF)
    #expect(load(.ss, Selector.userData) == nil)
    #expect(throws: Fault.stackFault(0)) { try guest.processor.linear(.ss, 0xFFD, size: 4, write: false) }
    // Expand-down: the valid offsets are those above the limit.
    guest.setGDT(Selector.userData, 0x0040_F700_0000_0FFF)
    #expect(load(.es, Selector.userData) == nil)
    #expect(throws: Fault.generalProtection()) { try guest.processor.linear(.es, 0xFFF, size: 1, write: false) }
    #expect(try guest.processor.linear(.es, 0x1000, size: 1, write: true) == 0x1000)
  }

  @Test("64-bit mode: null SS below level 3, canonical checks by segment")
  func longSegments() throws {
    let guest = TestGuest()
    guest.enterLong()
    try guest.processor.loadSegment(.ss, 0)
    #expect(guest.page.privilege == 0 && guest.page[.ss].isUnusable)
    #expect(throws: Fault.stackFault(0)) { try guest.processor.linear(.ss, 1 << 47, size: 8, write: false) }
    #expect(throws: Fault.generalProtection()) { try guest.processor.linear(.ds, (1 << 47) - 4, size: 8, write: false) }
    guest.enterLong(privilege: 3)
    #expect(throws: Fault.generalProtection()) { try guest.processor.loadSegment(.ss, 0) }
    guest.page[.fs].base = 0x1000
    #expect(try guest.processor.linear(.fs, 0x10, size: 8, write: false) == 0x1010)
  }

  @Test("LTR marks the TSS busy; LLDT, LAR, LSL, VERR, VERW")
  func descriptors() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.setGDT(Selector.tss, TestGuest.system(base: Place.tss, limit: 0x67, access: 0x89), 0xFFFF_8000)
    guest.setRegister(GPR.rax, UInt64(Selector.tss))
    try guest.execute(guest.twoByte(0x00, reg: 3), map: .x0F)
    #expect(guest.page[.tr].base == 0xFFFF_8000_0000_3000 && guest.page[.tr].type == 11)
    #expect(guest.fault(guest.twoByte(0x00, reg: 3), map: .x0F) == .generalProtection(0x30))
    guest.setRegister(GPR.rax, UInt64(Selector.ldt))
    try guest.execute(guest.twoByte(0x00, reg: 2), map: .x0F)
    #expect(guest.page[.ldtr].limit == 0x1F)
    guest.setRegister(GPR.rax, UInt64(Selector.kernelData))
    #expect(guest.fault(guest.twoByte(0x00, reg: 2), map: .x0F) == .generalProtection(0x10))

    guest.setRegister(GPR.rcx, UInt64(Selector.userData))
    try guest.execute(guest.twoByte(0x02, reg: 0, rm: 1), map: .x0F)
    #expect(guest.register(GPR.rax) == 0x00CF_F300 && guest.page.rflags & RFLAGS.zf != 0)
    try guest.execute(guest.twoByte(0x03, reg: 0, rm: 1), map: .x0F)
    #expect(guest.register(GPR.rax) == 0xFFFF_FFFF)
    guest.setRegister(GPR.rcx, 0x108)
    try guest.execute(guest.twoByte(0x03, reg: 0, rm: 1), map: .x0F)
    #expect(guest.page.rflags & RFLAGS.zf == 0 && guest.register(GPR.rax) == 0xFFFF_FFFF)
    for (selector, readable, writable) in [
      (Selector.userData, true, true), (Selector.readOnly, true, false), (Selector.executeOnly, false, false),
      (Selector.conforming, true, false), (0, false, false),
    ] {
      guest.setRegister(GPR.rax, UInt64(selector))
      try guest.execute(guest.twoByte(0x00, reg: 4), map: .x0F)
      #expect((guest.page.rflags & RFLAGS.zf != 0) == readable, "VERR \(selector)")
      try guest.execute(guest.twoByte(0x00, reg: 5), map: .x0F)
      #expect((guest.page.rflags & RFLAGS.zf != 0) == writable, "VERW \(selector)")
    }
  }

  @Test("Descriptor tables are read with supervisor rights from user mode, and accesses check both pages")
  func authority() throws {
    let guest = TestGuest()
    guest.enterLong(privilege: 3)
    var table = guest.page[\.gdtr]
    for offset in stride(from: UInt64(0), to: 0x100, by: 8) {
      guest.poke(guest.peek(UInt64.self, at: Place.gdt + offset), at: Place.supervisorOnly + offset)
    }
    table.base = Place.supervisorOnly
    guest.page[\.gdtr] = table
    try guest.processor.loadSegment(.ds, Selector.userData)
    let processor = guest.processor
    #expect(throws: Fault.pageFault(Place.supervisorOnly, code: 5)) {
      try processor.readMemory(.ds, Place.supervisorOnly, size: 8)
    }
    // The first page is writable, the second is not: nothing is written.
    guest.poke(UInt64(0), at: Place.supervisorOnly - 8)
    #expect(throws: Fault.pageFault(Place.supervisorOnly, code: 7)) {
      try processor.writeMemory(.ds, Place.supervisorOnly - 4, .max, size: 8)
    }
    #expect(guest.peek(UInt64.self, at: Place.supervisorOnly - 8) == 0)
  }

  @Test("Stores mark pages dirty and report those that hold code")
  func observer() throws {
    final class Observer: CodeObserver {
      var physical: UInt64 = 0, count = 0
      func waitForPage(_ physical: UInt64) {}
      func codeWritten(physical: UInt64, count: Int) {
        self.physical = physical
        self.count = count
      }
    }
    let guest = TestGuest()
    guest.enterLong()
    let observer = Observer()
    guest.state.codeObserver = observer
    try guest.processor.writeMemory(.ds, Place.data, 1, size: 4)
    #expect(observer.count == 0)
    #expect(unsafe guest.flags[Int(Place.data >> 12)] == UInt8(CHOST_PAGE_DIRTY))
    unsafe guest.flags[Int(Place.data >> 12)] = UInt8(CHOST_PAGE_CODE)
    try guest.processor.writeMemory(.ds, Place.data + 8, 1, size: 4)
    #expect(observer.physical == Place.data + 8 && observer.count == 4)
  }
}

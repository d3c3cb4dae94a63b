// SPDX-License-Identifier: Apache-2.0
// Gates that a machine keeps for code of level 1, with an interrupt flag of the guest's own: the same by the light helpers
// and by Swift.

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

@Suite("Gates that the machine keeps") struct VirtualInterruptTests {
  private static let directory: UInt64 = 0x2000, table: UInt64 = 0x3000
  private static let gdt: UInt64 = 0x5000, task: UInt64 = 0x5400, idt: UInt64 = 0x5800
  /// A handler a vector, HLT and IRET: HLT of level 1 comes to the machine.
  private static let handlers: UInt64 = 0x6000
  private static let code: UInt64 = 0x7000, userStack: UInt64 = 0x9000, stack: UInt64 = 0xB000
  private static let flag: UInt64 = 0xC000, faultAddress: UInt64 = 0xC008
  private static let absent: UInt64 = 0x20_0000
  private static let on = UInt32(truncatingIfNeeded: RFLAGS.if)

  private func handler(_ vector: UInt8) -> UInt64 { Self.handlers + UInt64(vector) * 16 }

  private func setGate(_ guest: KernelGuest, _ vector: UInt8, type: UInt64) {
    let address = handler(vector)
    guest.poke(
      address & 0xFFFF | 0x61 << 16 | (0x80 | type) << 40 | (address >> 16) << 48, at: Self.idt + UInt64(vector) * 8)
  }

  /// A guest at level 3.
  private func guest(light: Bool) throws -> KernelGuest {
    let guest = try KernelGuest { $0.lightPaths = light }
    guest.poke(UInt32(Self.table | 7), at: Self.directory)
    for page in UInt64(0)..<512 {
      let isUser = [Self.code, Self.userStack - 0x1000].contains(page << 12)
      guest.poke(UInt32(page << 12 | (isUser ? 7 : 3)), at: Self.table + page * 4)
      guest.poke(UInt32(0), at: Self.table + (512 + page) * 4)
    }
    for (index, high) in [(UInt64(12), UInt64(0x00CF_BB00)), (13, 0x00CF_B300), (14, 0x00CF_FB00), (15, 0x00CF_F300)] {
      guest.poke(high << 32 | 0xFFFF, at: Self.gdt + index * 8)
    }
    for vector in UInt64(0)..<256 {
      guest.poke(UInt64(0), at: Self.idt + vector * 8)
      guest.load([0xF4, 0xCF], at: Self.handlers + vector * 16)
    }
    guest.poke(UInt32(Self.stack), at: Self.task + 12)
    guest.poke(UInt32(0x69), at: Self.task + 16)
    guest.poke(Self.on, at: Self.flag)
    guest.start { state in
      state.efer = 0
      state.cs = KernelGuest.segment(0x73, 0xC0FB)
      state.setDataSegments(KernelGuest.segment(0x7B, 0xC0F3))
      state.gdtr = DescriptorTable(base: Self.gdt, limit: 0xFF)
      state.idtr = DescriptorTable(base: Self.idt, limit: 0x7FF)
      state.tr = Segment(selector: 0x80, base: Self.task, limit: 0x67, attributes: 0x8B)
      state.cr0 = CR0.pe | CR0.et | CR0.ne | CR0.wp
      state.cr4 = CR4.osfxsr
      state.rip = Self.code
      state.rflags |= RFLAGS.if
      state[register: GPR.rsp] = Self.userStack
    }
    guest.cpu.addressSpace = .tables(root: UInt32(Self.directory))
    guest.cpu.trapPolicy = .gates(
      VirtualInterrupts(machineFirst: [6, 13, 0x1F], flag: Self.flag, faultAddress: Self.faultAddress))
    return guest
  }

  /// Runs to the HLT of a handler, and returns what it was given, the stack's top first.
  private func frame(_ guest: KernelGuest, _ vector: UInt8, count: UInt64) -> [UInt32] {
    let cpu = guest.cpu
    #expect(cpu.run() == .trap(Trap(vector: 13, kind: .exception, errorCode: 0)))
    let state = cpu.state
    #expect(state.rip == handler(vector) && state.cs.selector == 0x61 && state.ss.selector == 0x69)
    // The processor's own flag is never touched.
    #expect(state.rflags & (RFLAGS.if | RFLAGS.tf | RFLAGS.nt) == RFLAGS.if)
    let top = state[register: GPR.rsp]
    return (0..<count).map { guest.peek(UInt32.self, at: top + $0 * 4) }
  }

  /// To the IRET behind the HLT.
  private func leave(_ guest: KernelGuest, _ vector: UInt8, dropping bytes: UInt64 = 0) {
    guest.cpu.state.rip = handler(vector) + 1
    guest.cpu[register: GPR.rsp] += bytes
  }

  @Test("INT n and a page fault of level 3, and the way back", arguments: [false, true], [UInt64(0xE), 0xF])
  func level3(light: Bool, type: UInt64) throws {
    let guest = try guest(light: light)
    // INT 80h; MOV EAX, [absent]; the page is there the second time; INT 80h
    guest.load([0xCD, 0x80, 0xA1, 0, 0, 0x20, 0, 0xCD, 0x80], at: Self.code)
    setGate(guest, 0x80, type: type | 0x60)
    setGate(guest, 14, type: type)
    var words = frame(guest, 0x80, count: 5)
    #expect(words == [UInt32(Self.code) + 2, 0x73, 0x202, UInt32(Self.userStack), 0x7B])
    #expect(guest.peek(UInt32.self, at: Self.flag) == (type == 0xE ? 0 : Self.on))

    // Off, as the guest sees it, whatever level it is at.
    guest.poke(UInt32(0), at: Self.flag)
    leave(guest, 0x80)
    words = frame(guest, 14, count: 6)
    #expect(words[0] == 4 && words[1] == UInt32(Self.code) + 2 && words[3] & Self.on == 0 && words[4] == 0x9000)
    #expect(guest.peek(UInt32.self, at: Self.faultAddress) == UInt32(Self.absent))

    guest.poke(UInt32(0xD007), at: Self.table + (Self.absent >> 12) * 4)
    guest.poke(UInt32(41), at: 0xD000)
    guest.poke(Self.on | 1, at: Self.flag)
    leave(guest, 14, dropping: 4)
    words = frame(guest, 0x80, count: 5)
    #expect(guest.cpu[register: GPR.rax] == 41 && words[0] == UInt32(Self.code) + 9 && words[2] & 0x300 == Self.on)
    #expect(guest.translation.counters.softFaults == 0 && guest.translation.counters.refused == 0)
  }

  @Test("what the machine wants first, what has no gate, and what it sends on", arguments: [false, true])
  func machineFirst(light: Bool) throws {
    let guest = try guest(light: light)
    let cpu = guest.cpu
    guest.load([0xCD, 0x1F, 0xCD, 0x40, 0x0F, 0x0B], at: Self.code)
    setGate(guest, 13, type: 0xE)
    setGate(guest, 6, type: 0xF)
    setGate(guest, 0x40, type: 0xE)
    #expect(cpu.run() == .trap(Trap(vector: 0x1F, kind: .software(at: Self.code))))
    #expect(cpu.state.rip == Self.code + 2)
    // The gate is there and forbids it: a fault that the machine wants first.
    let refused = Trap(vector: 13, kind: .exception, errorCode: 0x202)
    #expect(cpu.run() == .trap(refused))
    #expect(cpu.state.rip == Self.code + 2)
    cpu.forward(refused)
    #expect(frame(guest, 13, count: 6).prefix(3) == [0x202, UInt32(Self.code) + 2, 0x73])
    guest.poke(UInt32(Self.code) + 4, at: cpu[register: GPR.rsp] + 4)
    leave(guest, 13, dropping: 4)
    let invalid = Trap(vector: 6, kind: .exception)
    #expect(cpu.run() == .trap(invalid))
    cpu.forward(invalid)
    #expect(frame(guest, 6, count: 5).prefix(2) == [UInt32(Self.code) + 4, 0x73])

    // Interrupts: through a gate that is there, to the machine where there is none.
    cpu.inject(interrupt: 0x21)
    #expect(cpu.run() == .trap(Trap(vector: 0x21, kind: .interrupt)))
    setGate(guest, 0x21, type: 0xE)
    guest.poke(Self.on, at: Self.flag)
    cpu.inject(interrupt: 0x21)
    #expect(frame(guest, 0x21, count: 3) == [UInt32(handler(6)), 0x61, 0x202])
    #expect(guest.peek(UInt32.self, at: Self.flag) == 0)
  }

  @Test("a stack that is not there is a trap of its own", arguments: [false, true])
  func noStack(light: Bool) throws {
    let guest = try guest(light: light)
    guest.load([0xCD, 0x80], at: Self.code)
    setGate(guest, 0x80, type: 0x6E)
    setGate(guest, 14, type: 0xE)
    guest.poke(UInt32(0x30_0000), at: Self.task + 12)
    #expect(guest.cpu.run() == .trap(Trap(vector: 8, kind: .exception, errorCode: 0)))
    #expect(guest.peek(UInt32.self, at: Self.flag) == Self.on && guest.cpu.state.rip == Self.code)
  }

  @Test("another root is a MOV CR3: what is global stays; one address can be forgotten")
  func roots() throws {
    let guest = try guest(light: true)
    let cpu = guest.cpu
    // MOV EAX, [E000h]; INT 1Fh; JMP back
    guest.load([0xA1, 0, 0xE0, 0, 0, 0xCD, 0x1F, 0xEB, 0xF7], at: Self.code)
    cpu.state.cr4 |= CR4.pge
    func set(_ page: UInt32, global: Bool) { guest.poke(page | (global ? 0x107 : 7), at: Self.table + 0xE * 4) }
    func value() -> UInt64 {
      #expect(cpu.run() == .trap(Trap(vector: 0x1F, kind: .software(at: Self.code + 5))))
      return cpu[register: GPR.rax]
    }
    for page in UInt64(0)..<3 { guest.poke(UInt32(page), at: 0x1_0000 + page * 0x1000) }
    set(0x1_0000, global: false)
    #expect(value() == 0)
    set(0x1_1000, global: false)
    #expect(value() == 0)
    cpu.addressSpace = .tables(root: UInt32(Self.directory))
    #expect(value() == 1)
    set(0x1_2000, global: false)
    cpu.flushPage(linear: 0xD000)
    #expect(value() == 1)
    cpu.flushPage(linear: 0xE000)
    #expect(value() == 2)
    set(0x1_0000, global: false)
    cpu.addressSpace = .controlRegisters
    cpu.addressSpace = .tables(root: UInt32(Self.directory))
    #expect(value() == 0)
  }
}

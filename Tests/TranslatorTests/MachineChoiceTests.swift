// SPDX-License-Identifier: Apache-2.0
// What a machine does in the guest's place: code of level 1 on page tables whose root the test keeps, with faults that the
// test fills and traps that it reflects. Every block is checked, as always.

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

@Suite("A machine's own address space and traps") struct MachineChoiceTests {
  private static let name = "ring1"
  /// Two sets of top entries with PAE, a directory and a table for each.
  private static let roots: [UInt64] = [0x8000, 0x8800]
  private static let tables: [UInt64] = [0x9000, 0xA000]
  private static let page: UInt64 = 0x60000
  private static let readOnly: UInt64 = 0x61000

  private func mark(_ mark: String) -> UInt64 { KernelGuest.mark("ring1." + mark, in: Self.name) }

  /// Writes an entry of the first 2 MiB.
  private func set(_ guest: KernelGuest, _ space: Int, _ linear: UInt64, _ entry: UInt64, pae: Bool) {
    let place = Self.tables[space] + (linear >> 12) * (pae ? 8 : 4)
    if pae { guest.poke(entry, at: place) } else { guest.poke(UInt32(entry), at: place) }
  }

  /// Identity for the first 2 MiB in both address spaces, but for the page that is absent.
  private func makeTables(_ guest: KernelGuest, pae: Bool) {
    for space in 0..<2 {
      for index in UInt64(0)..<512 { set(guest, space, index << 12, index << 12 | 3, pae: pae) }
      set(guest, space, Self.page, 0, pae: pae)
      set(guest, space, Self.readOnly, Self.readOnly | 1, pae: pae)
      let root = Self.roots[space]
      if pae {
        guest.poke(directory(space) | 1, at: root)
        for index in UInt64(1)..<4 { guest.poke(UInt64(0), at: root + index * 8) }
        guest.poke(Self.tables[space] | 3, at: directory(space))
      } else {
        guest.poke(UInt32(Self.tables[space] | 3), at: directory(space))
      }
    }
  }

  private func directory(_ space: Int) -> UInt64 { 0xB000 + UInt64(space) * 0x1000 }

  private func space(_ number: Int, pae: Bool) -> AddressSpace {
    pae
      ? .extendedTables(root: UInt32(Self.roots[number])) : .tables(root: UInt32(directory(number)))
  }

  private func start(_ guest: KernelGuest, level: UInt16 = 1) {
    guest.load(Self.name)
    guest.start { state in
      state.efer = 0
      state.cs = KernelGuest.segment(0x60 | level, 0xC09B | UInt32(level) << 5)
      state.setDataSegments(KernelGuest.segment(0x68 | level, 0xC093 | UInt32(level) << 5))
      // Neither says where pages are: paging is off.
      state.cr0 = CR0.pe | CR0.et | CR0.ne | CR0.wp
      state.cr3 = 0
      state.cr4 = CR4.osfxsr
    }
  }

  /// A guest at its first instruction, in the first of the kept address spaces.
  private func guest(pae: Bool, light: Bool = true) throws -> KernelGuest {
    let guest = try KernelGuest { $0.lightPaths = light }
    makeTables(guest, pae: pae)
    start(guest)
    guest.cpu.addressSpace = space(0, pae: pae)
    guest.cpu.trapPolicy = .machine
    return guest
  }

  @Test("faults are filled, traps reflected, roots exchanged", arguments: [false, true], [false, true])
  func ring1(pae: Bool, light: Bool) throws {
    let guest = try guest(pae: pae, light: light)
    let cpu = guest.cpu
    #expect(cpu.currentPrivilegeLevel == 1)

    // A page that is not there, then one that is: the instruction runs again by itself.
    #expect(cpu.run() == .trap(Trap(vector: 14, kind: .exception, errorCode: 0, address: Self.page)))
    #expect(cpu.state.rip == KernelGuest.code && cpu.state.cr2 == 0)
    guest.poke(UInt32(41), at: 0x70000)
    set(guest, 0, Self.page, 0x70003, pae: pae)
    #expect(cpu.run() == .trap(Trap(vector: 0x1F, kind: .software(at: mark("changed") - 2))))
    #expect(cpu.state.rip == mark("changed"))
    #expect(cpu[register: GPR.rax] == 42 && cpu[register: GPR.rbx] == 41_000)
    #expect(guest.peek(UInt32.self, at: 0x70004) == 42)

    // Other roots: what the TLB, slots and the stack's entry knew is forgotten.
    guest.poke(UInt32(7), at: 0x71000)
    set(guest, 1, Self.page, 0x71003, pae: pae)
    let stackPage = KernelGuest.stack & ~0xFFF
    set(guest, 1, stackPage, 0x72003, pae: pae)
    guest.poke(UInt32(0x1234), at: 0x72000 + (KernelGuest.stack & 0xFFF))
    cpu.addressSpace = space(1, pae: pae)
    #expect(cpu.run() == .trap(Trap(vector: 3, kind: .software(at: mark("clears") - 1))))
    #expect(cpu.state.rip == mark("clears"))
    #expect(cpu[register: GPR.rcx] == 7000 && cpu[register: GPR.rdx] == 0x1234)

    // What level 1 may not do, and what a page does not allow.
    #expect(cpu.run() == .trap(Trap(vector: 13, kind: .exception, errorCode: 0)))
    #expect(cpu.state.rip == mark("clears"))
    cpu.state.rip = mark("writes")
    #expect(cpu.run() == .trap(Trap(vector: 14, kind: .exception, errorCode: 3, address: Self.readOnly)))

    // Interrupts come the same way.
    cpu.state.rip = mark("leaves")
    cpu.state.rflags |= RFLAGS.if
    cpu.inject(interrupt: 0x40)
    #expect(cpu.run() == .trap(Trap(vector: 0x40, kind: .interrupt)))
    cpu.injectNMI()
    #expect(cpu.run() == .trap(Trap(vector: 2, kind: .nmi)))
    #expect(cpu.run() == .trap(Trap(vector: 13, kind: .exception, errorCode: 0)))
    #expect(guest.translation.counters.softFaults == 0 && guest.translation.counters.refused == 0)
  }

  @Test("without tables a linear address is a physical one, and level 3 has no pages")
  func identity() throws {
    let guest = try KernelGuest()
    let cpu = guest.cpu
    guest.poke(UInt32(41), at: Self.page)
    start(guest)
    cpu.state.cr3 = KernelGuest.pml4
    cpu.addressSpace = .identity
    cpu.trapPolicy = .machine
    #expect(cpu.run() == .trap(Trap(vector: 0x1F, kind: .software(at: mark("changed") - 2))))
    #expect(cpu[register: GPR.rax] == 42 && guest.peek(UInt32.self, at: Self.page + 4) == 42)

    start(guest, level: 3)
    #expect(cpu.run() == .trap(Trap(vector: 14, kind: .exception, errorCode: 5, address: KernelGuest.code)))
  }

  @Test("both choices can be taken back")
  func back() throws {
    let guest = try guest(pae: false)
    let cpu = guest.cpu
    #expect(cpu.run() == .trap(Trap(vector: 14, kind: .exception, errorCode: 0, address: Self.page)))
    cpu.addressSpace = .controlRegisters
    cpu.trapPolicy = .guest
    // The page is there in the guest's own tables, and INT3 goes through its gate.
    guest.load([0xA1, 0, 0, 6, 0, 0, 0, 0, 0, 0xCC])
    guest.start()
    guest.poke(UInt32(41), at: Self.page)
    #expect(guest.exception()?.vector == 3)
    #expect(cpu[register: GPR.rax] == 41)
  }

  @Test(
    "INT n, INT3, INTO and INT1 are traps that say where they are, and RIP is past them, whatever their gates say",
    arguments: [false, true])
  func software(is16: Bool) throws {
    let guest = try KernelGuest()
    let cpu = guest.cpu
    let codes: [([UInt8], UInt8)] = [
      ([0xCD, 0x80], 0x80), ([0xCC], 3), ([0xCE], 4), ([0xF1], 1), ([0x66, 0xCD, 0x0D], 13),
      ([0xF2, 0xCD, 0xCC], 0xCC),
      ([0x2E, 0xF3, 0x67, 0xCD, 0x1F], 0x1F), ([0x66, 0xCC], 3), ([0x3E, 0xCE], 4), ([0x66, 0xF1], 1),
      // With the opcode of another of them before it or as its number.
      ([0xCD, 3], 3), ([0xCD, 4], 4), ([0x26, 0xCD, 3], 3),
    ]
    for level in [UInt16(0), 1, 3] {
      for (code, vector) in codes {
        // The last instruction of a segment of 64 KiB begins again at its first byte.
        for place in is16 ? [UInt64(0x100), 0x1_0000 - UInt64(code.count), 0xFFFF] : [KernelGuest.code] {
          if place + UInt64(code.count) > 0x1_0000 && is16 && code.count > 1 { continue }
          start(guest, level: level)
          let base: UInt64 = is16 ? 0x10_0000 : 0
          guest.load(code, at: base + place)
          cpu.state.rflags |= RFLAGS.of
          if is16 {
            (cpu.state.cs.base, cpu.state.cs.limit) = (base, 0xFFFF)
            cpu.state.cs.attributes &= ~0x4000
          }
          cpu.state.rip = place
          cpu.trapPolicy = .machine
          let trap = Trap(vector: vector, kind: .software(at: place))
          #expect(cpu.run() == .trap(trap), "\(code) at level \(level)")
          let next = place + UInt64(code.count)
          #expect(cpu.state.rip == (is16 ? next & 0xFFFF : next))
        }
      }
    }
  }

  @Test("a debugger is told of an instruction when it has run, not when it has trapped")
  func stepping() throws {
    let guest = try guest(pae: false)
    let cpu = guest.cpu
    cpu.isSingleStepping = true
    cpu.breakpoints = [KernelGuest.code]
    #expect(cpu.run() == .breakpoint)
    let trap = VCPUExit.trap(Trap(vector: 14, kind: .exception, errorCode: 0, address: Self.page))
    #expect(cpu.run() == trap)
    set(guest, 0, Self.page, Self.page | 3, pae: false)
    #expect(cpu.run() == .stepped)
    #expect(cpu.state.rip == mark("came"))
  }

  @Test(
    "top entries that are none, and roots outside RAM, hold no page",
    arguments: [0x8000, 0xFFFF_FFE0, 0xFF_FFFC, 0xFFF_FFFC] as [UInt32])
  func badRoots(root: UInt32) throws {
    let guest = try KernelGuest()
    let cpu = guest.cpu
    for index in UInt64(0)..<4 { guest.poke(UInt64.max, at: 0x8000 + index * 8) }
    start(guest)
    cpu.trapPolicy = .machine
    for space in [AddressSpace.extendedTables(root: root), .tables(root: root & ~0xFFF)] {
      cpu.addressSpace = space
      guard case .trap(let trap) = cpu.run() else {
        Issue.record("no trap with \(space)")
        continue
      }
      #expect(trap.vector == 14 && trap.address == KernelGuest.code)
    }
  }
}

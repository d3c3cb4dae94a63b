// SPDX-License-Identifier: Apache-2.0
// A 32-bit kernel's system calls, faults, returns and segment loads: the same with the light helpers and without, and
// with them nearly all in translated code.

import CHost
import Engine
import GuestMemory
import Host
import Synchronization
import TestSupport
import Testing
import X86

@testable import Translator

@Suite("32-bit kernel") struct Kernel32Tests {
  private func gate(_ guest: KernelGuest, _ vector: UInt64, _ target: UInt64, privilege: UInt64) {
    let access = 0x8E | privilege << 5
    guest.poke(target & 0xFFFF | 8 << 16 | access << 40 | (target >> 16) << 48, at: KernelGuest.idt + vector * 8)
  }

  /// Runs the guest to its HLT, as the machine would where a page has gone away.
  private func halt(_ guest: KernelGuest) {
    var exit = guest.cpu.run()
    // Pages come and go while it runs, but not for ever.
    for _ in 0..<1_000_000 {
      guard case .pageAbsent(let address) = exit else { break }
      guest.memory.wait(for: GuestPhysical(address))
      exit = guest.cpu.run()
    }
    #expect(exit == .halt)
  }

  /// The same while every page goes away again and again: tables, descriptors, stacks, code and data.
  private func haltEvicting(_ guest: KernelGuest) throws {
    let isOver = Atomic<Bool>(false)
    let (memory, translation) = (guest.memory, guest.translation)
    let store = try HostThread(name: "store") {
      while !isOver.load(ordering: .acquiring) {
        for page in UInt64(0)..<0xC0 { memory.setFlag(.used, true, at: GuestPhysical(page << 12)) }
        _ = translation.evictUsedPages()
        HostClock.sleep(until: HostClock.after(nanoseconds: 1_000_000))
      }
    }
    #expect(TestLimit.wait { memory.storeCounts.evicted > 0 })
    halt(guest)
    isOver.store(true, ordering: .releasing)
    store.join()
    #expect(memory.storeCounts.awaited > 0)
  }

  /// Runs the guest; returns its state and how often translated code was left.
  private func run(
    pae: Bool, light: Bool, evicting: Bool = false
  ) throws -> (state: CPUState, exits: UInt64, guest: KernelGuest) {
    let guest = try KernelGuest(fetchDelay: evicting ? 10_000 : nil) { $0.lightPaths = light }
    let name = "kernel32"
    guest.load(name)
    for vector in UInt64(0)..<32 { gate(guest, vector, KernelGuest.handlers + vector * 16, privilege: 0) }
    gate(guest, 14, KernelGuest.mark("kernel32.fault", in: name), privilege: 0)
    gate(guest, 0x80, KernelGuest.mark("kernel32.syscall", in: name), privilege: 3)
    gate(guest, 0x81, KernelGuest.mark("kernel32.finish", in: name), privilege: 3)
    // ESP0 and SS0 of a 32-bit TSS.
    guest.poke(UInt32(KernelGuest.stack0), at: KernelGuest.tss + 4)
    guest.poke(UInt32(KernelGuest.kernelData), at: KernelGuest.tss + 8)
    // SYSENTER's segments follow each other: the user's are at 18 and 20 above it, so it uses a table of its own.
    for (index, value) in [0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF]
      .enumerated()
    {
      guest.poke(UInt64(value), at: KernelGuest.gdt + 0x80 + UInt64(index) * 8)
    }
    let entry: UInt64
    if pae {
      guest.poke(KernelGuest.directory | 1, at: 0x8020)
      for index in UInt64(1)..<4 { guest.poke(UInt64(0), at: 0x8020 + index * 8) }
      entry = KernelGuest.table + 0x60 * 8
      for page in UInt64(0x60)..<0x62 { guest.poke(page << 12 | 6, at: KernelGuest.table + page * 8) }
    } else {
      guest.poke(UInt32(0x9007), at: 0x8000)
      for page in UInt64(0)..<1024 { guest.poke(UInt32(page << 12 | 7), at: 0x9000 + page * 4) }
      entry = 0x9000 + 0x60 * 4
      for page in UInt64(0x60)..<0x62 { guest.poke(UInt32(page << 12 | 6), at: 0x9000 + page * 4) }
    }
    guest.poke(UInt32(entry), at: 0x20020)
    guest.poke(UInt32(pae ? 8 : 4), at: 0x20024)
    guest.start { state in
      state.efer = 0
      state.cs = Segment(selector: 8, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC09B)
      state.tr = Segment(selector: 0x40, base: KernelGuest.tss, limit: 0x67, attributes: 0x8B)
      state.gdtr.limit = 0x9F
      state.cr3 = pae ? 0x8020 : 0x8000
      state.cr4 = pae ? 0x620 : 0x600
      state.cr0 = 0x8001_0033
      state.sysenterCS = 0x80
      state.sysenterEIP = KernelGuest.mark("kernel32.sysenter", in: name)
      state.sysenterESP = KernelGuest.stack0
    }
    if evicting { try haltEvicting(guest) } else { halt(guest) }
    var exits: UInt64 = 0
    for index in guest.cpu.exitCounts.indices { exits += guest.cpu.exitCounts[index] }
    return (guest.cpu.state, exits, guest)
  }

  @Test("system calls, faults, segments", arguments: [false, true]) func kernel(pae: Bool) throws {
    let fast = try run(pae: pae, light: true)
    let slow = try run(pae: pae, light: false)
    compare(fast, slow)
    print("32-bit kernel: \(fast.exits) exits with light helpers, \(slow.exits) without")
    #expect(fast.exits < 60 && slow.exits > 600)
  }

  @Test("the same while every page goes away again and again", arguments: [false, true], [false, true])
  func evicted(pae: Bool, light: Bool) throws {
    compare(try run(pae: pae, light: light, evicting: true), try run(pae: pae, light: true))
  }

  private typealias Run = (state: CPUState, exits: UInt64, guest: KernelGuest)

  private func compare(_ one: Run, _ two: Run) {
    let (state, guest, slow, other) = (one.state, one.guest, two.state, two.guest)
    for (number, value) in state.registers.enumerated() {
      #expect(value == slow.registers[number], "register \(number)")
    }
    #expect(state.registers[3] == 5050 && state.registers[7] == 100)
    // The kernel's read of an absent page, the program's write.
    #expect(state.registers[6] == 0 + 6)
    #expect(state.rflags == slow.rflags && state.rip == slow.rip && state.cr2 == slow.cr2 && state.cr2 == 0x60000)
    #expect(state.cs == slow.cs && state.ss == slow.ss && state.ds == slow.ds && state.es == slow.es)
    #expect(state.fs == slow.fs && state.gs == slow.gs)
    for address in stride(from: UInt64(0x20000), to: 0x20080, by: 8) {
      #expect(guest.peek(UInt64.self, at: address) == other.peek(UInt64.self, at: address), "\(address)")
    }
    for address in stride(from: KernelGuest.stack0 - 64, to: KernelGuest.stack0, by: 4) {
      #expect(guest.peek(UInt32.self, at: address) == other.peek(UInt32.self, at: address), "\(address)")
    }
    #expect(guest.peek(UInt32.self, at: 0x20060) == 0x1234_5678 && guest.peek(UInt8.self, at: 0x20068) == 1)
  }
}

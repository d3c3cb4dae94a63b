// SPDX-License-Identifier: Apache-2.0
// Pages that have gone away: user code leaves for the machine before its instruction has any effect, the kernel waits,
// and whatever the processor needs, tables and code too, is brought in before it is read.

import Engine
import GuestMemory
import Host
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct AbsentPageTests {
  private static let value: UInt64 = 0x1122_3344_5566_7788

  private func guest() throws -> KernelGuest { try KernelGuest(fetchDelay: 0) }

  /// What RAM holds, whether it is right or not.
  private func ram(_ guest: KernelGuest, _ address: UInt64) -> UInt64 {
    unsafe guest.memory.baseAddress.load(fromByteOffset: Int(address), as: UInt64.self)
  }

  /// Lets user code write `value` to the start of a page, then takes away what that used.
  private func evict(_ guest: KernelGuest, _ page: UInt64) {
    guest.load("absent_store")
    guest.start(user: true) {
      $0[register: GPR.rax] = page
      $0[register: GPR.rbx] = AbsentPageTests.value
    }
    #expect(guest.exception()?.vector == 6)
    #expect(guest.translation.evictUsedPages() > 0)
    #expect(guest.memory.isAbsent(GuestPhysical(page)) && ram(guest, page) == 0)
  }

  /// Takes pages away whoever used them.
  private func evict(_ guest: KernelGuest, pages: [UInt64]) {
    for page in pages { guest.memory.setFlag(.used, true, at: GuestPhysical(page)) }
    #expect(guest.translation.evictUsedPages() >= pages.count)
    for page in pages { #expect(guest.memory.isAbsent(GuestPhysical(page)) && ram(guest, page) == 0) }
  }

  /// How often somebody waits while `body` runs.
  private func waits(_ guest: KernelGuest, _ body: () -> Void) -> UInt64 {
    let before = guest.memory.storeCounts.awaited
    body()
    return guest.memory.storeCounts.awaited - before
  }

  /// Instructions, and what is at the start of the page afterwards.
  @Test(
    "user code leaves before any effect, and goes on once the page is there",
    arguments: [
      ("absent_inc", value + 1), ("absent_load", value), ("absent_both_pages", 0), ("absent_rep_movsb", value),
      ("absent_push", value),
    ])
  func userLeaves(name: String, after: UInt64) throws {
    let guest = try guest()
    let page = KernelGuest.data
    evict(guest, page)
    guest.load(name)
    guest.start(user: true) {
      $0.registers[0] = page
      $0.registers[1] = 16
      $0.registers[6] = page - 8
      $0.registers[7] = page + 64
    }
    // The stack and the code were used by level 3 too, so they may be met first.
    var met: Set<UInt64> = []
    var exit = VCPUExit.kicked
    let waited = waits(guest) {
      exit = guest.cpu.run()
      while case .pageAbsent(let address) = exit, met.insert(address & ~4095).inserted {
        #expect(guest.cpu.currentPrivilegeLevel == 3 && guest.memory.isAbsent(GuestPhysical(address)))
        guest.memory.fetch(GuestPhysical(address))
        if address & ~4095 == page { #expect(ram(guest, page) == AbsentPageTests.value) }
        exit = guest.cpu.run()
      }
    }
    #expect(met.contains(page) && waited == 0)
    #expect(exit == .halt && guest.frame()?.vector == 6)
    #expect(guest.frame()?.rip == KernelGuest.mark(name + ".behind", in: name))
    #expect(ram(guest, page) == after)
  }

  @Test("the machine's own page fault finds the instruction untouched") func injected() throws {
    let guest = try guest()
    evict(guest, KernelGuest.data)
    guest.load("absent_inc")
    guest.start(user: true) { $0.registers[0] = KernelGuest.data }
    #expect(guest.cpu.run() == .pageAbsent(address: KernelGuest.data))
    guest.cpu.raise(.pageFault(0x1003, code: 0))
    let frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.error == 0 && frame?.rip == KernelGuest.code)
    #expect(guest.cpu.state.cr2 == 0x1003)
  }

  @Test("code that is late is fetched late, translated before or not, and then read right", arguments: [true, false])
  func code(user: Bool) throws {
    let guest = try guest()
    let place = KernelGuest.data + 0x2FFE
    guest.load("absent_code", at: place)
    for _ in 1...3 {
      evict(guest, pages: [place, place + 4096])
      guest.start(user: user) { $0.rip = place }
      if user {
        for address in [place, place + 2] {
          #expect(guest.cpu.run() == .pageAbsent(address: address))
          #expect(ram(guest, address & ~7) == 0)
          guest.memory.fetch(GuestPhysical(address))
        }
      }
      var frame: Delivered?
      #expect(waits(guest) { frame = guest.exception() } == (user ? 0 : 2))
      #expect(frame?.vector == 6 && frame?.rip == place + 5 && guest.cpu[register: 3] == 1)
    }
    // Other code, stored while it was away.
    evict(guest, pages: [place, place + 4096])
    guest.load([2], at: place + 1)
    #expect(!guest.memory.isAbsent(GuestPhysical(place)) && guest.memory.isAbsent(GuestPhysical(place + 2)))
    guest.memory.fetch(GuestPhysical(place + 2))
    guest.start(user: user) { $0.rip = place }
    #expect(guest.exception()?.rip == place + 5 && guest.cpu[register: 3] == 2)
  }

  @Test("the kernel waits, for its own accesses and for those of its events") func kernelWaits() throws {
    let guest = try guest()
    let page = KernelGuest.data
    evict(guest, page)
    guest.load("absent_inc")
    guest.start {
      $0.registers[0] = page
      $0.registers[4] = page + 0x800
    }
    var frame: Delivered?
    #expect(waits(guest) { frame = guest.exception() } == 1)
    #expect(frame?.vector == 6 && frame?.rip == KernelGuest.code + 3)
    #expect(ram(guest, page) == AbsentPageTests.value + 1)
  }

  @Test("the kernel leaves too, where it takes part: before any effect, but not for the processor's tables")
  func kernelLeaves() throws {
    let guest = try guest()
    let page = KernelGuest.data
    evict(guest, page)
    guest.cpu.everyLevelLeavesForPages = true
    guest.load("absent_inc")
    guest.start { $0.registers[0] = page }
    for _ in 0..<2 {
      var exit = VCPUExit.kicked
      #expect(waits(guest) { exit = guest.cpu.run() } == 0)
      #expect(exit == .pageAbsent(address: page))
      #expect(guest.cpu.currentPrivilegeLevel == 0 && ram(guest, page) == 0)
    }
    // As the machine does it if the guest can take it: the handler finds the instruction untouched.
    guest.cpu.raise(.pageFault(0x1000, code: 0))
    let frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.error == 0 && frame?.rip == KernelGuest.code && guest.cpu.state.cr2 == 0x1000)
    // Its stack is the page now: delivery waits.
    guest.start {
      $0.registers[0] = KernelGuest.data + 0x3000
      $0.registers[4] = page + 0x800
    }
    var second: Delivered?
    #expect(waits(guest) { second = guest.exception() } == 1)
    #expect(second?.vector == 6)
  }

  @Test(
    "page tables, descriptor tables, task states and stacks that are late are waited for, at every level",
    arguments: [true, false])
  func tables(user: Bool) throws {
    let guest = try guest()
    guest.poke(AbsentPageTests.value, at: KernelGuest.data)
    guest.load("absent_inc")
    guest.start(user: user) { $0.registers[0] = KernelGuest.data }
    let tables = [KernelGuest.pml4, KernelGuest.pdpt, KernelGuest.directory, KernelGuest.table]
    evict(guest, pages: tables + [KernelGuest.gdt, KernelGuest.idt, KernelGuest.tss])
    evict(guest, pages: [user ? KernelGuest.stack0 - 8 : KernelGuest.stack - 8].map { $0 & ~4095 })
    var frame: Delivered?
    // The task state has the stack only for those who change level.
    #expect(waits(guest) { frame = guest.exception() } == (user ? 8 : 7))
    #expect(frame?.vector == 6 && frame?.rip == KernelGuest.code + 3)
    #expect(ram(guest, KernelGuest.data) == AbsentPageTests.value + 1)
    // Accessed and dirty bits were set where the entries are.
    #expect(ram(guest, KernelGuest.table + (KernelGuest.data >> 12) * 8) & 0x60 == 0x60)
  }

  @Test("what a device writes is there at once, and the rest of the page with it") func device() throws {
    let guest = try guest()
    evict(guest, KernelGuest.data)
    guest.poke(UInt8(1), at: KernelGuest.data + 5)
    #expect(!guest.memory.isAbsent(GuestPhysical(KernelGuest.data)))
    #expect(ram(guest, KernelGuest.data) == AbsentPageTests.value & ~(0xFF << 40) | 1 << 40)
  }
}

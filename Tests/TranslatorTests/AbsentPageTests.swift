// SPDX-License-Identifier: Apache-2.0
// Pages that are late: user code leaves for the machine before its instruction has any effect, the kernel waits, and
// nothing is lost however the page is reached.

import GuestMemory
import Synchronization
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct AbsentPageTests {
  /// A guest whose pages may be absent, and which of them somebody waited for.
  private final class Late: Sendable {
    let waited = Mutex<[UInt64]>([])
    let memory = Mutex<GuestMemory?>(nil)

    func wait(_ page: UInt64) {
      waited.withLock { $0.append(page & ~4095) }
      memory.withLock { $0?.setPresent(GuestPhysical(page)) }
    }
  }

  private func guest() throws -> (KernelGuest, Late) {
    let late = Late()
    let guest = try KernelGuest { $0.waitForPage = { late.wait($0) } }
    late.memory.withLock { $0 = guest.memory }
    return (guest, late)
  }

  /// Lets user code use a page, then takes it away.
  private func evict(_ guest: KernelGuest, _ page: UInt64) {
    // mov %rax, (page)
    guest.load([0x48, 0xA3] + (0..<8).map { UInt8(truncatingIfNeeded: page >> (8 * $0)) } + [0x0F, 0x0B])
    guest.start(user: true)
    #expect(guest.exception()?.vector == 6)
    #expect(guest.memory.evictUsedPages() > 0)
    guest.cpu.flushTLB()
    #expect(guest.memory.isAbsent(GuestPhysical(page)))
  }

  @Test(
    "user code leaves before any effect, and goes on once the page is there",
    arguments: [
      [0x48, 0xFF, 0x00],  // inc (%rax)
      [0x48, 0x8B, 0x18],  // mov (%rax), %rbx
      [0x0F, 0x11, 0x40, 0xF8],  // movups %xmm0, -8(%rax): both pages
      [0xF3, 0xA4],  // rep movsb
      [0xFF, 0x30],  // push (%rax)
    ] as [[UInt8]])
  func userLeaves(code: [UInt8]) throws {
    let (guest, late) = try guest()
    let page = KernelGuest.data
    evict(guest, page)
    guest.memory.setPresent(GuestPhysical(KernelGuest.code))
    guest.load(code + [0x0F, 0x0B])
    guest.start(user: true) {
      $0.registers[0] = page
      $0.registers[1] = 16
      $0.registers[6] = page - 8
      $0.registers[7] = page + 64
    }
    late.waited.withLock { $0 = [] }
    let before = guest.peek(UInt64.self, at: page)
    // The stack and the code were used by level 3 too, so they may be met first.
    var met: Set<UInt64> = []
    var exit = guest.cpu.run()
    while case .pageAbsent(let address) = exit, met.insert(address & ~4095).inserted {
      #expect(guest.cpu.currentPrivilegeLevel == 3)
      #expect(guest.peek(UInt64.self, at: page) == before)
      guest.memory.setPresent(GuestPhysical(address))
      exit = guest.cpu.run()
    }
    #expect(met.contains(page))
    #expect(exit == .halt && guest.frame()?.vector == 6 && guest.frame()?.rip == KernelGuest.code + UInt64(code.count))
  }

  @Test("the machine's own page fault finds the instruction untouched") func injected() throws {
    let (guest, _) = try guest()
    evict(guest, KernelGuest.data)
    guest.memory.setPresent(GuestPhysical(KernelGuest.code))
    guest.load([0x48, 0xFF, 0x00])
    guest.start(user: true) { $0.registers[0] = KernelGuest.data }
    #expect(guest.cpu.run() == .pageAbsent(address: KernelGuest.data))
    guest.cpu.inject(pageFault: 0x1003)
    let frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.error == 0 && frame?.rip == KernelGuest.code)
    #expect(guest.cpu.state.cr2 == 0x1003)
  }

  @Test("code that is late is fetched late") func code() throws {
    let (guest, _) = try guest()
    let place = KernelGuest.data + 0x2000
    guest.load([0x90, 0x0F, 0x0B], at: place)
    evict(guest, place)
    guest.load([0x90, 0x0F, 0x0B], at: place)
    evict(guest, place + 8)
    guest.start(user: true) { $0.rip = place }
    #expect(guest.cpu.run() == .pageAbsent(address: place))
    guest.memory.setPresent(GuestPhysical(place))
    #expect(guest.exception()?.vector == 6)
  }

  @Test("the kernel waits, for its own accesses and for those of its events") func kernelWaits() throws {
    let (guest, late) = try guest()
    let page = KernelGuest.data
    evict(guest, page)
    guest.memory.setPresent(GuestPhysical(KernelGuest.code))
    guest.load([0x48, 0xFF, 0x00, 0x0F, 0x0B])
    guest.start {
      $0.registers[0] = page
      $0.registers[4] = page + 0x800
    }
    late.waited.withLock { $0 = [] }
    let before = guest.peek(UInt64.self, at: page)
    let frame = guest.exception()
    #expect(frame?.vector == 6 && frame?.rip == KernelGuest.code + 3)
    #expect(guest.peek(UInt64.self, at: page) == before + 1)
    #expect(late.waited.withLock { $0 } == [page])
  }

  @Test("the kernel leaves too, where it takes part: before any effect, but not for the processor's tables")
  func kernelLeaves() throws {
    let (guest, late) = try guest()
    let page = KernelGuest.data
    evict(guest, page)
    guest.memory.setPresent(GuestPhysical(KernelGuest.code))
    guest.cpu.everyLevelLeavesForPages = true
    guest.load([0x48, 0xFF, 0x00, 0x0F, 0x0B])
    guest.start { $0.registers[0] = page }
    late.waited.withLock { $0 = [] }
    let before = guest.peek(UInt64.self, at: page)
    for _ in 0..<2 {
      #expect(guest.cpu.run() == .pageAbsent(address: page))
      #expect(guest.cpu.currentPrivilegeLevel == 0 && guest.peek(UInt64.self, at: page) == before)
    }
    // As the machine does it if the guest can take it: the handler finds the instruction untouched.
    guest.cpu.inject(pageFault: 0x1000)
    let frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.error == 0 && frame?.rip == KernelGuest.code && guest.cpu.state.cr2 == 0x1000)
    // Its stack is the page now: delivery waits.
    #expect(late.waited.withLock { $0 }.isEmpty)
    guest.start {
      $0.registers[0] = KernelGuest.data + 0x3000
      $0.registers[4] = page + 0x800
    }
    #expect(guest.exception()?.vector == 6 && late.waited.withLock { $0 } == [page])
  }

  @Test("what a device writes is there at once") func device() throws {
    let (guest, _) = try guest()
    evict(guest, KernelGuest.data)
    guest.poke(UInt8(1), at: KernelGuest.data + 5)
    #expect(!guest.memory.isAbsent(GuestPhysical(KernelGuest.data)))
    guest.memory.setPresent(GuestPhysical(.max))
    #expect(!guest.memory.isAbsent(GuestPhysical(.max)))
  }
}

// SPDX-License-Identifier: Apache-2.0
// Interrupts: kicks end every kind of loop soon, shadows cover exactly one instruction, unmasking delivers at once,
// NMIs are blocked until IRET.

import Engine
import Glibc
import GuestMemory
import Synchronization
import TestSupport
import Testing
import X86

@testable import Translator

@Suite("Interrupts", .serialized) struct InterruptTests {
  /// What no loop may exceed (docs/design.md, rule 8), in nanoseconds.
  static let limit: UInt64 = 1_000_000

  /// Runs a guest often until a kick from another thread. The median of how long it then goes on, in nanoseconds of its
  /// own thread's processor time: a host with other work lets it wait, which is not the loop's doing.
  static func medianLatency(_ guest: KernelGuest, _ name: String, _ edit: (inout CPUState) -> Void) -> UInt64 {
    var clock = clockid_t()
    let error = unsafe pthread_getcpuclockid(pthread_self(), &clock)
    #expect(error == 0)
    var all: [UInt64] = []
    for round in 0..<31 {
      guest.start(edit)
      let box = Kick(guest.cpu)
      Thread.start { [clock] in
        usleep(UInt32(300 + round * 17))
        box.time.store(nanoseconds(of: clock), ordering: .sequentiallyConsistent)
        box.cpu.kick()
      }
      let exit = TestLimit.watched("a kick of \(name)") { guest.cpu.run() }
      all.append(nanoseconds(of: clock) &- box.time.load(ordering: .sequentiallyConsistent))
      #expect(exit == .kicked, "\(name)")
    }
    all.sort()
    print("kick \(name): median \(all[all.count / 2] / 1000) us, most \(all[all.count - 1] / 1000) us")
    return all[all.count / 2]
  }

  private static func nanoseconds(of clock: clockid_t) -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(clock, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  final class Kick: Sendable {
    let cpu: TranslatedCPU
    let time = Atomic<UInt64>(0)
    init(_ cpu: TranslatedCPU) { self.cpu = cpu }
  }

  @Test(
    "A kick ends every endless loop within a millisecond",
    arguments: [
      "self", "indirect", "indirect_pair", "call_ret", "recursion", "ret", "rep_stos", "rep_scas", "loop", "adc", "cli",
      "jcc",
      "pause", "syscalls", "iret", "faults",
    ])
  func kick(name: String) throws {
    let guest = try KernelGuest()
    let loop = "loop_" + name
    guest.load(loop)
    if name == "faults" {
      // The handler returns to the faulting instruction.
      guest.load("iretq", at: KernelGuest.handlers + 6 * 16)
    }
    let median = Self.medianLatency(guest, name) { if name == "adc" { $0.rflags = 3 } }
    #expect(median < Self.limit, "\(name)")
    #expect(PollGraph(guest.translation.cache).problem == nil, "\(name)")
  }

  @Test("... and loops over pages") func kickPages() throws {
    let guest = try KernelGuest()
    for page in UInt64(0)..<15 { guest.load("loop_page", at: 0x100000 + page * 4096) }
    guest.load("loop_page_back", at: 0x10F000)
    guest.load("loop_ping", at: 0x120FF0)
    guest.load("loop_pong", at: 0x121FF0)
    for start in [0x100000, 0x120FF0] as [UInt64] {
      let median = Self.medianLatency(guest, start == 0x100000 ? "pages" : "ping and pong") { $0.rip = start }
      #expect(median < Self.limit)
      #expect(PollGraph(guest.translation.cache).problem == nil)
    }
  }

  @Test("Flags survive a kick") func flagsAcrossKicks() throws {
    let guest = try KernelGuest()
    guest.load("loop_adc")
    guest.start {
      $0.registers[3] = .max
      $0.rflags = 3
    }
    let kicker = Kicker(guest.cpu, microseconds: 200)
    defer { kicker.stop() }
    // RAX += -1 + carry, RCX += carry: from the second turn on RAX counts down and RCX up, unless a carry is lost.
    for _ in 0..<200 {
      #expect(guest.cpu.run() == .kicked)
      let turns = guest.cpu[register: 1]
      #expect(turns <= 1 || guest.cpu[register: 0] &+ turns == 0)
    }
  }

  @Test("STI and MOV SS shadows are one instruction long")
  func shadows() throws {
    let guest = try KernelGuest()
    func opening(_ name: String, _ mark: String, _ edit: (inout CPUState) -> Void = { _ in }) {
      for pending in [true, false] {
        guest.load(name)
        guest.start(edit)
        if pending { guest.cpu.inject(interrupt: 0x20) } else { guest.cpu.requestInterruptWindow(true) }
        let exit = guest.cpu.run()
        let at = KernelGuest.mark(mark, in: name)
        if pending {
          #expect(exit == .halt, "\(name)")
          #expect(guest.frame()?.vector == 0x20, "\(name)")
          #expect(guest.frame()?.rip == at, "\(name)")
        } else {
          guest.cpu.requestInterruptWindow(false)
          #expect(exit == .interruptWindow, "\(name)")
          #expect(guest.cpu.state.rip == at, "\(name)")
          #expect(guest.cpu.canAcceptInterrupt)
        }
      }
    }
    opening("sti_nops", "sti_nops.open")
    opening("sti_sti", "sti_sti.open")
    opening("popf_opens", "popf_opens.open")
    opening("iret_opens", "iret_opens.open")
    // MOV SS: IF is set all along.
    guest.load("mov_ss_shadow")
    guest.start {
      $0.rflags = 2
      $0.registers[0] = 0x18
      $0.registers[3] = KernelGuest.stack
    }
    guest.cpu.injectNMI()
    #expect(guest.cpu.run() == .halt)
    #expect(guest.frame()?.vector == 2 && guest.frame()?.rip == KernelGuest.code)
    // STI right before CLI opens nothing.
    guest.load("sti_cli")
    guest.start()
    guest.cpu.inject(interrupt: 0x20)
    #expect(guest.cpu.run() == .halt)
    #expect(guest.frame() == nil)
  }

  /// Runs until HLT, whatever comes in between, a few times.
  private func halts(_ guest: KernelGuest) -> Bool { (0..<16).contains { _ in guest.cpu.run() == .halt } }

  @Test("STI; HLT: the interrupt comes after HLT, never before") func stiHlt() throws {
    let guest = try KernelGuest()
    let after = KernelGuest.mark("sti_hlt.after", in: "sti_hlt")
    guest.load("sti_hlt")
    guest.start()
    guest.cpu.inject(interrupt: 0x20)
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu.state.rip == after)
    #expect(guest.cpu.run() == .halt)
    #expect(guest.frame()?.rip == after)
    // A kick before, between and after must not lose it either.
    for delay in 0..<50 {
      guest.start()
      let box = Kick(guest.cpu)
      Thread.start {
        for _ in 0..<delay * 20 { box.time.wrappingAdd(1, ordering: .relaxed) }
        box.cpu.kick()
      }
      try #require(halts(guest))
      #expect(guest.cpu.state.rip == after)
      #expect(guest.cpu.canAcceptInterrupt)
      guest.cpu.inject(interrupt: 0x30)
      try #require(halts(guest))
      #expect(guest.frame()?.rip == after && guest.frame()?.vector == 0x30)
    }
  }

  @Test("SYSRET unmasks") func sysret() throws {
    let guest = try KernelGuest()
    guest.load("spin", at: 0x30000)
    guest.load("sysret_opens")
    guest.start()
    guest.cpu.inject(interrupt: 0x20)
    #expect(guest.cpu.run() == .halt)
    let frame = guest.frame()
    #expect(frame?.rip == 0x30000 && frame?.cs == KernelGuest.userCode && frame?.vector == 0x20)
  }

  @Test("NMIs wait for IRET") func nmi() throws {
    let guest = try KernelGuest()
    guest.load("nops")
    guest.start()
    guest.cpu.injectNMI()
    #expect(guest.cpu.run() == .halt)
    #expect(guest.frame()?.vector == 2 && guest.frame()?.rip == KernelGuest.code)
    #expect(guest.cpu.state.nmiBlocked)
    // Still in the handler: the next one waits; after IRET it comes at once.
    guest.load("nmi_handler", at: KernelGuest.handlers + 2 * 16 + 1)
    guest.cpu.injectNMI()
    #expect(guest.cpu.run() == .halt)
    #expect(guest.frame()?.vector == 2 && guest.frame()?.rip == KernelGuest.code)
    #expect(guest.cpu[register: 4] == KernelGuest.stack - 40)
    #expect(guest.cpu.run() == .halt)
    #expect(!guest.cpu.state.nmiBlocked && guest.cpu.state.rip == KernelGuest.code + 3)
  }
}

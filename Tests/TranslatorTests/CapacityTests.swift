// SPDX-License-Identifier: Apache-2.0
// Results do not depend on how often code is forgotten, on other virtual machines on the same thread, or on taking the
// state out and putting it back; deep recursion, stack switches, retpolines and RSB stuffing.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite("Capacity, recursion, alternation") struct CapacityTests {
  private func fill(_ guest: KernelGuest) {
    for block in UInt64(0)..<4096 { guest.load("small_block", at: 0x100000 + block * 64) }
  }

  @Test("A code cache that is far too small") func exhaustion() throws {
    let large = try KernelGuest()
    let small = try KernelGuest { $0.codeBytes = 128 << 10 }
    for guest in [large, small] {
      fill(guest)
      guest.load("many_blocks")
      guest.start()
      #expect(guest.cpu.run() == .halt)
    }
    #expect(small.translation.counters.flushes > 10)
    #expect(large.translation.counters.flushes == 0)
    #expect(small.cpu.state.registers == large.cpu.state.registers && small.cpu.state.rflags == large.cpu.state.rflags)
    for name in ["recursion", "retpoline", "deep", "smc_executed", "smc_loop"] {
      for guest in [large, small] {
        guest.load(name)
        guest.start()
        #expect(guest.cpu.run() == .halt)
      }
      #expect(small.cpu.state.registers == large.cpu.state.registers)
    }
  }

  @Test("Two machines and two vCPUs, alternating on a thread") func alternating() throws {
    let guests = [try KernelGuest(), try KernelGuest()]
    let second = try guests[1].translation.makeCPU(1)
    for guest in guests {
      fill(guest)
      guest.load("many_blocks")
      guest.start()
    }
    second.state = guests[1].initial
    second[register: 4] = 0x88000
    var ended = [false, false, false]
    let cpus = [guests[0].cpu, guests[1].cpu, second]
    for _ in 0..<100_000 where ended.contains(false) {
      for (index, cpu) in cpus.enumerated() where !ended[index] {
        cpu.kick()
        // Each slice ends at its first boundary, or the guest's end.
        var exit = cpu.run()
        if exit == .kicked {
          let kicker = Kicker(cpu, microseconds: 300)
          exit = cpu.run()
          kicker.stop()
        }
        ended[index] = exit == .halt
        // Taking the state and putting it back changes nothing.
        let state = cpu.state
        cpu.state = state
        #expect(cpu.state == state)
      }
    }
    try #require(!ended.contains(false))
    #expect(cpus[0].state.registers == cpus[1].state.registers)
    #expect(cpus[0][register: 0] == second[register: 0])
  }

  @Test("Deep recursion, a stack switch out of it, retpolines and RSB stuffing") func calls() throws {
    let guest = try KernelGuest()
    for (name, result) in [("deep", 10000), ("recursion", 5000 * 5001 / 2), ("retpoline", 1000)] as [(String, UInt64)] {
      guest.load(name)
      guest.start { $0.registers[4] = 0xF00000 }
      #expect(guest.cpu.run() == .halt, "\(name)")
      #expect(guest.frame() == nil)
      #expect(guest.cpu[register: 0] == result, "\(name)")
      #expect(guest.cpu[register: 4] == 0xF00000, "\(name)")
    }
  }

  @Test("The state survives a round trip in every field") func roundTrip() throws {
    let guest = try KernelGuest()
    var state = KernelGuest.longState(user: true)
    for number in 0..<16 { state.registers[number] = UInt64(number) &* 0x0123_4567_89AB_CDEF }
    for index in 160..<416 { state.xsave[index] = UInt8(truncatingIfNeeded: index) }
    for index in 576..<832 { state.xsave[index] = UInt8(truncatingIfNeeded: index &* 3) }
    state.xsave[512] = 7
    state.rflags = 0x24_4ED7
    state.cr2 = 0x1234
    state.cr8 = 5
    state.dr0 = 1
    state.dr3 = 4
    state.dr6 = 0xFFFF_0FF1
    state.tscAux = 9
    state.tscOffset = 77
    state.kernelGSBase = 0x5555
    state.sysenterEIP = 6
    state.interruptShadow = true
    state.nmiBlocked = true
    guest.cpu.state = state
    #expect(guest.cpu.state == state)
    guest.cpu.state = guest.cpu.state
    #expect(guest.cpu.state == state)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Code that changes: by its own stores in every form, through aliases, by remapping, by the devices' DMA; and that data
// beside code costs little.

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

@Suite("Code that changes") struct SelfModifyingTests {
  /// Runs a guest to its HLT; RAX.
  private func run(_ guest: KernelGuest, _ name: String, _ edit: (inout CPUState) -> Void = { _ in }) -> UInt64 {
    guest.load(name)
    guest.start(edit)
    let exit = guest.cpu.run()
    #expect(exit == .halt, "\(name)")
    #expect(guest.frame() == nil, "\(name)")
    return guest.cpu[register: 0]
  }

  @Test("Stores to the next instruction, to executed code, to a loop's body") func own() throws {
    let guest = try KernelGuest()
    #expect(run(guest, "smc_next") == 42)
    #expect(run(guest, "smc_executed") == 100 + 300)
    #expect(run(guest, "smc_loop") == 199 * 200 / 2)
    // The same bytes again: what was patched is loaded afresh.
    #expect(run(guest, "smc_next") == 42)
  }

  @Test("Every kind of store in one block") func chain() throws {
    let guest = try KernelGuest()
    // 100 + (1 + 5) is patched into ESI (later R8), 99h into EAX; REP MOVS adds 1000h, the push 11h; BTS sets bit 4 of
    // 1.
    _ = run(guest, "smc_chain")
    #expect(guest.cpu[register: 8] == 106 && guest.cpu[register: 2] == 0x1000 && guest.cpu[register: 5] == 0x11)
    #expect(guest.cpu[register: 1] == 0x11)
    let other = try KernelGuest { $0.singleInstruction = true }
    _ = run(other, "smc_chain")
    #expect(guest.cpu.state.registers == other.cpu.state.registers)
  }

  @Test("Liveness: the successor begins to read a flag") func liveness() throws {
    let guest = try KernelGuest()
    // The last turn adds with the carry of ADD EDX: ADC EAX, EAX = 1.
    #expect(run(guest, "smc_live") == 1)
  }

  @Test("Through an alias, with either privilege of the page") func alias() throws {
    for user in [false, true] {
      let guest = try KernelGuest()
      guest.load("smc_callee", at: 0x30000)
      guest.setPage(0x31000, 0x30000 | (user ? 7 : 3))
      #expect(run(guest, "smc_alias") { $0.registers[3] = 0x31000 } == 3)
      #expect(run(guest, "smc_alias") { $0.registers[3] = 0x31000 } == 4)
    }
  }

  @Test("An instruction on two pages, changed in either", arguments: 1...4) func crossing(byte: UInt64) throws {
    let guest = try KernelGuest()
    let at: UInt64 = 0x41000 - 3
    guest.load("smc_crossing", at: at)
    let result = run(guest, "smc_crossing_main") {
      $0.registers[6] = at
      $0.registers[3] = at + byte
      $0.registers[2] = 0x7F
    }
    #expect(result == 0x0101_0101 & ~(0xFF << (byte * 8 - 8)) | 0x7F << (byte * 8 - 8))
    #expect(guest.cpu[register: 7] == 0x0101_0101)
  }

  @Test("An instruction on two pages, the second remapped") func crossingRemapped() throws {
    let guest = try KernelGuest()
    let at: UInt64 = 0x41000 - 3
    guest.load("smc_crossing", at: at)
    guest.load(Array(GuestProgram("smc_crossing").bytes.dropFirst(3)), at: 0x51000)
    guest.poke(UInt8(0x22), at: 0x51000)
    guest.load("smc_invlpg")
    guest.start {
      $0.registers[6] = 0x51007
      $0.registers[7] = KernelGuest.table + 0x41 * 8
    }
    // The guest calls RBX = 40000, where a jump leads to the crossing instruction, and invalidates only that page.
    var jump: [UInt8] = [0xE9]
    let distance = Int32(at) - 0x40005
    for shift in 0..<4 { jump.append(UInt8(truncatingIfNeeded: distance >> Int32(shift * 8))) }
    guest.load(jump, at: 0x40000)
    #expect(guest.cpu.run() == .halt)
    // INVLPG of 40000 need not drop 41000; a reload of CR3 does.
    guest.start {
      $0.registers[6] = 0x51007
      $0.registers[7] = KernelGuest.table + 0x41 * 8
    }
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 0] == 0x0122_0101)
  }

  @Test("Remapped by MOV CR3 and by INVLPG") func remapped() throws {
    let guest = try KernelGuest()
    guest.load("smc_one", at: 0x40000)
    guest.load("smc_two", at: 0x50000)
    // A second set of tables at 8000...B000 that differs in one page.
    for (index, table) in [KernelGuest.pml4, KernelGuest.pdpt, KernelGuest.directory, KernelGuest.table].enumerated() {
      let copy = 0x8000 + UInt64(index) * 0x1000
      for entry in UInt64(0)..<512 { guest.poke(guest.peek(UInt64.self, at: table + entry * 8), at: copy + entry * 8) }
      if index < 3 { guest.poke(copy + 0x1000 | 7, at: copy) }
    }
    guest.poke(UInt64(0x50007), at: 0xB000 + 0x40 * 8)
    #expect(
      run(guest, "smc_remap") {
        $0.registers[6] = KernelGuest.pml4
        $0.registers[7] = 0x8000
      } == 0x1212)
    #expect(
      run(guest, "smc_invlpg") {
        $0.registers[6] = 0x50007
        $0.registers[7] = KernelGuest.table + 0x40 * 8
      } == 0x12)
  }

  @Test("REP STOS and REP MOVS over code") func repeated() throws {
    let guest = try KernelGuest()
    guest.load("smc_one", at: 0x40000)
    guest.load("smc_two", at: 0x41000)
    #expect(run(guest, "smc_rep") == 0x12)
    #expect(guest.peek(UInt8.self, at: 0x40FFF) == 0xF4)
  }

  @Test("DMA over code") func dma() throws {
    let guest = try KernelGuest()
    guest.load("smc_one", at: 0x40000)
    guest.setPage(0x50000, 0x40007)
    for round in 0..<10 {
      guest.load(round % 2 == 0 ? "smc_one" : "smc_two", at: 0x40000)
      guest.load("smc_call")
      guest.start()
      #expect(guest.cpu.run() == .halt)
      #expect(guest.cpu[register: 0] == (round % 2 == 0 ? 1 : 2))
    }
  }

  @Test("Data beside code: stores do not leave translated code") func mixed() throws {
    let guest = try KernelGuest()
    let begin = clock_gettime_nsec()
    #expect(run(guest, "smc_mixed") == 1_000_000)
    let nanoseconds = (clock_gettime_nsec() - begin) / 1_000_000
    print("a store beside code in its page: \(nanoseconds) ns")
    #expect(guest.cpu.exitCounts[1] < 10)
    #expect(run(guest, "smc_near") == 20_000)
    #expect(guest.translation.counters.discards < 10)
  }
}

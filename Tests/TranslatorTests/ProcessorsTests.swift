// SPDX-License-Identifier: Apache-2.0
// Two vCPUs at the same time: locked operations wherever their operand is, memory order, code that one changes while
// the other executes it, and a code cache that both exhaust.

import Engine
import Foundation
import GuestMemory
import Host
import Synchronization
import TestSupport
import Testing
import X86

@testable import Translator

// The limits of these suites count the wait for a thread of the concurrency runtime too, which may be minutes long.
@Suite("Two vCPUs at the same time", .timeLimit(.minutes(10))) struct ProcessorsTests {
  /// A guest with a second vCPU.
  private final class Pair: @unchecked Sendable {
    let guest: KernelGuest
    let second: TranslatedCPU

    init(fetchDelay: UInt64? = nil, _ edit: (inout TranslationOptions) -> Void = { _ in }) throws {
      guest = try KernelGuest(fetchDelay: fetchDelay, edit: edit)
      second = try guest.translation.makeCPU(1)
    }

    /// Runs both to their HLT, on a thread each; the exits.
    func run(_ first: (inout CPUState) -> Void, _ other: (inout CPUState) -> Void) throws -> (VCPUExit, VCPUExit) {
      guest.start(first)
      var state = KernelGuest.longState()
      state.registers[4] = KernelGuest.stack - 0x8000
      other(&state)
      second.state = state
      let exit = Mutex<VCPUExit>(.kicked)
      let thread = try HostThread(name: "second") { [self] in
        do { try PreparedThread.run { exit.withLock { $0 = second.run() } } } catch {
          Issue.record("no thread: \(error)")
        }
      }
      // They may wait for each other; where others keep the processors busy, each turn may cost a slice of theirs.
      let mine = TestLimit.watched("two vCPUs", seconds: 900) {
        let exit = guest.cpu.run()
        thread.join()
        return exit
      }
      return (mine, exit.withLock { $0 })
    }

    /// Whether both have halted with 0 in RAX.
    func succeeds(_ first: (inout CPUState) -> Void, _ other: (inout CPUState) -> Void) throws -> Bool {
      let exits = try run(first, other)
      #expect(exits.0 == .halt && exits.1 == .halt)
      return guest.cpu[register: 0] == 0 && second[register: 0] == 0
    }
  }

  /// Where the operand is: in a page of data, across two, beside code that is executed, across two cache lines.
  @Test("Locked operations", arguments: [0x2_0000, 0x2_0FFC, 0x1_0038, 0x2_003C] as [UInt64])
  func locked(at address: UInt64) throws {
    let pair = try Pair()
    pair.guest.load("smp_count")
    pair.guest.poke(UInt64(0), at: address)
    // Across cache lines each may cost a trap of the host (SDM volume 3, 18.3.1.6, OS bus-lock detection): 0.1 ms.
    let count: UInt64 = address == 0x2_0000 ? 100_000 : 2000
    func edit(_ state: inout CPUState) {
      state.registers[3] = address
      state.registers[1] = count
    }
    #expect(try pair.succeeds(edit, edit))
    #expect(pair.guest.peek(UInt64.self, at: address) == 2 * 6 * count)
  }

  /// Page tables, descriptors, code, data: whatever the two use goes away under them, and comes back whole.
  @Test("Locked operations while every page goes away again and again", arguments: [0x2_0000, 0x2_0FFC] as [UInt64])
  func evicted(at address: UInt64) throws {
    let pair = try Pair(fetchDelay: 10_000)
    pair.guest.load("smp_count")
    pair.guest.poke(UInt64(0), at: address)
    let count: UInt64 = address == 0x2_0000 ? 100_000 : 2000
    func edit(_ state: inout CPUState) {
      state.registers[3] = address
      state.registers[1] = count
    }
    let isOver = Atomic<Bool>(false)
    let (memory, translation) = (pair.guest.memory, pair.guest.translation)
    let store = try HostThread(name: "store") {
      while !isOver.load(ordering: .acquiring) {
        for page in UInt64(0)..<0xC0 { memory.setFlag(.used, true, at: GuestPhysical(page << 12)) }
        _ = translation.evictUsedPages()
        HostClock.sleep(until: HostClock.after(nanoseconds: 2_000_000))
      }
    }
    defer {
      isOver.store(true, ordering: .releasing)
      store.join()
    }
    var rounds: UInt64 = 0
    repeat {
      rounds += 1
      #expect(try pair.succeeds(edit, edit))
      #expect(pair.guest.peek(UInt64.self, at: address) == 2 * 6 * count * rounds)
    } while memory.storeCounts.awaited < 100 && rounds < 200
    #expect(memory.storeCounts.awaited >= 100 && memory.storeCounts.evicted >= 100)
  }

  @Test("XCHG locks without a prefix", arguments: [0x2_0000, 0x2_0FFE, 0x1_0038] as [UInt64])
  func exchange(at address: UInt64) throws {
    let pair = try Pair()
    pair.guest.load("smp_exchange")
    pair.guest.poke(UInt32(0), at: address)
    let count: UInt64 = address == 0x2_0000 ? 100_000 : 2000
    func edit(_ state: inout CPUState) {
      state.registers[3] = address
      state.registers[6] = 0x2_2000
      state.registers[1] = count
    }
    #expect(try pair.succeeds(edit, edit))
    #expect(pair.guest.peek(UInt64.self, at: 0x2_2000) == 2 * count)
  }

  /// Code of ours executes the guest's x87 instructions: the guest never sees where it lies.
  @Test("A state image being saved shows no host address to the other", arguments: [0, 1] as [UInt64])
  func images(isXSAVE: UInt64) throws {
    let pair = try Pair()
    pair.guest.load("smp_image")
    for offset in [8, 16, 1024] as [UInt64] { pair.guest.poke(UInt64(0), at: 0x2_0000 + offset) }
    func edit(_ number: UInt64) -> (inout CPUState) -> Void {
      { state in
        state.registers[3] = 0x2_0000
        state.registers[1] = 200_000
        state.registers[6] = isXSAVE
        state.registers[7] = number
      }
    }
    #expect(try pair.succeeds(edit(0), edit(1)))
  }

  /// In rounds, and not for long: where both share a processor, each entry of the lock may cost a slice of the host's
  /// scheduler.
  @Test("MFENCE orders a store before a load") func order() throws {
    let pair = try Pair()
    pair.guest.load("smp_peterson")
    let count: UInt64 = 1000
    func edit(_ number: UInt64) -> (inout CPUState) -> Void {
      { state in
        state.registers[3] = 0x2_0000
        state.registers[6] = 0x2_2000
        state.registers[1] = count
        state.registers[7] = number
      }
    }
    let end = HostClock.after(nanoseconds: 10_000_000_000)
    var rounds: UInt64 = 0
    repeat {
      rounds += 1
      try #require(try pair.succeeds(edit(0), edit(1)))
      try #require(pair.guest.peek(UInt64.self, at: 0x2_2000) == 2 * count * rounds)
    } while rounds < 100 && HostClock.monotonic < end
  }

  @Test("A function changed while the other executes it", arguments: [false, true]) func crossModifying(alias: Bool)
    throws
  {
    let pair = try Pair()
    let function: UInt64 = 0x3_0003
    pair.guest.load("smp_caller")
    pair.guest.load("smp_patcher", at: 0x1_1000)
    pair.guest.load("smp_function", at: function)
    if alias { pair.guest.setPage(0x3_1000, 0x3_0007) }
    let rounds: UInt64 = 400
    #expect(
      try pair.succeeds(
        {
          $0.registers[2] = function
          $0.registers[6] = 0x2_0000
          $0.registers[1] = rounds
        },
        {
          $0.rip = 0x1_1000
          $0.registers[2] = alias ? function + 0x1000 : function
          $0.registers[6] = 0x2_0000
          $0.registers[1] = rounds
        }))
    #expect(pair.guest.translation.counters.discards > 100)
  }

  @Test("Functions that one writes and the other calls") func handedOver() throws {
    let pair = try Pair()
    pair.guest.load("smp_reader")
    pair.guest.load("smp_writer", at: 0x1_1000)
    func edit(_ rip: UInt64) -> (inout CPUState) -> Void {
      { state in
        state.rip = rip
        state.registers[2] = 0x4_0000
        state.registers[6] = 0x2_0000
        state.registers[1] = 400
      }
    }
    #expect(try pair.succeeds(edit(0x1_0000), edit(0x1_1000)))
  }

  @Test("A code cache that both exhaust") func exhaustion() throws {
    let pair = try Pair { $0.codeBytes = 128 << 10 }
    let alone = try KernelGuest()
    for guest in [pair.guest, alone] {
      for block in UInt64(0)..<4096 { guest.load("small_block", at: 0x100000 + block * 64) }
      guest.load("many_blocks")
    }
    alone.start()
    #expect(alone.cpu.run() == .halt)
    for _ in 0..<3 {
      let exits = try pair.run({ _ in }, { _ in })
      #expect(exits.0 == .halt && exits.1 == .halt)
      for number in 0..<16 where number != 4 {
        #expect(pair.guest.cpu.state.registers[number] == alone.cpu.state.registers[number])
        #expect(pair.second.state.registers[number] == alone.cpu.state.registers[number])
      }
    }
    #expect(pair.guest.translation.counters.flushes > 30)
  }
}

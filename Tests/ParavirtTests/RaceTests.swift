// SPDX-License-Identifier: Apache-2.0
// Structures that one thread writes while others read them, as a guest's vCPUs do: no reader ever gets one half of an
// update and one of another, an odd version is never left behind, and time does not go backwards from one vCPU to
// another.

import Foundation
import Paravirt
import Synchronization
import Testing
import X86

/// Clocks that belong together: the monotonic one always shows twice what the counter does.
private final class PairedTime: GuestTimeSource {
  let ticks = Atomic<UInt64>(0)
  func guestTimestamp() -> UInt64 { ticks.add(1, ordering: .sequentiallyConsistent).newValue }
  func monotonicNanoseconds() -> UInt64 { 2 &* ticks.load(ordering: .sequentiallyConsistent) }
  func wallNanoseconds() -> Int64 { 0 }
}

/// Runs a body on threads of their own, which begin together, and waits for all of them.
private func together(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
  let (begun, done) = (DispatchGroup(), DispatchGroup())
  for _ in 0..<count { begun.enter() }
  for number in 0..<count {
    done.enter()
    Thread {
      begun.leave()
      begun.wait()
      body(number)
      done.leave()
    }.start()
  }
  done.wait()
}

/// Counters of several threads.
private final class Tally: Sendable {
  let first = Atomic<Int>(0)
  let second = Atomic<Int>(0)
  let isDone = Atomic<Bool>(false)
  let last = Atomic<UInt64>(0)
}

@Suite(.serialized) struct RaceTests {
  /// What a guest reads: nil if it must try again.
  private func read(_ memory: TestMemory, _ address: UInt64) -> TimeStructure? {
    guard let before = memory.loadWord(at: address), before & 1 == 0,
      let structure = TimeStructure(memory, address), structure.version == before,
      memory.loadWord(at: address) == before
    else { return nil }
    return structure
  }

  @Test func noReaderSeesHalfAnUpdate() throws {
    let memory = TestMemory(count: 64, keepsHistory: false)
    let time = PairedTime()
    let clock = KVMClock(
      counter: try #require(TimestampCounter(kilohertz: 1_000_000)), isTimestampConstant: false, source: time)
    let tally = Tally()
    together(3) { number in
      if number == 0 {
        var registers = KVMModelSpecificRegisters(features: .standard, clock: clock, memory: memory, cpu: 0)
        _ = registers.write(0x4b56_4d01, 1)
        var rounds = 0
        while rounds < 5000 || (tally.first.load(ordering: .relaxed) < 100 && rounds < 20_000_000) {
          registers.updateTime()
          rounds += 1
        }
        tally.isDone.store(true, ordering: .releasing)
        return
      }
      while !tally.isDone.load(ordering: .acquiring) {
        guard let structure = self.read(memory, 0), structure.version != 0 else { continue }
        tally.first.add(1, ordering: .relaxed)
        if structure.systemTime &+ 2 != 2 &* structure.timestamp { tally.second.add(1, ordering: .relaxed) }
      }
    }
    #expect(tally.second.load(ordering: .relaxed) == 0 && tally.first.load(ordering: .relaxed) >= 100)
    #expect(try #require(memory.loadWord(at: 0)) & 1 == 0)
  }

  @Test func timeDoesNotGoBackwardsAcrossCPUs() throws {
    let memory = TestMemory(count: 256, keepsHistory: false)
    let time = PairedTime()
    let clock = KVMClock(
      counter: try #require(TimestampCounter(kilohertz: 2_20_000_000)), isTimestampConstant: true, source: time)
    let tally = Tally()
    together(4) { number in
      let address = UInt64(number) * 64
      var registers = KVMModelSpecificRegisters(features: .standard, clock: clock, memory: memory, cpu: UInt32(number))
      _ = registers.write(0x4b56_4d01, address | 1)
      for round in 0..<3000 {
        if round % 7 == number { clock.guestWasStopped() }
        registers.synchronize()
        // Any vCPU's structure, with this one's counter: what the stable flag promises.
        guard let structure = self.read(memory, UInt64(round & 3) * 64), structure.multiplier != 0 else { continue }
        let before = tally.last.load(ordering: .sequentiallyConsistent)
        let now = structure.nanoseconds(at: time.guestTimestamp())
        if now < before || structure.flags & 1 == 0 { tally.second.add(1, ordering: .relaxed) }
        _ = tally.last.max(now, ordering: .sequentiallyConsistent)
      }
    }
    #expect(tally.second.load(ordering: .relaxed) == 0 && tally.last.load(ordering: .relaxed) > 0)
  }

  @Test func aFlushIsEitherLeftOrInterruptedFor() throws {
    // What Linux does for a vCPU that it thinks is preempted: compare and exchange 1 for 3, and an interrupt if that
    // fails.
    let memory = TestMemory(count: 64, keepsHistory: false)
    let tally = Tally()
    together(2) { number in
      if number == 0 {
        var steal = KVMStealTime(memory: memory)
        _ = steal.write(1, total: 0)
        var rounds = 0
        while rounds < 20_000 || (tally.first.load(ordering: .relaxed) < 20 && rounds < 20_000_000) {
          steal.preempt()
          if steal.resume(total: 0) { tally.second.add(1, ordering: .relaxed) }
          rounds += 1
        }
        tally.isDone.store(true, ordering: .sequentiallyConsistent)
      } else {
        while !tally.isDone.load(ordering: .sequentiallyConsistent) {
          let isLeft = memory.bytes.withLock { bytes in
            guard bytes[16] == 1 else { return false }
            bytes[16] = 3
            return true
          }
          if isLeft { tally.first.add(1, ordering: .relaxed) }
        }
      }
    }
    #expect(tally.first.load(ordering: .relaxed) == tally.second.load(ordering: .relaxed))
    #expect(tally.first.load(ordering: .relaxed) >= 20)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Garbage for the whole interface: random hypercalls, register writes and shared memory, on every path that a run loop
// takes. Nothing may trap, nothing may be stored outside RAM or while it is turned off, and no version may be left odd.
// LGUEST_FUZZ_SECONDS makes it run longer.

import Foundation
import Paravirt
import TestSupport
import Testing
import X86

private struct Generator: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var value = state
    value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
    return value ^ value >> 31
  }

  /// Numbers as guests have them: small ones, addresses at and around RAM, powers of two, and noise.
  mutating func value() -> UInt64 {
    switch next() % 8 {
    case 0: next() % 32
    case 1, 2: next() % 0x3100
    case 3: next() % 0x3000 & ~63 | next() % 16
    case 4: 1 << (next() % 64)
    case 5: 0 &- next() % 0x2000
    case 6: next() & 0xFFFF_FFFF
    default: next()
    }
  }
}

@Suite("Garbage") struct FuzzTests {
  static let seconds = ProcessInfo.processInfo.environment["LGUEST_FUZZ_SECONDS"].flatMap(Double.init) ?? 2

  @Test(arguments: [1, 2] as [UInt64]) func nothingBreaks(seed: UInt64) throws {
    let seed = TestSeed.of("garbage for the interface", fixed: seed) ^ (TestSeed.given == nil ? 0 : seed << 32)
    var random = Generator(state: seed)
    let end = ContinuousClock.now + .seconds(Self.seconds / 2)
    var rounds = 0
    while ContinuousClock.now < end {
      rounds += 1
      let time = TestTime(
        timestamp: random.next(), monotonic: random.next(), wall: Int64(truncatingIfNeeded: random.next()))
      let features =
        rounds % 2 == 0 ? KVMFeatures.implemented : KVMFeatures(rawValue: UInt32(truncatingIfNeeded: random.next()))
      let memory = TestMemory()
      let clock = KVMClock(
        counter: try #require(TimestampCounter(kilohertz: UInt32(truncatingIfNeeded: random.next()) | 1)),
        isTimestampConstant: random.next() & 1 == 0, source: time)
      let cpu = TestCPU()
      let calls = KVMHypercalls(features: features, clock: clock, memory: memory, machine: TestMachine(count: 8))
      var registers = (0..<2).map {
        KVMModelSpecificRegisters(features: features, clock: clock, memory: memory, cpu: $0)
      }
      for _ in 0..<200 {
        let number = Int(random.next() & 1)
        switch random.next() % 8 {
        case 0, 1:
          for register in 0..<16 { cpu.registers[register] = random.value() }
          if random.next() & 1 == 0 { cpu.registers[0] = random.next() % 16 }
          cpu.currentPrivilegeLevel = UInt8(random.next() % 4) & UInt8(random.next() % 4)
          (cpu.isIn64BitMode, cpu.isLongModeActive) = (random.next() & 1 == 0, random.next() & 1 == 0)
          let before = cpu.registers
          calls.perform(on: cpu, timestampOffset: random.value())
          if cpu.registers[1...] != before[1...] { Issue.record("seed \(seed): a call changed more than RAX") }
        case 2, 3, 4:
          let index: UInt32 =
            random.next() & 7 == 0 ? 0x11 + UInt32(random.next() & 1) : 0x4b56_4d00 + UInt32(random.next() % 10)
          let value = random.value()
          if registers[number].write(index, value, waited: random.next()) {
            if registers[number].read(index) == nil { Issue.record("seed \(seed): \(index) cannot be read") }
          }
        case 5:
          let (address, value) = (random.next() % 0x3000, UInt8(truncatingIfNeeded: random.next()))
          memory.store(value, at: address)
        case 6:
          time.set(timestamp: random.next())
          time.set(monotonic: random.next())
          if random.next() & 7 == 0 { clock.guestWasStopped() }
          if random.next() & 7 == 0 { registers[number].setTimestampOffset(random.next()) }
          registers[number].synchronize()
        default: runLoop(&registers[number], &random)
        }
      }
      for index in registers.indices {
        registers[index].reset()
        let count = memory.storeCount
        runLoop(&registers[index], &random)
        registers[index].updateTime()
        if memory.storeCount != count { Issue.record("seed \(seed), round \(rounds): a store after reset") }
      }
    }
    #expect(rounds > 1)
  }

  /// What a machine does between two stays in the guest.
  private func runLoop(_ registers: inout KVMModelSpecificRegisters<TestMemory>, _ random: inout Generator) {
    registers.stealTime.preempt()
    _ = registers.stealTime.resume(total: random.next())
    registers.stealTime.update(total: random.next())
    registers.endOfInterrupt.offer()
    _ = registers.endOfInterrupt.settle(withdrawing: random.next() & 1 == 0)
    if registers.asyncPageFault.canBegin(privilegeLevel: UInt8(random.next() & 3), canInterrupt: true),
      let token = registers.asyncPageFault.begin(), random.next() & 3 != 0
    {
      registers.asyncPageFault.complete(token)
    }
    registers.asyncPageFault.complete(UInt32(truncatingIfNeeded: random.next()))
    var taken = 0
    while registers.asyncPageFault.takeReady() != nil, taken < 100_000 {
      registers.asyncPageFault.acknowledge(random.next())
      taken += 1
    }
    #expect(taken < 100_000)
  }
}

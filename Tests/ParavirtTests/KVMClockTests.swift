// SPDX-License-Identifier: Apache-2.0
// kvmclock from the guest's side: what it reads, when the structure is written, and what never happens to it.

import Paravirt
import Saving
import Synchronization
import Testing
import X86

private let systemTime: UInt32 = 0x4b56_4d01
private let wallClock: UInt32 = 0x4b56_4d00

private final class Setup {
  let memory = TestMemory()
  let time: TestTime
  let clock: KVMClock
  var registers: KVMModelSpecificRegisters<TestMemory>

  init(
    kilohertz: UInt32 = 2_500_000, isConstant: Bool = true, features: KVMFeatures = .standard,
    time: TestTime = TestTime(timestamp: 1000, monotonic: 77), nanoseconds: UInt64 = 0
  ) throws {
    self.time = time
    clock = KVMClock(
      counter: try #require(TimestampCounter(kilohertz: kilohertz)), isTimestampConstant: isConstant, source: time,
      nanoseconds: nanoseconds)
    registers = KVMModelSpecificRegisters(features: features, clock: clock, memory: memory, cpu: 0)
  }

  func write(_ index: UInt32, _ value: UInt64) -> Bool { registers.write(index, value) }

  func structure(_ address: UInt64 = 0x100) throws -> TimeStructure { try #require(TimeStructure(memory, address)) }
}

@Suite struct KVMClockTests {
  @Test(arguments: [1_000_000, 2_000_000, 2_500_000, 2_595_192, 3_000_000, 100_000] as [UInt32])
  func theGuestReadsTheTime(kilohertz: UInt32) throws {
    let setup = try Setup(kilohertz: kilohertz)
    #expect(setup.write(systemTime, 0x101))
    let structure = try setup.structure()
    #expect(structure.version & 1 == 0 && structure.multiplier != 0)
    #expect(structure.flags == 1)
    #expect(structure.kilohertz == UInt64(kilohertz) || kilohertz == 2_595_192)
    var last: UInt64 = 0
    for milliseconds: UInt64 in [0, 1, 2, 500, 1000, 60_000] {
      let tsc = 1000 + milliseconds * UInt64(kilohertz)
      setup.time.set(timestamp: tsc)
      let read = structure.nanoseconds(at: tsc)
      #expect(read == setup.clock.nanoseconds())
      let exact = milliseconds * 1_000_000
      // A nanosecond, and what the multiplier's truncation costs.
      #expect(read <= exact && exact - read <= 1 + exact >> 31)
      #expect(read >= last)
      last = read
    }
  }

  @Test func isFilledBeforeTheNextInstructionAndNeverTorn() throws {
    let setup = try Setup()
    #expect(setup.write(systemTime, 0x101))
    let history = setup.memory.history.withLock { $0 }
    let versions = history.map { $0[0x100] }
    #expect(versions.first == 1 && versions.last == 2)
    #expect(versions.dropLast().allSatisfy { $0 == 1 })
    // The fields differ from the previous store only while the version is odd.
    for (before, after) in zip(history, history.dropFirst()) where before[0x104..<0x120] != after[0x104..<0x120] {
      #expect(after[0x100] & 1 == 1)
    }
    setup.registers.updateTime()
    #expect(try setup.structure().version == 4)
  }

  @Test func anOddVersionIsRepaired() throws {
    let setup = try Setup()
    for (found, next) in [(7, 10), (0xFFFF_FFFF, 2), (0xFFFF_FFFE, 0)] as [(UInt32, UInt32)] {
      _ = setup.memory.store(found, at: 0x100)
      #expect(setup.write(systemTime, 0x101))
      #expect(try setup.structure().version & 1 == 0)
      #expect(try setup.structure().version == next)
    }
  }

  @Test func oldRegistersShareTheStorageAndCostStability() throws {
    let setup = try Setup()
    #expect(setup.write(0x12, 0x101))
    #expect(setup.registers.read(0x12) == 0x101 && setup.registers.read(systemTime) == 0x101)
    #expect(try setup.structure().flags == 0)
    #expect(setup.write(systemTime, 0x101))
    #expect(try setup.structure().flags == 1)
    #expect(setup.write(0x11, 0x400))
    #expect(setup.registers.read(wallClock) == 0x400)
  }

  @Test func oldRegistersOnOtherCPUsDoNotCostStability() throws {
    let setup = try Setup()
    var second = KVMModelSpecificRegisters(
      features: .standard, clock: setup.clock, memory: setup.memory, cpu: 1)
    let accepted = second.write(0x12, 0x201)
    #expect(accepted)
    #expect(try setup.structure(0x200).flags == 1)
  }

  @Test(
    arguments: [
      0xFE2, 0xFF0 | 1, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_F001, 0x3001, 0x10_0000_0001,
    ] as [UInt64])
  func badAddressesAreAcceptedAndUnused(value: UInt64) throws {
    let setup = try Setup()
    #expect(setup.write(systemTime, value | 1))
    #expect(setup.registers.read(systemTime) == value | 1)
    setup.registers.updateTime()
    #expect(setup.memory.storeCount == 0)
  }

  @Test func anyAlignmentInsideAPageWorks() throws {
    let setup = try Setup()
    #expect(setup.write(systemTime, 0xFE0 | 1))
    #expect(try setup.structure(0xFE0).version == 2)
    #expect(setup.write(systemTime, 0x1003))
    #expect(try setup.structure(0x1002).version == 2)
  }

  @Test func disablingAndMovingStopTheWriting() throws {
    let setup = try Setup()
    #expect(setup.write(systemTime, 0x101))
    #expect(setup.write(systemTime, 0x201))
    let first = try setup.structure(0x100)
    setup.registers.updateTime()
    #expect(try setup.structure(0x100) == first)
    #expect(setup.write(systemTime, 0x200))
    let count = setup.memory.storeCount
    setup.registers.updateTime()
    #expect(setup.memory.storeCount == count)
    #expect(setup.write(systemTime, 0x201))
    setup.registers.reset()
    let afterReset = setup.memory.storeCount
    setup.registers.updateTime()
    setup.clock.guestWasStopped()
    setup.registers.synchronize()
    #expect(setup.memory.storeCount == afterReset)
    #expect(setup.registers.read(systemTime) == 0)
  }

  @Test func aStoppedGuestIsToldOnceAndForgetsItself() throws {
    let setup = try Setup()
    setup.clock.guestWasStopped()
    #expect(setup.write(systemTime, 0x101))
    #expect(try setup.structure().flags == 1)  // The stop was before the structure.
    setup.clock.guestWasStopped()
    setup.registers.synchronize()
    #expect(try setup.structure().flags == 3)
    setup.registers.updateTime()
    #expect(try setup.structure().flags == 3)  // Kept until the guest clears it.
    setup.memory.bytes.withLock { $0[0x11D] = 1 }
    setup.registers.updateTime()
    setup.registers.synchronize()
    #expect(try setup.structure().flags == 1)
    let count = setup.memory.storeCount
    setup.registers.synchronize()
    #expect(setup.memory.storeCount == count)
  }

  @Test func vCPUsShareOneMoment() throws {
    let setup = try Setup()
    #expect(setup.write(systemTime, 0x101))
    setup.time.set(timestamp: 999_999)
    var second = KVMModelSpecificRegisters(
      features: .standard, clock: setup.clock, memory: setup.memory, cpu: 1)
    let accepted = second.write(systemTime, 0x201)
    #expect(accepted)
    #expect(try setup.structure(0x100) == setup.structure(0x200))
    // Now one of them gets a TSC of its own: it still reads the same time, and neither is stable.
    second.setTimestampOffset(5000)
    setup.registers.synchronize()
    let (one, two) = try (setup.structure(0x100), setup.structure(0x200))
    #expect(one.flags == 0 && two.flags == 0)
    #expect(one.nanoseconds(at: 1_000_000) == two.nanoseconds(at: 1_005_000))
  }

  @Test func anInconstantCounterIsNotStable() throws {
    let setup = try Setup(isConstant: false)
    #expect(setup.write(systemTime, 0x101))
    #expect(try setup.structure().flags == 0)
    setup.time.set(timestamp: 5000)
    setup.time.set(monotonic: 1077)
    setup.registers.updateTime()
    let structure = try setup.structure()
    #expect(structure.timestamp == 5000 && structure.systemTime == 1000)
    setup.time.set(monotonic: 977)
    setup.registers.updateTime()
    #expect(try setup.structure().systemTime == 1000, "time must not step back")
  }

  @Test func aRestoredClockGoesOn() throws {
    for constant in [true, false] {
      let setup = try Setup(isConstant: constant, nanoseconds: 5_000_000_000)
      #expect(setup.clock.nanoseconds() == 5_000_000_000)
      #expect(setup.write(systemTime, 0x101))
      #expect(try setup.structure().nanoseconds(at: 1000) == 5_000_000_000)
    }
  }

  @Test func theWallClockIsTheTimeAtClockZero() throws {
    let time = TestTime(timestamp: 0, wall: 1_700_000_000_123_456_789)
    let setup = try Setup(kilohertz: 1_000_000, time: time)
    time.set(timestamp: 3_000_000_000)
    #expect(setup.write(wallClock, 0xFFA))  // Across a page, unaligned.
    #expect(setup.memory.loadWord(at: 0xFFA) == 2)
    #expect(setup.memory.loadWord(at: 0xFFE) == 1_699_999_997)
    #expect(setup.memory.loadWord(at: 0x1002) == 123_456_789)
    let versions = setup.memory.history.withLock { $0.map { $0[0xFFA] } }
    #expect(versions == [1, 1, 1, 2])
  }

  @Test(arguments: [0, 0x2FF5, 0x3000, UInt64.max, UInt64.max - 11] as [UInt64])
  func wallClockAddressesThatAreNotRAM(address: UInt64) throws {
    let setup = try Setup()
    #expect(setup.write(wallClock, address))
    #expect(setup.registers.read(wallClock) == address)
    #expect(setup.memory.storeCount == 0)
    #expect(setup.write(wallClock, 0x2FF4 | 0))
    #expect(setup.memory.storeCount == 4)
  }

  @Test func bitZeroOfTheWallClockIsAddress() throws {
    let setup = try Setup()
    #expect(setup.write(wallClock, 0x101))
    #expect(setup.memory.loadWord(at: 0x101) == 2)
    setup.registers.reset()
    #expect(setup.registers.read(wallClock) == 0x101)
  }

  @Test func onlyOfferedRegistersExist() throws {
    let features: [UInt32: KVMFeatures] = [
      0x11: .clockSource, 0x12: .clockSource, 0x4b56_4d00: .clockSource2, 0x4b56_4d01: .clockSource2,
      0x4b56_4d02: .asyncPageFault, 0x4b56_4d03: .stealTime, 0x4b56_4d04: .endOfInterrupt, 0x4b56_4d05: .pollControl,
      0x4b56_4d06: .asyncPageFaultInterrupt, 0x4b56_4d07: .asyncPageFaultInterrupt, 0x4b56_4d08: .migrationControl,
    ]
    for index: UInt32 in Array(0x4b56_4d00...0x4b56_4dff) + [0x10, 0x11, 0x12, 0x13, 0x8765_5678] {
      let offers = (0..<32).map { KVMFeatures(rawValue: 1 << $0) } + [[], .standard, .implemented]
      for offered in offers {
        let setup = try Setup(features: offered)
        let exists = features[index].map { offered.contains($0) } ?? false
        #expect((setup.registers.read(index) != nil) == exists)
        #expect(setup.write(index, 0) == exists)
      }
    }
    typealias Registers = KVMModelSpecificRegisters<TestMemory>
    #expect(Registers.owns(0x11) && Registers.owns(0x12) && Registers.owns(0x4b56_4dff))
    #expect(!Registers.owns(0x10) && !Registers.owns(0x4b56_4e00) && !Registers.owns(0x8765_5678))
  }
}

@Suite struct MovedClockTests {
  @Test(arguments: [true, false]) func aRestoredClockGoesOn(isConstant: Bool) throws {
    let setup = try Setup(isConstant: isConstant, time: TestTime(timestamp: 5_000_000, monotonic: 10_000))
    #expect(setup.write(wallClock, 0x200) && setup.write(systemTime, 0x101))
    setup.time.set(timestamp: 5_000_000 + 2_500_000_000)
    setup.time.set(monotonic: 10_000 + 1_000_000_000)
    let before = setup.clock.nanoseconds()
    var saved = setup.clock.saved
    var saving = StateArchive(savingAt: 0)
    try saved.transfer(&saving)
    var again = SavedKVMClock()
    var restoring = StateArchive(restoring: saving.bytes, at: 99)
    try again.transfer(&restoring)
    try restoring.finish()
    #expect(again == saved && saved.nanoseconds == before)
    // Another host, whose clocks began elsewhere; the TSC goes on from the saved one.
    let time = TestTime(timestamp: saved.timestamp + 1000, monotonic: 3)
    let clock = KVMClock(counter: setup.clock.counter, isTimestampConstant: isConstant, source: time, restoring: again)
    #expect(clock.nanoseconds() >= before && clock.nanoseconds() < before + 1000)
    #expect(clock.wallClockRegister == 0x200)
    var registers = KVMModelSpecificRegisters(features: .standard, clock: clock, memory: setup.memory, cpu: 0)
    var state = StateArchive(savingAt: 0)
    try setup.registers.transfer(&state)
    var restored = StateArchive(restoring: state.bytes, at: 0)
    try registers.transfer(&restored)
    #expect(registers.read(systemTime) == 0x101)
    clock.guestWasStopped()
    registers.synchronize()
    #expect(try setup.structure().flags & 2 == 2)
    #expect(try setup.structure().nanoseconds(at: time.guestTimestamp()) >= before)
    time.set(timestamp: saved.timestamp + 2_500_000)
    time.set(monotonic: 3 + 1_000_000)
    #expect(clock.nanoseconds() >= before + 900_000 && clock.nanoseconds() <= before + 1_100_000)
  }
}

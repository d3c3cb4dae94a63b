// SPDX-License-Identifier: Apache-2.0
// The target of KVM's interface: hypercalls, register writes and shared memory, on every path that a run loop takes.
// Nothing may be stored outside RAM or while it is turned off, and a call changes no register but RAX.

import Paravirt
import Saving
import ScriptedEngine
import Synchronization
import X86

/// The whole interface, on a machine of two vCPUs.
enum Hypercalls {
  typealias Registers = KVMModelSpecificRegisters<TestMemory>

  private static func value(_ input: inout FuzzInput) -> UInt64 {
    switch input.byte() % 4 {
    case 0: UInt64(input.word(UInt16.self)) % 0x3100
    case 1: UInt64(input.word(UInt16.self)) % 0x3000 & ~63 | UInt64(input.byte() & 15)
    default: input.value(addresses: 0x3100)
    }
  }

  static func run(_ input: inout FuzzInput) throws {
    let time = TestTime(
      timestamp: input.value(), monotonic: input.value(), wall: Int64(truncatingIfNeeded: input.value()))
    let features =
      input.chance(2) ? KVMFeatures(rawValue: input.word(UInt32.self)) : KVMFeatures.implemented
    let memory = TestMemory(keepsHistory: false)
    guard let counter = TimestampCounter(kilohertz: input.word(UInt32.self) | 1) else { return }
    let clock = KVMClock(counter: counter, isTimestampConstant: input.chance(2), source: time)
    let cpu = ScriptedCPU()
    let interfaces: [KVMInterface] = [.modern, .refactored, .year2007]
    let calls = KVMHypercalls(
      features: features, clock: clock, memory: memory, machine: TestMachine(count: 8),
      interface: input.choose(interfaces))
    var registers = (0..<2).map { Registers(features: features, clock: clock, memory: memory, cpu: UInt32($0)) }
    repeat {
      let number = input.below(2)
      switch input.byte() % 8 {
      case 0, 1:
        for register in [0, 1, 2, 3, 6, 7, 8] { cpu.registers[register] = value(&input) }
        if input.chance(2) { cpu.registers[0] = UInt64(input.byte() & 15) }
        cpu.currentPrivilegeLevel = input.chance(3) ? input.byte() & 3 : 0
        cpu.isIn64BitMode = input.chance(2)
        cpu.isLongModeActive = cpu.isIn64BitMode || input.chance(2)
        let before = cpu.registers
        calls.perform(on: cpu, timestampOffset: value(&input))
        if cpu.registers[1...] != before[1...] { throw FuzzFailure("a call changes more than RAX") }
      case 2, 3, 4:
        let index: UInt32 = input.chance(8) ? 0x11 + UInt32(input.byte() & 1) : 0x4B56_4D00 + UInt32(input.byte() % 10)
        let value = value(&input)
        if registers[number].write(index, value, waited: input.value()), registers[number].read(index) == nil {
          throw FuzzFailure("register \(String(index, radix: 16)) cannot be read")
        }
      case 5: memory.store(input.byte(), at: UInt64(input.word(UInt16.self)) % 0x3000)
      case 6:
        time.set(timestamp: input.value())
        time.set(monotonic: input.value())
        if input.chance(8) { clock.guestWasStopped() }
        if input.chance(8) { registers[number].setTimestampOffset(input.value()) }
        registers[number].synchronize()
      default: try runLoop(&registers[number], &input)
      }
    } while !input.isOver
    try checkSaving(&registers[0], features, clock, memory)
    for index in registers.indices {
      registers[index].reset()
      let before = memory.bytes.withLock { $0 }
      try runLoop(&registers[index], &input)
      registers[index].updateTime()
      if memory.bytes.withLock({ $0 }) != before { throw FuzzFailure("a store after the reset") }
    }
  }

  /// What a machine does between two stays in the guest.
  private static func runLoop(_ registers: inout Registers, _ input: inout FuzzInput) throws {
    registers.stealTime.preempt()
    _ = registers.stealTime.resume(total: input.value())
    registers.stealTime.update(total: input.value())
    registers.endOfInterrupt.offer()
    _ = registers.endOfInterrupt.settle(withdrawing: input.chance(2))
    if registers.asyncPageFault.canBegin(privilegeLevel: input.byte() & 3, canInterrupt: true),
      let token = registers.asyncPageFault.begin(), !input.chance(4)
    {
      registers.asyncPageFault.complete(token)
    }
    registers.asyncPageFault.complete(input.word(UInt32.self))
    var taken = 0
    while registers.asyncPageFault.takeReady() != nil, taken < 100_000 {
      registers.asyncPageFault.acknowledge(input.value())
      taken += 1
    }
    if taken == 100_000 { throw FuzzFailure("pages are ready without end") }
  }

  /// What a guest comes to can be saved, and restored over the same memory. Pages that were on their way have come then;
  /// from there on it is saved as the same bytes.
  private static func checkSaving(
    _ registers: inout Registers, _ features: KVMFeatures, _ clock: KVMClock, _ memory: TestMemory
  ) throws {
    guard registers.mayMigrate else { return }
    var archive = StateArchive(savingAt: 0)
    try registers.transfer(&archive)
    var saved = archive.bytes
    for round in 0..<2 {
      var other = Registers(features: features, clock: clock, memory: memory, cpu: 0)
      var restoring = StateArchive(restoring: saved, at: 0, listsFields: true)
      do throws(SavedStateError) {
        try other.transfer(&restoring)
        try restoring.finish()
      } catch { throw FuzzFailure("KVM's registers cannot be restored: \(error)") }
      archive = StateArchive(savingAt: 0)
      try other.transfer(&archive)
      if round > 0, let place = zip(archive.bytes, saved).enumerated().first(where: { $1.0 != $1.1 })?.offset {
        let field = restoring.fields?.last { $0.offset <= place }?.name ?? ""
        throw FuzzFailure("KVM's registers are saved otherwise after they were restored: \(field)")
      }
      saved = archive.bytes
    }
  }
}

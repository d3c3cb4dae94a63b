// SPDX-License-Identifier: Apache-2.0
// What a guest can do wrong, one case after the other, and what has to come of it: the rules of docs/kvm-paravirt.md,
// section 7, as far as they can be told without a CPU. Those of instructions are in
// TranslatorTests/HypercallRuleTests.swift and HypercallInstructionTests.swift.

import Paravirt
import ScriptedEngine
import Synchronization
import Testing
import X86

/// One vCPU with everything offered, 12 KiB of RAM and 8 CPUs to call.
private final class Setup {
  let memory = TestMemory()
  let machine = TestMachine(count: 8)
  let cpu = ScriptedCPU()
  let time = TestTime(timestamp: 500, wall: 1_700_000_000_000_000_042)
  let clock: KVMClock
  let calls: KVMHypercalls<TestMemory, TestMachine>
  var registers: KVMModelSpecificRegisters<TestMemory>

  init(_ features: KVMFeatures = .implemented) throws {
    clock = KVMClock(
      counter: try #require(TimestampCounter(kilohertz: 1_000_000)), isTimestampConstant: true, source: time)
    calls = KVMHypercalls(features: features, clock: clock, memory: memory, machine: machine)
    registers = KVMModelSpecificRegisters(features: features, clock: clock, memory: memory, cpu: 0)
  }

  func call(
    _ number: UInt64, _ a0: UInt64 = 0, _ a1: UInt64 = 0, _ a2: UInt64 = 0, _ a3: UInt64 = 0
  ) -> Int64 {
    (cpu[register: 0], cpu[register: 3], cpu[register: 1]) = (number, a0, a1)
    (cpu[register: 2], cpu[register: 6]) = (a2, a3)
    calls.perform(on: cpu)
    return Int64(bitPattern: cpu[register: 0])
  }

  func write(_ index: UInt32, _ value: UInt64) -> Bool { registers.write(0x4b56_4d00 + index, value) }
  func read(_ index: UInt32) -> UInt64? { registers.read(0x4b56_4d00 + index) }
}

private struct Rule: CustomTestStringConvertible, Sendable {
  let testDescription: String
  let check: @Sendable () throws -> Void

  init(_ name: String, _ check: @escaping @Sendable () throws -> Void) {
    testDescription = name
    self.check = check
  }
}

private let instructionRules = [
  Rule("2: the register of 2007 does not exist today") {
    let setup = try Setup()
    #expect(setup.registers.read(0x8765_5678) == nil && !setup.registers.write(0x8765_5678, 0x1000))
  },
  Rule("3: user code gets -1, whatever it asks") {
    let setup = try Setup()
    for level: UInt8 in 1...3 {
      setup.cpu.currentPrivilegeLevel = level
      for number: UInt64 in [1, 5, 9, 4711] { #expect(setup.call(number) == -1) }
    }
  },
  Rule("6: a number with a high half is another number in 64-bit code, and the same in 32-bit code") {
    let setup = try Setup()
    #expect(setup.call(1 << 32 | 1) == -1000)
    setup.cpu.isIn64BitMode = false
    #expect(setup.call(1 << 32 | 1) == 0)
    #expect(setup.call(4711) == 0xFFFF_FC18)
  },
]

private let hypercallRules = [
  Rule("15: calls to nobody are answered 0 and not counted") {
    let setup = try Setup()
    #expect(setup.call(5, 0, 99) == 0 && setup.call(11, 99) == 0)
    #expect(setup.call(10, 1, 0, 99, 0xFB) == 0)
    #expect(setup.call(10, 1, 0, 0, 0xFB) == 1)
  },
  Rule("17: a logical destination or a shorthand is -22; a half that runs past the last id reaches nobody") {
    let setup = try Setup()
    for bit: UInt64 in [11, 18, 19] { #expect(setup.call(10, 1, 0, 0, 0xFB | 1 << bit) == -22) }
    #expect(setup.call(10, 0xFFFF_FFFF, 0, 0xFFFF_FFFF, 0) == 0)
    #expect(setup.call(10, .max, 0, 0xFFFF_FFF0, 0xFB) == 0)
    #expect(setup.call(10, 1, 0, 0, 0) == 1)
  },
  Rule("17: the end of a level-triggered interrupt is delivered to nobody") {
    let setup = try Setup()
    #expect(setup.call(10, 1, 0, 0, 0x80FB) == 0)
    #expect(setup.call(10, 1, 0, 0, 0xC0FB) == 1)
  },
  Rule("18: an empty bitmap is 0, bits beyond the last CPU are ignored, 32-bit halves are 32 wide") {
    let setup = try Setup()
    #expect(setup.call(10, 0, 0, 0, 0xFB) == 0)
    #expect(setup.call(10, .max, .max, 0, 0xFB) == 8)
    setup.cpu.isIn64BitMode = false
    setup.machine.events = []
    #expect(setup.call(10, 0x8000_0000, 1, 0xFFFF_FFE4, 0xFB) == 1)
    #expect(setup.machine.events == [.send(0xFB, 4)])
  },
  Rule("19: clock pairing: another clock is -95, no RAM is -14, any alignment will do") {
    let setup = try Setup()
    #expect(setup.call(9, 0x100, 1) == -95)
    for address: UInt64 in [0x2FC1, 0x3000, .max, .max - 62] { #expect(setup.call(9, address) == -14) }
    for address: UInt64 in [0x101, 0xFE1] { #expect(setup.call(9, address) == 0) }
  },
  Rule("20: map range: -22 for nonsense, 0 where offered, -1000 where not") {
    let setup = try Setup()
    let nonsense: [(UInt64, UInt64, UInt64)] = [
      (1, 1, 0), (0xFFF, 1, 0), (0x1000, 0, 0), (0x1000, .max, 0), (0xFFFF_FFFF_FFFF_F000, .max, 0), (0, 1, 0x20),
      (0, 1, .max),
    ]
    for (address, pages, attributes) in nonsense { #expect(setup.call(12, address, pages, attributes) == -22) }
    #expect(setup.call(12, 0x1000, 2, 0x12) == 0)
    let usual = try Setup(.standard)
    #expect(usual.call(12, 0x1000, 2, 0x12) == -1000)
  },
  Rule("21: batched page-table updates do not exist") {
    let setup = try Setup()
    #expect(setup.call(2, 24, 0x1000) == -1000)
  },
]

private let registerRules = [
  Rule("24: a register whose feature is not offered faults") {
    let setup = try Setup([])
    for index in UInt32(0)...0xFF { #expect(setup.read(index) == nil && !setup.write(index, 0)) }
  },
  Rule("25: system time: bad addresses are read back and never written to; off and moved it stops at once") {
    let setup = try Setup()
    for value: UInt64 in [0x3001, 0xFF1, 0xFE3, .max] {
      #expect(setup.write(1, value) && setup.read(1) == value)
    }
    #expect(setup.memory.storeCount == 0)
    #expect(setup.write(1, 0x101) && setup.write(1, 0x201))
    let old = setup.memory.loadWord(at: 0x100)
    setup.clock.guestWasStopped()
    setup.registers.synchronize()
    #expect(setup.memory.loadWord(at: 0x100) == old)
    #expect(setup.write(1, 0x200) == true)
    let count = setup.memory.storeCount
    setup.clock.guestWasStopped()
    setup.registers.synchronize()
    #expect(setup.memory.storeCount == count)
  },
  Rule("27: wall clock 0 is ignored; bit 0 is address") {
    let setup = try Setup()
    #expect(setup.write(0, 0) && setup.memory.storeCount == 0)
    #expect(setup.write(0, 0x101) && setup.memory.loadWord(at: 0x101) == 2)
  },
  Rule("28: steal time: reserved bits fault, a bad address is accepted, an odd version is stepped over, steal wraps") {
    let setup = try Setup()
    for bit: UInt64 in 1...5 { #expect(setup.write(3, 1 << bit) == false) }
    #expect(setup.write(3, 0x3001) && setup.read(3) == 0x3001)
    setup.memory.store(UInt32(5), at: 0x48)
    setup.memory.store(UInt64.max, at: 0x40)
    #expect(setup.write(3, 0x41) == true)
    setup.registers.stealTime.update(total: 2)
    #expect(setup.memory.loadWord(at: 0x48) == 8 && setup.memory.load(8, at: 0x40) == 1)
  },
  Rule("29: unknown bits of the preempted byte are cleared, and only bit 1 is heard") {
    let setup = try Setup()
    #expect(setup.write(3, 0x41) == true)
    for (byte, flush) in [(UInt8(0xFD), false), (0xFF, true), (2, true)] {
      setup.memory.store(byte, at: 0x50)
      #expect(setup.registers.stealTime.resume(total: 0) == flush && setup.memory.loadByte(at: 0x50) == 0)
    }
  },
  Rule("30: end of interrupt: bit 1 faults, also off; a bad address faults and the old one stays") {
    let setup = try Setup()
    #expect(setup.write(4, 0x101) == true)
    for value: UInt64 in [2, 0x102, 0x103, 0x3001, .max] { #expect(!setup.write(4, value) && setup.read(4) == 0x101) }
    #expect(setup.write(4, 0xFFFF_FFFF_FFFF_0000) == true)
  },
  Rule("30: a bit the guest sets itself is its own loss") {
    let setup = try Setup()
    #expect(setup.write(4, 0x101) == true)
    setup.memory.store(UInt8(1), at: 0x100)
    #expect(setup.registers.endOfInterrupt.settle(withdrawing: false) == false)
  },
  Rule("32: page faults: reserved bits and bits not offered fault; without the interrupt bit nothing happens") {
    let setup = try Setup()
    #expect(!setup.write(2, 0x11) && !setup.write(2, 0x21))
    #expect(setup.write(2, 0x41) && !setup.registers.asyncPageFault.isActive)
    let old = try Setup([.asyncPageFault])
    #expect(!old.write(2, 0x45) && !old.write(2, 0x49) && old.write(2, 0x43))
  },
  Rule("32: without a vector events are dropped") {
    let setup = try Setup()
    #expect(setup.write(2, 0x49) == true)
    #expect(setup.registers.asyncPageFault.takeReady() == nil && setup.registers.asyncPageFault.outstanding == 0)
    #expect(setup.memory.loadWord(at: 0x44) == 0)
  },
  Rule("33: a vector above 255 faults; acknowledging hears bit 0 only and reads as 0") {
    let setup = try Setup()
    #expect(!setup.write(6, 0x100) && setup.write(6, 0xF3) && setup.read(6) == 0xF3)
    #expect(setup.write(7, .max) && setup.read(7) == 0)
  },
  Rule("34: a guest that never takes its token hears no more") {
    let setup = try Setup()
    #expect(setup.write(6, 0xF3) && setup.write(2, 0x49))
    #expect(setup.registers.asyncPageFault.takeReady() == 0xF3)
    #expect(setup.write(2, 0x49) == true)
    for _ in 0..<5 { #expect(setup.write(7, 1) && setup.registers.asyncPageFault.takeReady() == nil) }
    #expect(setup.write(2, 0) && setup.registers.asyncPageFault.outstanding == 0)
  },
  Rule("35: polling and migration are 0 or 1; migration only where it is offered") {
    let setup = try Setup()
    for index: UInt32 in [5, 8] {
      #expect(setup.read(index) == 1)
      for value: UInt64 in [2, 3, 1 << 32, .max] { #expect(setup.write(index, value) == false) }
      #expect(setup.write(index, 0) && setup.read(index) == 0)
    }
    #expect(!setup.registers.mayPoll && !setup.registers.mayMigrate)
    let usual = try Setup(.standard)
    #expect(usual.write(8, 1) == false)
  },
  Rule("36: after INIT nothing is stored any more, and what is global stays") {
    let setup = try Setup()
    for (index, value) in [(0, 0x800), (1, 0x101), (3, 0x141), (4, 0x181), (6, 0xF3), (2, 0x1C9), (5, 0)]
      as [(UInt32, UInt64)]
    {
      #expect(setup.write(index, value) == true)
    }
    setup.registers.endOfInterrupt.offer()
    setup.registers.reset()
    let count = setup.memory.storeCount
    setup.clock.guestWasStopped()
    setup.registers.synchronize()
    setup.registers.stealTime.preempt()
    _ = setup.registers.stealTime.resume(total: 9)
    setup.registers.endOfInterrupt.offer()
    _ = setup.registers.endOfInterrupt.settle(withdrawing: true)
    #expect(setup.registers.asyncPageFault.takeReady() == nil)
    #expect(setup.memory.storeCount == count)
    #expect([1, 2, 3, 4, 6].allSatisfy { setup.read($0) == 0 })
    #expect(setup.read(0) == 0x800 && setup.read(5) == 0)
  },
  Rule("37: the old numbers exist only with their feature") {
    let (new, old) = (try Setup([.clockSource2]), try Setup([.clockSource]))
    #expect(new.registers.read(0x11) == nil && old.registers.read(0x12) == 0)
  },
]

private let sharingRules = [
  Rule("38: two vCPUs may register the same place") {
    let setup = try Setup()
    var other = KVMModelSpecificRegisters(features: .implemented, clock: setup.clock, memory: setup.memory, cpu: 1)
    for index: UInt32 in [1, 3, 4] {
      #expect(setup.write(index, 0x101 & ~0x40) && other.write(0x4b56_4d00 + index, 0x101 & ~0x40))
    }
    #expect(try #require(setup.memory.loadWord(at: 0x100)) & 1 == 0)
  },
  Rule("40: a version the guest spoils is its own loss") {
    let setup = try Setup()
    for version: UInt32 in [.max, .max - 1, 7] {
      setup.memory.store(version, at: 0x100)
      #expect(setup.write(1, 0x101) == true)
      #expect(try #require(setup.memory.loadWord(at: 0x100)) & 1 == 0)
    }
  },
  Rule("41: the flag for a stopped guest stays until the guest clears it") {
    let setup = try Setup()
    #expect(setup.write(1, 0x101) == true)
    setup.clock.guestWasStopped()
    setup.registers.synchronize()
    setup.registers.updateTime()
    #expect(setup.memory.loadByte(at: 0x11D) == 3)
    setup.memory.store(UInt8(1), at: 0x11D)
    setup.registers.updateTime()
    #expect(setup.memory.loadByte(at: 0x11D) == 1)
  },
  Rule("42: time goes on where it was when a guest is moved") {
    let setup = try Setup()
    setup.time.set(timestamp: 1_000_500)
    let saved = setup.clock.nanoseconds()
    let moved = KVMClock(
      counter: setup.clock.counter, isTimestampConstant: true, source: TestTime(timestamp: 1_000_500, monotonic: 3),
      nanoseconds: saved)
    moved.guestWasStopped()
    var registers = KVMModelSpecificRegisters(features: .implemented, clock: moved, memory: setup.memory, cpu: 0)
    #expect(registers.write(0x4b56_4d01, 0x101) == true)
    let structure = try #require(TimeStructure(setup.memory, 0x100))
    #expect(structure.nanoseconds(at: 1_000_500) >= saved)
  },
]

@Suite("Bad input") struct BadInputTests {
  @Test("instructions", arguments: instructionRules) fileprivate func instruction(rule: Rule) throws {
    try rule.check()
  }
  @Test("hypercalls", arguments: hypercallRules) fileprivate func hypercall(rule: Rule) throws { try rule.check() }
  @Test("registers", arguments: registerRules) fileprivate func register(rule: Rule) throws { try rule.check() }
  @Test("shared memory", arguments: sharingRules) fileprivate func sharing(rule: Rule) throws { try rule.check() }
}

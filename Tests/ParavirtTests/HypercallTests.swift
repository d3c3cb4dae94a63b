// SPDX-License-Identifier: Apache-2.0
// Every hypercall number from every mode and privilege level, with everything offered and with nothing.

import Paravirt
import ScriptedEngine
import Testing
import X86

private let noSuchCall = UInt64(bitPattern: -1000)
private let all = KVMFeatures(rawValue: .max)
private let none: KVMFeatures = [.clockSource2]

private struct Setup {
  let memory = TestMemory()
  let machine = TestMachine(count: 100)
  let cpu = ScriptedCPU()
  let time: TestTime
  let calls: KVMHypercalls<TestMemory, TestMachine>

  init(_ features: KVMFeatures, isConstant: Bool = true) throws {
    time = TestTime(timestamp: 500, wall: 1_700_000_000_000_000_042)
    let clock = KVMClock(
      counter: try #require(TimestampCounter(kilohertz: 1_000_000)), isTimestampConstant: isConstant, source: time)
    calls = KVMHypercalls(features: features, clock: clock, memory: memory, machine: machine)
  }

  @discardableResult
  func call(_ number: UInt64, _ a0: UInt64 = 0, _ a1: UInt64 = 0, _ a2: UInt64 = 0, _ a3: UInt64 = 0) -> UInt64 {
    (cpu[register: 0], cpu[register: 3], cpu[register: 1]) = (number, a0, a1)
    (cpu[register: 2], cpu[register: 6]) = (a2, a3)
    calls.perform(on: cpu)
    return cpu[register: 0]
  }
}

@Suite struct HypercallTests {
  @Test func everyNumberHasAnAnswer() throws {
    for features in [none, all] {
      let setup = try Setup(features)
      for number: UInt64 in Array(0...300) + [1000, 1 << 31, 0xFFFF_FFFF, 1 << 32, (1 << 32) + 1, .max] {
        let result = setup.call(number, 0x10, 1, 0, 0)
        switch number {
        case 1: #expect(result == 0)
        case 9: #expect(result == UInt64(bitPattern: -95))  // clock type 1
        case 5, 11: #expect(result == (features == all ? 0 : noSuchCall))
        case 10: #expect(result == (features == all ? 2 : noSuchCall))
        case 12: #expect(result == (features == all ? UInt64(bitPattern: -22) : noSuchCall))
        default: #expect(result == noSuchCall, "\(number)")
        }
      }
    }
  }

  @Test func userSpaceIsRefusedBeforeTheNumberIsSeen() throws {
    let setup = try Setup(all)
    for level: UInt8 in 1...3 {
      setup.cpu.currentPrivilegeLevel = level
      for number: UInt64 in [0, 1, 5, 9, 10, 11, 12, 4711] {
        #expect(setup.call(number, 0x10) == UInt64(bitPattern: -1))
      }
      setup.cpu.isIn64BitMode = false
      #expect(setup.call(1) == 0xFFFF_FFFF)
      setup.cpu.isIn64BitMode = true
    }
    #expect(setup.machine.events.isEmpty)
    #expect(setup.memory.storeCount == 0)
  }

  @Test func narrowCallersAreMaskedInAndOut() throws {
    let setup = try Setup(all)
    setup.cpu.isIn64BitMode = false
    let garbage: UInt64 = 0xDEAD_BEEF_0000_0000
    #expect(setup.call(garbage | 1) == 0)
    #expect(setup.call(garbage | 4711) == 0xFFFF_FC18)
    #expect(setup.call(garbage | 9, garbage | 0x100, garbage) == 0)
    #expect(setup.memory.load(8, at: 0x100) == 1_700_000_000)
    #expect(setup.call(garbage | 11, garbage | 3) == 0)
    setup.cpu.isIn64BitMode = true
    #expect(setup.call(garbage | 1) == noSuchCall)
  }

  @Test func nothingButRAXChanges() throws {
    let setup = try Setup(all)
    for register in 0..<16 { setup.cpu.registers[register] = UInt64(register) * 0x1111 }
    setup.cpu.registers[0] = 4711
    let record = setup.calls.perform(on: setup.cpu)
    #expect(record == HypercallRecord(number: 4711, result: noSuchCall))
    for register in 1..<16 { #expect(setup.cpu.registers[register] == UInt64(register) * 0x1111) }
  }

  @Test func clockPairing() throws {
    let setup = try Setup(.standard)
    for address: UInt64 in [0x100, 0xFFD, 0x2FC0] {
      #expect(setup.call(9, address) == 0)
      #expect(setup.memory.load(8, at: address) == 1_700_000_000)
      #expect(setup.memory.load(8, at: address + 8) == 42)
      #expect(setup.memory.load(8, at: address + 16) == 500)
      for offset in 24..<64 { #expect(setup.memory.loadByte(at: address + UInt64(offset)) == 0) }
    }
    let count = setup.memory.storeCount
    for address: UInt64 in [0x2FC1, 0x3000, .max, .max - 63] {
      #expect(setup.call(9, address) == UInt64(bitPattern: -14))
    }
    #expect(setup.call(9, 0x3000, 1) == UInt64(bitPattern: -95))
    #expect(setup.call(9, 0x100, 1 << 32) == UInt64(bitPattern: -95))
    #expect(setup.memory.storeCount == count)
    #expect(try Setup(.standard, isConstant: false).call(9, 0x100) == UInt64(bitPattern: -95))
    setup.time.set(step: 1_000_000)
    #expect(setup.call(9, 0x100) == UInt64(bitPattern: -95))
    setup.time.set(step: 10)
    #expect(setup.call(9, 0x100) == 0)
  }

  @Test func clockPairingUsesTheCPUsOwnCounter() throws {
    let setup = try Setup(.standard)
    (setup.cpu[register: 0], setup.cpu[register: 3]) = (9, 0x100)
    setup.calls.perform(on: setup.cpu, timestampOffset: UInt64(bitPattern: -100))
    #expect(setup.memory.load(8, at: 0x110) == 400)
  }

  @Test func kickAndYieldNameAPICIDs() throws {
    let setup = try Setup(all)
    setup.call(5, .max, 7)
    setup.call(5, 0, 0x1_0000_0003)
    setup.call(11, 9)
    setup.call(11, .max)
    #expect(setup.machine.events == [.kick(7), .kick(3), .yield(9), .yield(.max)])
  }

  @Test func interruptsGoToTwoBitmaps() throws {
    let setup = try Setup(all)
    #expect(setup.call(10, 0b101, 0b10, 8, 0x4FB) == 3)
    #expect(setup.machine.events == [.send(0x4FB, 8), .send(0x4FB, 10), .send(0x4FB, 73)])
    setup.machine.events = []
    setup.cpu.isIn64BitMode = false
    #expect(setup.call(10, 1, 1, 0, 0xFB) == 2)
    #expect(setup.machine.events == [.send(0xFB, 0), .send(0xFB, 32)])
  }

  @Test func interruptsToNobodyCountAsNone() throws {
    let setup = try Setup(all)
    #expect(setup.call(10, 0, 0, 0, 0xFB) == 0)
    #expect(setup.call(10, 0xFFFF_FFFF, 0, 0xFFFF_FFFF, 0) == 0)
    #expect(setup.call(10, .max, 0, 0xFFFF_FFF0, 0xFB) == 0)
    // The second half wraps to 0 and reaches the first CPUs.
    #expect(setup.call(10, 0, 0b11, 0xFFFF_FFFF - 63, 0xFB) == 2)
    #expect(setup.call(10, .max, .max, 0, 0xFB) == 100)
    for command: UInt64 in [1 << 11, 1 << 18, 1 << 19, 3 << 18] {
      #expect(setup.call(10, 1, 0, 0, 0xFB | command) == UInt64(bitPattern: -22))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// The local APIC as a guest meets it: priorities, modes, timers, IPIs and everything that must be #GP.

import Testing

@testable import Devices

@Suite struct LocalAPICTests {
  @Test(
    "reset values as the SDM lists them",
    arguments: [
      (0x20, 0), (0x30, 0x50014), (0x80, 0), (0xA0, 0), (0xD0, 0), (0xE0, 0xFFFF_FFFF), (0xF0, 0xFF),
      (0x320, 0x10000), (0x350, 0x10000), (0x370, 0x10000), (0x380, 0), (0x390, 0), (0x3E0, 0),
    ] as [(UInt64, UInt64)])
  func resetValues(offset: UInt64, value: UInt64) {
    let machine = Fixture(cpuCount: 2)
    #expect(machine.apic(1).read(offset: offset, size: 4) == (offset == 0x20 ? 1 << 24 : value))
    #expect(machine.apic(1).isWaitingForStartup)
    #expect(!machine.apic.isWaitingForStartup)
  }

  @Test("the highest class above PPR is delivered, and EOI ends the highest in service")
  func priorities() {
    let apic = Fixture().apic
    for vector: UInt8 in [0x31, 0x52, 0x51, 0x80] { apic.receive(vector: vector) }
    #expect(apic.acknowledge() == 0x80)
    #expect(apic.pendingVector() == nil)
    apic.receive(vector: 0x8F)  // the same class does not interrupt
    #expect(apic.pendingVector() == nil)
    apic.receive(vector: 0x90)
    #expect(apic.acknowledge() == 0x90)
    #expect(apic.read(offset: 0xA0, size: 4) == 0x90)
    apic.endOfInterrupt()
    #expect(apic.read(offset: 0xA0, size: 4) == 0x80)
    apic.write(offset: 0xB0, size: 4, value: 0)
    #expect(apic.acknowledge() == 0x8F)
    apic.endOfInterrupt()
    #expect(apic.acknowledge() == 0x52)
    apic.endOfInterrupt()
    apic.taskPriority = 5
    #expect(apic.pendingVector() == nil)
    #expect(apic.read(offset: 0x80, size: 4) == 0x50)
    apic.taskPriority = 4
    #expect(apic.acknowledge() == 0x51)
    apic.endOfInterrupt()
    #expect(apic.pendingVector() == nil)
    apic.taskPriority = 0
    #expect(apic.acknowledge() == 0x31)
  }

  @Test(
    "APIC_BASE: every transition of the SDM's figure",
    arguments: [
      (from: 0x800, to: 0xC00, works: true), (0x800, 0x000, true), (0x800, 0x400, false), (0x800, 0x800, true),
      (0xC00, 0x800, false), (0xC00, 0x000, true), (0xC00, 0xC00, true), (0xC00, 0x400, false),
      (0x000, 0x800, true), (0x000, 0xC00, false), (0x000, 0x400, false), (0x000, 0x000, true),
    ] as [(from: UInt64, to: UInt64, works: Bool)])
  func transitions(from: UInt64, to: UInt64, works: Bool) {
    let apic = Fixture().apic
    if from != 0x800 { #expect(apic.writeMSR(0x1B, 0xFEE0_0100 | from)) }
    #expect(apic.writeMSR(0x1B, 0xFEE0_0100 | to) == works)
    #expect(apic.readMSR(0x1B) == 0xFEE0_0100 | (works ? to : from))
    #expect((apic.mmioBase != nil) == ((works ? to : from) == 0x800))
    #expect(!apic.writeMSR(0x1B, 1), "reserved bits")
    #expect(!apic.writeMSR(0x1B, 1 << 60), "reserved bits")
  }

  @Test(
    "x2APIC registers that must fault",
    arguments: [
      (0x802, 1, false, true), (0x803, 0, false, true), (0x808, 0x100, false, true), (0x808, 0xFF, true, true),
      (0x809, 0, false, false), (0x80A, 0, false, true), (0x80B, 1, false, false), (0x80B, 0, true, false),
      (0x80D, 0, false, true), (0x80E, 0, false, false), (0x80F, 0x1FF, true, true), (0x80F, 1 << 13, false, true),
      (0x810, 0, false, true), (0x820, 0, false, true), (0x828, 0, true, true), (0x828, 1, false, true),
      (0x82F, 0, false, false), (0x830, 1 << 13, false, true), (0x831, 0, false, false),
      (0x832, 0x400EC, true, true), (0x832, 0x100, false, true), (0x835, 0x10700, true, true),
      (0x838, 1 << 32, false, true), (0x839, 0, false, true), (0x83E, 0xB, true, true), (0x83E, 4, false, true),
      (0x83F, 0x100, false, false), (0x840, 0, false, false), (0x8FF, 0, false, false), (0x800, 0, false, false),
    ] as [(UInt32, UInt64, Bool, Bool)])
  func faults(index: UInt32, value: UInt64, writes: Bool, reads: Bool) {
    let machine = Fixture()
    #expect(machine.apic.readMSR(index) == nil, "xAPIC mode")
    #expect(!machine.apic.writeMSR(index, value), "xAPIC mode")
    machine.enableX2APIC()
    #expect(machine.apic.writeMSR(index, value) == writes)
    #expect((machine.apic.readMSR(index) != nil) == reads)
  }

  @Test("x2APIC identity", arguments: [0, 1, 15, 16, 17])
  func identity(id: Int) {
    let machine = Fixture(cpuCount: 18)
    machine.enableX2APIC(id)
    #expect(machine.apic(id).readMSR(0x802) == UInt64(id))
    #expect(machine.apic(id).readMSR(0x80D) == UInt64(id >> 4) << 16 | 1 << UInt64(id & 15))
  }

  @Test(
    "one-shot and periodic counts",
    arguments: [
      (0b1011, 1), (0b0000, 2), (0b0011, 16), (0b1010, 128),
    ] as [(UInt64, UInt64)])
  func counts(divide: UInt64, factor: UInt64) {
    let machine = Fixture()
    let apic = machine.apic
    machine.enableX2APIC()
    #expect(apic.writeMSR(0x83E, divide) && apic.writeMSR(0x832, 0xEC) && apic.writeMSR(0x838, 1_000_000))
    let period = 1_000_000 * factor
    #expect(apic.nextDeadline == machine.time.nanoseconds + period)
    machine.time.advance(period / 4)
    #expect(apic.readMSR(0x839) == 750_000)
    machine.time.advance(period * 3 / 4 - 1)
    apic.expire(now: .max)
    #expect(apic.pendingVector() == nil, "not a nanosecond early, whatever the caller thinks")
    machine.time.advance(1)
    apic.expire(now: machine.time.nanoseconds)
    #expect(apic.acknowledge() == 0xEC)
    apic.endOfInterrupt()
    #expect(apic.nextDeadline == nil)
    #expect(apic.readMSR(0x839) == 0)

    #expect(apic.writeMSR(0x832, 0x200EC) && apic.writeMSR(0x838, 1_000_000))
    let start = machine.time.nanoseconds
    machine.time.advance(period * 5 / 2)
    apic.expire(now: machine.time.nanoseconds)
    #expect(apic.acknowledge() == 0xEC)
    apic.endOfInterrupt()
    #expect(apic.pendingVector() == nil, "missed periods are one interrupt")
    #expect(apic.nextDeadline == start + 3 * period, "and the phase stays")
    #expect(apic.readMSR(0x839) == 500_000)
    #expect(apic.writeMSR(0x838, 0))
    #expect(apic.nextDeadline == nil)
  }

  @Test("TSC deadline: never early, reads 0 afterwards, past ones fire at once, mode changes disarm")
  func deadline() {
    let machine = Fixture()
    let apic = machine.apic
    machine.enableX2APIC()
    #expect(apic.writeMSR(0x6E0, 5) && apic.readMSR(0x6E0) == 0, "ignored outside its mode")
    #expect(apic.writeMSR(0x832, 0x400EC))
    let tick = machine.time.nanoseconds * 3 + 1000
    #expect(apic.writeMSR(0x6E0, tick))
    #expect(apic.readMSR(0x6E0) == tick)
    let due = (tick + 2) / 3
    #expect(apic.nextDeadline == due)
    machine.time.advance(due - machine.time.nanoseconds - 1)
    apic.expire(now: .max)
    #expect(apic.pendingVector() == nil)
    machine.time.advance(1)
    apic.expire(now: machine.time.nanoseconds)
    #expect(apic.acknowledge() == 0xEC)
    apic.endOfInterrupt()
    #expect(apic.readMSR(0x6E0) == 0)
    #expect(apic.writeMSR(0x838, 100) && apic.nextDeadline == nil, "counts are ignored in this mode")

    #expect(apic.writeMSR(0x6E0, 1))
    #expect(apic.acknowledge() == 0xEC)
    apic.endOfInterrupt()
    #expect(apic.writeMSR(0x6E0, .max) && apic.nextDeadline != nil)
    #expect(apic.writeMSR(0x832, 0x500EC) && apic.nextDeadline == nil, "masked: no host timer")
    #expect(apic.writeMSR(0x832, 0xEC) && apic.readMSR(0x6E0) == 0)
  }

  @Test(
    "IPIs reach exactly whom they are meant for",
    arguments: [
      // x2APIC ICR value, receivers
      (0x2_0000_0041, [2]), (0x4_0041, [1]), (0x8_0041, [0, 1, 2, 3]), (0xC_0041, [0, 2, 3]),
      (0xFFFF_FFFF_0000_0041, [0, 1, 2, 3]), (0x0000_0005_0000_0841, [0, 2]), (0x9_0000_0041, []),
      (0x0001_0001_0000_0841, []),
    ] as [(UInt64, [Int])])
  func x2APICInterrupts(command: UInt64, receivers: [Int]) {
    let machine = Fixture(cpuCount: 4)
    for id in 0..<4 { machine.enableX2APIC(id) }
    #expect(machine.apic(1).writeMSR(0x830, command))
    #expect((0..<4).filter { machine.apic($0).pendingVector() == 0x41 } == receivers)
    #expect(machine.wakes.all.map(Int.init) == receivers)
  }

  @Test(
    "xAPIC destinations: physical, flat, cluster",
    arguments: [
      (0x0200_0000, 0x0041, 0xFFFF_FFFF, [2]), (0xFF00_0000, 0x0041, 0xFFFF_FFFF, [0, 1, 2, 3]),
      (0x0600_0000, 0x0841, 0xFFFF_FFFF, [1, 2]), (0xFF00_0000, 0x0841, 0xFFFF_FFFF, [0, 1, 2, 3]),
      (0x0100_0000, 0x0841, 0x0FFF_FFFF, [0]), (0xF300_0000, 0x0841, 0x0FFF_FFFF, [0, 1]),
      (0x0600_0000, 0x0941, 0xFFFF_FFFF, [1]),
    ] as [(UInt64, UInt64, UInt64, [Int])])
  func xAPICInterrupts(high: UInt64, low: UInt64, format: UInt64, receivers: [Int]) {
    let machine = Fixture(cpuCount: 4)
    for id in 0..<4 {
      machine.apic(id).write(offset: 0xF0, size: 4, value: 0x1FF)
      machine.apic(id).write(offset: 0xE0, size: 4, value: format)
      machine.apic(id).write(offset: 0xD0, size: 4, value: 1 << UInt64(24 + id))
    }
    machine.apic.write(offset: 0x310, size: 4, value: high)
    machine.apic.write(offset: 0x300, size: 4, value: low)
    #expect((0..<4).filter { machine.apic($0).pendingVector() == 0x41 } == receivers)
  }

  @Test("INIT-SIPI-SIPI as Linux sends it, then NMI and self IPI")
  func startup() {
    let machine = Fixture(cpuCount: 2)
    machine.enableX2APIC()
    let target = machine.apic(1)
    for command: UInt64 in [0xC500, 0x8500, 0x609, 0x609] { #expect(machine.apic.writeMSR(0x830, 1 << 32 | command)) }
    #expect(target.hasPendingEvent)
    #expect(target.takeStartupEvent() == .initialize)
    #expect(target.takeStartupEvent() == .start(vector: 9))
    #expect(target.takeStartupEvent() == nil && !target.isWaitingForStartup)
    #expect(machine.apic.writeMSR(0x830, 1 << 32 | 0x609))
    #expect(target.takeStartupEvent() == nil, "a running processor ignores SIPI")
    #expect(machine.apic.writeMSR(0x830, 1 << 32 | 0x400))
    #expect(target.takeNMI() && !target.takeNMI())
    #expect(machine.apic.writeMSR(0x83F, 0x77) && machine.apic.acknowledge() == 0x77)
  }

  @Test("a software-disabled APIC takes no vectors and keeps its entries masked")
  func softwareDisable() {
    let apic = Fixture().apic
    apic.write(offset: 0x320, size: 4, value: 0xEC)
    apic.write(offset: 0xF0, size: 4, value: 0xFF)
    #expect(apic.read(offset: 0x320, size: 4) == 0x100EC)
    apic.write(offset: 0x320, size: 4, value: 0xEC)
    #expect(apic.read(offset: 0x320, size: 4) == 0x100EC)
    #expect(!apic.receive(vector: 0x40) && apic.pendingVector() == nil)
  }

  @Test("errors are latched by a write to ESR and raise the error entry")
  func errors() {
    let apic = Fixture().apic
    apic.write(offset: 0x370, size: 4, value: 0xFE)
    apic.write(offset: 0x300, size: 4, value: 0x4_0005)
    #expect(apic.read(offset: 0x280, size: 4) == 0)
    apic.write(offset: 0x280, size: 4, value: 0)
    #expect(apic.read(offset: 0x280, size: 4) == 0x20)
    #expect(apic.acknowledge() == 0xFE)
    apic.write(offset: 0x280, size: 4, value: 0)
    #expect(apic.read(offset: 0x280, size: 4) == 0)
  }

  @Test("a paravirtual EOI is possible only with nothing else waiting and an edge")
  func deferral() {
    let apic = Fixture().apic
    apic.receive(vector: 0x40)
    #expect(apic.acknowledge() == 0x40 && apic.canDeferEndOfInterrupt(of: 0x40))
    apic.receive(vector: 0x30)
    #expect(!apic.canDeferEndOfInterrupt(of: 0x40))
    apic.endOfInterrupt()
    #expect(apic.acknowledge() == 0x30)
    apic.receive(vector: 0x50, trigger: .level)
    #expect(apic.acknowledge() == 0x50 && !apic.canDeferEndOfInterrupt(of: 0x50))
  }

  @Test("no register access traps, whatever the value")
  func anything() {
    for isX2APIC in [false, true] {
      let machine = Fixture(cpuCount: 2)
      if isX2APIC { machine.enableX2APIC() }
      for value in [0, 1, 0xFF, 0x10700, 0xFFFF_FFFF, UInt64.max] {
        for index in UInt32(0)..<0x100 {
          // Not the base register: the mode is the point here.
          _ = machine.apic.writeMSR(0x800 + index, value)
          _ = machine.apic.readMSR(0x800 + index)
          for offset in UInt64(0)..<16 {
            machine.apic.write(offset: UInt64(index) * 16 + offset, size: 4, value: value)
            _ = machine.apic.read(offset: UInt64(index) * 16 + offset, size: 4)
          }
          machine.time.advance(value & 0xFFFF)
          machine.apic.expire(now: machine.time.nanoseconds)
          _ = machine.apic.nextDeadline
          _ = machine.apic.acknowledge()
        }
      }
      #expect(machine.apic.isEnabled)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// PIT and RTC over time that only moves when told.

import Testing

@testable import Devices

@Suite struct PITTests {
  /// Nanoseconds of a number of PIT ticks, rounded up.
  private func ticks(_ count: UInt64) -> UInt64 { (count * 1_000_000_000 + 1_193_181) / 1_193_182 }

  /// Lets IRQ 0 through the IOAPIC as vector 0x30.
  private func machine() -> Fixture {
    let machine = Fixture()
    machine.ioapicWrite(0x10 + 4, 0x30)
    return machine
  }

  private func interrupts(_ machine: Fixture) -> Bool {
    machine.platform.pit.expire(now: machine.time.nanoseconds)
    guard machine.apic.pendingVector() != nil else { return false }
    _ = machine.apic.acknowledge()
    machine.apic.endOfInterrupt()
    return true
  }

  @Test("idle until programmed")
  func idle() { #expect(Fixture().platform.pit.nextDeadline == nil) }

  @Test(
    "modes 0 and 4 fire once, 2 and 3 go on",
    arguments: [
      (0x30, false), (0x38, false), (0x34, true), (0x36, true), (0x3C, true), (0x3E, true),
    ] as [(UInt8, Bool)])
  func modes(control: UInt8, isPeriodic: Bool) {
    let machine = machine()
    machine.outb(0x43, control)
    machine.outb(0x40, 0x9C)
    #expect(machine.platform.pit.nextDeadline == nil, "half a count is no count")
    machine.outb(0x40, 0x2E)  // 11,932 ticks: 100 Hz
    #expect(machine.platform.pit.nextDeadline == machine.time.nanoseconds + ticks(11_932))
    machine.time.advance(ticks(11_932) - 1)
    #expect(!interrupts(machine))
    machine.time.advance(1)
    #expect(interrupts(machine))
    #expect((machine.platform.pit.nextDeadline != nil) == isPeriodic)
    machine.time.advance(3 * ticks(11_932))
    #expect(interrupts(machine) == isPeriodic)
    #expect(!interrupts(machine), "missed ticks are one")
  }

  @Test("Linux's shutdown leaves one tick and then silence")
  func shutdown() {
    let machine = machine()
    for (port, value) in [(0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E), (0x43, 0x30)] as [(UInt64, UInt8)] {
      machine.outb(port, value)
    }
    #expect(machine.platform.pit.nextDeadline == nil)
    machine.outb(0x40, 0)
    machine.outb(0x40, 0)
    #expect(machine.platform.pit.nextDeadline == machine.time.nanoseconds + ticks(65_536))
    machine.time.advance(60_000_000)
    #expect(interrupts(machine) && machine.platform.pit.nextDeadline == nil)
  }

  @Test("counts, latches and read-back")
  func reading() {
    let machine = machine()
    machine.outb(0x43, 0x34)
    machine.outb(0x40, 0xE8)
    machine.outb(0x40, 0x03)  // 1,000
    machine.time.advance(ticks(300))
    machine.outb(0x43, 0x00)
    machine.time.advance(ticks(100))
    let latched = UInt16(machine.inb(0x40)) | UInt16(machine.inb(0x40)) << 8
    #expect(latched == 700)
    let live = UInt16(machine.inb(0x40)) | UInt16(machine.inb(0x40)) << 8
    #expect((599...600).contains(live))
    machine.outb(0x43, 0xE2)  // status of channel 0
    #expect(machine.inb(0x40) == 0xB4)
    machine.outb(0x43, 0x36)  // a new mode before its count: null count
    machine.outb(0x43, 0xE2)
    #expect(machine.inb(0x40) & 0x40 != 0)
    machine.outb(0x43, 0x35)  // BCD
    machine.outb(0x40, 0x00)
    machine.outb(0x40, 0x10)
    machine.time.advance(ticks(1))
    machine.outb(0x43, 0x00)
    #expect(machine.inb(0x40) == 0x99 && machine.inb(0x40) == 0x09)
  }

  @Test("channel 2 as Linux calibrates the TSC with it: gate, mode 0, OUT2")
  func calibration() {
    let machine = machine()
    machine.outb(0x61, machine.inb(0x61) & ~0x02 | 0x01)
    #expect(machine.inb(0x61) & 0x03 == 0x01)
    machine.outb(0x43, 0xB0)
    machine.outb(0x42, 0xFF)
    machine.outb(0x42, 0xFF)
    #expect(machine.inb(0x61) & 0x20 == 0)
    machine.time.advance(ticks(0x0180))
    _ = machine.inb(0x42)
    #expect(machine.inb(0x42) == 0xFE, "the high byte, as pit_verify_msb reads it")
    machine.time.advance(ticks(0xFFFF))
    #expect(machine.inb(0x61) & 0x20 != 0)
    #expect(machine.platform.pit.nextDeadline == nil, "channel 2 costs the host nothing")
    machine.outb(0x61, 0)
    machine.outb(0x43, 0xB0)
    machine.outb(0x42, 1)
    machine.outb(0x42, 0)
    machine.time.advance(1_000_000)
    #expect(machine.inb(0x61) & 0x20 == 0, "no gate, no counting")
  }

  @Test("no port access traps")
  func anything() {
    let machine = machine()
    for control in UInt8(0)...255 {
      machine.outb(0x43, control)
      for port in UInt64(0x40)...0x42 {
        machine.outb(port, control ^ 0x5A)
        machine.outb(port, control)
        machine.time.advance(UInt64(control) << 20)
        _ = machine.inb(port)
      }
      machine.outb(0x61, control)
      _ = interrupts(machine)
      machine.outb(0x43, 0xC0 | control)
      for port in UInt64(0x40)...0x42 { _ = machine.inb(port) }
    }
  }
}

@Suite struct RTCTests {
  private func read(_ machine: Fixture, _ register: UInt8) -> UInt8 {
    machine.outb(0x70, register)
    return machine.inb(0x71)
  }

  private func write(_ machine: Fixture, _ register: UInt8, _ value: UInt8) {
    machine.outb(0x70, register)
    machine.outb(0x71, value)
  }

  @Test(
    "the time in each number format",
    arguments: [
      (0x02, [0x56, 0x34, 0x12, 0x05, 0x29, 0x02, 0x24, 0x20]), (0x06, [56, 34, 12, 5, 29, 2, 24, 20]),
      (0x00, [0x56, 0x34, 0x92, 0x05, 0x29, 0x02, 0x24, 0x20]), (0x04, [56, 34, 0x8C, 5, 29, 2, 24, 20]),
    ] as [(UInt8, [UInt8])])
  func formats(statusB: UInt8, expected: [UInt8]) {
    let machine = Fixture()
    write(machine, 0x0B, statusB)
    #expect([0, 2, 4, 6, 7, 8, 9, 0x32].map { read(machine, $0) } == expected)
  }

  @Test("update in progress in the last 244 us of a second only")
  func updateInProgress() {
    let machine = Fixture()
    #expect(read(machine, 0x0A) == 0x26)
    machine.time.advance(999_756_000 - 1)
    #expect(read(machine, 0x0A) == 0x26)
    machine.time.advance(1)
    #expect(read(machine, 0x0A) == 0xA6)
    machine.time.advance(244_000)
    #expect(read(machine, 0x0A) == 0x26)
    #expect(read(machine, 0x0D) == 0x80)
  }

  @Test("the guest may set the time, and it goes on from there")
  func setting() {
    let machine = Fixture()
    write(machine, 0x0B, 0x82)
    let newYearsEve: [(UInt8, UInt8)] = [
      (0, 0x59), (2, 0x59), (4, 0x23), (7, 0x31), (8, 0x12), (9, 0x99), (0x32, 0x19),
    ]
    for (register, value) in newYearsEve {
      write(machine, register, value)
    }
    machine.wall.advance(5)
    #expect(read(machine, 0) == 0x59, "SET holds the time")
    write(machine, 0x0B, 0x02)
    machine.wall.advance(1)
    #expect([0, 2, 4, 6, 7, 8, 9, 0x32].map { read(machine, $0) } == [0, 0, 0, 7, 1, 1, 0, 0x20])
  }

  @Test("no enabled interrupt, no deadline; each source raises IRQ 8 and status C answers it")
  func interrupts() {
    let machine = Fixture()
    machine.ioapicWrite(0x10 + 16, 0x38)
    #expect(machine.platform.rtc.nextDeadline == nil)
    _ = read(machine, 0x0C)
    write(machine, 0x0B, 0x12)
    #expect(machine.platform.rtc.nextDeadline == machine.time.nanoseconds + 1_000_000_000)
    machine.wall.advance(1)
    machine.platform.rtc.expire(now: machine.time.nanoseconds)
    #expect(machine.apic.acknowledge() == 0x38)
    machine.apic.endOfInterrupt()
    #expect(read(machine, 0x0C) & 0x90 == 0x90 && read(machine, 0x0C) == 0)

    for (register, value) in [(1, 0x00), (3, 0x35), (5, 0xFF), (0x0B, 0x22)] as [(UInt8, UInt8)] {
      write(machine, register, value)
    }
    machine.wall.advance(2)
    machine.platform.rtc.expire(now: machine.time.nanoseconds)
    #expect(machine.apic.acknowledge() == nil)
    machine.wall.advance(1)  // 12:35:00
    machine.platform.rtc.expire(now: machine.time.nanoseconds)
    #expect(machine.apic.acknowledge() == 0x38)
    machine.apic.endOfInterrupt()
    #expect(read(machine, 0x0C) & 0xA0 == 0xA0)

    _ = read(machine, 0x0C)
    write(machine, 0x0B, 0x42)
    #expect(machine.platform.rtc.nextDeadline.map { $0 - machine.time.nanoseconds <= 976_563 } == true)
    machine.time.advance(976_563)
    machine.platform.rtc.expire(now: machine.time.nanoseconds)
    #expect(machine.apic.acknowledge() == 0x38)
  }

  @Test("memory sizes, RAM bytes and the NMI mask")
  func memory() {
    let machine = Fixture()
    #expect(UInt16(read(machine, 0x15)) | UInt16(read(machine, 0x16)) << 8 == 640)
    #expect(UInt16(read(machine, 0x34)) | UInt16(read(machine, 0x35)) << 8 == UInt16((1 << 30 - 16 << 20) >> 16))
    write(machine, 0x40, 0xA5)
    #expect(read(machine, 0x40) == 0xA5 && !machine.platform.rtc.isNMIMasked)
    machine.outb(0x70, 0x8A)
    #expect(machine.platform.rtc.isNMIMasked && machine.inb(0x71) == 0x26)
  }

  @Test("no register value traps")
  func anything() {
    let machine = Fixture()
    for value in UInt8(0)...255 {
      for statusB in [UInt8(0x00), 0x06, 0x82, 0x72] {
        write(machine, 0x0B, statusB)
        for register in [UInt8(0), 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x0A, 0x0C, 0x0D, 0x32] {
          write(machine, register, value)
          _ = read(machine, register)
        }
        machine.wall.advance(Int64(value))
        machine.platform.rtc.expire(now: machine.time.nanoseconds)
        _ = machine.platform.rtc.nextDeadline
      }
    }
  }

  @Test(
    "the calendar goes both ways",
    arguments: [
      (0, 1970, 1, 1, 5), (951_782_400, 2000, 2, 29, 3), (-1, 1969, 12, 31, 4), (4_107_542_400, 2100, 3, 1, 2),
      (1_709_210_096, 2024, 2, 29, 5),
    ] as [(Int64, Int64, Int64, Int64, Int64)])
  func calendar(seconds: Int64, year: Int64, month: Int64, day: Int64, weekday: Int64) {
    let time = CivilTime(secondsSince1970: seconds)
    #expect([time.year, time.month, time.day, time.weekday] == [year, month, day, weekday])
    #expect(time.secondsSince1970 == seconds)
  }
}

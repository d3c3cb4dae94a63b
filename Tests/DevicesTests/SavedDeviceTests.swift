// SPDX-License-Identifier: Apache-2.0
// Devices saved in states that random accesses brought them to, and restored: the same bytes, the same answers; and
// devices restored from garbage, which refuse it or live with it.

import Saving
import Synchronization
import TestSupport
import Testing

@testable import Devices

@Suite("Saved devices") struct SavedDeviceTests {
  private static let ports: [UInt64] =
    [
      0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x92, 0x600, 0x602,
      0x604,
    ]
    + Array(0x3F8...0x3FF) + Array(0xE0...0xE3) + Array(0x2000...0x2017)

  /// Accesses of any kind, reads among them.
  private static func disturb(_ fixture: Fixture, _ random: inout SeededGenerator, times: Int = 400) {
    for _ in 0..<times {
      let value = UInt64.random(in: 0...UInt64.max, using: &random)
      switch Int.random(in: 0..<10, using: &random) {
      case 0: fixture.ioapicWrite(UInt64.random(in: 0...0x3F, using: &random), value)
      case 1: fixture.platform.ports.write(0xCF8, size: 4, value: value)
      case 2: fixture.platform.mmio.write(0xFF00_0000 + value % 65536 & ~7, size: 8, value: value)
      case 3:
        let apic = fixture.apic(Int.random(in: 0..<2, using: &random))
        _ = apic.writeMSR(0x800 + UInt32.random(in: 0...0x3F, using: &random), value & 0xF_FFFF)
      case 4: fixture.apic(Int.random(in: 0..<2, using: &random)).receive(vector: UInt8(truncatingIfNeeded: value))
      case 5: _ = fixture.platform.serial.receive([UInt8](repeating: UInt8(truncatingIfNeeded: value), count: 3))
      case 6:
        fixture.time.advance(value % 1_000_000_000)
        if value & 1 << 63 != 0 { fixture.wall.advance(1) }
        for source in fixture.platform.deadlineSources { source.expire(now: fixture.time.nanoseconds) }
      case 7: _ = fixture.inb(ports.randomElement(using: &random)!)
      default: fixture.outb(ports.randomElement(using: &random)!, UInt8(truncatingIfNeeded: value))
      }
    }
  }

  private static func fixture() -> Fixture {
    let fixture = Fixture(cpuCount: 2, hasTestDevices: true)
    fixture.enableX2APIC(0)
    fixture.enableX2APIC(1)
    return fixture
  }

  private static func restore(_ sections: [[UInt8]], _ fixture: Fixture) throws {
    for (saved, bytes) in zip(fixture.platform.savedDevices, sections) {
      var archive = StateArchive(restoring: bytes, at: fixture.time.nanoseconds)
      var device = saved.device
      try device.transfer(&archive)
      try archive.finish()
    }
  }

  /// What a guest can read, in an order that both machines are asked in.
  private static func answers(_ fixture: Fixture) -> [UInt64] {
    var answers: [UInt64] = []
    for _ in 0..<3 {
      for port in ports { answers.append(UInt64(fixture.inb(port))) }
      for register in UInt64(0)...0x3F { answers.append(fixture.ioapicRead(register)) }
      for id in 0..<2 {
        for register in UInt32(0x802)...0x83E { answers.append(fixture.apic(id).readMSR(register) ?? 0xDEAD) }
        answers.append(UInt64(fixture.apic(id).acknowledge() ?? 0))
        answers.append(fixture.apic(id).nextDeadline ?? 1)
      }
      answers.append(fixture.platform.ports.read(0xCFC, size: 4))
      answers.append(fixture.platform.ports.read(0x608, size: 4))
      answers.append(UInt64(fixture.platform.serial.receiveCapacity))
      fixture.time.advance(123_456_789)
      for source in fixture.platform.deadlineSources { source.expire(now: fixture.time.nanoseconds) }
    }
    return answers
  }

  @Test("restored, every device answers as the one that was saved", arguments: 0..<40) func roundTrip(_ round: Int)
    throws
  {
    var random = SeededGenerator("saved devices", salt: round)
    let (old, new) = (SavedDeviceTests.fixture(), SavedDeviceTests.fixture())
    SavedDeviceTests.disturb(old, &random)
    SavedDeviceTests.disturb(new, &random)
    // One time for both: deadlines are moments.
    let latest = max(old.time.nanoseconds, new.time.nanoseconds)
    for fixture in [old, new] { fixture.time.now.store(latest, ordering: .relaxed) }
    let seconds = max(old.wall.seconds, new.wall.seconds)
    old.wall.advance(seconds - old.wall.seconds)
    new.wall.advance(seconds - new.wall.seconds)
    // The periodic tick counts from the moment of restoring.
    for source in old.platform.deadlineSources { source.expire(now: latest) }
    let saved = try old.savedDevices()
    #expect(Set(old.platform.savedDevices.map(\.name)).count == saved.count)
    for saved in old.platform.savedDevices { #expect(saved.name.utf8.count <= 16) }
    try SavedDeviceTests.restore(saved, new)
    #expect(try new.savedDevices() == saved)
    #expect(SavedDeviceTests.answers(new) == SavedDeviceTests.answers(old))
  }

  @Test("every section is as long as it must be") func lengths() throws {
    let old = SavedDeviceTests.fixture()
    for (index, bytes) in try old.savedDevices().enumerated() {
      for wrong in [bytes.dropLast(), bytes + [0]] {
        var archive = StateArchive(restoring: Array(wrong), at: 0)
        var device = old.platform.savedDevices[index].device
        #expect(throws: SavedStateError.self) {
          try device.transfer(&archive)
          try archive.finish()
        }
      }
    }
  }

  @Test("garbage is refused or harmless", arguments: 0..<60) func garbage(_ round: Int) throws {
    var random = SeededGenerator("garbage for devices", salt: round)
    let fixture = SavedDeviceTests.fixture()
    SavedDeviceTests.disturb(fixture, &random, times: 100)
    let good = try fixture.savedDevices()
    var sections = good
    for index in sections.indices where !sections[index].isEmpty {
      for _ in 0..<Int.random(in: 1...8, using: &random) {
        let place = Int.random(in: 0..<sections[index].count, using: &random)
        sections[index][place] = UInt8.random(in: 0...255, using: &random)
      }
      var archive = StateArchive(restoring: sections[index], at: fixture.time.nanoseconds)
      var device = fixture.platform.savedDevices[index].device
      do { try device.transfer(&archive) } catch {
        // Nothing goes on from a state that was refused.
        var archive = StateArchive(restoring: good[index], at: fixture.time.nanoseconds)
        try device.transfer(&archive)
      }
    }
    SavedDeviceTests.disturb(fixture, &random)
    _ = SavedDeviceTests.answers(fixture)
  }

  @Test("deadlines keep their distance on a host with another clock") func otherClock() throws {
    let (old, new) = (Fixture(), Fixture())
    old.time.now.store(7_200_000_000_000, ordering: .relaxed)
    old.outb(0x43, 0x34)  // channel 0, both bytes, rate generator
    old.outb(0x40, 0xFF)
    old.outb(0x40, 0xFF)
    let distance = try #require(old.platform.pit.nextDeadline) - old.time.nanoseconds
    old.time.advance(5_000_000)
    try SavedDeviceTests.restore(old.savedDevices(), new)
    #expect(try #require(new.platform.pit.nextDeadline) - new.time.nanoseconds == distance - 5_000_000)
    // The power-management timer goes on.
    #expect(new.platform.ports.read(0x608, size: 4) == old.platform.ports.read(0x608, size: 4))
  }
}

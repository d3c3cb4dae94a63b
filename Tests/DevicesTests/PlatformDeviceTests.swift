// SPDX-License-Identifier: Apache-2.0
// A device that one line adds to a machine: mapped, saved, served by the timer thread, and told by ACPI.

import Saving
import Synchronization
import Testing

@testable import Devices

/// A byte behind a port and an address, and an alarm that is always due.
private final class Bell: Device, DeadlineSource, SavedState {
  private let value = Mutex<UInt8>(0)
  private let line: InterruptLine

  init(line: InterruptLine) { self.line = line }

  func read(offset: UInt64, size: UInt8) -> UInt64 { UInt64(value.withLock { $0 }) }
  func write(offset: UInt64, size: UInt8, value new: UInt64) {
    value.withLock { $0 = UInt8(truncatingIfNeeded: new) }
  }
  var nextDeadline: UInt64? { 0 }
  func expire(now: UInt64) { line.pulse() }
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try value.withLock { value throws(SavedStateError) in try archive.transfer(&value, "value") }
  }
}

@Suite("Platform devices") struct PlatformDeviceTests {
  private static func fixture() -> Fixture {
    Fixture(devices: { line in
      [
        PlatformDevice(
          "bell", Bell(line: line(.isa(5))), ports: [.init(0x300, count: 1)],
          memory: [.init(0xD000_0000, count: 0x200)], interrupt: .isa(5),
          acpi: ACPIDevice("BELL", .acpi("LGST0001"), uid: 7))
      ]
    })
  }

  @Test("one line maps it, saves it, serves it and tells of it")
  func oneLine() throws {
    let fixture = Self.fixture()
    fixture.outb(0x300, 0x5A)
    #expect(fixture.inb(0x300) == 0x5A && fixture.platform.mmio.read(0xD000_0000, size: 1) == 0x5A)
    #expect(fixture.unclaimed.all.isEmpty)

    fixture.enableX2APIC()
    fixture.ioapicWrite(0x10 + 2 * 5, 0x45)
    for source in fixture.platform.deadlineSources { source.expire(now: 0) }
    #expect(fixture.apic.acknowledge() == 0x45)

    #expect(fixture.platform.savedDevices.last?.name == "bell")
    let other = Self.fixture()
    for (saved, bytes) in zip(other.platform.savedDevices, try fixture.savedDevices()) {
      var (archive, device) = (StateArchive(restoring: bytes, at: fixture.time.nanoseconds), saved.device)
      try device.transfer(&archive)
      try archive.finish()
    }
    #expect(other.inb(0x300) == 0x5A)

    let tables = fixture.platform.acpiTables()
    let node =
      AML.path("BELL") + AML.name("_HID", AML.string("LGST0001")) + AML.name("_UID", AML.integer(7))
      + AML.name(
        "_CRS",
        AML.resources([AML.ports(0x300, count: 1), AML.memory(0xD000_0000, count: 0x200), AML.irq(5)]))
    #expect(tables.contains(node) && !Fixture().platform.acpiTables().contains(node))
  }

  @Test("a device without a state is mapped and not saved")
  func stateless() {
    let fixture = Fixture(hasTestDevices: true)
    #expect(fixture.platform.devices.contains { $0.name == "debug exit" && $0.state == nil })
    #expect(!fixture.platform.savedDevices.contains { $0.name == "debug exit" })
    fixture.outb(0xF4, 3)
    #expect(fixture.power.all == [.debugExit(3)])
  }

  @Test(
    "interrupts arrive at the pin that is written down", arguments: [.isa(0), .isa(4), .ioapic(17)] as [InterruptPin])
  func pins(pin: InterruptPin) {
    let fixture = Fixture()
    fixture.enableX2APIC()
    let gsi = pin == .isa(0) ? 2 : pin == .isa(4) ? 4 : 17
    #expect(pin.globalSystemInterrupt == gsi)
    fixture.ioapicWrite(0x10 + 2 * UInt64(gsi), 0x46)
    InterruptLine(to: pin, pic: fixture.platform.pic, ioapic: fixture.platform.ioapic).pulse()
    #expect(fixture.apic.acknowledge() == 0x46)
  }
}

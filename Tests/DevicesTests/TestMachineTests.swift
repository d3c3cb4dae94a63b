// SPDX-License-Identifier: Apache-2.0
// The devices of the test machine, as conformance suites drive them.

import Testing

@testable import Devices

@Suite("Test machine")
struct TestMachineTests {
  private let machine = Fixture(cpuCount: 2, hasTestDevices: true)

  @Test("Scratch ports read back what was written, in every size")
  func ports() {
    let ports = machine.platform.ports
    ports.write(0xE0, size: 4, value: 0x4433_2211)
    #expect((0..<4).map { ports.read(0xE0 + $0, size: 1) } == [0x11, 0x22, 0x33, 0x44])
    #expect(ports.read(0xE2, size: 2) == 0x4433)
    ports.write(0xE1, size: 1, value: 0xFF)
    ports.write(0xE2, size: 2, value: 0xABCD)
    #expect(ports.read(0xE0, size: 4) == 0xABCD_FF11)
    // What leaves the range goes nowhere.
    ports.write(0xE2, size: 4, value: 0x1234_5678)
    #expect(ports.read(0xE0, size: 4) == 0x5678_FF11)
    #expect(ports.read(0xE3, size: 2) == 0xFF56)
  }

  @Test("Scratch memory")
  func memory() {
    let mmio = machine.platform.mmio
    mmio.write(0xFF00_0008, size: 8, value: 0x8877_6655_4433_2211)
    #expect(mmio.read(0xFF00_000A, size: 4) == 0x6655_4433 && mmio.read(0xFF00_000F, size: 1) == 0x88)
    mmio.write(0xFF00_FFFF, size: 1, value: 0x5A)
    #expect(mmio.read(0xFF00_FFFF, size: 1) == 0x5A && mmio.read(0xFF00_0000, size: 8) == 0)
    #expect(mmio.read(0xFF01_0000, size: 1) == 0xFF)
  }

  @Test("Interrupt wires") func lines() {
    machine.enableX2APIC()
    for (pin, register) in [(5, UInt64(0x10 + 2 * 5)), (20, 0x10 + 2 * 20)] {
      machine.ioapicWrite(register, 0x40 + UInt64(pin))
      machine.outb(0x2000 + UInt64(pin), 1)
      #expect(machine.apic.hasPendingInterrupt)
      #expect(machine.apic.acknowledge() == UInt8(0x40 + pin))
      _ = machine.apic.writeMSR(0x80B, 0)
      // Still asserted: no edge.
      machine.outb(0x2000 + UInt64(pin), 1)
      #expect(!machine.apic.hasPendingInterrupt)
      machine.outb(0x2000 + UInt64(pin), 0)
      machine.outb(0x2000 + UInt64(pin), 1)
      #expect(machine.apic.acknowledge() == UInt8(0x40 + pin))
      _ = machine.apic.writeMSR(0x80B, 0)
      machine.outb(0x2000 + UInt64(pin), 0)
    }
    machine.outb(0x2000 + 24, 1)
    #expect(machine.unclaimed.all == [0x2018])
  }

  @Test(
    "Firmware configuration",
    arguments: [
      (0, [0x51, 0x45, 0x4D, 0x55, 0]), (3, [0, 0, 0, 0x40, 0, 0, 0, 0, 0]), (5, [2, 0, 0]), (0x0F, [2, 0]),
      (0x11, [2, 0]),
      (0x1234, [0, 0]),
    ] as [(UInt64, [UInt8])])
  func configuration(key: UInt64, expected: [UInt8]) {
    for _ in 0..<2 {
      machine.platform.ports.write(0x510, size: 2, value: key)
      #expect(expected.map { _ in machine.inb(0x511) } == expected)
    }
  }

  @Test("A plain machine has none of it") func absent() {
    let plain = Fixture()
    for port: UInt64 in [0xE0, 0x510, 0x511, 0x2000] { #expect(plain.inb(port) == 0xFF) }
    #expect(plain.platform.mmio.read(0xFF00_0000, size: 1) == 0xFF)
    #expect(plain.unclaimed.all == [0xE0, 0x510, 0x511, 0x2000])
  }
}

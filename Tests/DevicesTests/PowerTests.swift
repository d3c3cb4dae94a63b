// SPDX-License-Identifier: Apache-2.0
// Every way out of the machine, the PM block as ACPICA uses it, and the bus beneath.

import Testing

@testable import Devices

@Suite struct PowerTests {
  @Test(
    "each way to reset or power off, and what does not",
    arguments: [
      ([(0xCF9, 0x06)], .reset(.resetControl)), ([(0xCF9, 0x02), (0xCF9, 0x0E)], .reset(.resetControl)),
      ([(0xCF9, 0x02)], nil), ([(0x64, 0xFE)], .reset(.keyboardController)), ([(0x64, 0xAA), (0x60, 0xFE)], nil),
      ([(0x64, 0xD1), (0x60, 0xDE)], .reset(.keyboardController)), ([(0x64, 0xD1), (0x60, 0xDF)], nil),
      ([(0x64, 0xFF)], nil), ([(0x92, 0x01)], .reset(.systemControlPortA)), ([(0x92, 0x02)], nil),
      ([(0x605, 0x34)], .powerOff), ([(0x605, 0x14)], nil), ([(0x605, 0x20)], nil), ([(0x605, 0x30)], nil),
      ([(0xF4, 0x2A)], .debugExit(0x2A)),
    ] as [([(UInt64, UInt8)], PowerEvent?)])
  func events(writes: [(UInt64, UInt8)], event: PowerEvent?) {
    let machine = Fixture()
    for (port, value) in writes { machine.outb(port, value) }
    #expect(machine.power.all == (event.map { [$0] } ?? []))
  }

  @Test("the A20 gate, by either port; both show it")
  func a20() {
    let machine = Fixture()
    func output() -> UInt8 {
      machine.outb(0x64, 0xD0)
      return machine.inb(0x64) & 1 != 0 ? machine.inb(0x60) & 3 : 0xFF
    }
    #expect(machine.inb(0x92) == 2 && output() == 3)
    machine.outb(0x92, 0)
    #expect(machine.inb(0x92) == 0 && output() == 1)
    for (port, value) in [(0x64, 0xD1), (0x60, 0xDF), (0x64, 0xDD), (0x64, 0xDF), (0x92, 2), (0x60, 0)]
      as [(UInt64, UInt8)]
    {
      machine.outb(port, value)
    }
    #expect(machine.a20.all == [false, true, false, true], "only changes are told")
    #expect(machine.power.all.isEmpty && machine.inb(0x64) == 0)
  }

  @Test("S5 as ACPICA writes it: the type first, then the type with SLP_EN")
  func softOff() {
    let machine = Fixture()
    #expect(machine.platform.ports.read(0x604, size: 2) == 1, "SCI_EN: ACPI mode is on")
    machine.platform.ports.write(0x604, size: 2, value: 5 << 10 | 1)
    #expect(machine.power.all.isEmpty && machine.platform.ports.read(0x604, size: 2) == 5 << 10 | 1)
    machine.platform.ports.write(0x604, size: 2, value: 5 << 10 | 1 << 13 | 1)
    #expect(machine.power.all == [.powerOff])
  }

  @Test("PM1 enable bits read back, status stays clear, the timer runs at 3.579545 MHz")
  func registers() {
    let machine = Fixture()
    machine.platform.ports.write(0x602, size: 2, value: 0xFFFF)
    machine.platform.ports.write(0x600, size: 2, value: 0xFFFF)
    #expect(machine.platform.ports.read(0x602, size: 2) == 0x0721)
    #expect(machine.platform.ports.read(0x600, size: 4) == 0x0721_0000)
    #expect(machine.platform.ports.read(0x608, size: 4) == 3_579_545)
    machine.time.advance(2_000_000_000)
    #expect(machine.platform.ports.read(0x608, size: 4) == 3 * 3_579_545)
    machine.time.advance(1 << 63)
    _ = machine.platform.ports.read(0x608, size: 4)
  }

  @Test("a 32-bit write to 0xCF8 is not a reset, and unclaimed ports read as ones")
  func unclaimed() {
    let machine = Fixture()
    machine.platform.ports.write(0xCF8, size: 4, value: 0x8000_0600)
    #expect(machine.power.all.isEmpty)
    #expect(machine.platform.ports.read(0xCF8, size: 4) == 0x8000_0600)
    #expect(machine.platform.ports.read(0x1234, size: 1) == 0xFF)
    #expect(machine.platform.ports.read(0x1234, size: 2) == 0xFFFF)
    #expect(machine.unclaimed.all == [0x1234] && machine.platform.ports.unclaimedAccesses == 2)
    #expect(machine.platform.mmio.read(.max, size: 8) == .max)
    machine.platform.mmio.write(.max, size: 8, value: 0)
  }

  @Test("PCI configuration mechanism 1 finds a host bridge and nothing else")
  func hostBridge() {
    let ports = Fixture().platform.ports
    func configuration(_ address: UInt64, _ register: UInt64 = 0, size: UInt8 = 4) -> UInt64 {
      ports.write(0xCF8, size: 4, value: address)
      return ports.read(0xCFC + register, size: size)
    }
    // As Linux probes: a byte to 0xCFB changes nothing, the address reads back.
    ports.write(0xCF8, size: 4, value: 0x8000_0000)
    ports.write(0xCFB, size: 1, value: 1)
    #expect(ports.read(0xCF8, size: 4) == 0x8000_0000)
    #expect(configuration(0x8000_0000) == 0x1237_8086)
    #expect(configuration(0x8000_0000, 2, size: 2) == 0x1237)
    #expect(configuration(0x8000_0008, 2, size: 2) == 0x0600, "class: host bridge")
    #expect(configuration(0x8000_000C, 2, size: 1) == 0, "one function, no bridge header")
    #expect(configuration(0x8000_0010) == 0, "no address space of its own")
    for absent: UInt64 in [0x8000_0100, 0x8000_0800, 0x8001_0000, 0x0000_0000] {
      #expect(configuration(absent) == 0xFFFF_FFFF)
    }
    #expect(ports.read(0xCF8, size: 1) == 0xFF && ports.read(0xCF9, size: 1) == 0)
  }
}

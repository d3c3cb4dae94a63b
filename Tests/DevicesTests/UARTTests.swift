// SPDX-License-Identifier: Apache-2.0
// The serial port through the sequences of Linux's 8250 driver, and the host's side of it.

import Testing

@testable import Devices

@Suite struct UARTTests {
  private let base: UInt64 = 0x3F8

  private func machine() -> Fixture {
    let machine = Fixture()
    machine.ioapicWrite(0x10 + 8, 0x24)
    return machine
  }

  private func output(_ machine: Fixture) -> String { String(decoding: machine.output.all, as: UTF8.self) }

  @Test("autoconfig finds a 16550A and nothing fancier")
  func autoconfig() {
    let machine = machine()
    machine.outb(base + 1, 0)
    #expect(machine.inb(base + 1) & 0x0F == 0)
    machine.outb(base + 1, 0x0F)
    #expect(machine.inb(base + 1) & 0x0F == 0x0F)
    machine.outb(base + 1, 0)
    machine.outb(base + 4, 0x10 | 0x0A)
    #expect(machine.inb(base + 6) & 0xF0 == 0x90, "loopback")
    machine.outb(base + 4, 0)
    machine.outb(base + 3, 0xBF)
    machine.outb(base + 2, 0)
    machine.outb(base + 3, 0)
    machine.outb(base + 2, 1)
    #expect(machine.inb(base + 2) >> 6 == 3, "16550A")
    for lineControl: UInt8 in [0x80, 0xBF] {
      machine.outb(base + 3, lineControl)
      #expect(machine.inb(base + 2) != 0, "no EFR")
    }
    machine.outb(base + 3, 0)
    machine.outb(base + 2, 0x21)
    #expect(machine.inb(base + 2) >> 5 == 6, "no 64-byte FIFO")
    machine.outb(base + 1, 0x40)
    #expect(machine.inb(base + 1) & 0x40 == 0, "no XScale")
    machine.outb(base + 7, 0xA5)
    #expect(machine.inb(base + 7) == 0xA5)
  }

  @Test("startup's test of the transmitter interrupt")
  func transmitterTest() {
    let machine = machine()
    machine.outb(base + 1, 0x02)
    #expect(machine.inb(base + 2) == 0x02)
    machine.outb(base + 1, 0)
    machine.outb(base + 1, 0x02)
    #expect(machine.inb(base + 2) == 0x02, "asserted again")
    #expect(machine.inb(base + 2) == 0x01, "reading it answered it")
    #expect(machine.inb(base + 5) == 0x60)
    #expect(machine.apic.acknowledge() == 0x24)
    machine.apic.endOfInterrupt()
    machine.outb(base, 0x41)
    #expect(machine.apic.acknowledge() == 0x24, "the byte is gone and there is room again")
  }

  @Test("received data: trigger, timeout, priorities, line level")
  func receiving() {
    let machine = machine()
    machine.outb(base + 2, 0x41)  // FIFO on, trigger 4
    machine.outb(base + 1, 0x03)
    _ = machine.inb(base + 2)
    _ = machine.apic.acknowledge()
    machine.apic.endOfInterrupt()
    #expect(machine.platform.serial.receive(Array("ab".utf8)) == 2)
    #expect(machine.apic.acknowledge() == 0x24)
    machine.apic.endOfInterrupt()
    #expect(machine.inb(base + 2) == 0xCC, "fewer than the trigger: timeout")
    machine.platform.serial.receive(Array("cd".utf8))
    #expect(machine.inb(base + 2) == 0xC4)
    for byte in "abcd".utf8 {
      #expect(machine.inb(base + 5) == 0x61)
      #expect(machine.inb(base) == byte)
    }
    #expect(machine.inb(base + 5) == 0x60 && machine.inb(base + 2) == 0xC1)
    machine.platform.serial.receive([1])
    #expect(machine.apic.acknowledge() == 0x24, "a new edge for new data")
  }

  @Test("loopback with and without FIFO, overrun")
  func loopback() {
    let machine = machine()
    machine.outb(base + 4, 0x10)
    machine.outb(base + 1, 0x04)
    machine.outb(base, 0x55)
    machine.outb(base, 0x66)
    #expect(machine.inb(base + 2) == 0x06)
    #expect(machine.inb(base + 5) == 0x63 && machine.inb(base + 5) == 0x61)
    #expect(machine.inb(base) == 0x55)
    machine.outb(base + 2, 0x07)
    for byte in UInt8(0)..<20 { machine.outb(base, byte) }
    #expect((0..<16).map { _ in machine.inb(base) } == Array(0..<16))
    #expect(machine.inb(base + 5) & 0x01 == 0)
    machine.outb(base + 4, 0)
    #expect(output(machine).isEmpty)
    #expect(machine.inb(base + 6) & 0xF0 == 0xB0)
  }

  @Test("divisor latch")
  func divisor() {
    let machine = machine()
    machine.outb(base + 3, 0x83)
    machine.outb(base, 0x0C)
    machine.outb(base + 1, 0x01)
    #expect(machine.inb(base) == 0x0C && machine.inb(base + 1) == 0x01)
    machine.outb(base + 3, 0x03)
    #expect(machine.inb(base + 1) == 0 && machine.inb(base + 3) == 0x03)
    #expect(output(machine).isEmpty)
  }

  @Test("output leaves byte by byte, at once")
  func transmitter() {
    let machine = machine()
    for (count, byte) in "hello\nlogin: ".utf8.enumerated() {
      machine.outb(base, byte)
      #expect(machine.output.all.count == count + 1)
    }
    #expect(output(machine) == "hello\nlogin: ")
  }

  @Test("input beyond capacity is refused, and room is announced once")
  func flow() {
    let machine = machine()
    #expect(machine.platform.serial.receiveCapacity == 1024)
    #expect(machine.platform.serial.receive([UInt8](repeating: 7, count: 2000)) == 1024)
    #expect(machine.platform.serial.receive([1]) == 0 && machine.platform.serial.receiveCapacity == 0)
    #expect(machine.room.all.isEmpty)
    _ = machine.inb(base)
    _ = machine.inb(base)
    #expect(machine.room.all.count == 1 && machine.platform.serial.receiveCapacity == 2)
  }

  @Test("a string instruction's wide access is split into bytes")
  func wide() {
    let machine = machine()
    machine.platform.ports.write(base + 7, size: 4, value: 0xFFFF_FF42)
    #expect(machine.inb(base + 7) == 0x42)
    #expect(machine.platform.ports.read(base + 7, size: 2) == 0xFF42)
  }
}

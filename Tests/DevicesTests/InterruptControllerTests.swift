// SPDX-License-Identifier: Apache-2.0
// IOAPIC and 8259s: pins in, vectors out, and the sequences Linux probes them with.

import Testing

@testable import Devices

@Suite struct IOAPICTests {
  @Test("identity and table width")
  func registers() {
    let machine = Fixture()
    #expect(machine.ioapicRead(1) == 0x0017_0020)
    machine.ioapicWrite(0, 0xFFFF_FFFF)
    #expect(machine.ioapicRead(0) == 0x0F00_0000)
    for pin in UInt64(0)..<24 { #expect(machine.ioapicRead(0x10 + 2 * pin) == 0x10000) }
    machine.ioapicWrite(0x10, 0xFFFF_FFFF)
    #expect(machine.ioapicRead(0x10) == 0x1AFFF, "delivery status and remote IRR are read-only")
    #expect(machine.ioapicRead(0x40) == 0)
  }

  @Test("a level is delivered once, and again after EOI while it lasts")
  func level() {
    let machine = Fixture()
    machine.ioapicWrite(0x11 + 2 * 9, 0)
    machine.ioapicWrite(0x10 + 2 * 9, 0x8051)
    machine.platform.ioapic.set(pin: 9, true)
    #expect(machine.ioapicRead(0x10 + 18) == 0xC051)
    #expect(machine.apic.acknowledge() == 0x51)
    machine.platform.ioapic.set(pin: 9, true)
    #expect(machine.apic.pendingVector() == nil, "remote IRR holds it back")
    machine.apic.write(offset: 0xB0, size: 4, value: 0)
    #expect(machine.apic.acknowledge() == 0x51)
    machine.platform.ioapic.set(pin: 9, false)
    machine.apic.endOfInterrupt()
    #expect(machine.apic.pendingVector() == nil && machine.ioapicRead(0x10 + 18) == 0x8051)
    machine.ioapicWrite(0x10 + 18, 0x18051)
    machine.platform.ioapic.set(pin: 9, true)
    #expect(machine.apic.pendingVector() == nil)
    machine.ioapicWrite(0x10 + 18, 0x8051)
    #expect(machine.apic.pendingVector() == 0x51, "unmasking finds the level")
  }

  @Test("a level refused by a disabled APIC is not lost")
  func refused() {
    let machine = Fixture()
    machine.apic.write(offset: 0xF0, size: 4, value: 0xFF)
    machine.ioapicWrite(0x10 + 18, 0x8051)
    machine.platform.ioapic.set(pin: 9, true)
    #expect(machine.ioapicRead(0x10 + 18) == 0x8051)
  }

  @Test("an edge is delivered once; masked edges are gone")
  func edge() {
    let machine = Fixture()
    machine.platform.ioapic.set(pin: 4, true)
    machine.ioapicWrite(0x10 + 8, 0x44)
    #expect(machine.apic.pendingVector() == nil)
    machine.platform.ioapic.set(pin: 4, true)
    #expect(machine.apic.pendingVector() == nil)
    machine.platform.ioapic.set(pin: 4, false)
    machine.platform.ioapic.set(pin: 4, true)
    #expect(machine.apic.acknowledge() == 0x44)
    machine.apic.endOfInterrupt()
    #expect(machine.apic.pendingVector() == nil)
  }

  @Test("the EOI register and passing through edge mode clear remote IRR")
  func directedEOI() {
    let machine = Fixture()
    for clear in [true, false] {
      machine.ioapicWrite(0x10 + 10, 0x8061)
      machine.platform.ioapic.set(pin: 5, true)
      machine.platform.ioapic.set(pin: 5, false)
      #expect(machine.ioapicRead(0x10 + 10) == 0xC061)
      if clear {
        machine.platform.mmio.write(0xFEC0_0040, size: 4, value: 0x61)
      } else {
        machine.ioapicWrite(0x10 + 10, 0x10061)
      }
      #expect(machine.ioapicRead(0x10 + 10) & 0x4000 == 0)
    }
  }

  @Test("pins out of range are ignored", arguments: [-1, 24, 100])
  func range(pin: Int) {
    let machine = Fixture()
    machine.platform.ioapic.set(pin: pin, true)
    #expect(!machine.apic.hasPendingInterrupt)
  }
}

@Suite struct PICTests {
  /// init_8259A of Linux: vectors 0x30 and 0x38.
  private func initialize(_ machine: Fixture, masterMask: UInt8, slaveMask: UInt8) {
    for (port, value) in [
      (0x21, 0xFF), (0xA1, 0xFF), (0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01), (0xA0, 0x11), (0xA1, 0x38),
      (0xA1, 0x02), (0xA1, 0x01), (0x21, masterMask), (0xA1, slaveMask),
    ] as [(UInt64, UInt8)] { machine.outb(port, value) }
  }

  @Test("Linux's probe: the mask reads back")
  func probe() {
    let machine = Fixture()
    machine.outb(0xA1, 0xFF)
    machine.outb(0x21, 0xFB)
    #expect(machine.inb(0x21) == 0xFB && machine.inb(0xA1) == 0xFF)
    machine.outb(0x4D0, 0xFF)
    machine.outb(0x4D1, 0xFF)
    #expect(machine.inb(0x4D0) == 0xF8 && machine.inb(0x4D1) == 0xDE)
  }

  @Test("every input arrives with its vector through LINT0 and ends with EOI", arguments: [0, 1, 3, 4, 7, 8, 12, 15])
  func vectors(irq: Int) {
    let machine = Fixture()
    initialize(machine, masterMask: 0, slaveMask: 0)
    machine.platform.pic.set(irq: irq, true)
    #expect(machine.apic.hasPendingInterrupt && machine.wakes.all.contains(0))
    #expect(machine.apic.acknowledge() == UInt8(0x30 + irq))
    #expect(!machine.apic.hasPendingInterrupt)
    machine.outb(irq < 8 ? 0x20 : 0xA0, 0x0B)
    #expect(machine.inb(irq < 8 ? 0x20 : 0xA0) == 1 << UInt8(irq & 7))
    if irq >= 8 { machine.outb(0xA0, 0x60 | UInt8(irq & 7)) }
    machine.outb(0x20, irq < 8 ? 0x60 | UInt8(irq) : 0x62)
    machine.outb(0x20, 0x0B)
    #expect(machine.inb(0x20) == 0)
    machine.platform.pic.set(irq: irq, false)
    machine.platform.pic.set(irq: irq, true)
    #expect(machine.apic.acknowledge() == UInt8(0x30 + irq))
  }

  @Test("priorities, masks, LINT0's mask and spurious vectors")
  func priorities() {
    let machine = Fixture()
    initialize(machine, masterMask: 0xF8, slaveMask: 0xFF)
    machine.platform.pic.set(irq: 4, true)
    #expect(!machine.apic.hasPendingInterrupt)
    machine.outb(0x21, 0)
    #expect(machine.apic.acknowledge() == 0x34)
    machine.platform.pic.set(irq: 5, true)
    #expect(!machine.apic.hasPendingInterrupt)
    machine.platform.pic.set(irq: 1, true)
    #expect(machine.apic.acknowledge() == 0x31)
    machine.outb(0x20, 0x20)
    machine.outb(0x20, 0x20)
    #expect(machine.apic.hasPendingInterrupt)
    machine.apic.write(offset: 0x350, size: 4, value: 0x10700)
    #expect(!machine.apic.hasPendingInterrupt)
    #expect(machine.platform.pic.acknowledge() == 0x35)
    #expect(machine.platform.pic.acknowledge() == 0x37, "nothing there: spurious")
  }

  @Test("with the APIC off, the 8259 is wired to the processor")
  func withoutAPIC() {
    let machine = Fixture()
    initialize(machine, masterMask: 0, slaveMask: 0)
    #expect(machine.apic.setBase(0xFEE0_0100))
    machine.platform.pic.set(irq: 0, true)
    #expect(machine.apic.acknowledge() == 0x30)
  }

  @Test("automatic EOI, level inputs and polling")
  func modes() {
    let machine = Fixture()
    initialize(machine, masterMask: 0, slaveMask: 0)
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3)] as [(UInt64, UInt8)] {
      machine.outb(port, value)
    }
    machine.outb(0x4D0, 0x20)
    machine.platform.pic.set(irq: 5, true)
    #expect(machine.apic.acknowledge() == 0x35)
    #expect(machine.apic.acknowledge() == 0x35, "the level is still there and nothing is in service")
    machine.outb(0x20, 0x0C)
    #expect(machine.inb(0x20) == 0x85)
    machine.platform.pic.set(irq: 5, false)
    #expect(!machine.apic.hasPendingInterrupt)
  }
}

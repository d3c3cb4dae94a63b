// SPDX-License-Identifier: Apache-2.0
// The MADT: processors, the IOAPIC, and where ISA interrupts really arrive.

extension ACPITables {
  /// Interrupt flags: active high and level triggered, or as the bus says.
  private enum Trigger: UInt16 { case conforming = 0, activeHighLevel = 0b1101 }

  /// The body after the header (ACPI 6.5, 5.2.12).
  static func madt(_ configuration: ACPIConfiguration) -> [UInt8] {
    var body = UInt32(PlatformAddress.localAPIC).littleEndianBytes
    body += UInt32(1).littleEndianBytes  // PCAT_COMPAT: there are 8259s
    for cpu in 0..<UInt8(configuration.cpuCount) {
      body += [0, 8, cpu, cpu] + UInt32(1).littleEndianBytes  // Local APIC: processor UID, APIC ID, enabled
    }
    body += [1, 12, 0, 0] + UInt32(PlatformAddress.ioapic).littleEndianBytes + UInt32(0).littleEndianBytes
    body += override(irq: 0, gsi: UInt32(InterruptPin.isa(0).globalSystemInterrupt), .conforming)
    body += override(irq: UInt8(sciInterrupt), gsi: UInt32(sciInterrupt), .activeHighLevel)
    body += [4, 6, 0xFF, 0, 0, 1]  // NMI: every processor's LINT1
    if let mailbox = configuration.mailbox {
      body += [16, 16] + UInt16(0).littleEndianBytes + UInt32(0).littleEndianBytes + mailbox.littleEndianBytes
    }
    return body
  }

  private static func override(irq: UInt8, gsi: UInt32, _ trigger: Trigger) -> [UInt8] {
    [2, 10, 0, irq] + gsi.littleEndianBytes + trigger.rawValue.littleEndianBytes
  }
}

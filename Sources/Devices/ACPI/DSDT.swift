// SPDX-License-Identifier: Apache-2.0
// The DSDT: the devices no bus can enumerate, and how to switch off. No methods, so nothing for the guest to run.

extension ACPITables {
  /// The definition block's AML.
  static func dsdt(_ configuration: ACPIConfiguration) -> [UInt8] {
    var devices: [UInt8] = []
    for cpu in 0..<configuration.cpuCount {
      devices += AML.device(
        "C" + hexadecimal(cpu, digits: 3),
        AML.name("_HID", AML.string("ACPI0007")) + AML.name("_UID", AML.integer(UInt32(cpu))))
    }
    if configuration.hasCOM1 {
      devices += AML.device(
        "COM1",
        AML.name("_HID", AML.eisaID("PNP0501")) + AML.name("_UID", AML.integer(1))
          + AML.name("_CRS", AML.resources([AML.ports(0x3F8, count: 8), AML.irq(4)])))
    }
    if configuration.hasRTC {
      devices += AML.device(
        "RTC",
        AML.name("_HID", AML.eisaID("PNP0B00"))
          + AML.name("_CRS", AML.resources([AML.ports(0x70, count: 2), AML.irq(8)])))
    }
    for (index, device) in configuration.mmioDevices.enumerated() {
      devices += AML.device(
        "V" + hexadecimal(index, digits: 3),
        AML.name("_HID", AML.string("LNRO0005")) + AML.name("_UID", AML.integer(UInt32(index)))
          + AML.name(
            "_CRS",
            AML.resources([
              AML.memory(device.base, count: device.count),
              AML.interrupt(device.gsi, isEdge: device.isEdgeTriggered),
            ])))
    }
    let type = AML.integer(UInt32(PowerManagement.softOffType))
    let zero = AML.integer(0)
    return AML.name("\\_S5", AML.package([type, zero, zero, zero])) + AML.scope("\\_SB", devices)
  }

  private static func hexadecimal(_ value: Int, digits: Int) -> String {
    let text = String(value, radix: 16, uppercase: true)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
  }
}

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
    for device in configuration.devices { devices += node(device) }
    let type = AML.integer(UInt32(PowerManagement.softOffType))
    let zero = AML.integer(0)
    return AML.name("\\_S5", AML.package([type, zero, zero, zero])) + AML.scope("\\_SB", devices)
  }

  /// A device's node: its identifiers, its windows, and its interrupt.
  private static func node(_ device: PlatformDevice) -> [UInt8] {
    guard let acpi = device.acpi else { return [] }
    let identifier =
      switch acpi.identifier {
      case .eisa(let id): AML.eisaID(id)
      case .acpi(let id): AML.string(id)
      }
    var resources = device.ports.map { AML.ports(UInt16($0.window.base), count: UInt8($0.window.count)) }
    resources += device.memory.map { AML.memory(UInt32($0.window.base), count: UInt32($0.window.count)) }
    switch device.interrupt {
    case .isa(let irq): resources.append(AML.irq(UInt8(irq)))
    case .ioapic(let pin, let isEdge): resources.append(AML.interrupt(UInt32(pin), isEdge: isEdge))
    case nil: break
    }
    return AML.device(
      acpi.name,
      AML.name("_HID", identifier) + (acpi.uid.map { AML.name("_UID", AML.integer($0)) } ?? [])
        + AML.name("_CRS", AML.resources(resources)))
  }

  private static func hexadecimal(_ value: Int, digits: Int) -> String {
    let text = String(value, radix: 16, uppercase: true)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
  }
}

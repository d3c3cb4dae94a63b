// SPDX-License-Identifier: Apache-2.0
// The tables: every checksum, every address, and, where it is installed, Intel's compiler as a judge.

import Foundation
import Testing

@testable import Devices

@Suite struct ACPITests {
  private static let address: UInt64 = 0xE0000

  private static func configuration(_ cpuCount: Int) -> ACPIConfiguration {
    var configuration = ACPIConfiguration(cpuCount: cpuCount)
    configuration.devices = Fixture().platform.devices
    for number in 0..<4 {
      let window = Bus.Window(0xD000_0000 + UInt64(number) * 0x1000, count: 0x200)
      let pin = InterruptPin.ioapic(16 + number, isEdgeTriggered: number == 3)
      let acpi = ACPIDevice("V00\(number)", .acpi("LNRO0005"), uid: UInt32(number))
      configuration.devices.append(
        PlatformDevice("virtio \(number)", ScratchMemory(), memory: [window], interrupt: pin, acpi: acpi))
    }
    return configuration
  }

  private struct Reader {
    let bytes: [UInt8]
    func value(_ address: UInt64, _ count: Int) -> UInt64 {
      let start = Int(address - ACPITests.address)
      return bytes[start..<start + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    func text(_ address: UInt64, _ count: Int) -> String {
      let start = Int(address - ACPITests.address)
      return String(decoding: bytes[start..<start + count], as: UTF8.self)
    }
    func sum(_ address: UInt64, _ count: Int) -> UInt8 {
      let start = Int(address - ACPITests.address)
      return bytes[start..<start + count].reduce(0, &+)
    }
    func table(_ address: UInt64) -> [UInt8] {
      let start = Int(address - ACPITests.address)
      return Array(bytes[start..<start + Int(value(address + 4, 4))])
    }
  }

  @Test("checksums and addresses, from the RSDP down", arguments: [1, 4, 64, 254])
  func walk(cpuCount: Int) throws {
    let bytes = ACPITables.build(Self.configuration(cpuCount), at: Self.address)
    let (reader, rsdp) = (Reader(bytes: bytes), Self.address)
    #expect(bytes.count < 0x20000)
    #expect(reader.text(rsdp, 8) == "RSD PTR " && reader.sum(rsdp, 20) == 0 && reader.sum(rsdp, 36) == 0)
    let rsdt = reader.value(rsdp + 16, 4)
    let xsdt = reader.value(rsdp + 24, 8)
    let (fadt, madt) = (reader.value(xsdt + 36, 8), reader.value(xsdt + 44, 8))
    #expect(reader.value(rsdt + 36, 4) == fadt && reader.value(rsdt + 40, 4) == madt)
    let dsdt = reader.value(fadt + 40, 4)
    for (table, signature) in [(rsdt, "RSDT"), (xsdt, "XSDT"), (fadt, "FACP"), (madt, "APIC"), (dsdt, "DSDT")] {
      #expect(reader.text(table, 4) == signature)
      #expect(reader.sum(table, Int(reader.value(table + 4, 4))) == 0, "\(signature)")
    }
    #expect(reader.value(fadt + 4, 4) == 276 && reader.value(fadt + 140, 8) == dsdt)
    let facs = reader.value(fadt + 36, 4)
    #expect(reader.text(facs, 4) == "FACS" && facs.isMultiple(of: 64))
    #expect(reader.value(fadt + 116, 4) == 0x0100_0801 && reader.value(fadt + 120, 8) == 0xCF9)
    #expect(reader.value(fadt + 128, 1) == 6)
    #expect(reader.value(fadt + 48, 4) == 0, "no SMI_CMD")
    #expect(reader.value(fadt + 109, 2) & 0b10 == 0, "no 8042")
    #expect(reader.value(madt + 4, 4) == UInt64(44 + 8 * cpuCount + 12 + 20 + 6))
  }

  @Test(
    "AML lengths at each size of PkgLength",
    arguments: [
      (0, [0x01]), (62, [0x3F]), (63, [0x41, 0x04]), (4093, [0x4F, 0xFF]), (4094, [0x81, 0x00, 0x01]),
    ] as [(Int, [UInt8])])
  func packageLength(count: Int, expected: [UInt8]) {
    #expect(Array(AML.packaged([UInt8](repeating: 0, count: count)).prefix(expected.count)) == expected)
    #expect(AML.eisaID("PNP0501") == [0x0C, 0x41, 0xD0, 0x05, 0x01])
  }

  private static let iasl = "/usr/bin/iasl"

  @Test(
    "iasl takes the tables apart and back together without a complaint",
    .enabled(if: FileManager.default.isExecutableFile(atPath: iasl), "iasl (acpica-tools) is not installed"),
    arguments: [1, 64])
  func compiler(cpuCount: Int) throws {
    let folder = FileManager.default.temporaryDirectory.appending(path: "lguest-acpi-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let bytes = ACPITables.build(Self.configuration(cpuCount), at: Self.address)
    let (reader, rsdp) = (Reader(bytes: bytes), Self.address)
    let xsdt = reader.value(rsdp + 24, 8)
    let fadt = reader.value(xsdt + 36, 8)
    let tables = [("facp", fadt), ("apic", reader.value(xsdt + 44, 8)), ("dsdt", reader.value(fadt + 140, 8))]
    for (name, address) in tables {
      try Data(reader.table(address)).write(to: folder.appending(path: "\(name).dat"))
      let text = try run(["-d", "\(name).dat"], in: folder)
      #expect(!text.contains("rror") && !text.contains("arning"), "\(text)")
      let source = try String(contentsOf: folder.appending(path: "\(name).dsl"), encoding: .utf8)
      #expect(!source.contains("Incorrect checksum") && !source.contains("Error"), "\(source)")
    }
    let text = try run(["-we", "dsdt.dsl"], in: folder)
    #expect(text.contains("0 Errors, 0 Warnings"), "\(text)")
  }

  /// Runs iasl and returns everything it prints.
  private func run(_ arguments: [String], in folder: URL) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: Self.iasl)
    process.arguments = arguments
    process.currentDirectoryURL = folder
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let data = try pipe.fileHandleForReading.readToEnd() ?? Data()
    process.waitUntilExit()
    return String(decoding: data, as: UTF8.self)
  }
}

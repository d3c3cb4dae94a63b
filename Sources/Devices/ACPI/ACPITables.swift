// SPDX-License-Identifier: Apache-2.0
// The tables by which an operating system learns what machine this is. One blob, absolute addresses, all checksums
// right, and nothing in it that is not there: every flag below exists to spare the guest a probe or a warning.

/// What the ACPI tables say about a machine.
public struct ACPIConfiguration: Sendable {
  /// vCPUs; APIC IDs are 0..<cpuCount. 1...254.
  public var cpuCount: Int
  /// All devices; the DSDT names those with an `acpi`.
  public var devices: [PlatformDevice] = []
  /// The multiprocessor wakeup mailbox, a page of reserved memory, if processors wait there; they are then started by
  /// no IPI.
  public var mailbox: UInt64?

  public init(cpuCount: Int) { self.cpuCount = cpuCount }
}

/// What the DSDT says of a device beside its windows and its interrupt.
public struct ACPIDevice: Sendable, Equatable {
  /// A hardware identifier (_HID): an EISA identifier such as PNP0501, or a longer one such as LNRO0005.
  public enum Identifier: Sendable, Equatable { case eisa(String), acpi(String) }

  /// The name of its node, up to four of A-Z, 0-9 and underscore, not beginning with a digit.
  public let name: String
  public let identifier: Identifier
  /// _UID, where there may be several of one identifier.
  public let uid: UInt32?

  public init(_ name: String, _ identifier: Identifier, uid: UInt32? = nil) {
    (self.name, self.identifier, self.uid) = (name, identifier, uid)
  }
}

/// Builds RSDP, RSDT, XSDT, FACS, DSDT, FADT and MADT.
public enum ACPITables {
  /// Builds all tables as they must lie from `address` on.
  ///
  /// - Parameters:
  ///   - configuration: The machine.
  ///   - address: Guest-physical, a multiple of 64 below 4 GiB. In 0xE0000..<0x100000 the RSDP is also found by
  ///     scanning; the caller keeps the range out of usable RAM in the memory map.
  /// - Returns: The bytes; the RSDP is first.
  public static func build(_ configuration: ACPIConfiguration, at address: UInt64) -> [UInt8] {
    precondition(address.isMultiple(of: 64) && address < 0xFFF0_0000, "FACS wants 64-byte alignment below 4 GiB")
    precondition((1...254).contains(configuration.cpuCount))
    var blob = Blob(address: UInt32(address))
    blob.bytes = [UInt8](repeating: 0, count: 64)  // The RSDP goes here, once the addresses are known.
    let facs = blob.append(Self.facs)
    let dsdt = blob.append(table("DSDT", revision: 2, dsdt(configuration)))
    let fadt = blob.append(table("FACP", revision: 6, fadt(facs: facs, dsdt: dsdt)))
    let madt = blob.append(table("APIC", revision: 5, madt(configuration)))
    let rsdt = blob.append(table("RSDT", revision: 1, [fadt, madt].flatMap(\.littleEndianBytes)))
    let xsdt = blob.append(table("XSDT", revision: 1, [fadt, madt].flatMap { UInt64($0).littleEndianBytes }))
    blob.bytes.replaceSubrange(0..<36, with: rsdp(rsdt: rsdt, xsdt: xsdt))
    return blob.bytes
  }

  private static let oemID = Array("LGUEST".utf8)

  /// Tables one after another, each at a multiple of 64.
  private struct Blob {
    let address: UInt32
    var bytes: [UInt8] = []

    init(address: UInt32) { self.address = address }

    /// Returns the table's address.
    mutating func append(_ table: [UInt8]) -> UInt32 {
      bytes += [UInt8](repeating: 0, count: (64 - bytes.count % 64) % 64)
      defer { bytes += table }
      return address + UInt32(bytes.count)
    }
  }

  /// The byte that makes a sum of bytes 0.
  private static func checksum(_ bytes: some Sequence<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }

  /// A body behind the standard header (ACPI 6.5, 5.2.6).
  private static func table(_ signature: String, revision: UInt8, _ body: [UInt8]) -> [UInt8] {
    var bytes = Array(signature.utf8) + UInt32(36 + body.count).littleEndianBytes + [revision, 0] + oemID
    bytes += Array("LGUESTVM".utf8) + UInt32(1).littleEndianBytes + Array("LGST".utf8) + UInt32(1).littleEndianBytes
    bytes += body
    bytes[9] = checksum(bytes)
    return bytes
  }

  /// ACPI 6.5, 5.2.5.3: the first 20 bytes have a checksum of their own.
  private static func rsdp(rsdt: UInt32, xsdt: UInt32) -> [UInt8] {
    var bytes = Array("RSD PTR ".utf8) + [0] + oemID + [2] + rsdt.littleEndianBytes
    bytes[8] = checksum(bytes)
    bytes += UInt32(36).littleEndianBytes + UInt64(xsdt).littleEndianBytes + [0, 0, 0, 0]
    bytes[32] = checksum(bytes)
    return bytes
  }

  /// ACPI 6.5, 5.2.10: no waking vector, no global lock, version 2.
  private static var facs: [UInt8] {
    var bytes = Array("FACS".utf8) + UInt32(64).littleEndianBytes
    bytes += [UInt8](repeating: 0, count: 64 - bytes.count)
    bytes[32] = 2
    return bytes
  }
}

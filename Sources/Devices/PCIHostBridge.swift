// SPDX-License-Identifier: Apache-2.0
// Ports 0xCF8...0xCFF: PCI configuration mechanism 1 with nothing behind it but a host bridge. Kernels look for the
// mechanism before they look for ACPI's word that there is no bus, and complain when it is missing.

public import Saving
import Synchronization

/// The configuration ports of a PCI bus 0 whose only function is the host bridge (PCI Local Bus Specification 3.0,
/// 3.2.2.3). Port 0xCF9, a byte in their middle, is the chipset's reset register.
public final class PCIHostBridge: Device {
  public static let portCount: UInt64 = 8

  /// Bit 31 enables; bus 23:16, device 15:11, function 10:8, register 7:2.
  private static let writable: UInt32 = 0x80FF_FFFC
  /// Intel's 82441FX, a host bridge that no kernel has a workaround for: vendor and device, command and status,
  /// revision and class (host bridge). Registers not listed read as zero.
  private static let registers: [UInt32: UInt32] = [0x00: 0x1237_8086, 0x08: 0x0600_0002]

  private let address = Mutex<UInt32>(0)
  private let reset: ResetControl

  public init(reset: ResetControl) { self.reset = reset }

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    switch (offset, size) {
    case (0, 4): UInt64(address.withLock { $0 })
    case (1, 1): reset.read(offset: 0, size: 1)
    case (4..., _): UInt64(configuration) >> ((offset & 3) &* 8)
    default: .max
    }
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    switch (offset, size) {
    case (0, 4): address.withLock { $0 = UInt32(truncatingIfNeeded: value) & Self.writable }
    case (1, 1): reset.write(offset: 0, size: 1, value: value)
    default: break  // the host bridge has no register to set
    }
  }

  /// The register that the address names; ones where there is no function.
  private var configuration: UInt32 {
    let address = address.withLock { $0 }
    guard address >> 8 == 0x80_0000 else { return .max }
    return Self.registers[address & 0xFC] ?? 0
  }
}

extension PCIHostBridge: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try address.withLock { address throws(SavedStateError) in
      try archive.transfer(&address, "address", bits: Self.writable)
    }
    try reset.transfer(&archive)
  }
}

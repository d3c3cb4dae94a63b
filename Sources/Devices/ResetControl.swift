// SPDX-License-Identifier: Apache-2.0
// Port 0xCF9: the chipset's reset register, the FADT's RESET_REG and Linux's `reboot=pci`.

public import Saving
import Synchronization

/// The reset control register of Intel chipsets (ICH9 datasheet, 13.7.5): one byte.
public final class ResetControl: Device {
  /// Bit 2, RST_CPU: a change from 0 to 1 resets. Bit 1 selects a hard reset, bit 3 a full power cycle.
  private static let resetCPU: UInt8 = 1 << 2
  private static let writable: UInt8 = 0b1110

  private let value = Mutex<UInt8>(0)
  private let report: @Sendable (PowerEvent) -> Void

  public init(report: @escaping @Sendable (PowerEvent) -> Void) { self.report = report }

  public func read(offset: UInt64, size: UInt8) -> UInt64 { UInt64(value.withLock { $0 }) }

  public func write(offset: UInt64, size: UInt8, value newValue: UInt64) {
    let isReset = value.withLock { value in
      let old = value
      value = UInt8(truncatingIfNeeded: newValue) & Self.writable
      return old & Self.resetCPU == 0 && value & Self.resetCPU != 0
    }
    if isReset { report(.reset(.resetControl)) }
  }
}

extension ResetControl: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try value.withLock { value throws(SavedStateError) in
      try archive.transfer(&value, "reset register", bits: Self.writable)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Ports 0xE0 to 0xE3 of the test machine: four bytes that read back what was written, for tests of IN, OUT and their
// string forms in every size.

public import Saving
import Synchronization

/// Four bytes behind ports.
public final class ScratchPort: Device {
  public static let byteCount: UInt64 = 4

  private let value = Mutex<UInt32>(0)

  public init() {}

  public func read(offset: UInt64, size: UInt8) -> UInt64 { UInt64(value.withLock { $0 } >> ScratchPort.shift(offset)) }

  public func write(offset: UInt64, size: UInt8, value new: UInt64) {
    let shift = ScratchPort.shift(offset)
    let ones: UInt32 = size >= 4 ? .max : (1 << (UInt32(size) &* 8)) &- 1
    let mask = ones << shift
    value.withLock { $0 = $0 & ~mask | UInt32(truncatingIfNeeded: new) << shift & mask }
  }

  private static func shift(_ offset: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: offset & 3) &* 8 }
}

extension ScratchPort: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try value.withLock { value throws(SavedStateError) in try archive.transfer(&value, "port") }
  }
}

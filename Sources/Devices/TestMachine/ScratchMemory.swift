// SPDX-License-Identifier: Apache-2.0
// 64 KiB at 0xFF000000 in the test machine that look like memory and are a device: every access arrives here, so that
// tests can tell whether each form of each instruction reaches a device with the right bytes.

public import Saving
import Synchronization

/// Bytes behind an MMIO range, all zero at first.
public final class ScratchMemory: Device {
  public static let byteCount = 65536

  private let bytes = Mutex([UInt8](repeating: 0, count: ScratchMemory.byteCount))

  public init() {}

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    bytes.withLock { bytes in
      var value: UInt64 = 0
      for i in (0..<UInt64(size)).reversed() { value = value << 8 | UInt64(bytes[ScratchMemory.index(offset &+ i)]) }
      return value
    }
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    bytes.withLock { bytes in
      for i in 0..<UInt64(size) {
        bytes[ScratchMemory.index(offset &+ i)] = UInt8(truncatingIfNeeded: value >> (i &* 8))
      }
    }
  }

  private static func index(_ offset: UInt64) -> Int { Int(offset % UInt64(byteCount)) }
}

extension ScratchMemory: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try bytes.withLock { bytes throws(SavedStateError) in
      try archive.transfer(&bytes, "memory", limit: ScratchMemory.byteCount)
      try archive.require(bytes.count == ScratchMemory.byteCount, "memory's length", bytes.count)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// CRC-32C, the checksum of iSCSI and of many file systems (RFC 3720, 12.1): what a saved machine is checked by.

import CHost

/// Sums by the processor's instruction; every host that can run a guest has it.
public enum Checksum {
  /// The sum of some bytes.
  public static func crc32c(_ bytes: [UInt8]) -> UInt32 {
    unsafe bytes.withUnsafeBytes { unsafe chost_crc32c(0, $0.baseAddress, UInt64($0.count)) }
  }

  /// The sum of a page of zeros.
  public static let zeroPage = crc32c([UInt8](repeating: 0, count: hostPageSize))

  /// The sum of each page from `start` on.
  public static func ofPages(_ start: UnsafeRawPointer, count: Int) -> [UInt32] {
    unsafe [UInt32](unsafeUninitializedCapacity: count) { buffer, filled in
      unsafe chost_crc32c_pages(start, UInt64(count), buffer.baseAddress)
      filled = count
    }
  }

  /// Whether a page holds nothing but zeros.
  public static func isZero(_ page: UnsafeRawPointer) -> Bool {
    let words = unsafe UnsafeBufferPointer(start: page.assumingMemoryBound(to: UInt64.self), count: hostPageSize / 8)
    return unsafe words.allSatisfy { $0 == 0 }
  }
}

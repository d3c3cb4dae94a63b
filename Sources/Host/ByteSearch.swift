// SPDX-License-Identifier: Apache-2.0
// Searching memory for bytes, by the C library, which looks at many at a time.

import CHost

/// Searches memory.
public enum ByteSearch {
  /// Whether some bytes follow each other in a piece of memory, which others may change meanwhile.
  public static func has(_ bytes: [UInt8], in memory: UnsafeRawBufferPointer) -> Bool {
    unsafe bytes.withUnsafeBytes {
      unsafe chost_has(memory.baseAddress, UInt64(memory.count), $0.baseAddress, UInt64($0.count)) != 0
    }
  }
}

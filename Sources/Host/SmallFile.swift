// SPDX-License-Identifier: Apache-2.0
// Small text files that describe the machine (/proc, /sys), read whole.

import SystemPackage

/// Reads files whose size cannot be asked for, such as those in /proc.
public enum SmallFile {
  /// The first `limit` bytes of a file as text, or nil when it cannot be read.
  public static func text(_ path: FilePath, limit: Int = 1 << 20) -> String? {
    guard let file = try? FileDescriptor.open(path, .readOnly) else { return nil }
    defer { try? file.close() }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16 << 10)
    while bytes.count < limit {
      // SAFETY: the buffer is the array's own storage and does not outlive the call.
      guard let count = try? unsafe chunk.withUnsafeMutableBytes({ unsafe try file.read(into: $0) }) else { return nil }
      if count == 0 { break }
      bytes.append(contentsOf: chunk[..<count])
    }
    return String(decoding: bytes.prefix(limit), as: UTF8.self)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Which pages of a file's private mapping have become this process's own: what a guest has written to since it was
// restored (linux, Documentation/admin-guide/mm/pagemap.rst).

import SystemPackage

/// What the kernel says about this process's pages; opened early, to be asked also when nothing can be opened any more.
public final class PageMap: Sendable {
  private let file: FileDescriptor

  /// - Returns: nil if the kernel does not say.
  public init?() {
    let path = FilePath("/proc/self/pagemap")
    guard let file = try? FileDescriptor.open(path, .readOnly, options: .closeOnExec) else { return nil }
    self.file = file
  }

  deinit { try? file.close() }

  /// Which pages of a range that was placed as copies of a file are this process's own by now; nil if the kernel does
  /// not say.
  public func ownPages(_ start: UnsafeMutableRawPointer, count: Int) -> [Bool]? {
    var entries = [UInt64](repeating: 0, count: count)
    let byteCount = count * 8
    let offset = Int64(UInt(bitPattern: start) / UInt(hostPageSize) * 8)
    let isComplete = unsafe entries.withUnsafeMutableBytes { buffer in
      var done = 0
      while done < byteCount {
        guard
          let more = unsafe try? file.read(
            fromAbsoluteOffset: offset + Int64(done), into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...])),
          more > 0
        else { return false }
        done += more
      }
      return true
    }
    let (present, swapped, ofFile): (UInt64, UInt64, UInt64) = (1 << 63, 1 << 62, 1 << 61)
    return isComplete ? entries.map { $0 & (present | swapped) != 0 && $0 & ofFile == 0 } : nil
  }
}

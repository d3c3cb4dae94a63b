// SPDX-License-Identifier: Apache-2.0
// Opening a file to write to it without waiting for anybody: open(2) of a FIFO that nobody reads would wait for as long
// as nobody does (fifo(7)), whatever limits of time there are.

import Glibc
public import SystemPackage

private func isFIFO(_ path: FilePath) -> Bool {
  var status = stat()
  return unsafe stat(path.string, &status) == 0 && status.st_mode & S_IFMT == S_IFIFO
}

extension FileDescriptor {
  /// Opens a file to write to it, closed on exec.
  ///
  /// - Throws: `HostError`, also when it is a FIFO that nobody reads.
  public static func openWithoutWaiting(
    _ path: FilePath, options: OpenOptions = [], permissions: FilePermissions? = nil
  ) throws(HostError) -> FileDescriptor {
    let file: FileDescriptor
    do {
      file = try FileDescriptor.open(
        path, .writeOnly, options: options.union([.closeOnExec, .nonBlocking]), permissions: permissions)
    } catch {
      let errno = error as? Errno ?? .ioError
      guard errno == .noSuchAddressOrDevice, isFIFO(path) else {
        throw HostError("write to", "'\(path)'", errno: errno)
      }
      throw HostError(
        "write to", "'\(path)'", reason: "it is a FIFO that nobody reads", remedy: "start its reader before")
    }
    // What is written may wait.
    let flags = fcntl(file.rawValue, F_GETFL)
    _ = fcntl(file.rawValue, F_SETFL, flags & ~O_NONBLOCK)
    return file
  }
}

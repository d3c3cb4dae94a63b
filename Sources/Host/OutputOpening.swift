// SPDX-License-Identifier: Apache-2.0
// Opening a file to write to it, whose reader may come late but must come: open(2) of a FIFO that nobody reads would wait
// for as long as nobody does (fifo(7)), whatever limits of time there are.

import Glibc
public import SystemPackage

private func isFIFO(_ path: FilePath) -> Bool {
  var status = stat()
  return unsafe stat(path.string, &status) == 0 && status.st_mode & S_IFMT == S_IFIFO
}

extension FileDescriptor {
  /// Opens a file to write to it, closed on exec. A FIFO's reader, which is often started beside us, has two seconds.
  ///
  /// - Throws: `HostError`, also when it is a FIFO that nobody reads.
  public static func openForWriting(
    _ path: FilePath, options: OpenOptions = [], permissions: FilePermissions? = nil
  ) throws(HostError) -> FileDescriptor {
    let end = HostClock.after(nanoseconds: 2_000_000_000)
    while true {
      do {
        let file = try FileDescriptor.open(
          path, .writeOnly, options: options.union([.closeOnExec, .nonBlocking]), permissions: permissions)
        // What is written may wait.
        let flags = fcntl(file.rawValue, F_GETFL)
        _ = fcntl(file.rawValue, F_SETFL, flags & ~O_NONBLOCK)
        return file
      } catch {
        let errno = error as? Errno ?? .ioError
        guard errno == .noSuchAddressOrDevice, isFIFO(path) else {
          throw HostError("write to", "'\(path)'", errno: errno)
        }
        guard HostClock.monotonic < end else {
          throw HostError(
            "write to", "'\(path)'", reason: "it is a FIFO that nobody reads", remedy: "start its reader too")
        }
        HostClock.sleep(until: HostClock.after(nanoseconds: 5_000_000))
      }
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Where the control sockets of this user's runs are, and who is there: one socket for each process, named after it, in
// a directory that nobody else may enter. A socket that nobody answers at is removed on sight.

import Host
import SystemPackage

/// The control sockets of one user.
package enum ControlSocket {
  private static let suffix = ".socket"

  /// The directories that are looked at, in the order of preference: the session's, which the system removes, and one
  /// in /tmp. Each is 0700 and this user's, or is not used.
  static var directories: [FilePath] {
    let fallback = FilePath("/tmp/lguest-\(LocalSocket.user)")
    guard let session = LocalSocket.environment("XDG_RUNTIME_DIR") else { return [fallback] }
    let directory = FilePath(session).appending("lguest")
    // Long enough for any process's number, or sockets there would have no address.
    return directory.string.utf8.count + 24 <= LocalSocket.longestPath ? [directory, fallback] : [fallback]
  }

  static func path(_ process: Int32, in directory: FilePath) -> FilePath { directory.appending("\(process)\(suffix)") }

  /// Makes this process's socket, in the first directory where that works.
  static func listen() throws(HostError) -> LocalListener {
    var failure: HostError?
    for directory in directories {
      do throws(HostError) {
        try LocalSocket.makePrivateDirectory(directory)
        let path = path(LocalSocket.process, in: directory)
        // Left by an earlier process of this number.
        LocalSocket.remove(path)
        return try LocalListener(at: path)
      } catch { failure = failure ?? error }
    }
    throw failure ?? HostError("make", "a control socket", reason: "there is no directory for it")
  }

  /// The processes whose sockets are there, in ascending order; those that nobody answers at are removed.
  package static func processes() -> [Int32] {
    var found: Set<Int32> = []
    for directory in directories {
      for name in LocalSocket.names(in: directory) where name.hasSuffix(suffix) {
        guard let process = Int32(name.dropLast(suffix.count)) else { continue }
        do throws(HostError) {
          _ = try connect(process, in: directory)
          found.insert(process)
        } catch {
          switch error.errno {
          case .connectionRefused: LocalSocket.remove(path(process, in: directory))
          // Somebody is there, for whom too many wait.
          case .resourceTemporarilyUnavailable: found.insert(process)
          default: break
          }
        }
      }
    }
    return found.sorted()
  }

  private static func connect(
    _ process: Int32, in directory: FilePath, milliseconds: Int32 = 0
  ) throws(HostError) -> LocalConnection {
    let connection = try LocalConnection(to: path(process, in: directory), milliseconds: milliseconds)
    guard connection.peer?.user == LocalSocket.user else {
      throw HostError("talk to", "process \(process)", reason: "it is another user's")
    }
    return connection
  }

  /// Connects to a process's socket.
  ///
  /// - Parameter milliseconds: How long to try while too many others wait for it.
  static func connect(to process: Int32, milliseconds: Int32) throws(HostError) -> LocalConnection {
    for directory in directories {
      do throws(HostError) { return try connect(process, in: directory, milliseconds: milliseconds) } catch {
        if error.errno == .noSuchFileOrDirectory { continue }
        if error.errno == .connectionRefused {
          LocalSocket.remove(path(process, in: directory))
          continue
        }
        throw error
      }
    }
    throw HostError("talk to", "process \(process)", reason: "it is no run of lguest", remedy: "lguest ps lists them")
  }
}

// SPDX-License-Identifier: Apache-2.0
// Unix sockets that carry lines of text between processes of one user: the control socket of a run and those who ask
// it.

import CHost
import Glibc
import Synchronization
import SystemPackage

/// One end of a connection; closed when it goes away.
@safe public final class LocalConnection: Sendable {
  let descriptor: Int32
  /// A descriptor that came with the bytes received last, or before, and that nobody has taken.
  private let arrived = Mutex<FileDescriptor?>(nil)

  fileprivate init(_ descriptor: Int32) { self.descriptor = descriptor }

  deinit {
    Glibc.close(descriptor)
    try? takeDescriptor()?.close()
  }

  /// Connects to a socket in the file system.
  ///
  /// - Parameter milliseconds: How long to try while as many wait at the other end as may; then the error is
  ///   `resourceTemporarilyUnavailable`. Left to itself, connect(2) would wait for as long as that lasts.
  public convenience init(to path: FilePath, milliseconds: Int32 = 0) throws(HostError) {
    let descriptor = try LocalSocket.make(path)
    self.init(descriptor)
    let deadline = HostClock.after(nanoseconds: UInt64(max(milliseconds, 0)) * 1_000_000)
    while true {
      let result = unsafe try LocalSocket.withAddress(path) { unsafe Glibc.connect(descriptor, $0, $1) }
      guard result != 0 else { return }
      let error = currentErrno
      guard error == .resourceTemporarilyUnavailable, HostClock.monotonic < deadline else {
        throw HostError("connect to", "socket \(path)", errno: error)
      }
      HostClock.sleep(until: min(deadline, HostClock.after(nanoseconds: 20_000_000)))
    }
  }

  /// Whether the other end has gone altogether, and not only said that it has said all.
  public var isAbandoned: Bool {
    var request = pollfd(fd: descriptor, events: 0, revents: 0)
    return unsafe poll(&request, 1, 0) > 0 && Int32(request.revents) & POLLHUP != 0
  }

  /// Ends the conversation: the other end finds nothing more to read.
  public func close() { shutdown(descriptor, Int32(SHUT_RDWR)) }

  /// The user and the process at the other end.
  public var peer: (user: UInt32, process: Int32)? {
    var user: UInt32 = 0
    var process: Int32 = 0
    return unsafe chost_socket_peer(descriptor, &user, &process) == 0 ? (user, process) : nil
  }

  /// Sends bytes, and with the first of them a descriptor, which stays the caller's; false when the other end does not
  /// take them within the time.
  public func send(_ bytes: [UInt8], with file: FileDescriptor? = nil, milliseconds: Int32 = 2000) -> Bool {
    var done = 0
    while done < bytes.count {
      let passed = done == 0 ? file?.rawValue ?? -1 : -1
      // SAFETY: the pointer is the array's own storage and does not outlive the call.
      let count = unsafe bytes.withUnsafeBytes { buffer in
        unsafe chost_send(descriptor, buffer.baseAddress! + done, UInt64(buffer.count - done), passed)
      }
      if count > 0 {
        done += count
      } else if count == -Int(EAGAIN) {
        guard wait(POLLOUT, milliseconds) else { return false }
      } else if count != -Int(EINTR) {
        return false
      }
    }
    return true
  }

  /// What has arrived, at most 4 KiB: nil after `milliseconds` without anything, empty at the end.
  public func receive(milliseconds: Int32) -> [UInt8]? {
    guard wait(POLLIN, milliseconds) else { return nil }
    var bytes = [UInt8](repeating: 0, count: 4096)
    var passed: Int32 = -1
    // SAFETY: the pointer is the array's own storage and does not outlive the call.
    let count = unsafe bytes.withUnsafeMutableBytes {
      unsafe chost_receive(descriptor, $0.baseAddress, UInt64($0.count), &passed)
    }
    if passed >= 0 {
      try? takeDescriptor()?.close()
      arrived.withLock { $0 = FileDescriptor(rawValue: passed) }
    }
    if count < 0 { return count == -Int(EINTR) || count == -Int(EAGAIN) ? nil : [] }
    bytes.removeSubrange(count...)
    return bytes
  }

  /// What `receiveSome` found.
  enum Arrival {
    case bytes([UInt8])
    case none
    /// The other end has gone.
    case end
  }

  /// What has arrived, without waiting. Descriptors that come with it are closed.
  func receiveSome() -> Arrival {
    var bytes = [UInt8](repeating: 0, count: 65536)
    // SAFETY: the pointer is the array's own storage and does not outlive the call.
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, $0.count) }
    if count > 0 {
      bytes.removeSubrange(count...)
      return .bytes(bytes)
    }
    return count < 0 && [EAGAIN, EINTR].contains(errno) ? .none : .end
  }

  /// Sends what the other end takes without waiting, and says how many bytes; nil if it has gone.
  func sendSome(_ bytes: [UInt8]) -> Int? {
    // SAFETY: as above.
    let count = unsafe bytes.withUnsafeBytes {
      unsafe chost_send(descriptor, $0.baseAddress, UInt64($0.count), -1)
    }
    return count >= 0 ? count : [-Int(EAGAIN), -Int(EINTR)].contains(count) ? 0 : nil
  }

  /// The last descriptor that came, once; whoever takes it closes it.
  public func takeDescriptor() -> FileDescriptor? {
    arrived.withLock { arrived in
      defer { arrived = nil }
      return arrived
    }
  }

  private func wait(_ events: Int32, _ milliseconds: Int32) -> Bool {
    var request = pollfd(fd: descriptor, events: Int16(events), revents: 0)
    return unsafe poll(&request, 1, milliseconds) > 0
  }
}

/// A socket in the file system that others connect to. Its file is removed with it.
@safe public final class LocalListener: Sendable {
  public let path: FilePath
  let descriptor: Int32

  /// Makes the socket, only for this user. The path must be free.
  public init(at path: FilePath) throws(HostError) {
    self.path = path
    descriptor = try LocalSocket.make(path)
    let result = unsafe try LocalSocket.withAddress(path) { unsafe bind(descriptor, $0, $1) }
    guard result == 0, unsafe chmod(path.string, 0o600) == 0, listen(descriptor, 16) == 0 else {
      throw HostError("make", "socket \(path)", errno: Errno(rawValue: errno))
    }
  }

  deinit { Glibc.close(descriptor) }

  /// Ends `accept`, now and from now on.
  ///
  /// - Parameter removing: Removes the file; nil does that as well as this process can.
  public func close(removing: (() -> Void)? = nil) {
    if let removing { removing() } else { LocalSocket.remove(path) }
    shutdown(descriptor, Int32(SHUT_RDWR))
  }

  /// The next connection, or nil after `milliseconds` without one.
  public func accept(milliseconds: Int32) -> LocalConnection? {
    var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    guard unsafe poll(&request, 1, milliseconds) > 0 else { return nil }
    let connection = chost_accept(descriptor)
    return connection >= 0 ? LocalConnection(connection) : nil
  }
}

/// What listeners and connections share, and the directory that such sockets live in.
@safe public enum LocalSocket {
  /// The longest path a socket address holds, in bytes (unix(7)).
  public static let longestPath = 107

  fileprivate static func make(_ path: FilePath) throws(HostError) -> Int32 {
    guard path.string.utf8.count <= longestPath else {
      throw HostError(
        "use", "socket \(path)", reason: "its path is longer than \(longestPath) bytes", remedy: "give a shorter one")
    }
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
    guard descriptor >= 0 else { throw HostError("make", "a socket", errno: Errno(rawValue: errno)) }
    return descriptor
  }

  /// Calls `body` with the socket address of a path, which `make` found short enough.
  fileprivate static func withAddress(
    _ path: FilePath, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) throws(HostError) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    // SAFETY: the path and its final zero fit, and the address is as large as it says.
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.string.utf8) }
    return unsafe withUnsafePointer(to: &address) { address in
      unsafe address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  /// What is at a path.
  enum Occupant {
    case nothing, socket, directory, other
  }

  /// What is at a path; a link is not followed.
  static func occupant(_ path: FilePath) -> Occupant {
    var status = stat()
    guard unsafe lstat(path.string, &status) == 0 else { return .nothing }
    switch status.st_mode & S_IFMT {
    case S_IFSOCK: return .socket
    case S_IFDIR: return .directory
    default: return .other
    }
  }

  /// Makes a directory that only this user may use, or finds that it is one.
  ///
  /// - Throws: `HostError` also if there is something else, or it is another user's or open to others.
  public static func makePrivateDirectory(_ path: FilePath) throws(HostError) {
    if unsafe mkdir(path.string, 0o700) != 0, errno != EEXIST {
      throw HostError("make", "directory \(path)", errno: Errno(rawValue: errno))
    }
    var status = stat()
    guard unsafe lstat(path.string, &status) == 0 else {
      throw HostError("use", "directory \(path)", errno: Errno(rawValue: errno))
    }
    guard status.st_mode & S_IFMT == S_IFDIR, status.st_uid == geteuid(), status.st_mode & 0o077 == 0 else {
      throw HostError(
        "use", "directory \(path)", reason: "it is not a directory of this user's that nobody else may enter",
        remedy: "remove it")
    }
  }

  /// The names in a directory; empty if there is none.
  public static func names(in path: FilePath) -> [String] {
    guard let directory = unsafe opendir(path.string) else { return [] }
    defer { unsafe closedir(directory) }
    var names: [String] = []
    // SAFETY: an entry is valid until the next call, and its name ends in a zero.
    while let entry = unsafe readdir(directory) {
      names.append(
        unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
          unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
        })
    }
    return names
  }

  /// Removes a file that nobody answers at any more.
  public static func remove(_ path: FilePath) { _ = unsafe unlink(path.string) }

  public static var user: UInt32 { geteuid() }
  public static var process: Int32 { getpid() }

  /// A variable of the environment, unless it is empty.
  public static func environment(_ name: String) -> String? {
    guard let value = unsafe getenv(name) else { return nil }
    let text = unsafe String(cString: value)
    return text.isEmpty ? nil : text
  }
}

// SPDX-License-Identifier: Apache-2.0
// A raw disk image: a regular file whose bytes are a disk's, at the same places, locked against a second use. Not mapped,
// because a mapped file that someone truncates kills the process.

import Glibc
import SystemPackage

/// An open disk image. Any thread may use it.
@safe public final class DiskFile: Sendable {
  private let descriptor: FileDescriptor
  /// Where it was found: an absolute path.
  public let path: FilePath
  /// Whether it can only be read.
  public let isReadOnly: Bool
  /// Its size when it was opened.
  public let byteCount: UInt64
  /// When it was written last, as of then, in nanoseconds since 1970.
  public let modified: UInt64

  /// Opens a regular file and locks it (flock(2)): alone to be written, together with other readers to be read.
  ///
  /// - Throws: `HostError`, also when it is not a regular file, or somebody has it.
  public init(_ path: FilePath, isReadOnly: Bool) throws(HostError) {
    self.isReadOnly = isReadOnly
    let name = "disk \(path)"
    self.path = try DiskFile.absolute(path)
    do {
      // Non-blocking, so that opening a FIFO by mistake does not hang.
      descriptor = try FileDescriptor.open(
        path, isReadOnly ? .readOnly : .readWrite, options: [.closeOnExec, .nonBlocking])
    } catch {
      let number = error as? Errno ?? .ioError
      let mayRead = number == .permissionDenied || number == .readOnlyFileSystem
      throw HostError(
        "open", name, errno: number,
        remedy: mayRead && !isReadOnly ? "check the file's permissions, or let it be only read (:ro)" : nil)
    }
    do throws(HostError) { (byteCount, modified) = try DiskFile.prepare(descriptor, name, isReadOnly) } catch {
      try? descriptor.close()
      throw error
    }
  }

  deinit { try? descriptor.close() }

  /// The same place wherever the process is.
  private static func absolute(_ path: FilePath) throws(HostError) -> FilePath {
    if path.isAbsolute { return path }
    // SAFETY: getcwd(3) makes the text, which is copied and given back.
    guard let text = unsafe getcwd(nil, 0) else { throw HostError("find", "disk \(path)", errno: currentErrno) }
    defer { unsafe free(text) }
    return FilePath(unsafe String(cString: text)).pushing(path)
  }

  /// Checks what was opened, locks it, and says how large it is and when it was written.
  private static func prepare(
    _ descriptor: FileDescriptor, _ name: String, _ isReadOnly: Bool
  ) throws(HostError) -> (UInt64, UInt64) {
    var status = stat()
    guard unsafe fstat(descriptor.rawValue, &status) == 0 else { throw HostError("open", name, errno: currentErrno) }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw HostError(
        "open", name,
        reason: status.st_mode & S_IFMT == S_IFDIR ? "it is a directory" : "it is not a regular file",
        remedy: "name a disk image")
    }
    guard flock(descriptor.rawValue, (isReadOnly ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0 else {
      let error = currentErrno
      guard error == .wouldBlock else { throw HostError("lock", name, errno: error) }
      throw HostError(
        "use", name, reason: "another machine uses it",
        remedy: "end that one, or give the disk to both to be only read (:ro)")
    }
    let time = status.st_mtim
    let modified = UInt64(clamping: time.tv_sec).multipliedReportingOverflow(by: 1_000_000_000)
    return (
      UInt64(clamping: status.st_size),
      modified.overflow ? .max : modified.partialValue &+ UInt64(clamping: time.tv_nsec)
    )
  }

  /// The bytes `[offset, offset + count)`; nil if they cannot be read, or the file has become shorter.
  public func bytes(at offset: UInt64, count: Int) -> [UInt8]? {
    guard count >= 0, let start = Int64(exactly: offset), start <= Int64.max - Int64(count) else { return nil }
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      // SAFETY: the pointer is the array's own storage and does not outlive the call.
      let more = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe try? descriptor.read(
          fromAbsoluteOffset: start + Int64(done), into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...]))
      }
      guard let more, more > 0 else { return nil }
      done += more
    }
    return bytes
  }

  /// Writes bytes at an offset; false if not all of them can be.
  public func write(_ bytes: [UInt8], at offset: UInt64) -> Bool {
    guard let start = Int64(exactly: offset), start <= Int64.max - Int64(bytes.count) else { return false }
    var done = 0
    while done < bytes.count {
      // SAFETY: as above.
      let more = unsafe bytes.withUnsafeBytes { buffer in
        unsafe try? descriptor.write(
          toAbsoluteOffset: start + Int64(done), UnsafeRawBufferPointer(rebasing: buffer[done...]))
      }
      guard let more, more > 0 else { return false }
      done += more
    }
    return true
  }

  /// Waits until what was written is on the medium (fdatasync(2)); false: the host says that it may be lost.
  public func flush() -> Bool { isReadOnly || fdatasync(descriptor.rawValue) == 0 }
}

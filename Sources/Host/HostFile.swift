// SPDX-License-Identifier: Apache-2.0
// A host file that is only read, piece by piece at given offsets: kernels, initial RAM disks, /proc. Not mapped,
// because a mapped file that someone truncates kills the process.

import Glibc
import SystemPackage

/// An open, readable regular file.
@safe public final class HostFile: Sendable, CustomStringConvertible {
  /// Owned by this object.
  let descriptor: FileDescriptor
  /// What messages call it: its role and its path.
  public let description: String
  /// Size in bytes when it was opened.
  public let byteCount: Int

  /// Opens a regular file for reading.
  ///
  /// - Parameter role: What it is to us, for messages: "kernel image".
  /// - Throws: `HostError`, also when the path names a directory, pipe or device.
  public init(_ path: FilePath, role: String) throws(HostError) {
    description = "\(role) \(path)"
    do {
      // Non-blocking, so that opening a FIFO by mistake does not hang.
      descriptor = try FileDescriptor.open(path, .readOnly, options: [.closeOnExec, .nonBlocking])
    } catch {
      throw HostError("open", "\(role) \(path)", errno: error as? Errno ?? .ioError)
    }
    var status = stat()
    let result = unsafe fstat(descriptor.rawValue, &status)
    let kind = status.st_mode & S_IFMT
    guard result == 0, kind == S_IFREG else {
      try? descriptor.close()
      byteCount = 0
      if kind == S_IFDIR {
        throw HostError("open", "\(role) \(path)", reason: "it is a directory", remedy: "name a file in it")
      }
      throw HostError("open", "\(role) \(path)", reason: "it is not a regular file", remedy: "copy it to one")
    }
    byteCount = Int(status.st_size)
  }

  /// A memory file as one that is only read; it stays when the memory file goes.
  public init(_ file: borrowing MemoryFile, description: String) throws(HostError) {
    self.description = description
    byteCount = file.byteCount
    do { descriptor = try file.descriptor.duplicate() } catch {
      throw HostError("open", description, errno: error as? Errno ?? .ioError)
    }
  }

  deinit { try? descriptor.close() }

  /// Fills a buffer from `offset` on.
  ///
  /// - Throws: `HostError` when reading fails or the file ends before the buffer is full.
  public func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(HostError) {
    var done = 0
    while done < buffer.count {
      let count: Int
      do {
        count = unsafe try descriptor.read(
          fromAbsoluteOffset: Int64(offset + done), into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...]))
      } catch {
        throw HostError("read", description, errno: error as? Errno ?? .ioError)
      }
      guard count > 0 else {
        throw HostError(
          "read", description, reason: "it ends at byte \(offset + done), \(buffer.count - done) bytes too early",
          remedy: "the file is truncated: copy or download it again")
      }
      done += count
    }
  }

  /// The bytes `[offset, offset + count)`.
  ///
  /// - Throws: `HostError` when the file is shorter; nothing is allocated then.
  public func bytes(at offset: Int, count: Int) throws(HostError) -> [UInt8] {
    guard offset >= 0, count >= 0, count <= byteCount, offset <= byteCount - count else {
      throw HostError(
        "read", description, reason: "it has \(byteCount) bytes, \(count) at \(offset) are needed",
        remedy: "the file is truncated: copy or download it again")
    }
    var result = [UInt8](repeating: 0, count: count)
    var failure: HostError?
    unsafe result.withUnsafeMutableBytes { buffer in
      do throws(HostError) { unsafe try read(into: buffer, at: offset) } catch { failure = error }
    }
    if let failure { throw failure }
    return result
  }

  /// A small text file whose size the kernel does not tell (/proc, /sys): at most 64 KiB, or `nil`.
  public static func text(_ path: FilePath) -> String? {
    guard let descriptor = try? FileDescriptor.open(path, .readOnly, options: .closeOnExec) else { return nil }
    defer { try? descriptor.close() }
    var bytes = [UInt8](repeating: 0, count: 65536)
    var length = 0
    while length < bytes.count {
      let count = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe try? descriptor.read(into: UnsafeMutableRawBufferPointer(rebasing: buffer[length...]))
      }
      guard let count else { return nil }
      if count == 0 { break }
      length += count
    }
    return String(decoding: bytes[..<length], as: UTF8.self)
  }
}

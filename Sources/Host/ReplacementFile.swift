// SPDX-License-Identifier: Apache-2.0
// A large file that appears whole or not at all: written beside its name, forced to the disk, renamed. Whoever has the
// old file open or mapped keeps the old file.

import Glibc
import Synchronization
public import SystemPackage

/// A file being written, readable by this user only.
public final class ReplacementFile: Sendable {
  public let path: FilePath
  private let temporary: FilePath
  private let descriptor: FileDescriptor
  private let hasItsName = Atomic<Bool>(false)

  /// Creates an empty file beside `path`.
  public init(_ path: FilePath) throws(HostError) {
    self.path = path
    temporary = FilePath("\(path.string).\(getpid()).tmp")
    // Left by an earlier process of this number.
    unsafe _ = unlink(temporary.string)
    do {
      descriptor = try FileDescriptor.open(
        temporary, .readWrite, options: [.create, .exclusiveCreate, .closeOnExec],
        permissions: FilePermissions(rawValue: 0o600))
    } catch { throw HostError("create", "\(temporary)", errno: error as? Errno ?? .ioError) }
  }

  deinit {
    try? descriptor.close()
    if !hasItsName.load(ordering: .acquiring) { unsafe _ = unlink(temporary.string) }
  }

  /// Makes the file so long; what is not written reads as zeros and takes no room.
  public func setSize(_ byteCount: Int) throws(HostError) {
    guard ftruncate(descriptor.rawValue, byteCount) == 0 else {
      throw HostError("size", "\(temporary)", errno: currentErrno)
    }
  }

  /// Writes bytes at an offset.
  public func write(_ bytes: [UInt8], at offset: Int) throws(HostError) {
    var failure: HostError?
    unsafe bytes.withUnsafeBytes { buffer in
      do throws(HostError) { unsafe try write(buffer, at: offset) } catch { failure = error }
    }
    if let failure { throw failure }
  }

  /// Writes bytes at an offset.
  public func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(HostError) {
    var done = 0
    while done < bytes.count {
      do {
        done += unsafe try descriptor.write(
          toAbsoluteOffset: Int64(offset + done), UnsafeRawBufferPointer(rebasing: bytes[done...]))
      } catch {
        throw HostError("write", "\(temporary)", errno: error as? Errno ?? .ioError)
      }
    }
  }

  /// Forces everything to the disk and gives the file its name.
  public func commit() throws(HostError) {
    guard fsync(descriptor.rawValue) == 0 else { throw HostError("write", "\(temporary)", errno: currentErrno) }
    guard unsafe Glibc.rename(temporary.string, path.string) == 0 else {
      throw HostError("rename", "\(temporary) to \(path)", errno: currentErrno)
    }
    hasItsName.store(true, ordering: .releasing)
    // The name is the directory's, and some file systems cannot be asked for that.
    var directory = path.removingLastComponent()
    if directory.isEmpty { directory = "." }
    if let opened = try? FileDescriptor.open(directory, .readOnly, options: .closeOnExec) {
      _ = fsync(opened.rawValue)
      try? opened.close()
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// A file that is open for writing at any place, whoever opened it and whatever its name will be: what a machine is
// saved to.

import Glibc
public import SystemPackage

/// An open file to be written; closed when it goes away.
public final class PositionedOutput: Sendable {
  /// Closed with this object.
  public let descriptor: FileDescriptor
  /// What messages call it.
  public let description: String

  /// - Parameter descriptor: Belongs to this object from now on.
  public init(owning descriptor: FileDescriptor, description: String) {
    self.descriptor = descriptor
    self.description = description
  }

  deinit { try? descriptor.close() }

  /// Makes the file so long; what is not written reads as zeros and takes no room.
  public func setSize(_ byteCount: Int) throws(HostError) {
    guard ftruncate(descriptor.rawValue, byteCount) == 0 else {
      throw HostError("size", description, errno: currentErrno)
    }
  }

  /// How long the file is; nil for what has no length, a pipe.
  public var byteCount: Int? {
    let end = lseek(descriptor.rawValue, 0, SEEK_END)
    return end < 0 ? nil : Int(end)
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
        throw HostError("write", description, errno: error as? Errno ?? .ioError)
      }
    }
  }

  /// Forces everything to the disk.
  public func synchronize() throws(HostError) {
    guard fsync(descriptor.rawValue) == 0 else { throw HostError("write", description, errno: currentErrno) }
  }
}

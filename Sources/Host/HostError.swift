// SPDX-License-Identifier: Apache-2.0
// What Linux refused, told so that a person can act on it: everything above this module reports host failures
// in one form, and `errno` is interpreted in one place.

import Glibc
import SystemPackage

/// Something the host refused: what was tried, on what, why, and what to do next.
public struct HostError: Error, Sendable, Equatable, CustomStringConvertible {
  /// What was tried, as a verb phrase: "map", "open".
  public var attempt: String
  /// What it was tried on: "kernel image /boot/vmlinuz".
  public var subject: String
  /// The kernel's error number, or `nil` if the refusal is not a system call's.
  public var errno: Errno?
  /// Why, in words.
  public var reason: String
  /// What to do next; may be empty.
  public var remedy: String

  /// A failed system call.
  public init(_ attempt: String, _ subject: String, errno: Errno, remedy: String? = nil) {
    self.attempt = attempt
    self.subject = subject
    self.errno = errno
    self.reason = errno.description
    self.remedy = remedy ?? HostError.usualRemedy(errno)
  }

  /// A refusal of our own.
  public init(_ attempt: String, _ subject: String, reason: String, remedy: String = "") {
    self.attempt = attempt
    self.subject = subject
    self.errno = nil
    self.reason = reason
    self.remedy = remedy
  }

  /// One line.
  public var description: String {
    "cannot \(attempt) \(subject): \(reason)" + (remedy.isEmpty ? "" : "; \(remedy)")
  }

  private static func usualRemedy(_ errno: Errno) -> String {
    switch errno {
    case .noSuchFileOrDirectory: "check the path"
    case .permissionDenied: "check the file's permissions or run as a user who may read it"
    case .noMemory: "give less memory to the guest or raise the limit (ulimit -v, cgroup memory.max)"
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem: "raise the limit on open files (ulimit -n)"
    case .resourceTemporarilyUnavailable: "raise the limit on threads (ulimit -u, cgroup pids.max)"
    default: ""
    }
  }
}

/// Passes a result at or above zero on; a result below zero is -errno and is thrown.
@discardableResult
func checked(
  _ result: Int32, _ attempt: String, _ subject: @autoclosure () -> String
) throws(HostError) -> Int32 {
  guard result >= 0 else { throw HostError(attempt, subject(), errno: Errno(rawValue: -result)) }
  return result
}

/// The calling thread's error number. Read at once after the failed call.
var currentErrno: Errno { Errno(rawValue: Glibc.errno) }

/// A byte count as people write it: the largest binary unit that divides it well enough.
public func describe(byteCount: UInt64) -> String {
  let units: [(UInt64, String)] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
  for (size, name) in units where byteCount >= size {
    let tenths = byteCount / size * 10 + byteCount % size * 10 / size
    return tenths % 10 == 0 ? "\(tenths / 10) \(name)" : "\(tenths / 10).\(tenths % 10) \(name)"
  }
  return "\(byteCount) bytes"
}

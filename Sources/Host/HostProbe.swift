// SPDX-License-Identifier: Apache-2.0
// Questions that only a system call can answer about the host: may code memory be made, is /dev/kvm usable, what
// is a file. Every probe leaves the machine as it found it.

import CHost
import Glibc
import SystemPackage

/// Probes of the host; each opens what it needs and closes it again.
public enum HostProbe {
  /// What `/dev/kvm` is to this process.
  public enum KVM: Sendable, Equatable {
    case absent
    /// It is there, but opening it failed with this message.
    case refused(String)
    /// It opened and speaks this API version (12 everywhere).
    case usable(apiVersion: Int32)
  }

  /// Opens /dev/kvm, asks for its version and closes it.
  public static func kvm(at path: String = "/dev/kvm") -> KVM {
    let file = unsafe open(path, O_RDWR | O_CLOEXEC)
    guard file >= 0 else { return errno == ENOENT ? .absent : .refused(message(errno)) }
    defer { close(file) }
    let getAPIVersion: UInt = 0xAE00  // _IO(KVMIO, 0x00), linux/kvm.h
    let version = ioctl(file, getAPIVersion, 0)
    return version < 0 ? .refused(message(errno)) : .usable(apiVersion: version)
  }

  /// Whether code memory can be made the way the translator makes it: one memfd mapped twice, writable and
  /// executable. Returns what failed and why, or nil.
  public static func codeMemoryProblem() -> String? {
    let file = unsafe chost_memfd("lguest-probe")
    guard file >= 0 else { return "memfd_create: \(message(-file))" }
    defer { close(file) }
    guard ftruncate(file, 4096) == 0 else { return "ftruncate of a memfd: \(message(errno))" }
    for (protection, name) in [(PROT_READ | PROT_WRITE, "writable"), (PROT_READ | PROT_EXEC, "executable")] {
      // SAFETY: a fresh shared mapping of our own memfd, unmapped at once.
      let mapping = unsafe mmap(nil, 4096, protection, MAP_SHARED, file, 0)
      guard unsafe mapping != MAP_FAILED else { return "\(name) mapping of a memfd: \(message(errno))" }
      unsafe munmap(mapping, 4096)
    }
    return nil
  }

  /// Why system calls cannot be filtered here, or nil.
  public static func filterProblem() -> String? {
    let error = chost_filter_problem()
    return error == 0 ? nil : message(-error)
  }

  /// The version of Landlock's interface, or nil where there is none.
  public static func landlockVersion() -> Int? {
    let version = chost_landlock_version()
    return version > 0 ? Int(version) : nil
  }

  /// What stands at a path.
  public enum FileKind: Sendable, Equatable {
    case regular(byteCount: UInt64)
    case directory
    case other
    /// It cannot be read, and why.
    case unreadable(String)
  }

  /// Looks at a path and checks that this process may read it.
  public static func fileKind(_ path: FilePath) -> FileKind {
    var status = stat()
    guard unsafe stat(path.string, &status) == 0 else { return .unreadable(message(errno)) }
    switch status.st_mode & S_IFMT {
    case S_IFREG:
      guard unsafe access(path.string, R_OK) == 0 else { return .unreadable(message(errno)) }
      return .regular(byteCount: UInt64(clamping: status.st_size))
    case S_IFDIR: return .directory
    default: return .other
    }
  }

  /// The host's words for an error number.
  static func message(_ number: Int32) -> String { Errno(rawValue: number).description }
}

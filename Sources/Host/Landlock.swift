// SPDX-License-Identifier: Apache-2.0
// Landlock, the second wall behind the filter of system calls: a thread gives up opening, making and removing files,
// TCP, and signals and abstract sockets to other processes, each as far as the host's kernel knows how (linux,
// Documentation/userspace-api/landlock.rst). What is open stays open.

import CHost
import Glibc

/// A set of rules that allows nothing.
public final class Landlock: Sendable {
  /// The version of the host's interface.
  public let version: Int32
  private let rules: Int32

  /// - Returns: nil on a host without Landlock.
  public init?() {
    version = chost_landlock_version()
    guard version > 0, case let rules = chost_landlock_rules(version), rules >= 0 else { return nil }
    self.rules = rules
  }

  deinit { Glibc.close(rules) }

  /// Applies to the calling thread for good, and to threads that it starts.
  public func install() throws(HostError) {
    try checked(chost_forbid_privileges(), "forbid", "privileges")
    try checked(chost_landlock_restrict(rules), "close", "the file system to a thread")
  }
}

// SPDX-License-Identifier: Apache-2.0
// The user's terminal in raw mode, and back on every way out. The saved settings live in C (CHost/host.c), because
// the last ways out are signal handlers.

import CHost
import Glibc
import SystemPackage

/// The terminal on a descriptor. One at a time can be raw.
public enum Terminal {
  /// Whether a descriptor is a terminal.
  public static func isTerminal(_ descriptor: FileDescriptor) -> Bool { isatty(descriptor.rawValue) == 1 }

  /// Passes every byte through unchanged, in both directions: no echo, no line editing, no signals from keys.
  ///
  /// The former settings come back with `restore`, at `exit`, and when the process dies of a trap or abort.
  public static func enterRawMode(_ descriptor: FileDescriptor) throws(HostError) {
    try checked(chost_terminal_raw(descriptor.rawValue), "set", "the terminal to raw mode")
  }

  /// Restores the settings from before `enterRawMode`; safe to call at any time, also twice.
  public static func restore() { chost_terminal_restore() }

  /// Columns and rows, or `nil` if the descriptor is not a terminal or does not know.
  public static func size(_ descriptor: FileDescriptor) -> (columns: UInt16, rows: UInt16)? {
    var columns: UInt16 = 0
    var rows: UInt16 = 0
    guard unsafe chost_terminal_size(descriptor.rawValue, &columns, &rows) == 0, columns > 0, rows > 0 else {
      return nil
    }
    return (columns, rows)
  }
}

// SPDX-License-Identifier: Apache-2.0
// The terminal a console run borrows: raw while the guest owns it, given back as it was on every way out, a crash of
// ours included.

import Glibc
import Lguest
import Synchronization
import SystemPackage

/// The terminal on stdin.
enum Terminal {
  private static let raw = Atomic(false)
  /// The settings to give back. Written once, before `raw` is first set; a crash handler reads it.
  nonisolated(unsafe) private static var saved: UnsafeMutablePointer<termios>?

  static var isRaw: Bool { raw.load(ordering: .acquiring) }

  /// Takes the terminal: every key goes to the guest. Returns false when it cannot be taken.
  static func makeRaw() -> Bool {
    if unsafe saved == nil {
      let settings = UnsafeMutablePointer<termios>.allocate(capacity: 1)
      unsafe settings.initialize(to: termios())
      guard unsafe tcgetattr(STDIN_FILENO, settings) == 0 else {
        unsafe settings.deallocate()
        return false
      }
      unsafe saved = settings
    }
    guard var settings = unsafe saved?.pointee else { return false }
    unsafe cfmakeraw(&settings)
    // Set first: a crash between the two calls must give the terminal back.
    raw.store(true, ordering: .releasing)
    guard unsafe tcsetattr(STDIN_FILENO, TCSANOW, &settings) == 0 else {
      raw.store(false, ordering: .releasing)
      return false
    }
    return true
  }

  /// Gives the terminal back. Safe from any thread and from a signal handler, any number of times.
  static func restore() {
    guard raw.exchange(false, ordering: .acquiringAndReleasing), let settings = unsafe saved else { return }
    // A background process that touches its terminal is stopped; one that is going away must not be. Blocked, not
    // ignored: no thread needs the right to change what signals do.
    var stopped = sigset_t()
    unsafe sigemptyset(&stopped)
    unsafe sigaddset(&stopped, SIGTTOU)
    _ = unsafe pthread_sigmask(SIG_BLOCK, &stopped, nil)
    _ = unsafe tcsetattr(STDIN_FILENO, TCSANOW, settings)
  }
}

/// Watches the keys for the way out: Ctrl-A x ends the run, Ctrl-A a sends a Ctrl-A.
struct EscapeKey {
  private var isArmed = false

  /// Takes what was typed; returns what goes to the guest and whether the run is to end.
  mutating func filter(_ typed: [UInt8]) -> (bytes: [UInt8], ends: Bool) {
    let controlA: UInt8 = 0x01
    var out: [UInt8] = []
    for byte in typed {
      switch (isArmed, byte) {
      case (false, controlA): isArmed = true
      case (false, _): out.append(byte)
      case (true, UInt8(ascii: "x")), (true, UInt8(ascii: "X")): return (out, true)
      case (true, UInt8(ascii: "a")), (true, controlA):
        out.append(controlA)
        isArmed = false
      case (true, _):
        out += [controlA, byte]
        isArmed = false
      }
    }
    return (out, false)
  }
}

// SPDX-License-Identifier: Apache-2.0
// A 32-bit word that threads can sleep on: how a vCPU waits for an interrupt without missing one.

import CHost
import Synchronization

/// An atomic word with wait and wake (futex(2)), private to this process.
public final class Futex: Sendable {
  /// The word. Change it first, then `wake`.
  public let word: Atomic<UInt32>

  public init(_ value: UInt32 = 0) { word = Atomic(value) }

  /// Why `wait` returned.
  public enum Outcome: Sendable {
    /// Woken, or for no reason at all: look at the word again.
    case woken
    /// The word was not the expected value.
    case changed
    /// The deadline has passed.
    case timedOut
  }

  /// Sleeps while the word has a value.
  ///
  /// - Parameter deadline: An instant of `HostClock.monotonic`, in ns; `UInt64.max` waits for ever.
  @discardableResult
  public func wait(while expected: UInt32, until deadline: UInt64 = .max) -> Outcome {
    switch unsafe chost_futex_wait(address, expected, deadline) {
    case -11: .changed  // EAGAIN
    case -110: .timedOut  // ETIMEDOUT
    default: .woken
    }
  }

  /// Wakes at most `count` sleeping threads and returns how many there were.
  @discardableResult
  public func wake(_ count: Int32 = .max) -> Int { unsafe Int(max(0, chost_futex_wake(address, count))) }

  /// Stores a value and wakes everyone.
  public func set(_ value: UInt32) {
    word.store(value, ordering: .sequentiallyConsistent)
    wake()
  }

  // SAFETY: an Atomic is stored inline in this object, at a stable address, and is as large as its value; the kernel
  // only reads it.
  private var address: UnsafeRawPointer {
    unsafe withUnsafePointer(to: word) { unsafe UnsafeRawPointer($0) }
  }
}

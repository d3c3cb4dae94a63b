// SPDX-License-Identifier: Apache-2.0
// How long the host's scheduler has let a thread wait for a CPU: what a guest calls steal time, as far as the host is
// its cause. The kernel counts it for every thread (Linux Documentation/scheduler/sched-stats.rst,
// /proc/PID/schedstat).

import Synchronization
import SystemPackage

/// The waiting time of one thread.
public final class RunQueueDelay: Sendable {
  private let file: FileDescriptor
  /// What `growth` has told, and when it may look again.
  private let told = Atomic<UInt64>(0)
  private let next = Atomic<UInt64>(0)

  /// Of the calling thread, to be asked from any; `nil` where the host does not count.
  public init?() {
    guard let file = try? FileDescriptor.open(FilePath("/proc/thread-self/schedstat"), .readOnly, options: .closeOnExec)
    else {
      return nil
    }
    self.file = file
    told.store(nanoseconds, ordering: .relaxed)
  }

  deinit { try? file.close() }

  /// How much longer the thread has waited since the last answer; nil, at the price of reading the clock, if that was
  /// less than `interval` ago. For one caller at a time. Both in nanoseconds.
  public func growth(after interval: UInt64) -> UInt64? {
    let now = HostClock.monotonic
    guard now >= next.load(ordering: .relaxed) else { return nil }
    next.store(now &+ interval, ordering: .relaxed)
    let total = nanoseconds
    return total &- told.exchange(total, ordering: .relaxed)
  }

  /// Nanoseconds the thread has been runnable without running; 0 once the thread is gone.
  public var nanoseconds: UInt64 {
    // Three decimal numbers: time on a CPU, time waiting, slices.
    var bytes = InlineArray<64, UInt8>(repeating: 0)
    let count = unsafe withUnsafeMutableBytes(of: &bytes) { unsafe try? file.read(fromAbsoluteOffset: 0, into: $0) }
    var index = 0
    let end = min(count ?? 0, 64)
    while index < end, bytes[index] != UInt8(ascii: " ") { index += 1 }
    index += 1
    var value: UInt64 = 0
    while index < end, (0x30...0x39).contains(bytes[index]) {
      value = value &* 10 &+ UInt64(bytes[index] & 15)
      index += 1
    }
    return value
  }
}

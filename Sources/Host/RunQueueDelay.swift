// SPDX-License-Identifier: Apache-2.0
// How long the host's scheduler has let a thread wait for a CPU: what a guest calls steal time, as far as the host is
// its cause. The kernel counts it for every thread (Linux Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat).

import SystemPackage

/// The waiting time of one thread.
public final class RunQueueDelay: Sendable {
  private let file: FileDescriptor

  /// Of the calling thread, to be asked from any; `nil` where the host does not count.
  public init?() {
    guard let file = try? FileDescriptor.open(FilePath("/proc/thread-self/schedstat"), .readOnly, options: .closeOnExec) else {
      return nil
    }
    self.file = file
  }

  deinit { try? file.close() }

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

// SPDX-License-Identifier: Apache-2.0
// Threads beside a vCPU's, and time: what tests need that run guests which do not end by themselves.

import Glibc
import Synchronization

@testable import Translator

/// Kicks a vCPU every half millisecond until it goes away.
final class Kicker: Sendable {
  private let stopped = Atomic<Bool>(false)

  init(_ cpu: TranslatedCPU, microseconds: UInt32 = 500) {
    Thread.start { [self] in
      while !stopped.load(ordering: .relaxed) {
        usleep(microseconds)
        cpu.kick()
      }
    }
  }

  func stop() { stopped.store(true, ordering: .relaxed) }
}

/// A detached POSIX thread: tests must not depend on how many threads the concurrency runtime has to spare.
enum Thread {
  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  static func start(_ run: @escaping @Sendable () -> Void) {
    var thread = pthread_t()
    let body = unsafe Unmanaged.passRetained(Body(run)).toOpaque()
    let error = unsafe pthread_create(
      &thread, nil,
      { argument in
        if let argument = unsafe argument { unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run() }
        return nil
      }, body)
    precondition(error == 0)
    pthread_detach(thread)
  }
}

/// Monotonic time in nanoseconds.
func clock_gettime_nsec() -> UInt64 {
  var time = timespec()
  unsafe clock_gettime(CLOCK_MONOTONIC, &time)
  return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

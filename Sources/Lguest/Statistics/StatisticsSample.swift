// SPDX-License-Identifier: Apache-2.0
// A vCPU's counters for other threads, while it runs. Nobody reads what the vCPU writes: whoever wants the counters
// asks, and the vCPU hands a copy over the next time it comes by, which costs it one load per exit while nobody asks.

import Host
import Synchronization

/// The place where one vCPU's counters are handed over.
final class StatisticsSample: Sendable {
  private let asked = Atomic<Bool>(false)
  private let latest = Mutex<(number: UInt64, statistics: Statistics)>((0, Statistics()))

  // MARK: The vCPU

  /// Whether somebody waits for the counters.
  var isAsked: Bool { asked.load(ordering: .relaxed) }

  /// Hands the counters over.
  func publish(_ statistics: Statistics) {
    asked.store(false, ordering: .relaxed)
    latest.withLock { $0 = ($0.number &+ 1, statistics) }
  }

  // MARK: Any other thread

  /// Gets the counters. A vCPU that does not come by in time, because the host is busy or its console is not read, is
  /// represented by what it handed over last.
  ///
  /// - Parameter ring: Brings the vCPU by.
  func take(ring: () -> Void) -> Statistics {
    let before = latest.withLock { $0.number }
    for _ in 0..<StatisticsSample.attempts {
      asked.store(true, ordering: .sequentiallyConsistent)
      // Again each time: a ring that comes while the vCPU is on its way into the guest is not heard.
      ring()
      HostClock.sleep(until: HostClock.monotonic + StatisticsSample.interval)
      if latest.withLock({ $0.number }) != before { break }
    }
    return latest.withLock { $0.statistics }
  }

  /// A quarter of a second at most, in steps of a millisecond.
  private static let attempts = 250
  private static let interval: UInt64 = 1_000_000
}

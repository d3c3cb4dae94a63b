// SPDX-License-Identifier: Apache-2.0
// Which of a run's two time limits has passed, as arithmetic on instants: no thread and no clock of its own.

/// The time limits of a run.
struct TimeLimits: Sendable {
  private let bootDeadline: ContinuousClock.Instant?
  private let deadline: ContinuousClock.Instant?

  init(start: ContinuousClock.Instant, bootTimeout: Duration?, timeout: Duration?) {
    bootDeadline = bootTimeout.map { start + $0 }
    deadline = timeout.map { start + $0 }
  }

  /// What to do now.
  enum Verdict: Equatable {
    /// A limit has passed.
    case ended(Ending)
    /// The next limit passes at this moment.
    case next(ContinuousClock.Instant)
    case unlimited
  }

  /// The verdict at a moment. Once user space has begun, the boot limit is void.
  func verdict(at now: ContinuousClock.Instant, userSpaceBegan: Bool) -> Verdict {
    let boot = userSpaceBegan ? nil : bootDeadline
    // If both have passed, the earlier one is the cause.
    let limits = [(boot, Ending.bootTimeout), (deadline, Ending.timeout)]
      .compactMap { limit, ending in limit.map { ($0, ending) } }
      .sorted { $0.0 < $1.0 }
    guard let (first, ending) = limits.first else { return .unlimited }
    return first <= now ? .ended(ending) : .next(first)
  }
}

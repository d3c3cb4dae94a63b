// SPDX-License-Identifier: Apache-2.0
// The one thread that sleeps until a device of the machine has something to do by itself. Setting a timer is something
// guests do all the time, so it costs a look at one atomic unless the thread would otherwise sleep too long.

import Devices
import Host
import Synchronization

/// The timer thread of a machine.
final class Timers: Sendable {
  private enum Bell {
    static let quiet: UInt32 = 0
    /// A deadline may be earlier than the thread thinks.
    static let look: UInt32 = 1
    static let stop: UInt32 = 2
  }

  private let sources = Mutex<[any DeadlineSource]>([])
  private let thread = Mutex<HostThread?>(nil)
  /// Held while devices do what is due.
  private let turn = Mutex<Void>(())
  private let bell = Futex(Bell.quiet)
  /// When the thread next looks by itself; `.max` also while it is looking, so that any change makes it look again.
  private let asleepUntil = Atomic<UInt64>(.max)

  /// Starts the thread. The sources are kept until `stop`.
  func start(_ sources: [any DeadlineSource]) throws(HostError) {
    self.sources.withLock { $0 = sources }
    let started = try HostThread(name: "lguest-timers", stackBytes: 512 << 10) { self.run() }
    thread.withLock { $0 = started }
  }

  /// Ends the thread, waits for it and forgets the sources.
  func stop() {
    bell.set(Bell.stop)
    let started = thread.withLock { thread in
      defer { thread = nil }
      return thread
    }
    started?.join()
    sources.withLock { $0 = [] }
  }

  /// Runs `body` while no device does anything by itself.
  func standStill<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try turn.withLock { _ throws(Failure) in try body() }
  }

  /// A source's deadline has changed; `index` is its place in `start`'s list. Before `start`, nothing happens.
  func rearm(_ index: Int) {
    let source = sources.withLock { $0.indices.contains(index) ? $0[index] : nil }
    guard let deadline = source?.nextDeadline else { return }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    guard deadline < asleepUntil.load(ordering: .sequentiallyConsistent) else { return }
    let (isNew, _) = bell.word.compareExchange(
      expected: Bell.quiet, desired: Bell.look, ordering: .sequentiallyConsistent)
    if isNew { bell.wake() }
  }

  private func run() {
    let sources = self.sources.withLock { $0 }
    while true {
      // The order matters: quiet first, so that a ring from here on ends the wait; then "any change counts"; only then
      // the deadlines.
      _ = bell.word.compareExchange(expected: Bell.look, desired: Bell.quiet, ordering: .sequentiallyConsistent)
      if bell.word.load(ordering: .sequentiallyConsistent) == Bell.stop { return }
      asleepUntil.store(.max, ordering: .sequentiallyConsistent)
      turn.withLock { _ in
        let now = HostClock.monotonic
        for source in sources { source.expire(now: now) }
      }
      let next = sources.reduce(UInt64.max) { min($0, $1.nextDeadline ?? .max) }
      asleepUntil.store(next, ordering: .sequentiallyConsistent)
      bell.wait(while: Bell.quiet, until: next)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// The one thread that sleeps until a device of the machine has something to do by itself. Setting a timer is something
// guests do all the time, so it costs a look at one atomic unless the thread would otherwise sleep too long.

import Devices
import Host
import Synchronization

/// The timer thread of a machine.
final class Timers: Sendable {
  private let sources = Mutex<[any DeadlineSource]>([])
  private let thread = DeadlineThread()
  /// Held while devices do what is due.
  private let turn = Mutex<Void>(())
  /// When the thread next looks by itself; `.max` also while it is looking, so that any change makes it look again.
  private let asleepUntil = Atomic<UInt64>(.max)

  /// Starts the thread. The sources are kept until `stop`.
  func start(_ sources: [any DeadlineSource], _ sandbox: Sandbox? = nil) throws(HostError) {
    self.sources.withLock { $0 = sources }
    sandbox?.announce()
    try thread.start(name: "lguest-timers", begin: { sandbox?.confine(.timers) }) { self.expire(sources) }
  }

  /// Ends the thread, waits for it and forgets the sources.
  func stop() {
    thread.stop()
    sources.withLock { $0 = [] }
  }

  /// Runs `body` while no device does anything by itself.
  func standStill<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try turn.withLock { _ throws(Failure) in try body() }
  }

  /// A source's deadline has changed; `index` is its place in `start`'s list. Before `start`, nothing happens.
  func rearm(_ index: Int) {
    if let source = sources.withLock({ $0.indices.contains(index) ? $0[index] : nil }) { rearm(source) }
  }

  /// The deadlines of all sources from one on may have changed.
  func rearmAll(from index: Int = 0) {
    for source in sources.withLock({ $0.dropFirst(index) }) { rearm(source) }
  }

  private func rearm(_ source: any DeadlineSource) {
    guard let deadline = source.nextDeadline else { return }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    guard deadline < asleepUntil.load(ordering: .sequentiallyConsistent) else { return }
    thread.ring()
  }

  /// Does what is due and says when there is more.
  private func expire(_ sources: [any DeadlineSource]) -> UInt64 {
    // The order matters: first "any change counts", only then the deadlines.
    asleepUntil.store(.max, ordering: .sequentiallyConsistent)
    turn.withLock { _ in
      let now = HostClock.monotonic
      for source in sources { source.expire(now: now) }
    }
    let next = sources.reduce(UInt64.max) { min($0, $1.nextDeadline ?? .max) }
    asleepUntil.store(next, ordering: .sequentiallyConsistent)
    return next
  }
}

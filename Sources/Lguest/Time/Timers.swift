// SPDX-License-Identifier: Apache-2.0
// What the devices of a machine have to do by themselves, at the right time. Setting a timer is something guests do all the
// time, so it costs a look at one atomic unless the timer thread would otherwise sleep too long.

import Devices
import Host
import Synchronization

/// The timers of a machine.
final class Timers: Sendable {
  private struct State {
    var sources: [any DeadlineSource] = []
    /// Among those of the thread; nil: none.
    var place: Int?
  }

  private let state = Mutex(State())
  private let thread: TimerThread
  /// Whether the thread looks after no other machine.
  private let isAlone: Bool
  /// Held while devices do what is due.
  private let turn = Mutex<Void>(())
  /// When the thread next looks by itself; `.max` also while it is looking, so that any change makes it look again.
  private let asleepUntil = Atomic<UInt64>(.max)

  /// - Parameter shared: A thread that runs already; nil: one that begins with `start`.
  init(_ shared: TimerThread? = nil) {
    thread = shared ?? TimerThread()
    isAlone = shared == nil
  }

  /// Begins. The sources are kept until `stop`.
  func start(_ sources: [any DeadlineSource], _ sandbox: Sandbox? = nil) throws(HostError) {
    state.withLock { $0.sources = sources }
    if isAlone { try thread.start(sandbox) }
    let place = thread.add(self)
    state.withLock { $0.place = place }
  }

  /// Ends, waits until nothing is being done and forgets the sources.
  func stop() {
    let place = state.withLock { state in
      defer { state = State() }
      return state.place
    }
    if let place { thread.remove(place) }
    if isAlone { thread.stop() } else { turn.withLock { _ in } }
  }

  /// Runs `body` while no device does anything by itself.
  func standStill<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try turn.withLock { _ throws(Failure) in try body() }
  }

  /// A source's deadline has changed; `index` is its place in `start`'s list. Before `start`, nothing happens.
  func rearm(_ index: Int) {
    let (source, place) = state.withLock { ($0.sources.indices.contains(index) ? $0.sources[index] : nil, $0.place) }
    if let source, let place { rearm(source, place) }
  }

  /// The deadlines of all sources from one on may have changed.
  func rearmAll(from index: Int = 0) {
    let (sources, place) = state.withLock { ($0.sources.dropFirst(index), $0.place) }
    if let place { for source in sources { rearm(source, place) } }
  }

  private func rearm(_ source: any DeadlineSource, _ place: Int) {
    guard let deadline = source.nextDeadline else { return }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    guard deadline < asleepUntil.load(ordering: .sequentiallyConsistent) else { return }
    thread.ring(place)
  }

  /// Does what is due and says when there is more. For the thread.
  func expire() -> UInt64 {
    // The order matters: first "any change counts", only then the deadlines.
    asleepUntil.store(.max, ordering: .sequentiallyConsistent)
    let next = turn.withLock { _ in
      // None after `stop`.
      let sources = state.withLock { $0.sources }
      let now = HostClock.monotonic
      for source in sources { source.expire(now: now) }
      return sources.reduce(UInt64.max) { min($0, $1.nextDeadline ?? .max) }
    }
    asleepUntil.store(next, ordering: .sequentiallyConsistent)
    return next
  }
}

// SPDX-License-Identifier: Apache-2.0
// Guest RAM behind a store that takes its time, as it is for a host that swaps: pages that programs use go away now
// and then, and come back some time after they were touched. It is there to see asynchronous page faults at work.

import GuestMemory
import Host
import Synchronization

/// The store behind a machine's RAM.
final class SlowMemory: Sendable {
  /// How often pages go away: rarely enough for a program to get at a few hundred of them in between, one by one.
  private static let fillsPerEviction: UInt64 = 250
  private static let shortestInterval: UInt64 = 250_000_000
  static let delays: ClosedRange<Duration> = .microseconds(10)...(.seconds(10))

  private struct Fill {
    let page: UInt64
    let due: UInt64
    /// Who is told, and what.
    let cpu: Int
    let token: UInt32
  }

  private struct State {
    /// In the order in which they are due.
    var fills: [Fill] = []
    /// Tokens of pages that have come, by vCPU.
    var finished: [[UInt32]]
    /// When a page that is being fetched will be there.
    var due: [UInt64: UInt64] = [:]
    /// When pages next go away.
    var nextEviction = UInt64.max
  }

  private let memory: GuestMemory
  private let delay: UInt64
  private let evictionInterval: UInt64
  private let state: Mutex<State>
  private let finishedCounts: [AtomicCount]
  private let thread = DeadlineThread()

  private final class AtomicCount: Sendable {
    let value = Atomic<Int>(0)
  }

  init(_ memory: GuestMemory, delay: Duration, cpuCount: Int) {
    self.memory = memory
    let (seconds, attoseconds) = delay.components
    self.delay = UInt64(clamping: seconds) &* 1_000_000_000 &+ UInt64(clamping: attoseconds / 1_000_000_000)
    evictionInterval = max(SlowMemory.shortestInterval, self.delay &* SlowMemory.fillsPerEviction)
    state = Mutex(State(finished: [[UInt32]](repeating: [], count: cpuCount)))
    finishedCounts = (0..<cpuCount).map { _ in AtomicCount() }
  }

  /// Begins to take pages away and to bring them back.
  ///
  /// - Parameters:
  ///   - wake: Tells a vCPU that a page it waits for has come.
  ///   - evicted: Pages have gone: every vCPU has to forget how it reaches them.
  func start(wake: @escaping @Sendable (Int) -> Void, evicted: @escaping @Sendable () -> Void) throws(HostError) {
    state.withLock { $0.nextEviction = HostClock.after(nanoseconds: evictionInterval) }
    try thread.start(name: "lguest-store") { self.work(wake, evicted) }
  }

  /// Ends the thread and waits for it.
  func stop() { thread.stop() }

  // MARK: vCPUs

  /// Begins to fetch a page; the vCPU is told by its token.
  func fetch(_ address: UInt64, for cpu: Int, token: UInt32) {
    let page = address & ~4095
    let now = HostClock.monotonic
    state.withLock { state in
      let due = state.due[page] ?? now &+ delay
      state.due[page] = due
      state.fills.append(Fill(page: page, due: due, cpu: cpu, token: token))
    }
    thread.ring()
  }

  /// Waits until a page is there.
  func wait(for address: UInt64) {
    let page = address & ~4095
    let due = state.withLock { $0.due[page] } ?? HostClock.after(nanoseconds: delay)
    HostClock.sleep(until: due)
    memory.setPresent(GuestPhysical(page))
  }

  /// Whether pages have come that a vCPU waits for.
  func hasFills(of cpu: Int) -> Bool { finishedCounts[cpu].value.load(ordering: .acquiring) != 0 }

  /// The tokens of those pages, once.
  func takeFills(of cpu: Int) -> [UInt32] {
    state.withLock { state in
      defer { state.finished[cpu] = [] }
      finishedCounts[cpu].value.store(0, ordering: .releasing)
      return state.finished[cpu]
    }
  }

  // MARK: The thread

  /// Does what is due and says when there is more.
  private func work(_ wake: @Sendable (Int) -> Void, _ evicted: @Sendable () -> Void) -> UInt64 {
    let now = HostClock.monotonic
    let (due, next) = takeDue(now)
    for fill in due { wake(fill.cpu) }
    let (isTime, nextEviction) = state.withLock { state in
      let isTime = now >= state.nextEviction
      if isTime { state.nextEviction = now &+ evictionInterval }
      return (isTime, state.nextEviction)
    }
    if isTime, memory.evictUsedPages() > 0 { evicted() }
    return min(next, nextEviction)
  }

  /// Brings the pages that are due and says when the next one is.
  private func takeDue(_ now: UInt64) -> (due: [Fill], next: UInt64) {
    state.withLock { state in
      let due = state.fills.filter { $0.due <= now }
      guard !due.isEmpty else { return ([], state.fills.map(\.due).min() ?? .max) }
      state.fills.removeAll { $0.due <= now }
      for fill in due {
        memory.setPresent(GuestPhysical(fill.page))
        state.due[fill.page] = nil
        state.finished[fill.cpu].append(fill.token)
        finishedCounts[fill.cpu].value.add(1, ordering: .releasing)
      }
      return (due, state.fills.map(\.due).min() ?? .max)
    }
  }
}

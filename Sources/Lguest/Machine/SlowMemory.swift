// SPDX-License-Identifier: Apache-2.0
// When pages of guest RAM go away and come back, as for a host that swaps: those that programs use go now and then, and
// come some time after they were touched. It is there to see asynchronous page faults at work. Where the pages are
// meanwhile is GuestMemory's affair (PageStore.swift).

import GuestMemory
import Host
import Synchronization

/// Takes pages away and tells vCPUs that theirs have come.
final class SlowMemory: Sendable {
  /// How often pages go away: rarely enough for a program to get at a few hundred of them in between, one by one.
  private static let fillsPerEviction: UInt64 = 250
  private static let shortestInterval: UInt64 = 250_000_000
  /// 16 MiB: nothing runs while they go.
  private static let mostPages = 4096
  static let delays: ClosedRange<Duration> = .microseconds(10)...(.seconds(10))

  private struct Fill {
    let address: GuestPhysical
    let due: UInt64
    /// Who is told, and what.
    let cpu: Int
    let token: UInt32
  }

  private struct State {
    var fills: [Fill] = []
    /// Tokens of pages that have come, by vCPU.
    var finished: [[UInt32]]
    /// When pages next go away.
    var nextEviction = UInt64.max
  }

  private let memory: GuestMemory
  private let evictionInterval: UInt64
  private let pagesPerEviction: Int
  private let state: Mutex<State>
  private let finishedCounts: [AtomicCount]
  private let thread = DeadlineThread()

  private final class AtomicCount: Sendable {
    let value = Atomic<Int>(0)
  }

  /// - Parameters:
  ///   - memory: With a store.
  ///   - delay: How long its pages take to come, one of `delays`.
  init(_ memory: GuestMemory, delay: Duration, cpuCount: Int) {
    self.memory = memory
    let delay = SlowMemory.nanoseconds(delay)
    evictionInterval = max(SlowMemory.shortestInterval, delay &* SlowMemory.fillsPerEviction)
    // A program has half of the time to go on, even if it touches all of them one by one.
    pagesPerEviction = min(Int(evictionInterval / (2 * delay)), SlowMemory.mostPages)
    state = Mutex(State(finished: [[UInt32]](repeating: [], count: cpuCount)))
    finishedCounts = (0..<cpuCount).map { _ in AtomicCount() }
  }

  static func nanoseconds(_ delay: Duration) -> UInt64 {
    let (seconds, attoseconds) = delay.components
    return UInt64(clamping: seconds) &* 1_000_000_000 &+ UInt64(clamping: attoseconds / 1_000_000_000)
  }

  /// Begins to take pages away and to bring them back.
  ///
  /// - Parameters:
  ///   - wake: Tells a vCPU that a page it waits for has come.
  ///   - evict: Takes pages away that programs use, so many at most.
  func start(
    wake: @escaping @Sendable (Int) -> Void, evict: @escaping @Sendable (Int) -> Void, _ sandbox: Sandbox? = nil
  ) throws(HostError) {
    state.withLock { $0.nextEviction = HostClock.after(nanoseconds: evictionInterval) }
    sandbox?.announce()
    try thread.start(name: "lguest-store", begin: { sandbox?.confine(.store) }) { self.work(wake, evict) }
  }

  /// Ends the thread and waits for it.
  func stop() { thread.stop() }

  // MARK: vCPUs

  /// Begins to fetch a page; the vCPU is told by its token.
  func fetch(_ address: UInt64, for cpu: Int, token: UInt32) {
    let address = GuestPhysical(address)
    let due = memory.beginFetch(address)
    state.withLock { $0.fills.append(Fill(address: address, due: due, cpu: cpu, token: token)) }
    thread.ring()
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
  private func work(_ wake: @Sendable (Int) -> Void, _ evict: @Sendable (Int) -> Void) -> UInt64 {
    let now = HostClock.monotonic
    bringWhatIsDue(now, wake)
    let isTime = state.withLock { state in
      defer { if now >= state.nextEviction { state.nextEviction = now &+ evictionInterval } }
      return now >= state.nextEviction
    }
    if isTime { evict(pagesPerEviction) }
    return state.withLock { state in min(state.nextEviction, state.fills.map(\.due).min() ?? .max) }
  }

  /// First the pages, then the news of them.
  private func bringWhatIsDue(_ now: UInt64, _ wake: @Sendable (Int) -> Void) {
    let due = state.withLock { state in
      defer { state.fills.removeAll { $0.due <= now } }
      return state.fills.filter { $0.due <= now }
    }
    guard !due.isEmpty else { return }
    for fill in due { memory.fetch(fill.address) }
    state.withLock { state in
      for fill in due {
        state.finished[fill.cpu].append(fill.token)
        finishedCounts[fill.cpu].value.add(1, ordering: .releasing)
      }
    }
    for fill in due { wake(fill.cpu) }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Which host thread runs which vCPU. A vCPU is a context, not a thread: a thread takes one that is ready, runs it until
// it halts or its slice is over, and takes the next, first come, first served. With a thread for each vCPU nothing ever
// waits; with fewer, waiting is what the guest knows as stolen time.

import DequeModule
import Devices
import Host
import Synchronization

/// Maps the vCPUs of a machine to host threads.
final class Scheduler: DeadlineSource {
  /// Why a thread has given a vCPU back.
  enum Pause {
    /// It sleeps, and may by now be running elsewhere.
    case halted
    /// Others may go first.
    case preempted
    case ended(RunLoop.Outcome)
  }

  /// How the run ended, and whose doing it was.
  struct End {
    let outcome: RunLoop.Outcome
    let cpu: Int
  }

  /// How long a vCPU runs while others wait, in ns.
  static let slice: UInt64 = 3_000_000

  private struct State {
    /// vCPUs that wait for a thread, the first first.
    var ready: Deque<Int> = []
    /// Threads that wait for a vCPU.
    var idle: [Int] = []
    /// By thread, the vCPU it runs, and when its slice is over.
    var running: [(cpu: Int, until: UInt64)?]
    /// By vCPU, the thread that ran it last.
    var lastThread: [Int?]
    /// By vCPU, since when it has been ready, and how long it has waited in all, in ns.
    var readySince: [UInt64]
    var waited: [UInt64]
    var end: End?
    /// vCPUs wait, and nobody takes one.
    var isPaused = false
  }

  private let state: Mutex<State>
  /// By thread: 0 while it sleeps.
  private let bells: [Futex]
  /// Changes when a thread has given its vCPU back while that is waited for.
  private let standing = Futex(0)
  private let doorbells: [Doorbell]
  private let rearm: @Sendable () -> Void

  /// - Parameters:
  ///   - threadCount: 1 at least.
  ///   - doorbells: Those of the vCPUs. All vCPUs are ready.
  ///   - rearm: Called when `nextDeadline` may have become earlier.
  init(threadCount: Int, doorbells: [Doorbell], rearm: @escaping @Sendable () -> Void) {
    let count = doorbells.count
    let now = HostClock.monotonic
    state = Mutex(
      State(
        ready: Deque(0..<count), running: Array(repeating: nil, count: threadCount),
        lastThread: Array(repeating: nil, count: count), readySince: Array(repeating: now, count: count),
        waited: Array(repeating: 0, count: count)))
    bells = (0..<threadCount).map { _ in Futex(1) }
    self.doorbells = doorbells
    self.rearm = rearm
  }

  var threadCount: Int { bells.count }

  // MARK: Any thread

  /// A vCPU that slept can go on.
  func wake(_ cpu: Int) {
    let now = HostClock.monotonic
    let thread = state.withLock { state -> Int? in
      state.ready.append(cpu)
      state.readySince[cpu] = now
      guard !state.idle.isEmpty else { return nil }
      // Where it ran last its data may still be in the cache.
      let place = state.idle.firstIndex { $0 == state.lastThread[cpu] } ?? state.idle.count - 1
      return state.idle.remove(at: place)
    }
    if let thread { bells[thread].set(1) } else { rearm() }
  }

  /// Lets a vCPU that waits for a thread go before the others; false if it does not wait.
  func prefer(_ cpu: Int) -> Bool {
    state.withLock { state in
      guard let place = state.ready.firstIndex(of: cpu) else { return false }
      state.ready.remove(at: place)
      state.ready.prepend(cpu)
      return true
    }
  }

  /// How long a vCPU was ready and not running, in ns.
  func waited(_ cpu: Int) -> UInt64 {
    let now = HostClock.monotonic
    return state.withLock { state in
      state.waited[cpu] &+ (state.ready.contains(cpu) ? now &- state.readySince[cpu] : 0)
    }
  }

  /// Whether any vCPU waits for a thread.
  var isCrowded: Bool { state.withLock { !$0.ready.isEmpty } }

  /// Ends the run; the first reason counts.
  func end(_ outcome: RunLoop.Outcome, by cpu: Int = 0) {
    let isFirst = state.withLock { state in
      defer { if state.end == nil { state.end = End(outcome: outcome, cpu: cpu) } }
      return state.end == nil
    }
    guard isFirst else { return }
    for doorbell in doorbells { doorbell.stop() }
    for bell in bells { bell.set(1) }
  }

  /// How the run ended, once it has.
  var ending: End? { state.withLock { $0.end } }

  // MARK: Pausing

  /// Stops all vCPUs at a boundary, and waits until they stand.
  ///
  /// - Returns: false if one still ran at the deadline, an instant of the host's monotonic clock in ns. Either way
  ///   `resume` must follow, or the end.
  func pause(until deadline: UInt64) -> Bool {
    let running = state.withLock { state in
      state.isPaused = true
      return state.running.compactMap { $0?.cpu }
    }
    for cpu in running { doorbells[cpu].preempt() }
    while true {
      let seen = standing.word.load(ordering: .sequentiallyConsistent)
      if state.withLock({ state in state.running.allSatisfy { $0 == nil } }) { return true }
      if standing.wait(while: seen, until: deadline) == .timedOut { return false }
    }
  }

  /// Lets vCPUs run again.
  func resume() {
    let threads = state.withLock { state -> [Int] in
      state.isPaused = false
      let count = min(state.ready.count, state.idle.count)
      defer { state.idle.removeLast(count) }
      return Array(state.idle.suffix(count))
    }
    for thread in threads { bells[thread].set(1) }
    rearm()
  }

  // MARK: Slices

  var nextDeadline: UInt64? {
    state.withLock { state in
      state.ready.isEmpty ? nil : state.running.compactMap { $0?.until }.min()
    }
  }

  func expire(now: UInt64) {
    let over = state.withLock { state in
      var over: [Int] = []
      for thread in state.running.indices {
        guard let (cpu, until) = state.running[thread], until <= now, over.count < state.ready.count else { continue }
        over.append(cpu)
        state.running[thread] = (cpu, now &+ Scheduler.slice)
      }
      return over
    }
    for cpu in over { doorbells[cpu].preempt() }
  }

  // MARK: The threads

  /// Runs vCPUs on the calling thread until the run ends.
  func work(thread: Int, run: (Int) -> Pause) {
    while let cpu = next(thread) {
      switch run(cpu) {
      case .halted: break
      case .preempted: giveBack(cpu)
      case .ended(let outcome): end(outcome, by: cpu)
      }
    }
  }

  private func giveBack(_ cpu: Int) {
    let now = HostClock.monotonic
    state.withLock { state in
      state.ready.append(cpu)
      state.readySince[cpu] = now
    }
  }

  /// The vCPU that `thread` runs next; nil once the run has ended.
  private func next(_ thread: Int) -> Int? {
    while true {
      let now = HostClock.monotonic
      let (cpu, isOver) = state.withLock { state -> (Int?, Bool) in
        state.running[thread] = nil
        if state.isPaused {
          standing.word.wrappingAdd(1, ordering: .sequentiallyConsistent)
          standing.wake()
        }
        if state.end != nil { return (nil, true) }
        guard !state.isPaused, let cpu = state.ready.popFirst() else {
          state.idle.append(thread)
          bells[thread].word.store(0, ordering: .relaxed)
          return (nil, false)
        }
        state.waited[cpu] &+= now &- state.readySince[cpu]
        state.running[thread] = (cpu, now &+ Scheduler.slice)
        state.lastThread[cpu] = thread
        return (cpu, false)
      }
      if let cpu { return cpu }
      if isOver { return nil }
      while bells[thread].word.load(ordering: .acquiring) == 0 { bells[thread].wait(while: 0) }
      // A thread that was not taken off the list was woken for the end.
      state.withLock { $0.idle.removeAll { $0 == thread } }
    }
  }
}

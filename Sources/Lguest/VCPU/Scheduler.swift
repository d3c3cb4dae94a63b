// SPDX-License-Identifier: Apache-2.0
// Which host thread runs which vCPU. A vCPU is a context, not a thread: a thread takes one that is ready, runs it until
// it halts or its slice is over, and takes the next, first come, first served. With a thread for each vCPU nothing ever
// waits; with fewer, waiting is what the guest knows as stolen time. What is decided stands in Schedule.swift; here are
// the lock, the clock and the bells.

import Devices
import Host
import Synchronization

/// Maps the vCPUs of a machine to host threads.
final class Scheduler: DeadlineSource {
  /// Why a thread has given a vCPU back.
  enum Pause: Equatable {
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

  private struct State {
    var schedule: Schedule
    var end: End?
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
    state = Mutex(
      State(schedule: Schedule(threadCount: threadCount, cpuCount: doorbells.count, now: HostClock.monotonic)))
    bells = (0..<threadCount).map { _ in Futex(1) }
    self.doorbells = doorbells
    self.rearm = rearm
  }

  var threadCount: Int { bells.count }

  /// Every change of the schedule passes here, so that none can make the timer's deadline earlier without its knowing.
  private func change<Result: Sendable>(_ body: (inout Schedule) -> Result) -> Result {
    let (result, isEarlier) = state.withLock { $0.schedule.change(body) }
    if isEarlier { rearm() }
    return result
  }

  // MARK: Any thread

  /// A vCPU that slept can go on.
  func wake(_ cpu: Int) {
    let now = HostClock.monotonic
    if let thread = change({ $0.wake(cpu, now: now) }) { bells[thread].set(1) }
  }

  /// Lets a vCPU that waits for a thread go before the others; false if it does not wait.
  func prefer(_ cpu: Int) -> Bool {
    let now = HostClock.monotonic
    return change { $0.prefer(cpu, now: now) }
  }

  /// How long a vCPU was ready and not running, in all and at most, in ns.
  func wait(of cpu: Int) -> (total: UInt64, longest: UInt64) {
    let now = HostClock.monotonic
    return state.withLock { $0.schedule.wait(of: cpu, now: now) }
  }

  /// Whether any vCPU waits for a thread.
  var isCrowded: Bool { state.withLock { !$0.schedule.ready.isEmpty } }

  /// Ends the run; the first reason counts.
  func end(_ outcome: RunLoop.Outcome, by cpu: Int = 0) {
    let isFirst = state.withLock { state in
      guard state.schedule.end() else { return false }
      state.end = End(outcome: outcome, cpu: cpu)
      return true
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
    change { schedule in for cpu in schedule.pause() { doorbells[cpu].preempt() } }
    while true {
      let seen = standing.word.load(ordering: .sequentiallyConsistent)
      if state.withLock({ $0.schedule.isStanding }) { return true }
      if standing.wait(while: seen, until: deadline) == .timedOut { return false }
    }
  }

  /// Lets vCPUs run again.
  func resume() { for thread in change({ $0.resume() }) { bells[thread].set(1) } }

  // MARK: Slices

  var nextDeadline: UInt64? {
    let deadline = state.withLock { $0.schedule.deadline }
    return deadline == .max ? nil : deadline
  }

  func expire(now: UInt64) {
    // Under the lock: a vCPU that another thread has taken meanwhile must not be asked for what its last slice owed.
    change { schedule in for cpu in schedule.expire(now: now) { doorbells[cpu].preempt() } }
  }

  // MARK: The threads

  /// Runs vCPUs on the calling thread until the run ends.
  func work(thread: Int, run: (Int) -> Pause) {
    var returned: Int?
    while true {
      let decision = next(thread, returning: returned)
      returned = nil
      switch decision {
      case .run(let cpu):
        switch run(cpu) {
        case .halted: break
        case .preempted: returned = cpu
        case .ended(let outcome): end(outcome, by: cpu)
        }
      case .sleep: while bells[thread].word.load(ordering: .acquiring) == 0 { bells[thread].wait(while: 0) }
      case .leave: return
      }
    }
  }

  private func next(_ thread: Int, returning cpu: Int?) -> Schedule.Decision {
    let now = HostClock.monotonic
    return change { schedule in
      let decision = schedule.next(thread, returning: cpu, now: now)
      switch decision {
      case .run(let cpu): doorbells[cpu].forgetPreemption()
      case .sleep: bells[thread].word.store(0, ordering: .relaxed)
      case .leave: break
      }
      if schedule.isPaused {
        standing.word.wrappingAdd(1, ordering: .sequentiallyConsistent)
        standing.wake()
      }
      return decision
    }
  }
}

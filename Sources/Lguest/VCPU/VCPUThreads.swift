// SPDX-License-Identifier: Apache-2.0
// The host threads that run vCPUs, those of one machine or of a group of machines. A vCPU is a context, not a thread: a
// thread takes one that is ready, runs it until it halts or its slice is over, and takes the next, first come, first
// served, whosever it is. With a thread for each vCPU nothing ever waits; with fewer, waiting is what the guest knows as
// stolen time. What is decided stands in Schedule.swift; here are the lock, the clock and the bells.

import Devices
import Host
import Synchronization

/// A vCPU as threads have it.
struct ScheduledVCPU: Sendable {
  let doorbell: Doorbell
  /// Runs it on the calling thread for a while.
  let run: @Sendable (VCPUThread?) -> Scheduler.Pause
  /// Called once it has ended and no thread has it any more.
  let ended: @Sendable () -> Void
}

/// Runs vCPUs, each known by a number.
final class VCPUThreads: DeadlineSource {
  private struct State {
    var schedule: Schedule
    /// By number; nil: it has not begun, or nobody has the number.
    var vcpus: [ScheduledVCPU?] = []
    /// Numbers that nobody has.
    var free: [Int] = []
  }

  private let state: Mutex<State>
  /// By thread: 0 while it sleeps.
  private let bells: [Futex]
  /// Changes when a thread has given its vCPU back while that is waited for.
  private let standing = Futex(0)
  private let rearm: @Sendable () -> Void

  /// - Parameters:
  ///   - threadCount: 1 at least. Each is to call `work`.
  ///   - rearm: Called when `nextDeadline` may have become earlier.
  init(threadCount: Int, rearm: @escaping @Sendable () -> Void) {
    state = Mutex(State(schedule: Schedule(threadCount: threadCount, cpuCount: 0, now: HostClock.monotonic)))
    bells = (0..<threadCount).map { _ in Futex(1) }
    self.rearm = rearm
  }

  var threadCount: Int { bells.count }

  /// Every change of the schedule passes here, so that none can make the timer's deadline earlier without its knowing.
  private func change<Result: Sendable>(_ body: (inout Schedule, [ScheduledVCPU?]) -> Result) -> Result {
    let (result, isEarlier) = state.withLock { state in
      let vcpus = state.vcpus
      return state.schedule.change { body(&$0, vcpus) }
    }
    if isEarlier { rearm() }
    return result
  }

  // MARK: Coming and going

  /// Numbers for vCPUs that are to come.
  func add(_ count: Int) -> [Int] {
    state.withLock { state in
      (0..<count).map { _ in
        let number = state.free.popLast() ?? state.vcpus.count
        if number == state.vcpus.count { state.vcpus.append(nil) }
        state.schedule.add(number)
        return number
      }
    }
  }

  /// Begins to run vCPUs; each number is one of `add`'s.
  func begin(_ vcpus: [(number: Int, vcpu: ScheduledVCPU)]) {
    state.withLock { state in for (number, vcpu) in vcpus { state.vcpus[number] = vcpu } }
    for (number, _) in vcpus { wake(number) }
  }

  /// Takes numbers back whose vCPUs have ended, or will not begin.
  func remove(_ numbers: [Int]) {
    state.withLock { state in
      for number in numbers { state.vcpus[number] = nil }
      state.free += numbers
    }
  }

  // MARK: Any thread

  /// A vCPU that slept can go on.
  func wake(_ number: Int) {
    let now = HostClock.monotonic
    if let thread = change({ schedule, _ in schedule.wake(number, now: now) }) { bells[thread].set(1) }
  }

  /// Lets a vCPU that waits for a thread go before the others; false if it does not wait.
  func prefer(_ number: Int) -> Bool {
    let now = HostClock.monotonic
    return change { schedule, _ in schedule.prefer(number, now: now) }
  }

  /// How long a vCPU was ready and not running, in all and at most, in ns.
  func wait(of number: Int) -> (total: UInt64, longest: UInt64) {
    let now = HostClock.monotonic
    return state.withLock { $0.schedule.wait(of: number, now: now) }
  }

  /// Whether any vCPU waits for a thread.
  var isCrowded: Bool { state.withLock { !$0.schedule.ready.isEmpty } }

  /// Lets all threads go, whatever they run; only once does anything happen.
  func end() {
    guard state.withLock({ $0.schedule.end() }) else { return }
    for bell in bells { bell.set(1) }
  }

  /// Whether `end` was called.
  var hasEnded: Bool { state.withLock { $0.schedule.hasEnded } }

  // MARK: Pausing

  /// Stops some vCPUs at a boundary. `resume` must follow.
  func pause(_ numbers: [Int]) {
    change { schedule, vcpus in for number in schedule.pause(numbers) { vcpus[number]?.doorbell.preempt() } }
  }

  /// Whether no thread has one of some vCPUs.
  func isStanding(_ numbers: [Int]) -> Bool { state.withLock { $0.schedule.isStanding(numbers) } }

  /// Waits for vCPUs that are paused, until `isStanding`, which is asked whenever a thread has given one back.
  ///
  /// - Returns: false if it was not so at the deadline, an instant of the host's monotonic clock in ns.
  func waitUntilStanding(until deadline: UInt64, _ isStanding: () -> Bool) -> Bool {
    while true {
      let seen = standing.word.load(ordering: .sequentiallyConsistent)
      if isStanding() { return true }
      if standing.wait(while: seen, until: deadline) == .timedOut { return false }
    }
  }

  /// Lets them run again.
  func resume(_ numbers: [Int]) {
    for thread in change({ schedule, _ in schedule.resume(numbers) }) { bells[thread].set(1) }
    // What is waited for may not come about any more.
    announceStanding()
  }

  // MARK: Slices

  var nextDeadline: UInt64? {
    let deadline = state.withLock { $0.schedule.deadline }
    return deadline == .max ? nil : deadline
  }

  func expire(now: UInt64) {
    // Under the lock: a vCPU that another thread has taken meanwhile must not be asked for what its last slice owed.
    change { schedule, vcpus in for number in schedule.expire(now: now) { vcpus[number]?.doorbell.preempt() } }
  }

  // MARK: The threads

  /// Starts the threads, which have been announced to the sandbox.
  ///
  /// - Parameter failed: Called with what the host refuses, by any of them.
  /// - Returns: Those that have started. They end with `end`.
  func start(_ sandbox: Sandbox?, failed: @escaping @Sendable (HostError) -> Void) -> [HostThread] {
    var threads: [HostThread] = []
    do throws(HostError) {
      for number in 0..<threadCount {
        threads.append(
          try HostThread(name: "lguest-vcpu\(number)") {
            do throws(HostError) {
              try MachineParts.withPreparedThread { () throws(HostError) in
                let thread = try VCPUThread(RunQueueDelay())
                sandbox?.confine(.vcpu)
                try sandbox?.waitForAll { self.hasEnded }
                self.work(number, on: thread)
              }
            } catch { failed(error) }
          })
      }
    } catch { failed(error) }
    return threads
  }

  private enum Work: Sendable {
    case run(Int, ScheduledVCPU)
    case sleep
    case leave
  }

  /// Runs vCPUs on the calling thread until `end`.
  ///
  /// - Parameters:
  ///   - number: The thread's.
  ///   - thread: What it has.
  func work(_ number: Int, on thread: VCPUThread? = nil) {
    var returned: Int?
    var ended: ScheduledVCPU?
    while true {
      let work = next(number, returning: returned)
      returned = nil
      ended?.ended()
      ended = nil
      switch work {
      case .run(let cpu, let vcpu):
        switch vcpu.run(thread) {
        case .halted: break
        case .preempted: returned = cpu
        case .ended: ended = vcpu
        }
      case .sleep: while bells[number].word.load(ordering: .acquiring) == 0 { bells[number].wait(while: 0) }
      case .leave: return
      }
    }
  }

  private func next(_ thread: Int, returning number: Int?) -> Work {
    let now = HostClock.monotonic
    return change { schedule, vcpus in
      let work: Work
      switch schedule.next(thread, returning: number, now: now) {
      case .run(let number):
        guard let vcpu = vcpus[number] else { preconditionFailure("a vCPU is ready that has not begun") }
        vcpu.doorbell.forgetPreemption()
        work = .run(number, vcpu)
      case .sleep:
        bells[thread].word.store(0, ordering: .relaxed)
        work = .sleep
      case .leave: work = .leave
      }
      if schedule.pausedCount > 0 { announceStanding() }
      return work
    }
  }

  /// Whoever waits for vCPUs to stand looks again.
  private func announceStanding() {
    standing.word.wrappingAdd(1, ordering: .sequentiallyConsistent)
    standing.wake()
  }
}

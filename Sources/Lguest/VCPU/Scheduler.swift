// SPDX-License-Identifier: Apache-2.0
// A machine's vCPUs among those that its threads run, which may be other machines' too (VCPUThreads.swift): they are woken,
// preferred, paused and ended here, by the machine's own numbers.

import Host
import Synchronization

/// Maps the vCPUs of a machine to host threads.
final class Scheduler: Sendable {
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
    var end: End?
    /// vCPUs that have not ended.
    var left: Int
  }

  private let state: Mutex<State>
  private let threads: VCPUThreads
  /// Whether the threads end with the run: no other machine has them.
  private let isAlone: Bool
  /// By vCPU, its number among the threads'.
  private let numbers: [Int]
  /// Whether they are this machine's still: whoever pauses it may come late, when they are another's.
  private let hasNumbers = Mutex<Bool>(true)
  private let doorbells: [Doorbell]

  /// - Parameters:
  ///   - threads: What runs the vCPUs from `begin` on.
  ///   - isAlone: Whether they run no other's.
  ///   - doorbells: Those of the vCPUs.
  init(_ threads: VCPUThreads, isAlone: Bool, doorbells: [Doorbell]) {
    self.threads = threads
    self.isAlone = isAlone
    self.doorbells = doorbells
    numbers = threads.add(doorbells.count)
    state = Mutex(State(end: nil, left: doorbells.count))
  }

  /// All vCPUs are ready.
  ///
  /// - Parameters:
  ///   - finished: Called once all of them have ended, by a thread that has none of them any more. Not if the threads end
  ///     with the run.
  ///   - run: Runs a vCPU on the calling thread for a while.
  func begin(
    finished: @escaping @Sendable () -> Void = {}, run: @escaping @Sendable (Int, VCPUThread?) -> Pause
  ) {
    let ended: @Sendable () -> Void = { [weak self] in
      let isLast = self?.state.withLock { state in
        state.left -= 1
        return state.left == 0
      }
      if isLast == true { finished() }
    }
    threads.begin(
      doorbells.enumerated().map { cpu, doorbell in
        (numbers[cpu], ScheduledVCPU(doorbell: doorbell, run: { run(cpu, $0) }, ended: ended))
      })
  }

  /// No vCPU runs any more, or will; to pause and to resume does nothing afterwards, and nothing else is asked.
  func leave() {
    hasNumbers.withLock { hasNumbers in
      hasNumbers = false
      threads.resume(numbers)
    }
    threads.remove(numbers)
  }

  // MARK: Any thread

  /// A vCPU that slept can go on.
  func wake(_ cpu: Int) { threads.wake(numbers[cpu]) }

  /// Lets a vCPU that waits for a thread go before the others; false if it does not wait.
  func prefer(_ cpu: Int) -> Bool { threads.prefer(numbers[cpu]) }

  /// How long a vCPU was ready and not running, in all and at most, in ns.
  func wait(of cpu: Int) -> (total: UInt64, longest: UInt64) { threads.wait(of: numbers[cpu]) }

  /// Whether any vCPU waits for a thread.
  var isCrowded: Bool { threads.isCrowded }

  /// Ends the run; the first reason counts.
  func end(_ outcome: RunLoop.Outcome, by cpu: Int = 0) {
    let isFirst = state.withLock { state in
      guard state.end == nil else { return false }
      state.end = End(outcome: outcome, cpu: cpu)
      return true
    }
    guard isFirst else { return }
    for doorbell in doorbells { doorbell.stop() }
    // Those that are paused have to run to end.
    if isAlone { threads.end() } else { resume() }
  }

  /// How the run ended, once it has.
  var ending: End? { state.withLock { $0.end } }

  // MARK: Pausing

  /// Stops all vCPUs at a boundary, and waits until they stand.
  ///
  /// - Returns: false if one still ran at the deadline, an instant of the host's monotonic clock in ns. Either way
  ///   `resume` must follow, or the end. If the run ends meanwhile, none runs the guest any more or will.
  func pause(until deadline: UInt64) -> Bool {
    defer { if ending != nil { resume() } }
    hasNumbers.withLock { if $0 { threads.pause(numbers) } }
    // Whoever ends the run resumes the vCPUs before they stand.
    return threads.waitUntilStanding(until: deadline) { ending != nil || threads.isStanding(numbers) }
  }

  /// Lets vCPUs run again.
  func resume() { hasNumbers.withLock { if $0 { threads.resume(numbers) } } }
}

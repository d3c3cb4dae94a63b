// SPDX-License-Identifier: Apache-2.0
// Many machines in one process: they share the host threads that run vCPUs, the thread that sleeps for their timers and
// time limits, and the one that says how they ended. A machine of a group has no thread and no file descriptor of its own,
// and costs memory for what it touches.

import Devices
import Host
import Synchronization

/// What a machine has in common with others.
struct SharedThreads: Sendable {
  let vcpus: VCPUThreads
  let timers: TimerThread
  /// The machine's time limits.
  let limits: any DeadlineSource
}

/// Virtual machines that run at the same time on the threads of the group.
///
/// vCPUs that could run have turns, first come, first served, whosever they are, so that a guest that spins costs others
/// time and nothing else; an idle guest uses no time at all. Everything may be called from any thread. What machines call
/// (`consoleOutput`, handlers of hypercalls) must not wait: a thread of the group waits with it.
///
/// The group lives on while any of its machines runs.
public final class VirtualMachineGroup: Sendable {
  private let vcpus: VCPUThreads
  /// Of their slices.
  private let slices: Timers
  private let timers: TimerThread
  private let endings: EndingThread
  private let sandbox: Sandbox?
  private let calibration = TimestampCalibration()
  private let failure = Mutex<HostError?>(nil)
  private let running = Mutex<[ObjectIdentifier: VirtualMachine]>([:])
  /// How many run.
  private let runningCount = Futex(0)

  /// Starts the threads of a group that has no machines yet.
  ///
  /// - Parameters:
  ///   - hostThreadCount: Threads to run vCPUs on, 1 at least; nil is as many as the process may use processors.
  ///   - sandbox: Confines the threads of the group. The thread that calls `start` is not confined, and waits there until
  ///     all that were announced are.
  /// - Throws: `ConfigurationError`: the host gives no threads.
  public init(hostThreadCount: Int? = nil, sandbox: Sandbox? = nil) throws(ConfigurationError) {
    if let hostThreadCount, hostThreadCount < 1 {
      throw ConfigurationError("\(hostThreadCount) host threads were asked for", remedy: "ask for 1 at least")
    }
    self.sandbox = sandbox
    timers = TimerThread()
    endings = EndingThread()
    let slices = Timers(timers)
    self.slices = slices
    vcpus = VCPUThreads(threadCount: hostThreadCount ?? max(HostCapacity.current().cpus, 1)) { slices.rearm(0) }
    sandbox?.announce(vcpus.threadCount)
    do throws(HostError) {
      try timers.start(sandbox)
      try slices.start([vcpus])
      try endings.start(sandbox)
    } catch { throw ConfigurationError(error) }
    _ = vcpus.start(sandbox) { [weak self] error in self?.failure.withLock { $0 = error } }
    try checkThreads()
  }

  deinit {
    // Perhaps on one of them: nobody waits.
    vcpus.end()
    endings.stop()
    slices.stop()
    timers.stop()
  }

  private func checkThreads() throws(ConfigurationError) {
    if let error = failure.withLock({ $0 }) { throw ConfigurationError(error) }
  }

  /// Starts a machine that has not run and returns while it runs.
  ///
  /// - Parameters:
  ///   - machine: Without a sandbox, slow memory or a number of host threads of its own.
  ///   - ended: Called with how it ended, on a thread of the group that does nothing else; it may start other machines.
  /// - Throws: what was found before the first guest instruction. Then `ended` is not called.
  public func start(
    _ machine: VirtualMachine, ended: @escaping @Sendable (RunResult) -> Void = { _ in }
  ) throws(ConfigurationError) {
    machine.markRun()
    try VirtualMachineGroup.check(machine.configuration)
    try machine.validate()
    try checkThreads()
    if let ending = machine.stopRequested {
      let result = machine.result(ending)
      return endings.add { ended(result) }
    }
    do throws(HostError) {
      try sandbox?.waitForAll { [vcpus] in vcpus.hasEnded }
    } catch { throw ConfigurationError(error) }
    let built = try machine.build(
      SharedThreads(vcpus: vcpus, timers: timers, limits: LimitTimer(machine)), calibration: calibration)
    change { $0[ObjectIdentifier(machine)] = machine }
    // The group lives until then.
    built.begin { [self] in
      endings.add { [self] in
        let result = machine.conclude(built)
        machine.dismantle(built)
        ended(result)
        change { $0[ObjectIdentifier(machine)] = nil }
      }
    }
  }

  private static func check(_ configuration: VirtualMachine.Configuration) throws(ConfigurationError) {
    let own = [
      (configuration.sandbox != nil, "sandbox"), (configuration.hostThreadCount != nil, "number of host threads"),
      (configuration.slowMemory != nil, "slow memory"),
    ].filter(\.0).map(\.1)
    if let what = own.first {
      throw ConfigurationError("a machine of a group has no \(what) of its own", remedy: "leave it out")
    }
  }

  private func change(_ body: (inout sending [ObjectIdentifier: VirtualMachine]) -> Void) {
    running.withLock { machines in
      body(&machines)
      runningCount.set(UInt32(machines.count))
    }
  }

  /// Machines that have started and not ended.
  public var count: Int { running.withLock { $0.count } }

  /// Asks every machine that runs to end with `ending`.
  public func requestStop(_ ending: Ending) {
    for machine in running.withLock({ Array($0.values) }) { machine.requestStop(ending) }
  }

  /// Waits until no machine runs, and what was to be called has been. Not for what machines call.
  public func wait() {
    while true {
      let count = runningCount.word.load(ordering: .sequentiallyConsistent)
      if count == 0 { return }
      runningCount.wait(while: count)
    }
  }
}

/// The time limits of a machine, as one of its devices.
private final class LimitTimer: DeadlineSource {
  private unowned let machine: VirtualMachine

  /// - Parameter machine: Lives as long as its timers do.
  init(_ machine: VirtualMachine) { self.machine = machine }

  var nextDeadline: UInt64? {
    let now = ContinuousClock.now
    return switch machine.timeLimits(now: now) {
    // The two clocks are read one after the other.
    case .next(let moment): HostClock.after(nanoseconds: UInt64(max((moment - now).inSeconds, 0) * 1e9) + 100_000)
    case .ended: machine.stopRequested == nil ? 0 : nil
    case .unlimited: nil
    }
  }

  func expire(now: UInt64) { machine.enforceTimeLimits() }
}

// SPDX-License-Identifier: Apache-2.0
// The library's front door: a machine is made from a configuration, checked, run once on the calling thread, and
// told to stop from any other. It never exits the process, touches the terminal or prints.

import Boot
import Engine
import Host
import Logging
import Synchronization

/// A virtual machine.
///
/// `run()` occupies the calling thread until the machine ends. Everything else may be called from any thread.
public final class VirtualMachine: Sendable {
  /// The library's version, as `lguest --version` prints it.
  public static let version = Build.version
  /// The commit that it was built from; `unknown` if nobody said.
  public static let commit = Build.commit

  /// What the machine is made from; it does not change.
  public let configuration: Configuration
  /// Where to put what should arrive at the guest's serial port.
  public let consoleInput = ConsoleInput()

  private let limits: TimeLimits
  private let control = Mutex(Control())

  /// What other threads may ask or learn while the machine runs.
  private struct Control {
    /// The first reason given to stop; later ones change nothing.
    var stop: Ending?
    var hasRun = false
    var times = RunResult.Times()
    /// Makes every vCPU come back to the run loop. Set by `run()`.
    var kick: (@Sendable () -> Void)?
    /// From the first guest instruction to the end.
    var running: RunningMachine?
    /// Gets what each vCPU has counted. Set by `run()`.
    var sample: (@Sendable () -> [Statistics])?
  }

  /// A machine that has not begun; nothing is looked at yet.
  public init(configuration: Configuration) {
    self.configuration = configuration
    limits = TimeLimits(
      start: configuration.start, bootTimeout: configuration.bootTimeout, timeout: configuration.timeout)
  }

  /// Checks the configuration and the kernel as `run()` will, without running anything.
  public func validate() throws(ConfigurationError) {
    try configuration.resolved().validate()
    guard configuration.saved == nil else { return }
    do throws(BootError) {
      _ = try KernelImage(configuration.kernel).resolve(configuration.entry)
    } catch {
      throw ConfigurationError(error)
    }
  }

  /// Runs the machine until it ends. A machine runs once.
  ///
  /// - Throws: what was found before the first guest instruction. Afterwards every way to end is a result.
  public func run() throws(ConfigurationError) -> RunResult {
    markRun()
    try validate()
    let watchdog: Watchdog
    do {
      watchdog = try Watchdog(self)
    } catch {
      throw .cannotStart(error.description)
    }
    defer { watchdog.stop() }
    return try runMachine()
  }

  /// Notes that the machine is run.
  func markRun() {
    let isFirst = control.withLock { control in
      defer { control.hasRun = true }
      return !control.hasRun
    }
    precondition(isFirst, "a VirtualMachine runs once")
  }

  /// Asks the machine to end with `ending`. The first request counts; returns whether this was it.
  @discardableResult
  public func requestStop(_ ending: Ending) -> Bool {
    let (isFirst, kick) = control.withLock { control in
      let isFirst = control.stop == nil
      if isFirst { control.stop = ending }
      return (isFirst, control.kick)
    }
    kick?()
    return isFirst
  }

  /// The ending asked for, if any.
  package var stopRequested: Ending? { control.withLock { $0.stop } }

  /// Asks the machine to stop if a time limit has passed; returns the next moment worth looking at, if there is one.
  @discardableResult
  package func enforceTimeLimits(now: ContinuousClock.Instant = .now) -> ContinuousClock.Instant? {
    switch timeLimits(now: now) {
    case .ended(let ending):
      requestStop(ending)
      return nil
    case .next(let moment): return moment
    case .unlimited: return nil
    }
  }

  /// Whether a time limit has passed, or when one does.
  func timeLimits(now: ContinuousClock.Instant = .now) -> TimeLimits.Verdict {
    limits.verdict(at: now, userSpaceBegan: control.withLock { $0.times.userSpace != nil })
  }

  /// The moments seen so far.
  public var times: RunResult.Times {
    var times = control.withLock { $0.times }
    times.end = ContinuousClock.now - configuration.start
    return times
  }

  /// A result with the times of this moment, for endings decided outside the run loop.
  package func result(_ ending: Ending, detail: String? = nil) -> RunResult {
    var result = RunResult(ending: ending, engine: configuration.engine, detail: detail)
    result.times = times
    return result
  }
}

// MARK: Running

/// A machine that is put together.
struct BuiltMachine: Sendable {
  let machine: Machine
  let loops: [RunLoop]
  let inspection: InspectionFiles

  /// All vCPUs are ready to run.
  func begin(finished: @escaping @Sendable () -> Void = {}) {
    machine.scheduler.begin(finished: finished) { [machine, loops] cpu, thread in
      let pause = loops[cpu].run(on: thread)
      if case .ended(let outcome) = pause { machine.end(outcome, by: cpu) }
      return pause
    }
  }
}

extension VirtualMachine {
  /// Puts the machine together and runs it.
  private func runMachine() throws(ConfigurationError) -> RunResult {
    let configuration = configuration.resolved()
    if let ending = stopRequested { return result(ending) }
    let built = try build()
    defer { dismantle(built) }
    let machine = built.machine
    let failure = Mutex<HostError?>(nil)
    let sandbox = configuration.sandbox
    sandbox?.announce(machine.threads.threadCount + (sandbox?.includesCaller == true ? 1 : 0))
    built.begin()
    let threads = machine.threads.start(sandbox) { error in
      failure.withLock { $0 = error }
      machine.end(.stopped)
    }
    if let sandbox, sandbox.includesCaller { sandbox.confine(.machine) }
    for thread in threads { thread.join() }
    if let error = failure.withLock({ $0 }) { return result(.cannotStart, detail: error.description) }
    return conclude(built)
  }

  /// Puts the machine together. `dismantle` must follow.
  ///
  /// - Parameters:
  ///   - shared: What it has in common with other machines; nil: its threads are its own.
  ///   - calibration: One that is under way.
  func build(
    _ shared: SharedThreads? = nil, calibration: TimestampCalibration = TimestampCalibration()
  ) throws(ConfigurationError) -> BuiltMachine {
    let inspection = try InspectionFiles(configuration.inspection)
    let machine = try Machine(
      MachineParts(configuration, trace: inspection.trace, calibration: calibration), configuration,
      input: consoleInput, shared: shared)
    let loops = machine.cpus.indices.map { RunLoop(machine, $0, configuration) { [self] in markUserSpace() } }
    let built = BuiltMachine(machine: machine, loops: loops, inspection: inspection)
    setKick { machine.end(.stopped) }
    // Asked before there was anyone to kick.
    if stopRequested != nil { machine.end(.stopped) }
    if let saved = configuration.saved {
      do throws(ConfigurationError) { try machine.restore(saved, loops) } catch {
        dismantle(built)
        throw error
      }
    }
    setRunning(RunningMachine(machine, loops))
    setSample { loops.indices.map { cpu in loops[cpu].sample.take { machine.doorbells[cpu].ring() } } }
    markGuestStart()
    return built
  }

  /// Lets go of a machine whose vCPUs do not run.
  func dismantle(_ built: BuiltMachine) {
    setRunning(nil)
    setSample(nil)
    setKick(nil)
    built.machine.stop()
  }

  /// Gathers what the guest leaves behind.
  func conclude(_ built: BuiltMachine) -> RunResult {
    let (machine, loops, inspection) = (built.machine, built.loops, built.inspection)
    let end = machine.scheduler.ending ?? Scheduler.End(outcome: .stopped, cpu: 0)
    var (ending, detail) = machine.ending(end.outcome, asked: stopRequested)
    switch ending {
    case .killed, .timeout, .bootTimeout:
      // A kernel that is no guest of lguest's does not know why it fails.
      if let silence = loops.first?.lguest?.silence { detail = detail.map { "\($0): \(silence)" } ?? silence }
    default: break
    }
    var result = result(ending, detail: detail)
    result.vcpuStatistics = loops.map(\.totalStatistics)
    for loop in loops {
      result.statistics.add(loop.statistics)
      loop.addLguestCalls(to: &result.statistics)
    }
    // Of the same moment: a vCPU that was ready at the end goes on waiting.
    result.statistics.stealNanoseconds = result.vcpuStatistics.reduce(0) { $0 &+ $1.stealNanoseconds }
    result.statistics.longestWaitNanoseconds = result.vcpuStatistics.map(\.longestWaitNanoseconds).max() ?? 0
    result.statistics.add(machine)
    result.softFault = machine.engine.counters.firstSoftFault
    inspection.perfMap?.write(machine.engine.perfMap)
    inspection.histogram?.write(machine.histogramText(helperInstructions: result.statistics.helperInstructions))
    if let lost = inspection.finish() { result.lose(lost) }
    result.consoleTail = machine.console.tail.text
    switch ending {
    case .panic, .tripleFault, .internal, .bootTimeout, .timeout:
      result.processorState = machine.stateText(first: end.cpu)
    default: break
    }
    return result
  }
}

// MARK: For other threads

extension VirtualMachine {
  /// What each vCPU has counted so far; nil before the guest begins and after it ends. Takes a quarter of a second at
  /// most.
  package func sampleStatistics() -> [Statistics]? { control.withLock { $0.sample }?() }
}

// MARK: For the run loop

extension VirtualMachine {
  /// Says how to bring every vCPU back to the run loop, from any thread; nil once there are none.
  func setKick(_ kick: (@Sendable () -> Void)?) { control.withLock { $0.kick = kick } }

  /// Says what other threads may stop and save; nil once it has ended.
  func setRunning(_ running: RunningMachine?) { control.withLock { $0.running = running } }

  /// What runs.
  ///
  /// - Throws: `MoveError` before the first guest instruction and after the end.
  func running() throws(MoveError) -> RunningMachine {
    guard let running = control.withLock({ $0.running }) else {
      throw MoveError("the guest has not started yet, or has ended")
    }
    return running
  }
  /// Says how to get what each vCPU has counted; nil once there are none.
  func setSample(_ sample: (@Sendable () -> [Statistics])?) { control.withLock { $0.sample = sample } }

  /// Notes that the first guest instruction is about to run.
  func markGuestStart() { control.withLock { $0.times.guestStart = ContinuousClock.now - configuration.start } }

  /// Notes that user space began, which ends the boot time limit. Only the first call counts.
  func markUserSpace() {
    let now = ContinuousClock.now - configuration.start
    control.withLock { if $0.times.userSpace == nil { $0.times.userSpace = now } }
  }
}

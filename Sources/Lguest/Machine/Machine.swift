// SPDX-License-Identifier: Apache-2.0
// One machine, wired: RAM, vCPUs and the least hardware with which stock kernels are calm, connected as on a PC. What the
// parts are made from stands in MachineParts.swift.

import Boot
import Devices
import Engine
import GuestMemory
import Host
import Logging
import Paravirt
import Synchronization
import SystemPackage
import X86

/// The parts of a machine. `stop` must be called when it is no longer run: the timer thread keeps it alive.
final class Machine: Sendable {
  let memory: GuestMemory
  let engine: any MachineEngine
  let cpus: [any CPUEngine]
  let counter: TimestampCounter
  let clock: KVMClock
  let platform: Platform
  let console: SerialConsole
  let timers: Timers
  /// By vCPU.
  let doorbells: [Doorbell]
  /// What runs the vCPUs.
  let threads: VCPUThreads
  let scheduler: Scheduler
  let offSwitch: OffSwitch
  let logger: Logger?
  let model: CPUModel
  /// What takes pages of RAM away, if anything does.
  let slowMemory: SlowMemory?
  /// What only a ring-1 guest has; nil: the guest is a PC's.
  let lguest: LguestMachine?

  /// The places of the deadline sources; behind the local APICs come the platform's devices.
  enum Source {
    /// The slices of threads; in a group, which has those, the machine's time limits.
    static let scheduler = 0
    static func localAPIC(_ cpu: Int) -> Int { 1 + cpu }
  }

  /// Wires the parts, and starts the threads that are not a vCPU's.
  ///
  /// - Parameter shared: What it has in common with other machines; nil: its threads are its own.
  init(
    _ parts: MachineParts, _ configuration: VirtualMachine.Configuration, input: ConsoleInput,
    shared: SharedThreads? = nil
  ) throws(ConfigurationError) {
    (model, memory, counter, clock) = (parts.model, parts.memory, parts.counter, parts.clock)
    (engine, cpus, slowMemory) = (parts.engine, parts.cpus, parts.slowMemory)
    let bells = Doorbells()
    logger = configuration.logger
    offSwitch = OffSwitch()
    timers = Timers(shared?.timers)
    let timers = timers
    doorbells = cpus.enumerated().map { number, cpu in
      Doorbell(kick: { cpu.kick() }, wake: { bells.scheduler?.wake(number) })
    }
    let threadCount = min(configuration.cpuCount, configuration.hostThreadCount ?? HostCapacity.current().cpus)
    threads =
      shared?.vcpus ?? VCPUThreads(threadCount: max(threadCount, 1)) { timers.rearm(Source.scheduler) }
    scheduler = Scheduler(threads, isAlone: shared == nil, doorbells: doorbells)
    bells.connect(scheduler)
    let offSwitch = offSwitch
    console = SerialConsole(output: configuration.consoleOutput, input: input) { offSwitch.press(.panicked) }

    let clocks = cpus.map { [counter] in Machine.clock($0, counter) }
    let (doorbells, console, logger) = (doorbells, console, logger)
    var devices = PlatformConfiguration(
      cpuCount: configuration.cpuCount, memoryBelow4G: memory.lowEnd,
      memoryAbove4G: memory.highEnd - GuestMemory.highStart, clocks: clocks, wallTime: Machine.wallTime,
      serialOutput: { console.write($0) }, power: { offSwitch.press(.power($0)) }, wake: { doorbells[Int($0)].ring() })
    devices.hasDebugExit = configuration.debugExit
    devices.hasExtendedDestinations = configuration.offered.contains(.extendedDestinationID)
    devices.hasTestDevices = configuration.machine == .testdev
    devices.a20 = { [cpus] isOpen in for cpu in cpus { cpu.setA20(isOpen: isOpen) } }
    devices.serialHasRoom = { console.fill() }
    devices.rearmCPU = { timers.rearm(Source.localAPIC(Int($0))) }
    let firstDevice = Source.localAPIC(configuration.cpuCount)
    devices.rearm = { timers.rearmAll(from: firstDevice) }
    devices.onUnclaimedPort = { port, size, isWrite in
      let name = Machine.portName(port)
      logger?.debug("\(isWrite ? "write to" : "read of") \(name), \(size) bytes, where nothing answers")
    }
    devices.onUnclaimedMMIO = { address, size, isWrite in
      let name = Machine.addressName(address)
      logger?.debug("\(isWrite ? "write to" : "read of") \(name), \(size) bytes, where nothing answers")
    }
    platform = Platform(devices)
    if configuration.saved == nil, configuration.abi != .lguest {
      let mailbox = configuration.processorStart == .mailbox ? ProcessorParking.mailbox : nil
      do throws(BootError) {
        try BootLoader.place(
          acpiTables: platform.acpiTables(mailbox: mailbox), at: PlatformAddress.acpiTables, in: memory)
      } catch { throw ConfigurationError(error) }
    }
    let lguestSource = 1 + platform.interrupts.localAPICs.count + platform.deadlineSources.count
    if let beginning = parts.lguestBeginning {
      lguest = try LguestMachine(
        memory, configuration, beginning, console, wake: { doorbells[0].ring() },
        rearm: { timers.rearm(lguestSource) })
    } else {
      lguest = nil
    }
    var sources: [any DeadlineSource] = [shared?.limits ?? threads]
    sources += platform.interrupts.localAPICs
    sources += platform.deadlineSources
    if let lguest { sources.append(lguest.timer) }
    console.connect(lguest?.console ?? platform.serial)
    if parts.isParked { for apic in platform.interrupts.localAPICs { apic.skipStartup() } }
    do throws(HostError) {
      try slowMemory?.start(
        wake: { doorbells[$0].ring() }, evict: { [engine] in _ = engine.evictUsedPages(limit: $0) },
        configuration.sandbox)
      try timers.start(sources, configuration.sandbox)
      try lguest?.start(configuration.sandbox)
    } catch {
      lguest?.stop()
      console.disconnect()
      scheduler.leave()
      throw ConfigurationError(error)
    }
  }

  /// Ends the run; the first reason counts. Nobody waits any longer for a page that is on its way.
  func end(_ outcome: RunLoop.Outcome, by cpu: Int = 0) {
    memory.endDelays()
    scheduler.end(outcome, by: cpu)
  }

  /// Ends the machine's thread and lets go of the console.
  func stop() {
    slowMemory?.stop()
    timers.stop()
    lguest?.stop()
    console.disconnect()
    scheduler.leave()
  }

  // MARK: Moving

  /// Runs `body` while no device does anything by itself. No vCPU may run either.
  func standStill<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try timers.standStill { () throws(Failure) in try console.standStill(body) }
  }

  /// All deadlines may have changed, and the port may want input.
  func rearmAll() {
    timers.rearmAll()
    console.fill()
  }

  /// What this machine is, for a file.
  func saved(_ configuration: VirtualMachine.Configuration) -> SavedConfiguration {
    var saved = SavedConfiguration()
    saved.cpuCount = UInt32(cpus.count)
    saved.level = model.level
    saved.extras = model.extras
    saved.additions = model.additions
    saved.vendor = configuration.cpuVendor
    saved.foreignHypercall = configuration.effectiveForeignHypercall
    saved.kvmAPI = configuration.kvmAPI
    saved.features = configuration.kvmFeatures
    saved.hints = configuration.kvmHints
    saved.machine = configuration.machine
    saved.debugExit = configuration.debugExit
    saved.timestampKilohertz = counter.kilohertz
    saved.kernel = configuration.kernel.string
    return saved
  }

  // MARK: Facts

  static func portName(_ port: UInt64) -> String { "port 0x" + String(port, radix: 16) }
  static func addressName(_ address: UInt64) -> String { "address 0x" + String(address, radix: 16) }
  static func registerName(_ index: UInt32) -> String { "MSR 0x" + String(index, radix: 16) }

  /// Whether the guest left the sign of a panic behind: `panic_warm` asks Linux for a warm reset of a machine whose
  /// panic it was; an ordinary reboot does not leave it (BIOS data area, reset flag).
  var hasPanicMark: Bool {
    let resetFlag = GuestPhysical(0x472)
    do throws(MemoryError) { return try memory.load(UInt16.self, at: resetFlag) == 0x1234 } catch { return false }
  }

  // MARK: Parts

  private static func clock(_ cpu: any CPUEngine, _ counter: TimestampCounter) -> Clock {
    Clock(
      nanoseconds: { HostClock.monotonic },
      timestampCounter: { cpu.timestampCounter },
      nanosecondsAtTick: { HostClock.after(nanoseconds: counter.delay(until: $0, now: cpu.timestampCounter)) })
  }

  static let wallTime: @Sendable () -> WallTime = {
    let (seconds, rest) = HostClock.wall.quotientAndRemainder(dividingBy: 1_000_000_000)
    return WallTime(seconds: Int64(clamping: seconds), nanoseconds: UInt32(rest))
  }
}

extension ConfigurationError {
  /// What the host refused, in the form every other refusal has.
  package init(_ error: HostError) {
    self.init(
      "cannot \(error.attempt) \(error.subject): \(error.reason)", remedy: error.remedy.isEmpty ? nil : error.remedy)
  }
}

/// Where the doorbells find the scheduler, which is made after them.
private final class Doorbells: Sendable {
  private struct Weak { weak var scheduler: Scheduler? }
  private let target = Mutex(Weak())
  var scheduler: Scheduler? { target.withLock { $0.scheduler } }
  func connect(_ scheduler: Scheduler) { target.withLock { $0.scheduler = scheduler } }
}

/// What the guest did that ends the run, said by the device where it did it; the first of it counts.
final class OffSwitch: Sendable {
  private let pressed = Mutex<RunLoop.Outcome?>(nil)
  private let isPressed = Atomic<Bool>(false)

  /// Why the run should end, once there is a reason.
  var outcome: RunLoop.Outcome? { isPressed.load(ordering: .acquiring) ? pressed.withLock { $0 } : nil }

  func press(_ outcome: RunLoop.Outcome) {
    pressed.withLock { if $0 == nil { $0 = outcome } }
    isPressed.store(true, ordering: .releasing)
  }
}

// SPDX-License-Identifier: Apache-2.0
// One machine, put together: RAM with a kernel in it, CPUs, the first at the kernel's first instruction, and the least
// hardware with which stock kernels are calm, wired as on a PC. Everything found here to be wrong is found before the
// guest runs.

import Boot
import Devices
import GuestMemory
import Host
import Logging
import Paravirt
import Synchronization
import SystemPackage
import Translator
import X86

/// The parts of a machine. `stop` must be called when it is no longer run: the timer thread keeps it alive.
final class Machine: Sendable {
  let memory: GuestMemory
  let translation: Translation
  let cpus: [TranslatedCPU]
  let counter: TimestampCounter
  let clock: KVMClock
  let platform: Platform
  let console: SerialConsole
  let timers: Timers
  /// By vCPU.
  let doorbells: [Doorbell]
  let scheduler: Scheduler
  let power: PowerSwitch
  let logger: Logger?
  let model: CPUModel
  /// What takes pages of RAM away, if anything does.
  let slowMemory: SlowMemory?

  /// The places of the deadline sources.
  enum Source {
    static let pit = 0, rtc = 1, scheduler = 2
    static func localAPIC(_ cpu: Int) -> Int { 3 + cpu }
  }

  /// Builds a machine and loads the kernel.
  init(_ configuration: VirtualMachine.Configuration, input: ConsoleInput) throws(ConfigurationError) {
    let calibration = TimestampCalibration()
    let model = try Machine.model(configuration)
    self.model = model
    var state = CPUState()
    let fetchDelay = configuration.slowMemory.map(SlowMemory.nanoseconds)
    if let saved = configuration.saved {
      memory = try saved.makeMemory(configuration.logger, fetchDelay: fetchDelay)
    } else {
      do throws(HostError) {
        memory = try GuestMemory(byteCount: configuration.memorySize, fetchDelay: fetchDelay)
      } catch { throw ConfigurationError(error) }
      state = try Machine.loadKernel(configuration, into: memory)
    }

    guard let hostCounter = calibration.finish() else {
      throw ConfigurationError("the host's time-stamp counter stands still", remedy: "run on another machine")
    }
    let isConstant = TimestampCalibration.isConstant
    let time: ParavirtTime
    if let saved = configuration.saved {
      counter = try saved.configuration.counter(host: hostCounter)
      let clock = try saved.clock
      time = ParavirtTime(timestampOffset: clock.timestamp &- HostCPU.timestampCounter)
      self.clock = KVMClock(counter: counter, isTimestampConstant: isConstant, source: time, restoring: clock)
    } else {
      counter = hostCounter
      // The guest's counter begins at 0, as after power-on.
      time = ParavirtTime(timestampOffset: 0 &- HostCPU.timestampCounter)
      clock = KVMClock(counter: counter, isTimestampConstant: isConstant, source: time)
    }
    let counter = counter
    state.tscOffset = time.timestampOffset
    var options = try Machine.options(model, counter, time, configuration)
    options.nativeHypercall = configuration.nativeHypercall
    options.hypercallPolicy = configuration.hypercallPolicy
    options.constantHypercalls = configuration.constantHypercalls
    let memory = memory
    slowMemory = configuration.slowMemory.map { SlowMemory(memory, delay: $0, cpuCount: configuration.cpuCount) }
    do throws(HostError) {
      translation = try Translation(memory: memory, options: options)
      var cpus: [TranslatedCPU] = []
      for number in 0..<configuration.cpuCount { cpus.append(try translation.makeCPU(number)) }
      self.cpus = cpus
    } catch { throw ConfigurationError(error) }
    let bells = Doorbells()
    let parked = try Machine.parkedProcessor(configuration, memory)
    for (number, cpu) in cpus.enumerated() {
      var waiting = parked ?? CPUState().initialized(signature: cpu.signature)
      if parked != nil { waiting.registers[3] = UInt64(number) }
      waiting.tscOffset = state.tscOffset
      cpu.state = number == 0 ? state : waiting
      Firmware.setMemoryTypes(cpu)
    }
    logger = configuration.logger
    power = PowerSwitch()
    timers = Timers()
    let timers = timers
    doorbells = cpus.enumerated().map { number, cpu in
      Doorbell(kick: { cpu.kick() }, wake: { bells.scheduler?.wake(number) })
    }
    let threadCount = min(configuration.cpuCount, configuration.hostThreadCount ?? HostCapacity.current().cpus)
    scheduler = Scheduler(threadCount: max(threadCount, 1), doorbells: doorbells) {
      timers.rearm(Source.scheduler)
    }
    bells.connect(scheduler)
    console = SerialConsole(output: configuration.consoleOutput, input: input)

    let clocks = cpus.map { Machine.clock($0, counter) }
    let (doorbells, console, power, logger) = (doorbells, console, power, logger)
    var parts = PlatformConfiguration(
      cpuCount: configuration.cpuCount, memoryBelow4G: memory.lowEnd,
      memoryAbove4G: memory.highEnd - GuestMemory.highStart, clocks: clocks, wallTime: Machine.wallTime,
      serialOutput: { console.write($0) }, power: { power.press($0) }, wake: { doorbells[Int($0)].ring() })
    parts.hasDebugExit = configuration.debugExit
    parts.hasExtendedDestinations = configuration.offered.contains(.extendedDestinationID)
    parts.hasTestDevices = configuration.machine == .testdev
    parts.a20 = { [cpus] isOpen in for cpu in cpus { cpu.setA20(isOpen: isOpen) } }
    parts.serialHasRoom = { console.fill() }
    parts.rearmCPU = { timers.rearm(Source.localAPIC(Int($0))) }
    parts.rearm = {
      timers.rearm(Source.pit)
      timers.rearm(Source.rtc)
    }
    parts.onUnclaimedPort = { port, size, isWrite in
      let name = Machine.portName(port)
      logger?.debug("\(isWrite ? "write to" : "read of") \(name), \(size) bytes, where nothing answers")
    }
    parts.onUnclaimedMMIO = { address, size, isWrite in
      let name = Machine.addressName(address)
      logger?.debug("\(isWrite ? "write to" : "read of") \(name), \(size) bytes, where nothing answers")
    }
    platform = Platform(parts)
    // The serial port is no source: the vCPU's thread hands its output over after every byte.
    let sources: [any DeadlineSource] = [platform.pit, platform.rtc, scheduler] + platform.interrupts.localAPICs
    console.connect(platform.serial)
    if parked != nil { for apic in platform.interrupts.localAPICs { apic.skipStartup() } }
    do throws(HostError) {
      try slowMemory?.start(
        wake: { doorbells[$0].ring() }, evict: { [translation] in _ = translation.evictUsedPages(limit: $0) },
        configuration.sandbox)
      try timers.start(sources, configuration.sandbox)
    } catch {
      console.disconnect()
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
    console.disconnect()
  }

  // MARK: Moving

  /// Runs `body` while no device does anything by itself. No vCPU may run either.
  func standStill<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try timers.standStill { () throws(Failure) in try console.standStill(body) }
  }

  /// All deadlines may have changed, and the port may want input.
  func rearmAll() {
    for index in 0..<Source.localAPIC(cpus.count) { timers.rearm(index) }
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
    saved.foreignHypercall = configuration.foreignHypercall
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

  /// COM1.
  static let serialPorts = PlatformAddress.serial..<PlatformAddress.serial + 8

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

  private static func model(_ configuration: VirtualMachine.Configuration) throws(ConfigurationError) -> CPUModel {
    let vendor: CPUModel.Vendor = configuration.cpuVendor == .intel ? .intel : .amd
    let host = HostCPU.cpuid
    if let saved = configuration.saved {
      let model = try saved.configuration.model(vendor)
      let missing = model.missing(on: host).map { "\($0)" }
      guard missing.isEmpty else {
        throw ConfigurationError(
          "this host cannot be the saved machine's CPU, \(model.level.rawValue): it lacks \(missing.joined(separator: ", "))",
          remedy: "restore it on a host that has them")
      }
      return model
    }
    var additions: FeatureSet = []
    if configuration.cpuFeatures.contains("smap") { additions.formUnion(FeatureSet(.smap)) }
    if configuration.cpuFeatures.contains("pcid") { additions.formUnion(FeatureSet(.pcid, .invpcid)) }
    guard let name = configuration.cpuModel else {
      if let model = CPUModel(host: host, vendor: vendor, additions: additions) { return model }
      throw ConfigurationError(
        "this host's CPU is below x86-64-v2", remedy: "use a machine with SSE4.2, POPCNT and CMPXCHG16B")
    }
    guard let level = CPUModel.Level(rawValue: name) else {
      throw ConfigurationError("unknown CPU model '\(name)'", remedy: "leave the choice to lguest")
    }
    if let model = CPUModel(level, host: host, vendor: vendor, additions: additions) { return model }
    let missing = CPUModel(level, vendor: vendor, extras: []).missing(on: host).map { "\($0)" }
    throw ConfigurationError(
      "this host cannot be a \(name): it lacks \(missing.joined(separator: ", "))", remedy: "choose a lower model")
  }

  private static func options(
    _ model: CPUModel, _ counter: TimestampCounter, _ time: ParavirtTime, _ configuration: VirtualMachine.Configuration
  ) throws(ConfigurationError) -> TranslationOptions {
    let cpuCount = configuration.cpuCount
    let tables = (0..<UInt32(cpuCount)).map { number in
      model.cpuid(
        CPUIDConfiguration(
          apicID: number, cpuCount: UInt32(cpuCount), timestampKilohertz: counter.kilohertz,
          kvmFeatures: configuration.offered, kvmHints: configuration.hinted))
    }
    var options = TranslationOptions(cpuid: tables) { model.supports($0) }
    options.tscOffset = time.timestampOffset
    // Some 10 us.
    if cpuCount > 1 { options.pausesToExit = 256 }
    options.physicalAddressBits = Int(CPUModel.physicalAddressBits)
    let inspection = configuration.inspection
    options.exactFlags = inspection.exactFlags
    options.isUnchecked = inspection.isUnchecked
    if let logger = configuration.logger {
      options.refused = { logger.info("a block of code was refused by the checker, and is run more slowly: \($0)") }
    }
    options.countsBlocks = inspection.histogram != nil
    options.singleInstruction = inspection.singleInstruction
    if let path = inspection.trace {
      let file = try TraceFile(path)
      options.trace = { file.write($0 + "\n") }
    }
    return options
  }

  private static func loadKernel(
    _ configuration: VirtualMachine.Configuration, into memory: GuestMemory
  ) throws(ConfigurationError) -> CPUState {
    var acpi = ACPIConfiguration(cpuCount: configuration.cpuCount)
    acpi.mailbox = configuration.processorStart == .mailbox ? ProcessorParking.mailbox : nil
    let tables = ACPITables.build(
      acpi, at: PlatformAddress.acpiTables)
    do throws(BootError) {
      let image = try KernelImage(configuration.kernel)
      let isMultiboot = try image.resolve(configuration.entry) == .multiboot
      return try BootLoader.load(
        image, initrd: configuration.initrd.map { InitialRAMDisk($0) },
        commandLine: isMultiboot
          ? configuration.commandLine.multibootText(kernel: configuration.kernel) : configuration.commandLine.text,
        into: memory,
        acpi: BootLoader.ACPI(address: PlatformAddress.acpiTables, bytes: tables.bytes, rsdp: tables.rsdpAddress),
        entry: configuration.entry)
    } catch { throw ConfigurationError(error) }
  }

  /// The state of the processors but the first, if they wait at a mailbox.
  private static func parkedProcessor(
    _ configuration: VirtualMachine.Configuration, _ memory: GuestMemory
  ) throws(ConfigurationError) -> CPUState? {
    guard configuration.processorStart == .mailbox, configuration.cpuCount > 1 else { return nil }
    do throws(BootError) { return try ProcessorParking.prepare(memory) } catch { throw ConfigurationError(error) }
  }

  private static func clock(_ cpu: TranslatedCPU, _ counter: TimestampCounter) -> Clock {
    Clock(
      nanoseconds: { HostClock.monotonic },
      timestampCounter: { cpu.timestampCounter },
      nanosecondsAtTick: { HostClock.after(nanoseconds: counter.delay(until: $0, now: cpu.timestampCounter)) })
  }

  private static let wallTime: @Sendable () -> WallTime = {
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

/// What the guest did to the machine's power, and the first of it counts.
final class PowerSwitch: Sendable {
  private let pressed = Mutex<PowerEvent?>(nil)

  var event: PowerEvent? { pressed.withLock { $0 } }

  func press(_ event: PowerEvent) { pressed.withLock { if $0 == nil { $0 = event } } }
}

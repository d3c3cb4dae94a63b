// SPDX-License-Identifier: Apache-2.0
// The parts of a machine, made from a configuration: RAM with a kernel in it or a saved machine's, clocks, an engine, and
// vCPUs, the first at the kernel's first instruction. Here, and nowhere else, an engine is chosen. Everything found here
// to be wrong is found before the guest runs.

import Boot
import Devices
import Engine
import GuestMemory
import Host
import Logging
import Paravirt
import SystemPackage
import Translator
import X86

/// What a machine is wired from.
struct MachineParts {
  let model: CPUModel
  let memory: GuestMemory
  let counter: TimestampCounter
  let clock: KVMClock
  let engine: any MachineEngine
  let cpus: [any CPUEngine]
  /// What takes pages of RAM away, if anything does.
  var slowMemory: SlowMemory?
  /// How a ring-1 guest begins.
  var lguestBeginning: LguestBeginning?
  /// The processors but the first wait at a mailbox, not for a start-up interrupt.
  var isParked = false
}

extension MachineParts {
  /// Makes the calling thread fit to run vCPUs while `body` runs.
  static func withPreparedThread(_ body: () throws(HostError) -> Void) throws(HostError) {
    try Translation.withPreparedThread(body)
  }

  /// Makes the parts, with the kernel loaded.
  ///
  /// - Parameter calibration: One that is under way: it costs no time once it is some hundredths of a second old.
  init(
    _ configuration: VirtualMachine.Configuration, trace: TraceFile? = nil,
    calibration: TimestampCalibration = TimestampCalibration()
  ) throws(ConfigurationError) {
    model = try MachineParts.model(configuration)
    var state = CPUState()
    let fetchDelay = configuration.slowMemory.map(SlowMemory.nanoseconds)
    if let saved = configuration.saved {
      memory = try saved.makeMemory(configuration.logger, fetchDelay: fetchDelay)
      if let lguest = try saved.lguest { lguestBeginning = try LguestBeginning(saved, lguest, configuration) }
    } else {
      do throws(HostError) {
        memory = try GuestMemory(
          byteCount: configuration.wholeMemorySize, fetchDelay: fetchDelay)
      } catch { throw ConfigurationError(error) }
      if configuration.abi == .lguest {
        let beginning = try LguestBeginning(configuration, loadedInto: memory)
        (state, lguestBeginning) = (beginning.state, beginning)
      } else {
        state = try MachineParts.loadKernel(configuration, into: memory)
      }
    }

    guard let hostCounter = calibration.finish() else {
      throw ConfigurationError("the host's time-stamp counter stands still", remedy: "run on another machine")
    }
    let isConstant = TimestampCalibration.isConstant
    let time: ParavirtTime
    if let saved = configuration.saved {
      counter = try saved.configuration.counter(host: hostCounter)
      let saved = try saved.clock
      time = ParavirtTime(timestampOffset: saved.timestamp &- HostCPU.timestampCounter)
      clock = KVMClock(counter: counter, isTimestampConstant: isConstant, source: time, restoring: saved)
    } else {
      counter = hostCounter
      // The guest's counter begins at 0, as after power-on.
      time = ParavirtTime(timestampOffset: 0 &- HostCPU.timestampCounter)
      clock = KVMClock(counter: counter, isTimestampConstant: isConstant, source: time)
    }
    state.tscOffset = time.timestampOffset
    let memory = memory
    slowMemory = configuration.slowMemory.map { SlowMemory(memory, delay: $0, cpuCount: configuration.cpuCount) }
    var options = try MachineParts.options(model, counter, time, configuration)
    if let trace { options.trace = { trace.write($0 + "\n") } }
    do throws(HostError) {
      let translation = try Translation(memory: memory, options: options)
      var cpus: [any CPUEngine] = []
      for number in 0..<configuration.cpuCount { cpus.append(try translation.makeCPU(number)) }
      (engine, self.cpus) = (translation, cpus)
    } catch { throw ConfigurationError(error) }
    let parked = try MachineParts.parkedProcessor(configuration, memory)
    isParked = parked != nil
    for (number, cpu) in cpus.enumerated() {
      var waiting = parked ?? CPUState().initialized(signature: cpu.signature)
      if isParked { waiting[register: GPR.rbx] = UInt64(number) }
      waiting.tscOffset = state.tscOffset
      cpu.state = number == 0 ? state : waiting
      Firmware.setMemoryTypes(cpu)
    }
  }

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
    options.nativeHypercall = configuration.nativeHypercall
    options.hypercallPolicy = configuration.hypercallPolicy
    if configuration.abi == .lguest {
      // KVM's instruction is no processor's here: it raises #UD, of which lguest's host makes what the policy says.
      options.nativeHypercall = configuration.hypercallPolicy == .native ? .vmcall : nil
      options.hypercallPolicy = .fault
    }
    options.constantHypercalls = configuration.constantHypercalls
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
    return options
  }

  private static func loadKernel(
    _ configuration: VirtualMachine.Configuration, into memory: GuestMemory
  ) throws(ConfigurationError) -> CPUState {
    do throws(BootError) {
      let image = try KernelImage(configuration.kernel)
      let isMultiboot = try image.resolve(configuration.entry) == .multiboot
      return try BootLoader.load(
        image, initrd: configuration.initrd.map { InitialRAMDisk($0) },
        commandLine: isMultiboot
          ? configuration.commandLine.multibootText(kernel: configuration.kernel)
          : configuration.commandLine.text(for: .kvm),
        into: memory, rsdp: PlatformAddress.acpiTables, entry: configuration.entry)
    } catch { throw ConfigurationError(error) }
  }

  /// The state of the processors but the first, if they wait at a mailbox.
  private static func parkedProcessor(
    _ configuration: VirtualMachine.Configuration, _ memory: GuestMemory
  ) throws(ConfigurationError) -> CPUState? {
    guard configuration.processorStart == .mailbox, configuration.cpuCount > 1 else { return nil }
    do throws(BootError) { return try ProcessorParking.prepare(memory) } catch { throw ConfigurationError(error) }
  }
}

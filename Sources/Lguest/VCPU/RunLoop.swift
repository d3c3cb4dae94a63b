// SPDX-License-Identifier: Apache-2.0
// A vCPU's life: deliver what is due, enter the guest, and see what it left for. The paths of an exit are the arms of
// `handle`; a hypercall, for one, goes to Paravirt/Hypercalls.swift and its result to RAX.

import Devices
import Engine
import Host
import Logging
import Paravirt
import Saving
import X86

/// Runs one vCPU, on one thread at a time: the one that took it from the scheduler.
final class RunLoop: @unchecked Sendable {
  /// Why the loop ended.
  enum Outcome: Equatable {
    /// Somebody asked for it.
    case stopped
    case power(PowerEvent)
    /// The kernel said all it had to say about its panic.
    case panicked
    case tripleFault
    /// A ring-1 guest shut down with this text, which is that of a panic.
    case shutDown(String)
    /// A ring-1 guest did what it may not.
    case killed(String)
    case failed(String)
  }

  let machine: Machine
  let number: Int
  let doorbell: Doorbell
  let engine: any CPUEngine
  let apic: LocalAPIC
  var registers: KVMModelSpecificRegisters<ParavirtMemory>
  private let hypercalls: KVMHypercalls<ParavirtMemory, ParavirtMachine>
  private let patching: HypercallPatching
  let interface: KVMInterface
  /// The host side of a ring-1 guest; nil: the guest is a PC's.
  var lguest: LguestHost?
  /// Whether there is one: asked often, and the other way would copy it.
  let isLguest: Bool
  let userSpaceBegan: () -> Void

  /// What this vCPU counted.
  var statistics = Statistics()
  /// Where other threads get it while the vCPU runs.
  let sample = StatisticsSample()
  /// Whether cycles of exits are counted: from the beginning, or since somebody asked.
  var countsCosts: Bool
  var lastHypercall: UInt64?
  private var wantsWindow = false
  /// Of the thread that runs the vCPU.
  var thread: VCPUThread?
  /// How long the host let that thread wait, in nanoseconds.
  var waitedForHost: UInt64 = 0
  /// HLT was executed, or the vCPU waits to be started.
  var isHalted: Bool
  var isInUserSpace = false
  let firstTimestampOffset: UInt64
  var timestampOffset: UInt64

  /// - Parameters:
  ///   - number: The vCPU's, which is its APIC ID.
  ///   - userSpaceBegan: Called when the vCPU first executes user code.
  init(
    _ machine: Machine, _ number: Int, _ configuration: VirtualMachine.Configuration,
    userSpaceBegan: @escaping () -> Void
  ) {
    self.machine = machine
    self.number = number
    self.userSpaceBegan = userSpaceBegan
    doorbell = machine.doorbells[number]
    engine = machine.cpus[number]
    apic = machine.platform.interrupts.localAPICs[number]
    isHalted = apic.isWaitingForStartup
    let memory = ParavirtMemory(memory: machine.memory)
    registers = KVMModelSpecificRegisters(
      features: configuration.offered, clock: machine.clock, memory: memory, cpu: UInt32(number))
    hypercalls = KVMHypercalls(
      features: configuration.offered, clock: machine.clock, memory: memory, machine: ParavirtMachine(machine, number),
      interface: configuration.kvmInterface, program: configuration.program(machine.memory))
    patching = HypercallPatching(native: configuration.nativeHypercall, policy: configuration.hypercallPolicy)
    interface = configuration.kvmInterface
    countsCosts = configuration.collectStatistics
    isLguest = machine.lguest != nil
    lguest = machine.lguest?.makeHost(configuration, memory, machine.clock, machine.counter)
    if configuration.saved == nil { lguest?.begin(engine) } else { lguest?.connect(engine) }
    firstTimestampOffset = engine.timestampOffset
    timestampOffset = firstTimestampOffset
  }

  /// Runs the guest until it halts, somebody else should run, or something ends it.
  ///
  /// - Parameter thread: The calling one.
  func run(on thread: VCPUThread?) -> Scheduler.Pause {
    // The machine may have been stopped in between.
    registers.synchronize()
    beginSlice(on: thread)
    while true {
      if sample.isAsked { publishStatistics() }
      if isHalted {
        if let parts = machine.lguest, parts.isBehind, !doorbell.isStopped, !doorbell.isPreempted {
          parts.takeOutput()
          continue
        }
        if !hasNews && !doorbell.takeEndOfHalt() && !doorbell.isStopped {
          // Asked before the vCPU sleeps: then it may run elsewhere.
          let canAccept = engine.canAcceptInterrupt
          if doorbell.sleep(unless: { [apic, machine, number, news = lguest?.news] in
            if let news { return news.isThere }
            return RunLoop.hasNews(apic, canAccept: canAccept, machine.slowMemory, number)
          }) {
            return .halted
          }
          continue
        }
        isHalted = false
      }
      doorbell.enterGuest()
      if doorbell.isStopped { return .ended(.stopped) }
      if doorbell.isPreempted {
        if engine.isAtBoundary {
          doorbell.leaveGuest()
          noteBeingPreempted()
          return .preempted
        }
        // An instruction that is half done comes first: between two, the vCPU can be saved.
        engine.kick()
      }
      if let outcome = deliver() { return .ended(outcome) }
      if isHalted {
        doorbell.leaveGuest()
        continue
      }
      let exit = engine.run()
      let began = countsCosts ? HostCPU.timestampCounter : 0
      doorbell.leaveGuest()
      if !isLguest {
        noteTaskPriority()
        settleEndOfInterrupt()
      }
      if let outcome = handle(exit) { return .ended(outcome) }
      noteChanges()
      if began != 0 { countCost(of: exit, since: began) }
    }
  }

  // MARK: Halted

  private var hasNews: Bool {
    if let lguest { return lguest.news.isThere }
    return RunLoop.hasNews(apic, canAccept: engine.canAcceptInterrupt, machine.slowMemory, number)
  }

  /// Whether there is something that ends HLT, or starts a vCPU that waits for that.
  private static func hasNews(_ apic: LocalAPIC, canAccept: Bool, _ store: SlowMemory?, _ number: Int) -> Bool {
    if apic.hasPendingEvent { return true }
    guard canAccept, !apic.isWaitingForStartup else { return false }
    return apic.hasPendingInterrupt || store?.hasFills(of: number) == true
  }

  // MARK: Into the guest

  /// Gives the engine the interrupt that is due, or asks to be told when it could be given.
  private func deliver() -> Outcome? {
    if isLguest {
      deliverLguest()
      return nil
    }
    if apic.hasPendingEvent {
      if apic.takeNMI() { engine.injectNMI() }
      if let event = apic.takeStartupEvent(), let outcome = start(event) { return outcome }
    }
    if apic.isWaitingForStartup {
      isHalted = true
      return nil
    }
    deliverPageEvents()
    settleEndOfInterrupt()
    if apic.hasPendingInterrupt, engine.canAcceptInterrupt, let vector = apic.acknowledge() {
      engine.inject(interrupt: vector)
      offerEndOfInterrupt(of: vector)
      statistics.interrupts &+= 1
    }
    let isWaiting = apic.hasPendingInterrupt
    if isWaiting != wantsWindow {
      wantsWindow = isWaiting
      engine.requestInterruptWindow(isWaiting)
    }
    return nil
  }

  /// INIT and start-up IPIs (SDM volume 3, 9.4.4).
  private func start(_ event: StartupEvent) -> Outcome? {
    switch event {
    case .initialize:
      // The bootstrap processor restarts at the firmware's reset vector, and there is no firmware.
      if number == 0 { return .power(.reset(.systemControlPortA)) }
      registers.reset()
      engine.everyLevelLeavesForPages = false
      engine.state = engine.state.initialized(signature: engine.signature)
      adoptTaskPriority()
    case .start(let vector):
      engine.state = engine.state.started(vector: vector)
    }
    return nil
  }

  // MARK: Out of the guest

  func handle(_ exit: VCPUExit) -> Outcome? {
    statistics.count(Statistics.ExitReason(exit))
    switch exit {
    // Ports that level 1 may not touch are its host's: it never comes here.
    case .portRead where isLguest: engine.completeRead(.max)
    case .portWrite where isLguest: break
    case .portRead(let port, let size):
      engine.completeRead(machine.platform.ports.read(UInt64(port), size: size))
    case .portWrite(let port, let size, let value):
      machine.platform.ports.write(UInt64(port), size: size, value: UInt64(value))
      return machine.offSwitch.outcome
    case .mmioRead(let address, let size):
      engine.completeRead(read(address, size))
    case .mmioWrite(let address, let size, let value):
      write(address, size, value)
    case .msrRead(let index):
      if let value = read(register: index) { engine.completeRead(value) } else { refuse(index) }
    case .msrWrite(let index, let value):
      if write(register: index, value) { engine.completeWrite() } else { refuse(index) }
    case .hypercall:
      if isLguest { return handleLguest(nil) }
      performHypercall()
    case .foreignHypercall:
      switch patching.answer(engine) {
      case .perform:
        performHypercall()
        statistics.hypercallsEmulated &+= 1
      case .patched: statistics.hypercallsPatched &+= 1
      case .refused: statistics.hypercallsRefused &+= 1
      case .retried: break
      }
    case .halt:
      isHalted = true
    case .pageAbsent(let address):
      meet(absentPage: address)
    case .spinning:
      // What it waits for may be another vCPU that has no thread.
      if machine.scheduler.isCrowded { doorbell.preempt() }
    case .interruptWindow, .kicked, .stepped, .breakpoint: break
    case .trap(let trap):
      if isLguest { return handleLguest(trap) }
      return .failed("a trap of vector \(trap.vector) that nobody takes")
    case .shutdown:
      return .tripleFault
    case .failed(let text):
      return .failed(text)
    }
    return nil
  }

  private func performHypercall() {
    let record = hypercalls.perform(on: engine, timestampOffset: registers.timestampOffset)
    statistics.count(hypercall: record.number)
    if record.result == 0 {
      switch KVMHypercall(rawValue: record.number) {
      case .kickCPU: statistics.kicks &+= 1
      case .schedYield: statistics.yields &+= 1
      default: break
      }
    }
    lastHypercall = record.number
  }

  // MARK: What changes without an exit of its own

  private func noteChanges() {
    if !isInUserSpace, engine.hasMetUserCode {
      isInUserSpace = true
      userSpaceBegan()
    }
    if engine.timestampOffset != timestampOffset {
      timestampOffset = engine.timestampOffset
      registers.setTimestampOffset(timestampOffset &- firstTimestampOffset)
      machine.timers.rearm(Machine.Source.localAPIC(number))
    }
    // Without KVM's registers there is nothing more to tell.
    if isLguest { return }
    tellStealTime()
    if machine.clock.isTimestampConstant { registers.synchronize() } else { registers.updateTime() }
  }
}

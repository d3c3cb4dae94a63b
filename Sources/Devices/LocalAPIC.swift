// SPDX-License-Identifier: Apache-2.0
// The local APIC of one vCPU: the lock around `LocalAPICState` and everything the run loop, the timer thread and
// other vCPUs may ask of it.

public import Saving
import Synchronization

/// What an INIT or start-up IPI asks of a vCPU.
public enum StartupEvent: Sendable, Equatable {
  /// Reset the architectural state to that after INIT and wait for `start` (an AP) or restart (the BSP).
  case initialize
  /// Begin in real mode at CS = vector << 8, IP = 0.
  case start(vector: UInt8)
}

/// A local APIC with xAPIC (MMIO) and x2APIC (MSR) access: SDM vol. 3, chapter 11.
///
/// Threads: register access, `acknowledge` and the `take` calls come from the vCPU's own thread; messages, pins and
/// `expire` from any. As a `Device` it is the 4 KiB MMIO page, which every vCPU sees at the same address, so it is
/// not on the shared bus: the run loop asks its own APIC's `mmioBase` first.
public final class LocalAPIC: Device, DeadlineSource {
  /// The APIC ID, also the vCPU's number. At most 254 in this machine.
  public let id: UInt32

  private struct Wiring {
    var state: LocalAPICState
    weak var controller: InterruptController?
  }

  private let wiring: Mutex<Wiring>
  private let clock: Clock
  private let pic: PIC?
  private let wake: @Sendable () -> Void
  private let rearm: @Sendable () -> Void

  /// Made by `InterruptController`, which also attaches itself.
  init(
    id: UInt32, isBootstrap: Bool, clock: Clock, pic: PIC?, wake: @escaping @Sendable () -> Void,
    rearm: @escaping @Sendable () -> Void
  ) {
    self.id = id
    self.clock = clock
    self.pic = pic
    self.wake = wake
    self.rearm = rearm
    wiring = Mutex(Wiring(state: LocalAPICState(id: id, isBootstrap: isBootstrap)))
  }

  func attach(_ controller: InterruptController) { wiring.withLock { $0.controller = controller } }

  /// Changes the state under the lock and then, unlocked, does what the change asks for.
  @discardableResult
  private func update<Result: Sendable>(
    _ body: (inout LocalAPICState, inout LocalAPICEffects) -> Result
  ) -> Result {
    let (result, effects, controller) = wiring.withLock { wiring in
      var effects = LocalAPICEffects()
      let result = body(&wiring.state, &effects)
      let needsController = effects.message != nil || effects.endedVector != nil
      return (result, effects, needsController ? wiring.controller : nil)
    }
    if let vector = effects.endedVector { controller?.endOfInterrupt(vector) }
    if let message = effects.message { controller?.deliver(message) }
    if effects.wakes { wake() }
    if effects.rearms { rearm() }
    return result
  }

  // MARK: What the run loop asks before entering the guest

  /// Whether `acknowledge` would return a vector now.
  public var hasPendingInterrupt: Bool {
    wiring.withLock { $0.state.hasExternalInterrupt || $0.state.pendingVector != nil }
  }

  /// The highest requested vector whose priority class is above PPR; the 8259's are not included.
  public func pendingVector() -> UInt8? { wiring.withLock { $0.state.pendingVector } }

  /// Takes the interrupt to inject: an ExtINT's vector from the 8259 if there is one, else the highest pending
  /// vector, which moves from IRR to ISR.
  public func acknowledge() -> UInt8? {
    let (isExternal, vector) = wiring.withLock { wiring in
      if wiring.state.hasExternalInterrupt, pic != nil {
        wiring.state.hasExternalMessage = false
        return (true, UInt8?.none)
      }
      return (false, wiring.state.acknowledge())
    }
    return isExternal ? pic?.acknowledge() : vector
  }

  /// Whether a paravirtual EOI may replace the register write for `vector`, just acknowledged: nothing else waits
  /// and the IOAPIC need not hear of the end.
  public func canDeferEndOfInterrupt(of vector: UInt8) -> Bool {
    wiring.withLock { wiring in
      let state = wiring.state
      return state.requested.isEmpty && state.inService.highest == vector && !state.levelTriggered[vector]
    }
  }

  /// Whether any interrupt waits, deliverable or not.
  public var hasRequests: Bool { wiring.withLock { !$0.state.requested.isEmpty } }

  /// Whether the APIC accepts fixed interrupts: enabled in its base and spurious-vector registers.
  public var isSoftwareEnabled: Bool { wiring.withLock { $0.state.isSoftwareEnabled } }

  /// Ends the service of the highest vector in service: the EOI register, or a paravirtual EOI seen later.
  public func endOfInterrupt() { update { $0.endOfInterrupt(&$1) } }

  /// Takes a pending NMI.
  public func takeNMI() -> Bool {
    wiring.withLock { wiring in
      defer { wiring.state.hasNMI = false }
      return wiring.state.hasNMI
    }
  }

  /// Takes a pending INIT, or the start-up IPI after it. INIT has already reset this APIC when it is returned.
  public func takeStartupEvent() -> StartupEvent? {
    update { state, effects in
      if state.hasInit {
        state.hasInit = false
        state.reset()
        state.isWaitingForStartup = state.base & APICBase.bootstrap == 0
        effects.rearms = true
        return .initialize
      }
      guard state.isWaitingForStartup, let vector = state.startupVector else { return nil }
      state.startupVector = nil
      state.isWaitingForStartup = false
      return .start(vector: vector)
    }
  }

  /// Firmware has started this vCPU already: it waits for no start-up IPI.
  public func skipStartup() { update { state, _ in state.isWaitingForStartup = false } }

  /// Whether an NMI, INIT or SIPI waits: the cheap question before the `take` calls.
  public var hasPendingEvent: Bool {
    wiring.withLock { wiring in
      let state = wiring.state
      return state.hasNMI || state.hasInit || (state.isWaitingForStartup && state.startupVector != nil)
    }
  }

  /// Whether this vCPU is in wait-for-SIPI and must not run.
  public var isWaitingForStartup: Bool { wiring.withLock { $0.state.isWaitingForStartup } }

  /// The task priority as CR8 shows it, 0...15 (TPR bits 7:4). Writing clears TPR bits 3:0.
  public var taskPriority: UInt8 {
    get { wiring.withLock { $0.state.taskPriority >> 4 } }
    set { wiring.withLock { $0.state.taskPriority = (newValue & 0xF) << 4 } }
  }

  // MARK: Arrivals

  /// Takes a message meant for this APIC; false if its state made it refuse.
  @discardableResult
  public func receive(_ message: InterruptMessage) -> Bool { update { $0.receive(message, &$1) } }

  /// Requests a fixed interrupt; dropped while the APIC is disabled. Vectors below 16 are an APIC error.
  @discardableResult
  public func receive(vector: UInt8, trigger: InterruptMessage.Trigger = .edge) -> Bool {
    update { $0.receive(vector, trigger, &$1) }
  }

  /// Drives LINT0 or LINT1. LINT0 carries the 8259's output, LINT1 is the NMI wire.
  public func setLocalInterrupt(_ pin: Int, _ asserted: Bool) { update { $0.setPin(pin & 1, asserted, &$1) } }

  /// Leaves the APIC as firmware would: software enabled, LINT0 as ExtINT, LINT1 as NMI ("virtual wire").
  public func enableVirtualWire() {
    update { state, effects in
      state.spuriousVector = 0x1FF
      state[.lint0] = 0x700
      state[.lint1] = 0x400
      effects.wakes = state.hasExternalInterrupt
    }
  }

  func matches(logical address: UInt32) -> Bool { wiring.withLock { $0.state.matches(logical: address) } }

  /// The priority by which lowest-priority messages choose; nil if the APIC accepts none.
  var arbitrationPriority: UInt8? {
    wiring.withLock { $0.state.isSoftwareEnabled ? $0.state.processorPriority : nil }
  }

  // MARK: Timer

  /// When the timer next raises an interrupt, in clock nanoseconds; nil while stopped or masked.
  public var nextDeadline: UInt64? {
    wiring.withLock { wiring in
      guard wiring.state[.timer] & LocalVector.masked == 0 else { return nil }
      return wiring.state.timer.nextExpiry(clock)
    }
  }

  /// Raises the timer interrupt if it is due by the clock itself; `now` is only a hint, so early calls are harmless.
  public func expire(now: UInt64) { update { $0.advanceTimer(clock, &$1) } }

  /// IA32_TSC_DEADLINE (MSR 0x6E0), in guest TSC ticks; 0 is disarmed. Ignored outside TSC-deadline mode.
  public var tscDeadline: UInt64 {
    get {
      update { state, effects in
        state.advanceTimer(clock, &effects)
        return state.timer.tscDeadline
      }
    }
    set { update { $0.setDeadline(newValue, clock, &$1) } }
  }

  // MARK: Registers

  /// IA32_APIC_BASE (MSR 0x1B).
  public var base: UInt64 { wiring.withLock { $0.state.base } }

  /// Writes IA32_APIC_BASE; false is #GP: reserved bits, or a transition the SDM forbids.
  public func setBase(_ value: UInt64) -> Bool { update { $0.setBase(value, &$1) } }

  /// CPUID.1:EDX.APIC follows this.
  public var isEnabled: Bool { base & APICBase.enabled != 0 }

  /// Where this vCPU's APIC page is, or nil when it has none (disabled or in x2APIC mode).
  public var mmioBase: UInt64? {
    wiring.withLock { $0.state.mode == .xAPIC ? $0.state.base & APICBase.addressBits : nil }
  }

  /// Whether `readMSR` and `writeMSR` are the ones to ask about this MSR.
  public static func owns(msr index: UInt32) -> Bool {
    index == 0x1B || index == 0x6E0 || (0x800...0x8FF).contains(index)
  }

  /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; nil is #GP.
  public func readMSR(_ index: UInt32) -> UInt64? {
    switch index {
    case 0x1B: return base
    case 0x6E0: return tscDeadline
    default: break
    }
    guard index >= 0x800, let register = LocalAPICRegister(index: index - 0x800), register.isReadableMSR else {
      return nil
    }
    return update { $0.mode == .x2APIC ? $0.read(register, clock, &$1) : nil }
  }

  /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; false is #GP.
  public func writeMSR(_ index: UInt32, _ value: UInt64) -> Bool {
    switch index {
    case 0x1B: return setBase(value)
    case 0x6E0:
      tscDeadline = value
      return true
    default: break
    }
    guard index >= 0x800, let register = LocalAPICRegister(index: index - 0x800),
      let writable = register.writableMSRBits, value & ~writable == 0
    else { return false }
    return update { state, effects in
      guard state.mode == .x2APIC else { return false }
      state.write(register, value, clock, &effects)
      return true
    }
  }

  /// A load from the 4 KiB page. Registers are 32 bits, 16 bytes apart; the gaps read as 0.
  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    guard offset & 0xF < 4 else { return 0 }
    return update { state, effects in
      guard state.mode == .xAPIC else { return .max }
      guard let register = LocalAPICRegister(index: UInt32(truncatingIfNeeded: offset >> 4)),
        register != .selfInterrupt
      else {
        state.note(LocalAPICError.illegalRegister, &effects)
        return 0
      }
      return (state.read(register, clock, &effects) & 0xFFFF_FFFF) >> ((offset & 3) &* 8)
    }
  }

  /// A store to the 4 KiB page. Only aligned 32-bit stores do anything.
  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    guard size == 4, offset & 0xF == 0 else { return }
    update { state, effects in
      guard state.mode == .xAPIC else { return }
      guard let register = LocalAPICRegister(index: UInt32(truncatingIfNeeded: offset >> 4)),
        register != .selfInterrupt
      else { return state.note(LocalAPICError.illegalRegister, &effects) }
      state.write(register, value & 0xFFFF_FFFF, clock, &effects)
    }
  }
}

extension LocalAPIC: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try wiring.withLock { wiring throws(SavedStateError) in try wiring.state.transfer(&archive) }
  }
}

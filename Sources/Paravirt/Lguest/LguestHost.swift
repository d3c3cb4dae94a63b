// SPDX-License-Identifier: Apache-2.0
// The host side of lguest: what a ring-1 guest's traps lead to. Its kernel runs at level 1 and loads no control register:
// page tables, descriptors, interrupts and time are hypercalls, and every trap comes here first, to be answered or
// reflected to the guest's own handler. What is wrong kills the guest; the first reason stays.

public import Engine
import Synchronization
public import X86

/// Interrupts that wait for the guest, by number; any thread may add one.
public final class LguestInterrupts: Sendable {
  private let bits = Atomic<UInt32>(0)

  public init() {}

  /// Makes interrupt `number`, 0...31, wait.
  public func raise(_ number: UInt8) { _ = bits.bitwiseOr(1 << UInt32(number & 31), ordering: .sequentiallyConsistent) }

  /// Takes it back, for it is being delivered.
  func clear(_ number: UInt8) { _ = bits.bitwiseAnd(~(1 << UInt32(number & 31)), ordering: .sequentiallyConsistent) }

  /// Takes all back.
  public func reset() { set(0) }

  /// These wait, and no others.
  func set(_ all: UInt32) { bits.store(all, ordering: .sequentiallyConsistent) }

  /// All that wait, a bit each.
  public var waiting: UInt32 { bits.load(ordering: .sequentiallyConsistent) }
}

/// Whether anything waits that the guest does not block: what ends its sleep.
public struct LguestNews: Sendable {
  let interrupts: LguestInterrupts
  let memory: any GuestPhysicalWriter
  let data: UInt64?

  public var isThere: Bool {
    guard let data else { return false }
    return interrupts.waiting & ~(memory.loadWord(at: data + LguestDataLayout.blockedInterrupts) ?? .max) != 0
  }
}

/// What the host does by itself for a guest, given by the machine.
public struct LguestServices: Sendable {
  /// Seconds and nanoseconds since 1970.
  let wallTime: @Sendable () -> (seconds: UInt32, nanoseconds: UInt32)
  /// Sets the guest's timer to so many nanoseconds from now, or stops it.
  let setTimer: @Sendable (UInt32?) -> Void
  /// kHz of the time-stamp counter; 0 if it is no clock.
  let timestampKilohertz: UInt32
  /// The number that a guest of Linux 2.6.23 has among those that it talks to.
  let guestNumber: UInt16
  /// IN and OUT of a guest from Linux 4.0 on, of 1, 2 or 4 bytes; nil where nothing is.
  let readPort: @Sendable (UInt16, Int) -> UInt32?
  let writePort: @Sendable (UInt16, Int, UInt32) -> Void

  public init(
    timestampKilohertz: UInt32, guestNumber: UInt16 = 1,
    wallTime: @escaping @Sendable () -> (seconds: UInt32, nanoseconds: UInt32),
    setTimer: @escaping @Sendable (UInt32?) -> Void,
    readPort: @escaping @Sendable (UInt16, Int) -> UInt32?,
    writePort: @escaping @Sendable (UInt16, Int, UInt32) -> Void
  ) {
    (self.wallTime, self.setTimer) = (wallTime, setTimer)
    (self.readPort, self.writePort) = (readPort, writePort)
    (self.timestampKilohertz, self.guestNumber) = (timestampKilohertz, guestNumber)
  }
}

/// One guest's host. Belongs to the vCPU's thread; `interrupts` is anybody's.
public struct LguestHost {
  /// The first linear address that the guest's tables do not map: the host's own page is there.
  public static var reserved: UInt32 { 0xFFC0_0000 }
  /// The kernel's code, and its data or stack: flat, of level 1.
  static var codeSegment: Segment { Segment(selector: 0x61, limit: .max, attributes: 0xC0BB) }
  static var dataSegment: Segment { Segment(selector: 0x69, limit: .max, attributes: 0xC0B3) }

  public let interrupts: LguestInterrupts
  let memory: any GuestPhysicalWriter
  let services: LguestServices
  /// The first guest-physical address that is neither RAM nor a device's.
  let limit: UInt64
  let hypercallPolicy: HypercallPolicy
  var tables = LguestTables()
  /// By which pages know whose they are.
  private final class Identity: Sendable {}
  private let identity = Identity()
  /// Where it ran last.
  private var page: LguestPage?
  /// What it cost to go on.
  public private(set) var resumeCounts = LguestResumeCounts()
  let start: LguestStart
  /// What the guest is, once it has registered struct lguest_data; where the kernel is in every address space then.
  var era: LguestEra? {
    didSet {
      calls = era.map(LguestCall.calls) ?? []
      convention = era?.row.convention
    }
  }
  /// How it makes calls.
  private(set) var convention: LguestEra.Convention?
  /// Its calls, by number.
  private(set) var calls: [LguestCall?] = []
  var layout: LguestDataLayout?
  var kernelBase: UInt32 = 0
  /// Whether the kernel has made a hypercall: one that never does is no guest of lguest's.
  public internal(set) var hasCalled = false
  /// Where struct lguest_data is, once it is registered.
  var data: UInt64?
  /// Before the first NEW_PGTABLE a linear address is the physical one.
  var isLinear = true
  var isWide = false
  var root: UInt32 = 0
  var flush = LguestFlush()
  var isHalted = false
  /// The call that was made and waits for what others in the ring have led to.
  var unfinished: Call?
  /// Whether a call is being performed that was in the ring: those have no results.
  var isOfRing = false
  /// The slot of the ring that is drained next.
  var ringIndex = 0
  /// Calls made, by number, those that were left in the ring too.
  public internal(set) var callCounts = [UInt64](repeating: 0, count: LguestCall.numbers)
  /// What became of VMCALL.
  public internal(set) var instructionCounts = LguestInstructionCounts()
  private var death: String?

  /// - Parameters:
  ///   - start: Where the guest begins.
  ///   - limit: The first guest-physical address that the guest has not.
  ///   - hypercallPolicy: What becomes of VMCALL.
  ///   - interrupts: What waits for the guest.
  public init(
    memory: any GuestPhysicalWriter, start: LguestStart, limit: UInt64, hypercallPolicy: HypercallPolicy = .patch,
    interrupts: LguestInterrupts, services: LguestServices
  ) {
    self.hypercallPolicy = hypercallPolicy
    self.start = start
    (self.memory, self.limit, self.interrupts, self.services) = (memory, limit, interrupts, services)
  }

  /// What a vCPU must be told once, before its first instruction or the state of a saved one.
  public func connect(_ engine: some CPUEngine) {
    engine.addressSpace = .identity
    engine.trapPolicy = .gates(VirtualInterrupts(machineFirst: LguestHost.machineFirst))
  }

  /// Makes what a guest finds when it begins.
  public mutating func begin(_ engine: some CPUEngine) {
    connect(engine)
    if let pageOffset = start.pageOffset, makeFirstTables(engine, [pageOffset]) == nil {
      _ = kill("no room for page tables")
    }
  }

  /// Begins again, with a vCPU that is in its first state: the guest has restarted. What waits is the machine's to reset.
  public mutating func reset(_ engine: some CPUEngine) {
    // What was counted keeps its names until the guest is known again.
    let known = self.calls
    let (hadCalled, calls, instructions, resumes) = (hasCalled, callCounts, instructionCounts, resumeCounts)
    self = LguestHost(
      memory: memory, start: start, limit: limit, hypercallPolicy: hypercallPolicy, interrupts: interrupts,
      services: services)
    self.calls = known
    (hasCalled, callCounts, instructionCounts, resumeCounts) = (hadCalled, calls, instructions, resumes)
    begin(engine)
  }

  /// The guest goes on, on a thread with this page: before every entry.
  public mutating func resume(on page: LguestPage, _ engine: some CPUEngine) {
    let hasMoved = page !== self.page
    if hasMoved {
      self.page = page
      engine.machinePage = MachinePagePlace(linear: LguestHost.reserved, page: page.page)
    }
    page.admit(ObjectIdentifier(identity), hasMoved: hasMoved, &tables, &resumeCounts)
    if page.policy == .everything { page.copyRegisters(engine, &resumeCounts) }
  }

  /// What the host looks at before the guest: instructions that it executes in the guest's place, and hypercalls.
  private static var machineFirst: VectorSet { [Vector.invalidOpcode, Vector.generalProtection, LguestCall.vector] }

  /// From now on frames show the guest's own interrupt flag.
  func useVirtualFlag(of data: UInt64, _ engine: some CPUEngine) {
    engine.trapPolicy = .gates(
      VirtualInterrupts(
        machineFirst: LguestHost.machineFirst, flag: data + LguestDataLayout.irqEnabled,
        faultAddress: data + LguestDataLayout.cr2))
  }

  /// The state in which a kernel begins.
  public static func firstState(entry: UInt64) -> CPUState {
    var state = CPUState()
    state.rip = entry
    state.rflags = RFLAGS.ones | RFLAGS.if
    state.cs = codeSegment
    (state.ds, state.es, state.ss) = (dataSegment, dataSegment, dataSegment)
    (state.fs, state.gs) = (.unusable, .unusable)
    state.ldtr = .unusable
    state.tr = Segment(
      selector: 0x80, base: UInt64(reserved) + UInt64(LguestPage.taskState), limit: LguestPage.taskStateLimit,
      attributes: 0x8B)
    state.gdtr = DescriptorTable(base: UInt64(reserved), limit: 0xFF)
    state.idtr = DescriptorTable(base: UInt64(reserved) + UInt64(LguestPage.gates), limit: 0x7FF)
    state.cr0 = CR0.pe | CR0.et | CR0.ne | CR0.wp | CR0.mp
    // Global pages outlast NEW_PGTABLE; the guest, for which CR4 is 0, does not ask for them.
    state.cr4 = CR4.osfxsr | CR4.osxmmexcpt | CR4.pge
    return state
  }

  /// What ends the guest's sleep.
  public var news: LguestNews { LguestNews(interrupts: interrupts, memory: memory, data: data) }

  // MARK: Traps

  /// Answers a trap.
  public mutating func take(_ trap: Trap, on engine: some CPUEngine) -> LguestEffect {
    conclude(answer(trap, engine), engine)
  }

  /// What a trap, or a call, comes to in the end.
  mutating func conclude(_ effect: LguestEffect, _ engine: some CPUEngine) -> LguestEffect {
    var effect = effect
    if effect == .none, convention?.drainsAlways == true, let waiting = drainRing(engine) { effect = waiting }
    if let death { return .killed(death) }
    return effect
  }

  private mutating func answer(_ trap: Trap, _ engine: some CPUEngine) -> LguestEffect {
    let level = engine.currentPrivilegeLevel
    switch trap.kind {
    case .software(let place):
      if trap.vector == LguestCall.vector && level == 1 { return performHypercall(engine) }
      let needed = tables.gate(trap.vector)?.level ?? 0
      guard level > needed else { return forward(trap, engine) }
      engine.state.rip = place
      return forward(
        Trap(vector: Vector.generalProtection, kind: .exception, errorCode: UInt32(trap.vector) << 3 | 2), engine)
    case .exception:
      if trap.vector == Vector.generalProtection, trap.errorCode == 0, level == 1, emulate(engine) { return .none }
      if trap.vector == Vector.invalidOpcode {
        instructionCounts.traps &+= 1
        if level == 1, let effect = takeHypercallInstruction(engine) { return effect }
      }
      return forward(trap, engine)
    case .interrupt, .nmi: return .none
    }
  }

  /// Goes on in the guest's own handler.
  mutating func forward(_ trap: Trap, _ engine: some CPUEngine) -> LguestEffect {
    guard tables.gate(trap.vector) != nil else {
      let where_ = String(engine.linearInstructionPointer, radix: 16)
      let what = String(trap.vector == Vector.pageFault ? trap.address : UInt64(trap.errorCode ?? 0), radix: 16)
      return kill("unhandled trap \(trap.vector) at 0x\(where_) (0x\(what))")
    }
    engine.forward(trap)
    return .none
  }

  // MARK: Interrupts

  /// What `deliver` found.
  public enum Delivery: Sendable, Equatable {
    case nothing
    case done
    /// It cannot be delivered yet, and the guest may not say when it can: to be asked again soon.
    case later
  }

  /// Delivers the interrupt that is due, if there is one; before every entry.
  public mutating func deliver(to engine: some CPUEngine) -> Delivery {
    flush.apply(to: engine)
    guard let data, let layout else { return .nothing }
    func word(_ offset: UInt64) -> UInt32 { memory.loadWord(at: data + offset) ?? 0 }
    let due = interrupts.waiting & ~word(LguestDataLayout.blockedInterrupts)
    guard due != 0 else { return .nothing }
    // The processor's own flag is always set: it is an instruction that is half done, or the one behind a load of SS.
    guard engine.canAcceptInterrupt else { return .later }
    let pointer = UInt32(truncatingIfNeeded: engine.linearInstructionPointer)
    var reusesFrame = false
    switch layout.iretWindow {
    case .range(let start, let end): if pointer >= word(start) && pointer < word(end) { return .later }
    case .point(let place): reusesFrame = pointer == word(place) && engine.currentPrivilegeLevel == 1
    }
    if isHalted {
      memory.store(UInt32(0x200), at: data + LguestDataLayout.irqEnabled)
      isHalted = false
    } else if word(LguestDataLayout.irqEnabled) == 0 {
      if let pending = layout.irqPending { memory.store(UInt32(0x200), at: data + pending) }
      return .later
    }
    let number = UInt8(due.trailingZeroBitCount)
    var result = Delivery.nothing
    if let gate = tables.gate(0x20 + number) {
      interrupts.clear(number)
      result = .done
      if reusesFrame {
        resume(at: gate.handler, engine)
        if gate.isInterruptGate { memory.store(UInt32(0), at: data + LguestDataLayout.irqEnabled) }
      } else {
        engine.inject(interrupt: 0x20 + number)
      }
    }
    writeTime()
    let more = interrupts.waiting & ~word(LguestDataLayout.blockedInterrupts) != 0
    if let pending = layout.irqPending { memory.store(more ? UInt32(0x200) : UInt32(0), at: data + pending) }
    return result
  }

  /// The guest was about to execute IRET: the frame on its stack is the one that the handler would find after it.
  private func resume(at handler: UInt32, _ engine: some CPUEngine) {
    var state = engine.state
    let bytes = engine.read(linear: (state[register: GPR.rsp] + 8) & 0xFFFF_FFFF, count: 4, as: .data)
    if bytes.count == 4 {
      let flags = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      // What IRET of level 1 may change, but for what a handler begins without; the level of ports is not among it.
      let changeable = RFLAGS.arithmetic | RFLAGS.df | RFLAGS.ac | RFLAGS.id
      let cleared = RFLAGS.tf | RFLAGS.nt | RFLAGS.rf
      state.rflags = state.rflags & ~(changeable | cleared) | flags & changeable | RFLAGS.ones
    }
    state.rip = UInt64(handler)
    engine.state = state
  }

  func writeTime() {
    guard let data, let time = layout?.time else { return }
    let now = services.wallTime()
    memory.store(now.seconds, at: data + time)
    memory.store(now.nanoseconds, at: data + time + 4)
  }

  // MARK: Ending

  /// The guest was wrong. The first reason stays.
  mutating func kill(_ reason: String) -> LguestEffect {
    if death == nil { death = reason }
    return .killed(death ?? reason)
  }
}

// SPDX-License-Identifier: Apache-2.0
// A vCPU of the translation engine: the loop that enters translated code and deals with what it left for. Nothing
// here is on a hot path of the guest; what is hot never leaves (Rules/, CHost).

import CHost
public import Engine
import GuestMemory
import Host
import Synchronization
import X86

/// One translated vCPU.
@safe public final class TranslatedCPU: CPUEngine, CodeObserver, @unchecked Sendable {
  let translation: Translation
  let number: Int
  let page: VCPUPage
  let processor: Processor
  private let region: Mapping
  private let shadowStacks: ShadowStacks
  let interruptRequest = Atomic<Bool>(false)
  public internal(set) var hasMetUserCode = false

  /// An external interrupt accepted from the machine, not delivered yet.
  var pendingInterrupt: UInt8?
  var pendingNMI = false
  var windowWanted = false
  /// An instruction whose operand is not RAM, half done.
  var slow: SlowAccess?
  /// The instruction at RIP is executed again once a device has answered (DeviceAccess.swift).
  var isRestarting = false
  /// The other vCPUs stand still for what this one executes.
  var isAlone = false
  /// What is being delivered, if that is what waits for a device.
  var undelivered: Event?
  /// The A20 gate as the machine last set it; adopted at the next boundary.
  let isA20Open = Atomic<Bool>(true)
  /// Whether the vCPU uses its tables, for those who may change them only while it does not.
  let activity = Activity()

  /// What a debugger asks for.
  let debuggerRequest = DebuggerRequest()

  /// When `sample` last looked, in TSC ticks.
  var lastSample: UInt64 = 0

  /// Full exits by CHOST_EXIT reason.
  var exitCounts = InlineArray<16, UInt64>(repeating: 0)
  static let exitNames = [
    "none", "memory", "lookup", "link", "attention", "instruction", "fault", "step", "return", "repeat",
  ]

  init(translation: Translation, number: Int, cpuid: CPUIDTable) throws(HostError) {
    self.translation = translation
    self.number = number
    let histogramBytes = translation.options.countsBlocks ? BlockHistogram.byteCount : 0
    region = try .anonymousAlone(byteCount: Int(CHOST_PAGE_BYTES) + histogramBytes)
    shadowStacks = try ShadowStacks()
    unsafe page = VCPUPage(region.base.assumingMemoryBound(to: chost_cpu.self))
    let options = translation.options
    let state = ProcessorState(cpuid: cpuid, hypercall: options.nativeHypercall, policy: options.hypercallPolicy)
    processor = Processor(page: page, state: state)
    let memory = translation.memory
    unsafe page[\.ram] = UInt64(UInt(bitPattern: memory.baseAddress))
    page[\.ram_low_end] = memory.lowEnd
    page[\.ram_high_end] = memory.highEnd
    unsafe page[\.page_flags] = UInt64(UInt(bitPattern: memory.pageFlags))
    unsafe page[\.code_chunks] = UInt64(UInt(bitPattern: translation.cache.chunks))
    page[\.no_light] = translation.options.lightPaths ? 0 : 1
    page[\.physical_mask] = 1 << UInt64(translation.options.physicalAddressBits) &- 1
    unsafe page[\.block_table] = UInt64(UInt(bitPattern: translation.cache.table))
    page[\.block_mask] = UInt64(CodeCache.tableSlots - 1)
    unsafe page[\.straddle_table] = UInt64(UInt(bitPattern: translation.cache.straddles))
    page[\.code_base] = translation.cache.codeStart
    page[\.code_end] = translation.cache.codeEnd
    page[\.uses_xsave] = chost_xgetbv0() & 6 == 6 ? 1 : 0
    unsafe chost_set_stubs(page.pointer)
    page.setConstantHypercalls(options.constantHypercalls)
    page[\.late_pages] = memory.hasStore ? 1 : 0
    shadowStacks.install(in: page)
    unsafe chost_reset_tables(page.pointer)
    state.codeObserver = self
    state.pausesToExit = UInt64(options.pausesToExit ?? 0)
    page[\.pauses] = state.pausesToExit
    self.state = CPUState()
    page[\.tsc_offset] = translation.options.tscOffset
  }

  /// User space began before this engine existed.
  func noteUserCode() { hasMetUserCode = true }

  // MARK: The loop

  public func run() -> VCPUExit { busy { runBusy() } }

  /// Does something that uses the vCPU's tables, on the thread that has the vCPU.
  func busy<Result>(_ body: () -> Result) -> Result {
    translation.safePoint.begin(activity)
    defer { translation.safePoint.end(activity) }
    return body()
  }

  /// Makes the vCPU pass a boundary soon. Any thread.
  func askToLeave() { unsafe chost_set_attention(page.pointer) }

  private func runBusy() -> VCPUExit {
    // Once: it does not change while the guest runs.
    let debugger = debugger
    while true {
      if let exit = deliveryExit {
        deliveryExit = nil
        return exit
      }
      if let exit = pendingDeviceWrite() { return exit }
      if let debugger, isAtBoundary, debugger.endStep() { return .stepped }
      if isRestarting {
        isRestarting = false
        if let event = undelivered {
          undelivered = nil
          if let exit = deliver(event) { return exit }
        } else if let exit = executeSlowly() {
          return exit
        }
        continue
      }
      if slow != nil {
        if let exit = continueSlow() { return exit }
        continue
      }
      if let exit = boundary() { return exit }
      if let debugger, !processor.state.isRepeating, debugger.stops(at: linearIP) { return .breakpoint }
      if let trace = translation.options.trace { trace(traceLine) }
      let shadow = processor.state.interruptShadow
      let repeated = processor.state.isRepeating ? (page[\.rip], page[register: GPR.rcx]) : nil
      processor.state.isRepeating = false
      debugger?.beginStep()
      let step = shadow != .none || translation.options.trace != nil || debugger != nil
      guard let entry = findEntry(step: step) else { continue }
      enter(entry)
      // The shadow covers the one instruction that has just run; STI and MOV SS, executed by Swift, start a new one.
      processor.state.interruptShadow = .none
      if let exit = handleExit() { return exit }
      // Kicked again before an element was done.
      if let repeated, repeated == (page[\.rip], page[register: GPR.rcx]) { processor.state.isRepeating = true }
    }
  }

  /// The state before an instruction, for `TranslationOptions.trace`.
  private var traceLine: String {
    let names = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", "8", "9", "10", "11", "12", "13", "14", "15"]
    var line = hex(linearIP) + " flags " + hex(page.rflags)
    for number in 0..<16 { line += " \(names[number])=" + hex(self[register: UInt8(number)]) }
    return line
  }

  /// What delivering a fault of an instruction came to, if the machine has to hear of it.
  var deliveryExit: VCPUExit?
  var hasDeliveryExit: Bool { deliveryExit != nil }

  /// What is due before the next instruction: debug traps, NMIs, interrupts, kicks.
  private func boundary() -> VCPUExit? {
    let state = processor.state
    if page[\.attention] != 0 {
      page[\.attention] = 0
      adoptA20()
      if translation.safePoint.isWanted {
        translation.safePoint.end(activity)
        translation.safePoint.begin(activity)
      }
      if interruptRequest.exchange(false, ordering: .sequentiallyConsistent) { return .kicked }
    }
    // A load of SS holds them back too: the handler could not rely on its stack.
    if state.pendingDebug != 0 && state.interruptShadow != .movSS {
      let status = state.pendingDebug
      state.pendingDebug = 0
      if let exit = deliverDebug(status) { return exit }
    }
    if pendingNMI && !state.nmiBlocked && state.interruptShadow != .movSS {
      pendingNMI = false
      if let exit = deliver(Event(vector: Vector.nmi, kind: .nmi, returnAddress: page[\.rip])) { return exit }
    }
    if let vector = pendingInterrupt, isInterruptible {
      pendingInterrupt = nil
      if let exit = deliver(Event(vector: vector, kind: .external, returnAddress: page[\.rip])) { return exit }
    }
    if windowWanted && canAcceptInterrupt { return .interruptWindow }
    // IRET has to come to Swift while it would end the blocking of NMIs.
    page[\.interrupt_waiting] = windowWanted || pendingInterrupt != nil || state.nmiBlocked ? 1 : 0
    if processor.hasBreakpoints && state.interruptShadow != .movSS && !state.isRepeating {
      // Lower in priority than everything above, and a fault: RIP is the instruction's.
      let hits = processor.instructionBreakpoint(at: linearIP)
      if hits != 0, let exit = deliverDebug(hits) { return exit }
    }
    return nil
  }

  private func deliverDebug(_ status: UInt64) -> VCPUExit? {
    processor.recordDebug(status)
    return deliver(Event(vector: Vector.debug, kind: .exception, returnAddress: page[\.rip]))
  }

  /// IF set and no shadow.
  var isInterruptible: Bool {
    page[\.system_flags] & UInt32(truncatingIfNeeded: RFLAGS.if) != 0 && processor.state.interruptShadow == .none
  }

  /// Enters translated code at `entry`; afterwards RIP is current.
  func enter(_ entry: UInt64) {
    unsafe chost_enter(page.pointer, entry)
  }

  /// The linear address of the current instruction.
  var linearIP: UInt64 {
    page.isLongMode ? page[\.rip] : (page[.cs].base &+ page[\.rip]) & 0xFFFF_FFFF
  }

  /// Sets RIP from a linear address.
  func setIP(linear: UInt64) {
    page[\.rip] =
      page.isLongMode
      ? linear : (linear &- page[.cs].base) & (page[\.mode] & UInt32(CHOST_MODE_CODE32) != 0 ? 0xFFFF_FFFF : 0xFFFF)
  }

  // MARK: Finding code

  /// Delivers a fault of the instruction at RIP.
  func fault(_ fault: Fault) {
    if fault.vector == Fault.absence {
      debugger?.forgetStep()
      deliveryExit = .pageAbsent(address: fault.address)
      return
    }
    // The machine removes the cause, as a rule, and the instruction begins again.
    let event = processor.event(fault)
    if processor.isMachines(event) { debugger?.forgetStep() }
    deliveryExit = deliver(event)
  }

  public func flushTLB() { busy { unsafe chost_flush_all(page.pointer) } }
  func flushNonglobal() { busy { unsafe chost_flush_nonglobal(page.pointer) } }
  public func flushPage(linear address: UInt64) { busy { unsafe chost_flush_page(page.pointer, address) } }

  /// Others need not wait for the page too. What is known of this vCPU's tables, and of which other pages are there, may
  /// have changed afterwards.
  func waitForPage(_ physical: UInt64) {
    // Pages seldom go away between an operand's translation and this vCPU's turn; then everybody waits.
    if isAlone { return translation.memory.wait(for: GuestPhysical(physical)) }
    translation.safePoint.end(activity)
    defer { translation.safePoint.begin(activity) }
    translation.memory.wait(for: GuestPhysical(physical))
  }

  func codeWritten(physical: UInt64, count: Int) { translation.bytesChanged(physical, count: count) }

  // MARK: Exits

  private func handleExit() -> VCPUExit? {
    let info = page[\.exit_info]
    let reason = Int(info >> UInt32(CHOST_INFO_REASON_SHIFT)) & 15
    exitCounts[reason] &+= 1
    switch reason {
    case Int(CHOST_EXIT_LOOKUP), Int(CHOST_EXIT_RETURN): setIP(linear: page[\.linear])
    case Int(CHOST_EXIT_FAULT): return hostFault()
    default: setIP(linear: page[\.page_va] &+ UInt64(info & UInt32(CHOST_INFO_OFFSET)))
    }
    switch reason {
    case Int(CHOST_EXIT_MEMORY), Int(CHOST_EXIT_INSTRUCTION): return executeSlowly()
    case Int(CHOST_EXIT_LINK), Int(CHOST_EXIT_RETURN): link(page[\.exit_data])
    case Int(CHOST_EXIT_STEP): stepped()
    case Int(CHOST_EXIT_ATTENTION):
      // Before its first instruction.
      debugger?.forgetStep()
      sample()
    case Int(CHOST_EXIT_REPEAT):
      processor.state.isRepeating = true
      sample()
    default: break
    }
    return nil
  }

  /// A one-instruction block has ended.
  func stepped() {
    processor.clearResume()
    if page[\.system_flags] & UInt32(truncatingIfNeeded: RFLAGS.tf) != 0 {
      processor.state.pendingDebug |= DR6.step
    }
  }

  /// What the guest sees of a host trap.
  func guestFault(hostTrap: UInt32) -> Fault {
    switch hostTrap {
    case 0: .divideError
    case 6: .invalidOpcode
    case 16: .floatingPoint
    case 17: .alignmentCheck
    case 19: page[\.cr4] & CR4.osxmmexcpt != 0 ? .simdFloatingPoint : .invalidOpcode
    default: .generalProtection()
    }
  }

  func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
}

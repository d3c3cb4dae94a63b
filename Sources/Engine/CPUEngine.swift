// SPDX-License-Identifier: Apache-2.0
// The engine contract: what a machine may ask of whatever executes guest code. The local APIC, the paravirtual
// registers, ports, MMIO and hypercalls belong to the machine; everything an instruction does to registers and memory
// belongs to the engine. The run loop knows an engine by this alone, so that a test can put a script in its place.

public import Saving
public import X86

/// Executes one vCPU. Everything is called by one thread at a time and never during `run()`, but for `kick()`,
/// `setA20(isOpen:)` and `timestampCounter`, which any thread may use at any time.
///
/// `transfer` saves or restores the whole vCPU; only at a boundary.
public protocol CPUEngine: AnyObject, Sendable, SavedState {
  // MARK: Running

  /// Runs guest code until something needs the machine.
  func run() -> VCPUExit
  /// Makes `run()` return `.kicked` soon (within a millisecond).
  func kick()
  /// Whether no instruction is half done: only then is `state` all there is.
  var isAtBoundary: Bool { get }
  /// Whether code of privilege level 3 has been met: user space has begun.
  var hasMetUserCode: Bool { get }

  // MARK: Answers to exits

  /// Answers `portRead`, `mmioRead` or `msrRead`.
  func completeRead(_ value: UInt64)
  /// Accepts an `msrWrite`.
  func completeWrite()
  /// Raises an exception at RIP, at once. What the last exit owed is forgotten, and with it an instruction that is half
  /// done.
  func raise(_ exception: Exception)
  /// Sends a trap of `VCPUExit.trap` on through its gate, at RIP. What prevents that is a trap of its own.
  func forward(_ trap: Trap)
  /// Moves RIP past an instruction of `byteCount` bytes (1...15), whose effect is complete.
  func skip(byteCount: Int)

  // MARK: Interrupts

  /// Whether an external interrupt would be accepted now (IF, shadows, nothing pending).
  var canAcceptInterrupt: Bool { get }
  /// Queues an external interrupt; only when `canAcceptInterrupt`.
  func inject(interrupt vector: UInt8)
  /// Queues an NMI; delivered when NMIs are not blocked.
  func injectNMI()
  /// Asks for `.interruptWindow` as soon as an interrupt could be accepted.
  func requestInterruptWindow(_ wanted: Bool)

  // MARK: Registers

  /// The whole architectural state.
  var state: CPUState { get set }
  /// All general registers at once.
  var generalRegisters: GeneralRegisters { get }
  /// A general register by number (`GPR`), 0...15.
  subscript(register number: UInt8) -> UInt64 { get set }
  /// RIP as a linear address.
  var linearInstructionPointer: UInt64 { get }
  /// Privilege level of the current code, 0...3.
  var currentPrivilegeLevel: UInt8 { get }
  /// Whether the vCPU executes 64-bit code (EFER.LMA and CS.L).
  var isIn64BitMode: Bool { get }
  /// Whether long mode is active (EFER.LMA), also in compatibility mode.
  var isLongModeActive: Bool { get }
  /// CR0.PE.
  var isProtected: Bool { get }
  /// CR0.TS.
  var isTaskSwitched: Bool { get set }
  /// CR0.PG.
  var isPaging: Bool { get }
  /// CPUID.1:EAX, which EDX holds after INIT.
  var signature: UInt32 { get }
  /// Writes a model-specific register of the CPU core as WRMSR does, on behalf of firmware. Returns false if the value
  /// is refused or the register is the machine's.
  func write(register index: UInt32, _ value: UInt64) -> Bool

  // MARK: What the machine keeps in step

  /// The time-stamp counter now, in guest ticks.
  var timestampCounter: UInt64 { get }
  /// Guest TSC minus host TSC; moves when the guest writes its TSC.
  var timestampOffset: UInt64 { get set }
  /// CR8, the task priority as the guest last set or was last told it, 0...15.
  var taskPriority: UInt8 { get set }
  /// Whether the guest has written CR8 since this was last asked.
  func takeTaskPriorityWrite() -> Bool
  /// Whether the local APIC exists for CPUID: IA32_APIC_BASE.EN, which the machine keeps.
  var isAPICEnabled: Bool { get set }
  /// Closes the A20 gate, so that address bit 20 is 0 on its way out of the processor (SDM volume 3, 8.7.13.4), or
  /// opens it, before this vCPU's next instruction.
  func setA20(isOpen: Bool)
  /// Whether code of every level leaves with `VCPUExit.pageAbsent` where a page is absent, not only that of level 3;
  /// the processor's own accesses to its tables wait all the same.
  var everyLevelLeavesForPages: Bool { get set }

  // MARK: What the machine does in the guest's place

  /// Where linear addresses are looked up. Setting it forgets every translation of an address, but for another root of the
  /// same kind, which is a MOV CR3: what is global stays (SDM volume 3, 4.10.4.1). Not a part of `state`, nor saved:
  /// whoever chose one sets it again after a restore.
  var addressSpace: AddressSpace { get set }
  /// A page of the machine's own in kept address spaces; not saved either. nil: none. Another page in its place is seen by
  /// the next instruction.
  var machinePage: MachinePagePlace? { get set }
  /// Where exceptions, interrupts and INT n go; the same holds.
  var trapPolicy: TrapPolicy { get set }

  // MARK: Memory

  /// The bytes of RAM from a linear address on, `count` (0...4096) or as many as can be read.
  func read(linear address: UInt64, count: Int, as access: LinearAccess) -> [UInt8]
  /// What a store of `count` bytes (0...4096) to RAM from a linear address on would raise; nil if it may be made.
  func storeFault(linear address: UInt64, count: Int, as access: LinearAccess) -> Exception?
  /// Stores at most 4096 bytes to RAM from a linear address on, all or none of them, the first first. Code made from them
  /// is forgotten.
  ///
  /// - Returns: `storeFault`; nil if the store was made.
  func write(linear address: UInt64, _ bytes: [UInt8], as access: LinearAccess) -> Exception?
  /// Forgets how the address of the instruction at RIP was translated: it is fetched anew.
  func refetchCode()
  /// Forgets every translation of an address, global ones too.
  func flushTLB()
  /// Forgets the translations of an address in this page, a global one too, as INVLPG does.
  func flushPage(linear address: UInt64)

  // MARK: Hypercalls

  /// The hypercall instruction of the CPU's vendor; nil: it has none.
  var nativeHypercall: HypercallOpcode? { get }
  /// How often each hypercall was made that the engine answers by itself.
  var constantHypercalls: [(number: UInt64, count: UInt64)] { get }

  // MARK: For a debugger

  /// Whether `run()` returns `.stepped` after one instruction. It costs nothing while it is off.
  var isSingleStepping: Bool { get set }
  /// Linear addresses at which `run()` returns `.breakpoint` instead of executing what is there. While there are any,
  /// every instruction runs alone.
  var breakpoints: Set<UInt64> { get set }
}

/// In whose name memory is accessed by linear address.
public enum LinearAccess: Sendable {
  /// As the running code fetches instructions: with its rights, setting accessed bits. It stores as with `data`.
  case code
  /// As the running code loads and stores, setting accessed and dirty bits.
  case data
  /// A debugger: whatever is mapped, though it may be read-only, and without a trace in the page tables.
  case debugger
}

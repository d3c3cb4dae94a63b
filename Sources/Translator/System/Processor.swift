// SPDX-License-Identifier: Apache-2.0
// The part of a vCPU that Swift executes: a view of the vCPU page plus the cold state that translated code never
// looks at. Every extension in this folder gives it one group of abilities (segments, exceptions, registers...).
//
// Everything here runs while the vCPU is stopped at an instruction boundary. A function that throws has changed
// no architectural register (but see `beginRepeating`); bytes below the stack pointer and accessed bits may have been
// written, as on hardware.

import CHost
import Engine
import X86

/// Told after system code stored into a page that holds translated code.
protocol CodeObserver: AnyObject {
  /// `count` bytes at guest-physical `physical`, all in one page, have changed.
  func codeWritten(physical: UInt64, count: Int)
  /// Waits until the page at guest-physical `physical` is there.
  func waitForPage(_ physical: UInt64)
}

/// What became of an instruction that Swift executed.
enum SystemOutcome: Equatable {
  /// RIP is at the next instruction, or still here if a repeated instruction has elements left.
  case done
  /// The machine is needed; `Processor.complete...` finishes exits that owe an answer.
  case exit(VCPUExit)
  /// Triple fault.
  case shutdown
}

/// What the machine owes the last exit.
enum Completion: Equatable {
  case none
  /// IN: AL, AX or EAX.
  case portRead(size: UInt8, next: UInt64)
  /// INS: an element at a linear address that was writable when asked.
  case stringRead(linear: UInt64, size: UInt8, addressSize: UInt8, repeated: Bool, next: UInt64)
  case msrRead(next: UInt64)
  case msrWrite(next: UInt64)
}

/// State of one vCPU that only Swift touches.
final class ProcessorState {
  var cpuid: CPUIDTable
  /// Bits that MOV to CR4 accepts.
  var supportedCR4: UInt64
  /// Bits that XSETBV accepts.
  var supportedXCR0: UInt64
  /// Bits that WRMSR of EFER accepts, LMA among them.
  var supportedEFER: UInt64

  /// Until the next instruction has completed, interrupts are not accepted (STI, MOV SS, POP SS). The engine
  /// clears it after executing an instruction that found it set.
  var interruptShadow: InterruptShadow = .none
  var nmiBlocked = false
  /// The repeated string instruction at RIP has done some of its elements, not all.
  var isRepeating = false
  /// CR8 has been written since the machine last asked.
  var taskPriorityWritten = false
  /// DR6 status bits of debug traps that are due at this boundary.
  var pendingDebug: UInt64 = 0
  var completion: Completion = .none
  /// What the running instruction has to do with devices.
  var device = DeviceAccess()

  /// The hypercall instruction of the CPU's vendor, and what becomes of the other.
  let nativeHypercall: HypercallOpcode?
  let hypercallPolicy: HypercallPolicy
  /// Code of every level leaves for the machine where a page is absent, not only that of level 3.
  var everyLevelLeavesForPages = false
  /// Where linear addresses are looked up, and where exceptions, interrupts and INT n go.
  var addressSpace = AddressSpace.controlRegisters
  var trapPolicy = TrapPolicy.guest
  var machinePage: MachinePagePlace?
  /// The vector of the trap that the machine is sending on, which does not come back to it.
  var forwarded: UInt8?
  /// Code of level 3 waits for absent pages, as the kernel does, instead of leaving for the machine.
  var waitsForPages = false

  var tscAdjust: UInt64 = 0
  var miscEnable: UInt64 = 0
  var machineCheckStatus: UInt64 = 0
  var powerControl: UInt64 = 0
  var debugControl: UInt64 = 0
  var mtrr = MemoryTypeRanges()
  /// IA32_APIC_BASE.EN, which the machine keeps: CPUID has no APIC without it (SDM volume 3, 11.4.3).
  var isAPICEnabled = true

  /// PAUSE instructions from one `VCPUExit.spinning` to the next; 0 is none at all.
  var pausesToExit: UInt64 = 0

  weak var codeObserver: (any CodeObserver)?

  init(cpuid: CPUIDTable, hypercall: HypercallOpcode? = .vmcall, policy: HypercallPolicy = .native) {
    self.cpuid = cpuid
    nativeHypercall = hypercall
    hypercallPolicy = policy
    supportedCR4 = CR4.supported(by: cpuid)
    supportedXCR0 = cpuid.supportedXCR0
    supportedEFER = EFER.supported(by: cpuid)
    miscEnable = ModelSpecificRegister.miscEnableReset
  }

  /// Puts the cold state back to what RESET leaves.
  func reset() {
    interruptShadow = .none
    nmiBlocked = false
    isRepeating = false
    taskPriorityWritten = false
    pendingDebug = 0
    completion = .none
    tscAdjust = 0
    miscEnable = ModelSpecificRegister.miscEnableReset
    machineCheckStatus = 0
    powerControl = 0
    debugControl = 0
    mtrr = MemoryTypeRanges()
    isAPICEnabled = true
  }
}

/// Why interrupts are held off for one instruction.
enum InterruptShadow: UInt8 {
  case none
  /// STI with IF clear before: external interrupts only.
  case sti
  /// A load of SS: external interrupts, NMIs and debug traps.
  case movSS
}

/// One vCPU, as Swift's instruction helpers see it.
@safe struct Processor {
  let page: VCPUPage
  let state: ProcessorState

  init(page: VCPUPage, state: ProcessorState) {
    self.page = page
    self.state = state
  }

  // MARK: Mode

  var privilege: UInt8 { page.privilege }
  /// CR0.PE set, EFLAGS.VM clear.
  var usesDescriptors: Bool { page.isProtected && !page.isVM86 }

  func mode(_ bit: Int) -> Bool { page[\.mode] & UInt32(truncatingIfNeeded: bit) != 0 }

  /// Bits of the instruction pointer that the code size uses.
  var instructionPointerMask: UInt64 {
    if page.isLongMode { return .max }
    return mode(CHOST_MODE_CODE32) ? 0xFFFF_FFFF : 0xFFFF
  }

  /// The instruction after this one.
  func next(_ instruction: Instruction) -> UInt64 {
    (page[\.rip] &+ UInt64(instruction.length)) & instructionPointerMask
  }

  /// Completes an instruction that falls through.
  func advance(_ instruction: Instruction) {
    page[\.rip] = next(instruction)
    clearResume()
  }

  /// Moves RIP over bytes of the running code, as the mode wraps it.
  func advance(_ byteCount: Int) {
    var instruction = Instruction()
    instruction.length = UInt8(truncatingIfNeeded: byteCount)
    advance(instruction)
  }

  /// RF lasts until an instruction completes (SDM volume 3, 2.3).
  func clearResume() {
    let flags = page[\.system_flags]
    let resume = UInt32(truncatingIfNeeded: RFLAGS.rf)
    if flags & resume != 0 { page[\.system_flags] = flags & ~resume }
  }

  /// Replaces RFLAGS; the mode word follows.
  func setFlags(_ flags: UInt64) {
    let old = page.rflags
    page.rflags = flags
    if (old ^ flags) & (RFLAGS.tf | RFLAGS.ac | RFLAGS.vm) != 0 { page.updateMode() }
  }

  func requirePrivilege() throws(Fault) {
    if privilege != 0 { throw .generalProtection() }
  }

  // MARK: General registers

  /// The low `size` bytes of a register.
  func register(_ number: UInt8, size: UInt8) -> UInt64 { page[register: number] & Processor.mask(size) }

  /// Writes a register as an instruction of that operand size does: 4 bytes clear the upper half, 1 and 2
  /// leave the rest alone.
  func setRegister(_ number: UInt8, _ value: UInt64, size: UInt8) {
    switch size {
    case 8: page[register: number] = value
    case 4: page[register: number] = value & 0xFFFF_FFFF
    default:
      let mask = Processor.mask(size)
      page[register: number] = page[register: number] & ~mask | value & mask
    }
  }

  /// A byte register of an instruction: AH...BH without REX.
  func byteRegister(_ number: UInt8, _ instruction: Instruction) -> UInt64 {
    instruction.isHighByte(number) ? page[register: number & 3] >> 8 & 0xFF : page[register: number] & 0xFF
  }

  func setByteRegister(_ number: UInt8, _ value: UInt64, _ instruction: Instruction) {
    if instruction.isHighByte(number) {
      page[register: number & 3] = page[register: number & 3] & ~0xFF00 | (value & 0xFF) << 8
    } else {
      setRegister(number, value, size: 1)
    }
  }

  /// All ones in the low `size` bytes.
  static func mask(_ size: UInt8) -> UInt64 {
    switch size {
    case 1: 0xFF
    case 2: 0xFFFF
    case 4: 0xFFFF_FFFF
    default: .max
    }
  }

  /// The low `size` bytes of a value, sign-extended.
  static func signExtend(_ value: UInt64, size: UInt8) -> UInt64 {
    switch size {
    case 1: UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: value)))
    case 2: UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: value)))
    case 4: UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value)))
    default: value
    }
  }

  /// Whether bits 63:47 are equal (48-bit linear addresses).
  static func isCanonical(_ address: UInt64) -> Bool {
    UInt64(bitPattern: Int64(bitPattern: address << 16) >> 16) == address
  }
}

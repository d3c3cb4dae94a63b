// SPDX-License-Identifier: Apache-2.0
// The engine contract: what a machine may ask of whatever executes guest code, and why a vCPU stopped. The
// local APIC, the paravirtual MSRs, ports, MMIO and hypercalls belong to the machine; everything an
// instruction does to registers and memory belongs to the engine.

/// Why a vCPU stopped, and what the caller owes it before the next `run`.
public enum VCPUExit: Sendable, Equatable {
  /// IN or INS. Owes `completeRead(value)`.
  case portRead(port: UInt16, size: UInt8)
  /// OUT or OUTS. Owes nothing.
  case portWrite(port: UInt16, size: UInt8, value: UInt32)
  /// A load from an address that is not RAM; `size` is 1, 2, 4 or 8. Owes `completeRead(value)`.
  case mmioRead(address: UInt64, size: UInt8)
  case mmioWrite(address: UInt64, size: UInt8, value: UInt64)
  /// RDMSR of a register the engine does not have. Owes `completeRead(value)` or `refuseMSR()`.
  case msrRead(index: UInt32)
  /// WRMSR of a register the engine does not have. Owes `completeWrite()` or `refuseMSR()` (#GP).
  case msrWrite(index: UInt32, value: UInt64)
  /// VMCALL or VMMCALL, to be performed. RIP is already past it; the caller stores the result in RAX.
  case hypercall
  /// The other vendor's hypercall instruction raised #UD to the machine (`HypercallPolicy` `emulate` or `patch`). RIP
  /// is at it. The machine may perform the call and `skipHypercall()`, `replaceHypercall`, or `refuseHypercall`.
  case foreignHypercall
  /// Code of level 3 touched a page of RAM that is still on its way (`address`, guest-physical). The instruction has
  /// had no effect and runs again. Owes nothing, but until the page is there or `inject(pageFault:)` is called it gets
  /// no further.
  case pageAbsent(address: UInt64)
  /// HLT: nothing to do until an interrupt. RIP is past it.
  case halt
  /// PAUSE was executed many times: the vCPU waits for another. RIP is past it.
  case spinning
  /// Interrupts are now deliverable and `requestInterruptWindow` asked to be told.
  case interruptWindow
  /// `kick()` was called, or the guest lowered its task priority in CR8, so that an interrupt may be due.
  case kicked
  /// Triple fault.
  case shutdown
  /// The engine failed: our bug. The text says where.
  case failed(String)
}

/// Executes one vCPU. Everything but `kick()` is called by one thread at a time, and never during `run()`.
public protocol CPUEngine: AnyObject {
  /// Runs guest code until something needs the machine.
  func run() -> VCPUExit
  /// Answers `portRead`, `mmioRead` or `msrRead`.
  func completeRead(_ value: UInt64)
  /// Accepts an `msrWrite`.
  func completeWrite()
  /// Answers an MSR exit with #GP(0).
  func refuseMSR()

  /// Whether an external interrupt would be accepted now (IF, shadows, nothing pending).
  var canAcceptInterrupt: Bool { get }
  /// Queues an external interrupt; only when `canAcceptInterrupt`.
  func inject(interrupt vector: UInt8)
  /// Delivers #PF with error code 0 and this value in CR2, at once: a page fault of the machine's own.
  func inject(pageFault address: UInt64)
  /// Queues an NMI; delivered when NMIs are not blocked.
  func injectNMI()
  /// Asks for `.interruptWindow` as soon as an interrupt could be accepted.
  func requestInterruptWindow(_ wanted: Bool)

  /// Makes `run()` return `.kicked` soon (within a millisecond). Callable from any thread.
  func kick()

  /// The whole architectural state; only between runs.
  var state: CPUState { get set }
  /// RAX RCX RDX RBX RSP RBP RSI RDI R8...R15, by number 0...15. Only between runs.
  subscript(register number: Int) -> UInt64 { get set }
  /// Privilege level of the current code, 0...3.
  var currentPrivilegeLevel: UInt8 { get }
  /// Whether the vCPU executes 64-bit code (EFER.LMA and CS.L).
  var isIn64BitMode: Bool { get }
  /// Whether long mode is active (EFER.LMA), also in compatibility mode.
  var isLongModeActive: Bool { get }

  /// At `foreignHypercall`: the three bytes at RIP, fetched anew through the guest's page tables; fewer where a page is
  /// absent.
  var hypercallCode: [UInt8] { get }
  /// Moves RIP past the instruction, whose effect is complete.
  func skipHypercall()
  /// Changes the instruction as the running code could itself, in one byte and at once for every vCPU. Returns false
  /// if it may not: the page fault has then been delivered to the guest.
  func replaceHypercall(with opcode: HypercallOpcode) -> Bool
  /// Raises #UD, or #GP(0), in the guest.
  func refuseHypercall(privileged: Bool)
  /// Forgets how the address of the instruction was translated: it is fetched anew.
  func refetchCode()

  /// Now, in guest TSC ticks.
  var timestampCounter: UInt64 { get }
}

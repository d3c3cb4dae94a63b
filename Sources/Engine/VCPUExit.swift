// SPDX-License-Identifier: Apache-2.0
// Exits: why a vCPU stopped executing guest code, and what the machine owes it before it goes on.

/// Why a vCPU stopped, and what the caller owes it before the next `run`.
public enum VCPUExit: Sendable, Equatable {
  /// IN or INS. Owes `completeRead(value)`.
  case portRead(port: UInt16, size: UInt8)
  /// OUT or OUTS. Owes nothing.
  case portWrite(port: UInt16, size: UInt8, value: UInt32)
  /// A load from an address that is not RAM; `size` is 1, 2, 4 or 8. Owes `completeRead(value)`.
  case mmioRead(address: UInt64, size: UInt8)
  /// A store to an address that is not RAM; `size` is 1, 2, 4 or 8. Owes nothing.
  case mmioWrite(address: UInt64, size: UInt8, value: UInt64)
  /// RDMSR of a register the engine does not have. Owes `completeRead(value)`, or `raise` of #GP(0).
  case msrRead(index: UInt32)
  /// WRMSR of a register the engine does not have. Owes `completeWrite()`, or `raise` of #GP(0).
  case msrWrite(index: UInt32, value: UInt64)
  /// VMCALL or VMMCALL, to be performed. RIP is already past it; the caller stores the result in RAX.
  case hypercall
  /// The other vendor's hypercall instruction (`HypercallPolicy` `emulate` or `patch`). RIP is at it. The machine may
  /// perform the call and `skip` the instruction, change it and `refetchCode`, or `raise` an exception.
  case foreignHypercall
  /// Code of level 3 touched a page of RAM that is still on its way (`address`, guest-physical). The instruction has
  /// had no effect and runs again. Owes nothing, but until the page is there or a page fault is raised it gets no
  /// further.
  case pageAbsent(address: UInt64)
  /// HLT: nothing to do until an interrupt. RIP is past it.
  case halt
  /// PAUSE was executed many times: the vCPU waits for another. RIP is past it.
  case spinning
  /// Interrupts are now deliverable and `requestInterruptWindow` asked to be told.
  case interruptWindow
  /// `kick()` was called, or the guest lowered its task priority in CR8, so that an interrupt may be due.
  case kicked
  /// With `isSingleStepping`: one instruction was executed, or one element of a repeated one, or it has faulted. It is the
  /// first of a handler if an interrupt was due.
  case stepped
  /// RIP is at one of `breakpoints`. The next `run` executes the instruction there.
  case breakpoint
  /// With `TrapPolicy.machine`: an exception, an interrupt or INT n. Owes nothing: the machine removes the cause, or
  /// changes `state` to that in which a handler begins.
  case trap(Trap)
  /// Triple fault.
  case shutdown
  /// The engine failed: our bug. The text says where.
  case failed(String)
}

// SPDX-License-Identifier: Apache-2.0
// lguest's hypercalls: a ring-1 kernel executes INT 1Fh with a number in EAX and arguments in EBX, ECX, EDX and ESI, or
// leaves the call in a ring that the next one drains. There is no result: what is wrong kills the guest (Rusty Russell,
// "[PATCH 8/9] lguest: Optimize away copy in and out of per-cpu guestpages", 8 March 2007, and what grew from it up to
// Linux 4.13; docs/lguest.md).

/// The calls by number.
public enum LguestCall: UInt32, Sendable, CaseIterable {
  case flushAsync = 0
  case initialize = 1
  case shutdown = 2
  case loadGDT = 3
  case newPageTable = 4
  case flushTLB = 5
  case loadIDTEntry = 6
  case setStack = 7
  case taskSwitched = 8
  case setClockEvent = 9
  case halt = 10
  case setPMD = 13
  case setPTE = 14
  case setPGD = 15
  case loadTLS = 16
  case notify = 17
  case loadGDTEntry = 18
  case sendInterrupts = 19

  /// Numbers begin at 0 and end below this.
  static let numbers = 20

  /// The software interrupt that makes one.
  public static let vector: UInt8 = 0x1F
}

/// What became of VMCALL, by which some guests make these calls.
public struct LguestInstructionCounts: Sendable, Equatable {
  /// #UD of any cause.
  public internal(set) var traps: UInt64 = 0
  /// Places where it was replaced by the software interrupt.
  public internal(set) var rewritten: UInt64 = 0
  /// Calls that were performed for it.
  public internal(set) var emulated: UInt64 = 0
}

/// What the machine must do after a trap of a ring-1 guest or a call of its.
public enum LguestEffect: Sendable, Equatable {
  case none
  /// Nothing to do until an interrupt that is not blocked.
  case halt
  /// The guest is done: SHUTDOWN with its text, or a restart.
  case shutdown(text: String, restarts: Bool)
  /// The guest was wrong and never runs again.
  case killed(String)
  /// NOTIFY: a device's descriptor or queue, or a string on the early console.
  case notify(UInt64)
}

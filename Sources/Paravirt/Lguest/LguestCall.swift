// SPDX-License-Identifier: Apache-2.0
// lguest's hypercalls: a ring-1 kernel executes INT 1Fh with a number in EAX and arguments in other registers, or leaves
// the call in a ring that the next one drains. There is no result, but for two of the first era: what is wrong kills the
// guest (Rusty Russell, "[PATCH 8/9] lguest: Optimize away copy in and out of per-cpu guestpages", 8 March 2007, and what
// grew from it up to Linux 4.13; docs/lguest.md).

/// The calls. The raw value is the name that Linux's headers have, which later eras share.
public enum LguestCall: String, Sendable, CaseIterable {
  case flushAsync = "FLUSH_ASYNC", initialize = "LGUEST_INIT", shutdown = "SHUTDOWN", loadGDT = "LOAD_GDT"
  case newPageTable = "NEW_PGTABLE", flushTLB = "FLUSH_TLB", loadIDTEntry = "LOAD_IDT_ENTRY", setStack = "SET_STACK"
  case taskSwitched = "TS", setClockEvent = "SET_CLOCKEVENT", halt = "HALT", getWallClock = "GET_WALLCLOCK"
  case bindDMA = "BIND_DMA", sendDMA = "SEND_DMA", setPMD = "SET_PMD", setPTE = "SET_PTE", setPGD = "SET_PGD"
  case loadTLS = "LOAD_TLS", notify = "NOTIFY", loadGDTEntry = "LOAD_GDT_ENTRY", sendInterrupts = "SEND_INTERRUPTS"

  /// Numbers begin at 0 and end below this.
  static let numbers = 20

  /// The software interrupt that makes one.
  public static let vector: UInt8 = 0x1F
  /// The number of `initialize`, which is made before the era is known.
  static let initializeNumber: UInt32 = 1

  /// Which number is which call, from which era to which.
  static let table: [(number: UInt32, call: LguestCall, eras: ClosedRange<LguestEra>)] = {
    let (oldest, newest) = (LguestEra.linux2_6_23, LguestEra.linux4_0)
    return [
      (0, .flushAsync, oldest...newest), (initializeNumber, .initialize, oldest...newest),
      (2, .shutdown, oldest...newest), (3, .loadGDT, oldest ... .linux2_6_30), (4, .newPageTable, oldest...newest),
      (5, .flushTLB, oldest...newest), (6, .loadIDTEntry, oldest...newest), (7, .setStack, oldest...newest),
      (8, .taskSwitched, oldest...newest), (9, .setClockEvent, oldest...newest), (10, .halt, oldest...newest),
      (11, .getWallClock, oldest...oldest), (12, .bindDMA, oldest...oldest), (13, .sendDMA, oldest...oldest),
      (13, .setPMD, .linux2_6_31...newest), (14, .setPTE, oldest...newest), (15, .setPGD, oldest...newest),
      (16, .loadTLS, oldest...newest), (17, .notify, .linux2_6_24 ... .linux3_1),
      (18, .loadGDTEntry, .linux2_6_31...newest), (19, .sendInterrupts, .linux2_6_31...newest),
    ]
  }()

  /// The calls of an era, by number; nil where it has none.
  static func calls(in era: LguestEra) -> [LguestCall?] {
    var calls = [LguestCall?](repeating: nil, count: numbers)
    for row in table where row.eras.contains(era) { calls[Int(row.number)] = row.call }
    return calls
  }

  /// The number of a call in an era; nil if it has not that call.
  package func number(in era: LguestEra) -> UInt32? {
    LguestCall.table.first { $0.call == self && $0.eras.contains(era) }?.number
  }
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
  /// The guest is known now, and its devices can be described.
  case registered(LguestEra)
  /// Nothing to do until an interrupt that is not blocked.
  case halt
  /// The guest is done: SHUTDOWN with its text, or a restart.
  case shutdown(text: String, restarts: Bool)
  /// The guest was wrong and never runs again.
  case killed(String)
  /// NOTIFY: a device's descriptor or queue, or a string on the early console.
  case notify(UInt64)
  /// BIND_DMA: buffers for what comes under a key, their number, and the interrupt that tells of it. EAX takes whether
  /// that is possible, unless the call was in the ring.
  case bind(key: UInt32, buffers: UInt32, count: UInt32, interrupt: UInt8, isAnswered: Bool)
  /// SEND_DMA: a buffer for whom a key belongs to.
  case send(key: UInt32, buffer: UInt32)
}

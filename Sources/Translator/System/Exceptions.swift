// SPDX-License-Identifier: Apache-2.0
// Delivering interrupts and exceptions: what an event is, what happens when delivering it faults in turn (double
// and triple faults, SDM volume 3, 6.15), and the choice of a delivery by mode. The deliveries themselves are
// in Gates.swift and RealMode.swift.

import CHost
import Engine
import X86

/// An interrupt or exception on its way to its handler.
struct Event: Equatable {
  enum Kind: UInt8 {
    /// Raised by the CPU.
    case exception
    /// From the local APIC or the PIC.
    case external
    /// INT n, INT3, INTO: the gate's DPL is checked.
    case software
    /// INT1: like an exception, without a DPL check.
    case int1
    case nmi
  }

  var vector: UInt8
  var kind: Kind
  var errorCode: UInt32?
  /// CR2 for #PF.
  var address: UInt64 = 0
  /// RIP to push.
  var returnAddress: UInt64

  /// The EXT bit of error codes of faults during delivery.
  var external: UInt32 { kind == .software ? 0 : 1 }

  /// Faults push RF set, so that the restarted instruction does not hit its breakpoint again; traps, aborts,
  /// interrupts and #DB push it as it is (SDM volume 3, 17.3.1.1), unless they come between two elements of a repeated
  /// string instruction (`ProcessorState.isRepeating`).
  var pushesResume: Bool {
    guard kind == .exception else { return false }
    switch vector {
    case Vector.debug, Vector.breakpoint, Vector.overflow, Vector.doubleFault, Vector.machineCheck: return false
    default: return true
    }
  }
}

/// How far an event got.
enum Delivery: Equatable {
  case delivered
  /// A fault while delivering a double fault.
  case shutdown
  /// To the machine.
  case trap(Trap)
}

extension Processor {
  /// Delivers an event at the current boundary, with whatever faults that raises.
  ///
  /// - Parameter errorCode: for the exceptions that push one.
  @discardableResult
  func deliver(
    _ vector: UInt8, errorCode: UInt32? = nil, kind: Event.Kind, address: UInt64 = 0
  ) -> Delivery {
    deliver(Event(vector: vector, kind: kind, errorCode: errorCode, address: address, returnAddress: page[\.rip]))
  }

  /// Delivers what an instruction threw; RIP is that instruction's.
  @discardableResult
  func deliver(_ fault: Fault) -> Delivery {
    deliver(event(fault))
  }

  /// The event that an instruction's fault is; RIP is that instruction's.
  func event(_ fault: Fault) -> Event {
    Event(
      vector: fault.vector, kind: .exception, errorCode: fault.errorCode, address: fault.address,
      returnAddress: page[\.rip])
  }

  @discardableResult
  func deliver(_ first: Event) -> Delivery {
    // A page that is late must not turn a fault into a double fault.
    state.waitsForPages = true
    defer { state.waitsForPages = false }
    var event = first
    while true {
      if isMachines(event) { return .trap(Trap(event, at: page[\.rip])) }
      if event.kind == .exception && event.vector == Vector.pageFault { page[\.cr2] = event.address }
      do throws(Fault) {
        try deliverOnce(event)
        return .delivered
      } catch {
        guard let next = Processor.escalate(event, error) else { return .shutdown }
        // A page fault that became part of a double fault has loaded CR2 all the same.
        if error.vector == Vector.pageFault { page[\.cr2] = error.address }
        event = next
        event.returnAddress = page[\.rip]
      }
    }
  }

  private enum Class { case benign, contributory, pageFault }

  private static func classify(_ vector: UInt8) -> Class {
    switch vector {
    case Vector.divideError, Vector.invalidTSS...Vector.generalProtection: .contributory
    case Vector.pageFault: .pageFault
    default: .benign
    }
  }

  /// The event to deliver when delivering `event` raised `fault`; nil is a triple fault.
  static func escalate(_ event: Event, _ fault: Fault) -> Event? {
    let again = Event(
      vector: fault.vector, kind: .exception, errorCode: fault.errorCode, address: fault.address, returnAddress: 0)
    guard event.kind == .exception else { return again }
    if event.vector == Vector.doubleFault { return nil }
    let double = Event(vector: Vector.doubleFault, kind: .exception, errorCode: 0, returnAddress: 0)
    switch (classify(event.vector), classify(fault.vector)) {
    case (.contributory, .contributory), (.pageFault, .contributory), (.pageFault, .pageFault): return double
    default: return again
    }
  }

  /// Delivers one event or throws before anything changed, with EXT in the error code.
  func deliverOnce(_ event: Event) throws(Fault) {
    do throws(Fault) {
      if !page.isProtected {
        try deliverReal(event.vector, returnAddress: event.returnAddress)
      } else if page.isLMA {
        try deliverLong(event)
      } else {
        try deliverProtected(event)
      }
    } catch {
      var fault = error
      if (Vector.invalidTSS...Vector.generalProtection).contains(fault.vector), let code = fault.errorCode {
        fault.errorCode = code | event.external
      }
      throw fault
    }
    if event.kind == .nmi { state.nmiBlocked = true }
    // GD is cleared so that the handler may use the debug registers (SDM volume 3, 17.2.4).
    if event.vector == Vector.debug && event.kind != .software && page[\.dr.7] & DR7.generalDetect != 0 {
      page[\.dr.7] = page[\.dr.7] & ~DR7.generalDetect
    }
    state.interruptShadow = .none
    state.isRepeating = false
    state.pendingDebug = 0
    page.updateMode()
  }

  /// The error code that names the gate of a vector.
  static func gateCode(_ vector: UInt8) -> UInt32 { UInt32(vector) << 3 | 2 }

  /// RFLAGS as the frame of an event shows them.
  func pushedFlags(_ event: Event) -> UInt64 {
    withVirtualFlag(event.pushesResume || state.isRepeating ? page.rflags | RFLAGS.rf : page.rflags)
  }

  // MARK: Software interrupts

  /// INT n, INT3 and INTO. `checksIOPL`: INT n only, in virtual-8086 mode.
  func softwareInterrupt(
    _ vector: UInt8, _ instruction: Instruction, checksIOPL: Bool
  ) throws(Fault) -> SystemOutcome {
    let next = next(instruction)
    if checksIOPL && page.isVM86 {
      if page[\.cr4] & CR4.vme != 0, try redirects(vector) {
        try deliverRedirected(vector, returnAddress: next)
        return .done
      }
      if page.rflags & RFLAGS.iopl != RFLAGS.iopl { throw .generalProtection() }
    }
    return try take(Event(vector: vector, kind: .software, returnAddress: next))
  }

  /// INT1 (ICEBP): a #DB trap that no DPL check stops.
  func debugInterrupt(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    try take(Event(vector: Vector.debug, kind: .int1, returnAddress: next(instruction)))
  }

  /// Sends an instruction's event where the policy says.
  private func take(_ event: Event) throws(Fault) -> SystemOutcome {
    if isMachines(event) {
      let trap = Trap(event, at: page[\.rip])
      page[\.rip] = event.returnAddress
      return .exit(.trap(trap))
    }
    try deliverOnce(event)
    return .done
  }
}

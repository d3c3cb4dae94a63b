// SPDX-License-Identifier: Apache-2.0
// The run loop of a ring-1 guest of lguest: its interrupts come from its host and not from an APIC, and its traps are
// answered there.

import Devices
import Engine
import Paravirt
import X86

extension RunLoop {
  /// Gives the engine the interrupt that is due, if there is one.
  func deliverLguest() {
    lookForInput()
    machine.lguest?.takeOutput()
    defer { if let page = thread?.page { lguest?.resume(on: page, engine) } }
    switch lguest?.deliver(to: engine) {
    case .nothing?, nil: break
    case .done?: statistics.interrupts &+= 1
    case .later?: machine.lguest?.timer.lookAgain()
    }
  }

  /// The oldest guests do not say that they have taken what was typed, or a frame, and have room again.
  private func lookForInput() {
    guard let parts = machine.lguest, parts.looksForInput else { return }
    let isTyped = machine.console.fill()
    if parts.dma.look() || isTyped { parts.timer.lookAgain() }
  }

  /// Answers a trap, or VMCALL that the processor has executed.
  func handleLguest(_ trap: Trap?) -> Outcome? {
    defer { lookForInput() }
    guard var effect = trap.map({ lguest?.take($0, on: engine) }) ?? lguest?.takeNativeHypercall(engine) else {
      return nil
    }
    while effect != .none {
      if let outcome = perform(effect) { return outcome }
      // It may have begun again.
      effect = lguest?.goOn(on: engine) ?? .none
    }
    return nil
  }

  /// Does what a trap, or a call, has led to.
  private func perform(_ effect: LguestEffect) -> Outcome? {
    switch effect {
    case .none: return nil
    case .registered(let era): return machine.lguest?.register(era).map { .killed($0) }
    case .bind(let key, let buffers, let count, let interrupt, let isAnswered):
      let isBound = machine.lguest?.dma.bind(key, buffers: buffers, count: count, interrupt: interrupt) ?? false
      if isAnswered { engine[register: GPR.rax] = isBound ? 1 : 0 }
      return nil
    case .send(let key, let buffer):
      machine.lguest?.dma.send(key, buffer: buffer)
      return nil
    case .halt:
      isHalted = true
      return nil
    case .shutdown(_, restarts: true): return restartLguest()
    case .shutdown("Power down", _): return .power(.powerOff)
    case .shutdown(let text, _): return .shutDown(text)
    case .killed(let reason): return .killed(reason)
    case .notify(let address):
      // Where no device is, it is a string on the early console.
      if machine.lguest?.notify(address) == true { return nil }
      for byte in lguest?.bytes(at: address, limit: 4096) ?? [] { machine.console.write(byte) }
      return nil
    }
  }

  /// Counts the hypercalls that a ring-1 guest made, and what became of its VMCALL.
  func addLguestCalls(to statistics: inout Statistics) {
    guard let lguest else { return }
    for (number, times) in lguest.callCounts.enumerated() where times > 0 {
      statistics.count(hypercall: UInt64(number), times: times, name: lguest.callName(number))
    }
    statistics.invalidOpcodes &+= lguest.instructionCounts.traps
    statistics.hypercallsPatched &+= lguest.instructionCounts.rewritten
    statistics.hypercallsEmulated &+= lguest.instructionCounts.emulated
  }
}

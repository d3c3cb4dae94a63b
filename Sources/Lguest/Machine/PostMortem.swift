// SPDX-License-Identifier: Apache-2.0
// What a machine that has ended says about it: what the end of its run loop means, and what its parts counted.

import Devices
import Engine
import GuestMemory
import Paravirt

extension Machine {
  /// What the end of the run loop means.
  ///
  /// - Parameter asked: What `requestStop` was called with, if it was.
  func ending(_ outcome: RunLoop.Outcome, asked: Ending?) -> (Ending, detail: String?) {
    switch outcome {
    case .stopped: (asked ?? .internal, nil)
    case .power(.powerOff): (.poweroff, nil)
    case .power(.reset(_)):
      hasPanicMark || console.tail.sawPanic ? (.panic, console.tail.panicReason) : (.reset, nil)
    case .power(.debugExit(let code)): (.debugExit(code), nil)
    case .panicked: (.panic, console.tail.panicReason)
    case .tripleFault: (.tripleFault, nil)
    case .shutDown(let text): (.panic, PlainText.of(text))
    case .killed(let reason): (.killed, reason)
    case .failed(let text): (.internal, text)
    }
  }
}

extension Machine {
  /// The state of every vCPU, with its number if there are several; that which ended the run first.
  func stateText(first: Int) -> String {
    guard cpus.count > 1 else { return cpus[0].state.text }
    let order = [first] + cpus.indices.filter { $0 != first }
    return order.map { "vCPU \($0)\n" + cpus[$0].state.text }.joined(separator: "\n")
  }

  /// What `EngineInspection.histogram` writes: how much of what the guest executed was translated, and a line per
  /// block, the heaviest first.
  func histogramText(helperInstructions: UInt64) -> String {
    let rows = engine.blockCounts
    let translated = rows.reduce(0) { $0 &+ $1.weight }
    let total = max(translated &+ helperInstructions, 1)
    func percent(_ part: UInt64) -> String {
      let hundredThousandths = UInt64(Double(part) / Double(total) * 10_000_000)
      let digits = String(hundredThousandths % 100_000)
      return "\(hundredThousandths / 100_000)." + String(repeating: "0", count: 5 - digits.count) + digits
    }
    var text = "# \(translated) instructions in translated code, \(percent(translated)) %; "
    text +=
      "\(helperInstructions) by helpers in Swift\n# share in %, executions, instructions, guest-physical address, mode\n"
    for row in rows {
      text += "\(percent(row.weight)) \(row.executions) \(row.instructions) 0x" + String(row.physical, radix: 16)
      text += " 0x" + String(row.mode, radix: 16) + "\n"
    }
    return text
  }
}

extension Statistics {
  /// Adds what the engine and the buses of a machine counted.
  mutating func add(_ machine: Machine) {
    let counters = machine.engine.counters
    blocksTranslated &+= counters.blocks
    blocksDiscarded &+= counters.discards
    blocksChecked &+= counters.checked
    blocksRefused &+= counters.refused
    blocksRefusedTwice &+= counters.refusedTwice
    simpleInstructions &+= counters.simpleInstructions
    guestBytesTranslated &+= counters.guestBytes
    hostBytesEmitted &+= counters.hostBytes
    translationNanoseconds &+= machine.counter.nanoseconds(inTicks: counters.ticks)
    tlbFills &+= counters.tlbFills
    tlbFlushes &+= counters.tlbFlushes
    lookups &+= counters.lookups
    lookupMisses &+= counters.lookupMisses
    softFaults &+= counters.softFaults
    let pages = machine.memory.storeCounts
    pagesEvicted &+= pages.evicted
    pagesAwaited &+= pages.awaited
    for (number, times) in counters.hypercalls { count(hypercall: number, times: times) }
    for (name, times) in counters.exits {
      fullExits &+= times
      if name == "memory" || name == "instruction" { helperInstructions &+= times }
    }
    for (port, times) in machine.platform.ports.unclaimedByAddress {
      count(unknown: Machine.portName(port), times: times)
    }
    for (address, times) in machine.platform.mmio.unclaimedByAddress {
      count(unknown: Machine.addressName(address), times: times)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// What a machine that has ended says about it: what the end of its run loop means, and what its parts counted.

import Devices
import Paravirt
import Translator

extension Machine {
  /// What the end of the run loop means.
  ///
  /// - Parameter asked: What `requestStop` was called with, if it was.
  func ending(_ outcome: RunLoop.Outcome, asked: Ending?) -> (Ending, detail: String?) {
    switch outcome {
    case .stopped: (asked ?? .internal, nil)
    case .power(.powerOff): (.poweroff, nil)
    case .power(.reset(_)): (hasPanicMark || console.tail.sawPanic ? .panic : .reset, nil)
    case .power(.debugExit(let code)): (.debugExit(code), nil)
    case .panicked: (.panic, nil)
    case .tripleFault: (.tripleFault, nil)
    case .failed(let text): (.internal, text)
    }
  }
}

extension Statistics {
  /// Adds what the engine and the buses of a machine counted.
  mutating func add(_ machine: Machine) {
    let counters = machine.translation.counters
    blocksTranslated &+= counters.blocks
    blocksDiscarded &+= counters.discards
    guestBytesTranslated &+= counters.guestBytes
    hostBytesEmitted &+= counters.hostBytes
    translationNanoseconds &+= machine.counter.nanoseconds(inTicks: counters.ticks)
    tlbFills &+= counters.tlbFills
    tlbFlushes &+= counters.tlbFlushes
    lookups &+= counters.lookups
    lookupMisses &+= counters.lookupMisses
    for (name, times) in counters.exits {
      fullExits &+= times
      if name == "memory" || name == "instruction" { helperInstructions &+= times }
    }
    for (port, times) in machine.platform.ports.unclaimedByAddress { count(unknown: Machine.portName(port), times: times) }
    for (address, times) in machine.platform.mmio.unclaimedByAddress {
      count(unknown: Machine.addressName(address), times: times)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// What a vCPU counts: exits, hypercalls and their cycles, and where other threads get the numbers.

import Engine
import Host

extension RunLoop {
  /// What this vCPU counted, with the hypercalls that translated code answered and the time it has waited. To be asked
  /// on its thread, or when it has none.
  var totalStatistics: Statistics {
    var total = statistics
    total.stealNanoseconds = waited
    total.longestWaitNanoseconds = machine.scheduler.wait(of: number).longest
    for (number, times) in engine.constantHypercalls { total.count(hypercall: number, times: times) }
    addLguestCalls(to: &total)
    return total
  }

  func publishStatistics() {
    countsCosts = true
    sample.publish(totalStatistics)
  }

  func countCost(of exit: VCPUExit, since began: UInt64) {
    statistics.costs.add(exit, cycles: HostCPU.timestampCounter &- began, hypercall: lastHypercall)
    lastHypercall = nil
  }
}

extension Statistics.ExitReason {
  init(_ exit: VCPUExit) {
    self =
      switch exit {
      case .portRead: .portRead
      case .portWrite: .portWrite
      case .mmioRead: .mmioRead
      case .mmioWrite: .mmioWrite
      case .msrRead: .msrRead
      case .msrWrite: .msrWrite
      case .hypercall: .hypercall
      case .foreignHypercall: .foreignHypercall
      case .pageAbsent: .pageAbsent
      case .halt: .halt
      case .spinning: .spinning
      case .interruptWindow: .interruptWindow
      case .kicked: .kicked
      case .stepped, .breakpoint: .debug
      case .trap: .trap
      case .shutdown: .shutdown
      case .failed: .failed
      }
  }
}

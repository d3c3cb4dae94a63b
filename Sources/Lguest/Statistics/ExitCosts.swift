// SPDX-License-Identifier: Apache-2.0
// What exits cost: TSC cycles from a vCPU's return to the run loop until it is about to enter the guest again, by
// reason, by hypercall and by model-specific register, in the spirit of kvm_stat. Kept only while somebody wants to
// know.

import Engine

/// Cycles of exits.
package struct ExitCosts: Sendable {
  /// Exits for one model-specific register.
  package struct RegisterUse: Sendable, Equatable {
    package var reads: UInt64 = 0
    package var writes: UInt64 = 0
    package var cycles: UInt64 = 0
  }

  private var reasons: [Statistics.ExitReason: UInt64] = [:]
  /// By number; calls that translated code answers cost no exit and are not among them.
  package private(set) var hypercalls: [UInt64: UInt64] = [:]
  package private(set) var registers: [UInt32: RegisterUse] = [:]

  package init() {}

  package subscript(reason: Statistics.ExitReason) -> UInt64 { reasons[reason] ?? 0 }

  /// Adds an exit.
  ///
  /// - Parameter hypercall: The number of the call that was performed, if one was. Numbers and registers are the
  ///   guest's choice, so that only so many kinds are kept apart.
  mutating func add(_ exit: VCPUExit, cycles: UInt64, hypercall: UInt64?) {
    reasons[Statistics.ExitReason(exit), default: 0] &+= cycles
    if let hypercall {
      let key = hypercalls.count < Statistics.unknownKinds || hypercalls[hypercall] != nil ? hypercall : .max
      hypercalls[key, default: 0] &+= cycles
    }
    switch exit {
    case .msrRead(let index): add(index, RegisterUse(reads: 1, cycles: cycles))
    case .msrWrite(let index, _): add(index, RegisterUse(writes: 1, cycles: cycles))
    default: break
    }
  }

  private mutating func add(_ index: UInt32, _ use: RegisterUse) {
    let key = registers.count < Statistics.unknownKinds || registers[index] != nil ? index : .max
    var sum = registers[key] ?? RegisterUse()
    sum.reads &+= use.reads
    sum.writes &+= use.writes
    sum.cycles &+= use.cycles
    registers[key] = sum
  }

  /// Adds another vCPU's.
  mutating func add(_ other: ExitCosts) {
    reasons.merge(other.reasons, uniquingKeysWith: &+)
    hypercalls.merge(other.hypercalls, uniquingKeysWith: &+)
    for (index, use) in other.registers { add(index, use) }
  }

  /// Members of a run's counters.
  var members: [(key: String, value: JSON)] {
    let byReason = Statistics.ExitReason.allCases.filter { reasons[$0] != nil }
    let byRegister = registers.sorted { $0.key < $1.key }
    return [
      ("cyclesByReason", .object(byReason.map { ($0.rawValue, .unsigned(self[$0])) })),
      (
        "cyclesByHypercall",
        .object(hypercalls.sorted { $0.key < $1.key }.map { (String($0.key), .unsigned($0.value)) })
      ),
      (
        "registers",
        .object(
          byRegister.map { index, use in
            (
              "0x" + String(index, radix: 16),
              [
                "reads": .unsigned(use.reads), "writes": .unsigned(use.writes), "cycles": .unsigned(use.cycles),
              ]
            )
          })
      ),
    ]
  }

  /// Rows for `--stats`, the most frequent first. Reads and writes of one register share their cycles.
  var registerRows: [Statistics.Row] {
    registers.map { index, use in
      let kind = use.reads == 0 ? "WRMSR" : use.writes == 0 ? "RDMSR" : "RDMSR and WRMSR"
      return ("\(kind) 0x" + String(index, radix: 16), use.reads &+ use.writes, use.cycles)
    }.sorted { ($1.count, $0.name) < ($0.count, $1.name) }
  }
}

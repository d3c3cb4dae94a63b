// SPDX-License-Identifier: Apache-2.0
// The measurements of lguest's hypercall as people and programs read them: the table of 2009 with ours in it.

import BuiltInGuests
import Lguest

struct LguestHypercallReport {
  let measurements: [LguestHypercallBenchmark.Measurement]

  var json: JSON { .array(measurements.map(\.json)) }

  var table: [String] {
    let head =
      ["technique"] + (1...HypercallBenchmark.runs).map { "run \($0)" } + ["mean", "ratio", "#UD", "rewrites", "2009"]
      + ["ratio"]
    let first = measurements.first?.mean ?? 1, firstOf2009 = measurements.first.map { mean($0) } ?? 1
    let rows = measurements.map { measurement in
      [measurement.technique.title] + measurement.cycles.map(Table.number)
        + [
          Table.number(measurement.mean), ratio(measurement.mean / first), "\(measurement.invalidOpcodes)",
          "\(measurement.rewrites)", measurement.technique.figuresOf2009.map(String.init).joined(separator: " "),
          ratio(mean(measurement) / firstOf2009),
        ]
    }
    return ["FLUSH_ASYNC with an empty ring: TSC cycles for a call, the average of each run; ratios to the first row"]
      + Table(head, rows, leftColumns: [0]).lines
  }

  private func mean(_ measurement: LguestHypercallBenchmark.Measurement) -> Double {
    let figures = measurement.technique.figuresOf2009
    return Double(figures.reduce(0, +)) / Double(figures.count)
  }

  private func ratio(_ value: Double) -> String { "\((value * 100).rounded() / 100)" }
}

extension LguestHypercallBenchmark.Technique {
  /// What the posting of 2009 called it.
  fileprivate var title: String {
    switch self {
    case .direct: "direct software interrupt"
    case .emulated: "emulation"
    case .patched: "patching (rewrite)"
    }
  }
}

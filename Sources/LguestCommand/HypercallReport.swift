// SPDX-License-Identifier: Apache-2.0
// The measurements of hypercalls as people and programs read them: a table, a JSON list, a chart.

import BuiltInGuests
import Glibc
import Lguest

struct HypercallReport {
  let measurements: [HypercallBenchmark.Measurement]

  init(_ measurements: [HypercallBenchmark.Measurement]) { self.measurements = measurements }

  var json: JSON { .array(measurements.map(\.json)) }

  // MARK: The table

  var table: [String] {
    let head = ["technique", "vCPUs"] + (1...HypercallBenchmark.runs).map { "run \($0)" } + ["median", "ns", "2009"]
    let rows = measurements.map { measurement in
      [measurement.technique.rawValue, "\(measurement.cpuCount)"] + measurement.cycles.map(Table.number)
        + [
          Table.number(measurement.median), Table.number(measurement.nanoseconds),
          measurement.technique.figuresOf2009.map { $0.map(String.init).joined(separator: " ") } ?? "-",
        ]
    }
    return ["TSC cycles for a call, the average of each run; ns of the median run"]
      + Table(head, rows, leftColumns: [0]).lines
  }

  // MARK: The chart

  /// An SVG with a bar for each technique, on a logarithmic scale, since the first is a hundred times shorter than the
  /// last; a mark where 2009 was.
  var chart: String {
    let (left, width, rowHeight, top) = (150.0, 520.0, 30.0, 50.0)
    let bottom = top + rowHeight * Double(measurements.count)
    let decades = 5
    func position(_ cycles: Double) -> Double {
      left + width * min(max(log10(cycles), 0), Double(decades)) / Double(decades)
    }
    func text(_ x: Double, _ y: Double, _ anchor: String, _ text: String) -> String {
      "  <text x=\"\(Table.number(x))\" y=\"\(Table.number(y))\" text-anchor=\"\(anchor)\">\(text)</text>"
    }
    func line(_ x: Double, _ from: Double, _ to: Double, _ color: String) -> String {
      "  <line x1=\"\(Table.number(x))\" x2=\"\(Table.number(x))\" y1=\"\(Table.number(from))\""
        + " y2=\"\(Table.number(to))\" stroke=\"\(color)\"/>"
    }
    var lines = [
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"\(Int(bottom) + 40)\" font-family=\"sans-serif\" font-size=\"12\">",
      "  <rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
      text(left, 22, "start", "Cost of a call in TSC cycles, median of five runs; red: 2009"),
    ]
    for decade in 0...decades {
      let x = left + width * Double(decade) / Double(decades)
      lines += [
        line(x, top - 8, bottom, "#ddd"),
        text(x, bottom + 18, "middle", decade == 0 ? "1" : "1" + String(repeating: "0", count: decade)),
      ]
    }
    for (index, measurement) in measurements.enumerated() {
      let y = top + rowHeight * Double(index)
      let name = measurement.technique.rawValue + (measurement.cpuCount > 1 ? " × \(measurement.cpuCount)" : "")
      let end = position(measurement.median)
      lines += [
        text(left - 8, y + 15, "end", name),
        "  <rect x=\"\(Table.number(left))\" y=\"\(Table.number(y + 3))\" width=\"\(Table.number(end - left))\" height=\"16\" fill=\"#4a7ab5\"/>",
        text(end + 6, y + 15, "start", Table.number(measurement.median)),
      ]
      if let figures = measurement.technique.figuresOf2009 {
        let mean = figures.reduce(0) { $0 + Double($1) } / Double(figures.count)
        lines.append(line(position(mean), y + 1, y + 21, "#c33"))
      }
    }
    return (lines + ["</svg>", ""]).joined(separator: "\n")
  }
}

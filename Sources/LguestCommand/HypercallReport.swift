// SPDX-License-Identifier: Apache-2.0
// The measurements of hypercalls as people and programs read them: a table, a JSON list, a chart.

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
      [measurement.technique.rawValue, "\(measurement.cpuCount)"] + measurement.cycles.map(HypercallReport.number)
        + [
          HypercallReport.number(measurement.median), HypercallReport.number(measurement.nanoseconds),
          measurement.technique.figuresOf2009.map { $0.map(String.init).joined(separator: " ") } ?? "-",
        ]
    }
    let widths = head.indices.map { column in ([head] + rows).map { $0[column].count }.max() ?? 0 }
    return ["TSC cycles for a call, the average of each run; ns of the median run"]
      + ([head] + rows).map { row in
        row.indices.map { column in
          let padding = String(repeating: " ", count: widths[column] - row[column].count)
          return column == 0 ? row[column] + padding : padding + row[column]
        }.joined(separator: "  ")
      }
  }

  /// One digit behind the point for small numbers, none for large ones.
  private static func number(_ value: Double) -> String {
    guard value < 100 else { return String(Int(min(value, 1e15).rounded())) }
    let tenths = Int((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10)"
  }

  // MARK: The chart

  /// An SVG with a bar for each technique, on a logarithmic scale, since the first is a hundred times shorter than the
  /// last; a mark where 2009 was.
  var chart: String {
    let (left, width, rowHeight, top) = (150.0, 520.0, 30.0, 50.0)
    let bottom = top + rowHeight * Double(measurements.count)
    let decades = 5
    func position(_ cycles: Double) -> Double { left + width * min(max(log10(cycles), 0), Double(decades)) / Double(decades) }
    func text(_ x: Double, _ y: Double, _ anchor: String, _ text: String) -> String {
      "  <text x=\"\(HypercallReport.number(x))\" y=\"\(HypercallReport.number(y))\" text-anchor=\"\(anchor)\">\(text)</text>"
    }
    func line(_ x: Double, _ from: Double, _ to: Double, _ color: String) -> String {
      "  <line x1=\"\(HypercallReport.number(x))\" x2=\"\(HypercallReport.number(x))\" y1=\"\(HypercallReport.number(from))\""
        + " y2=\"\(HypercallReport.number(to))\" stroke=\"\(color)\"/>"
    }
    var lines = [
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"\(Int(bottom) + 40)\" font-family=\"sans-serif\" font-size=\"12\">",
      "  <rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
      text(left, 22, "start", "Cost of a call in TSC cycles, median of five runs; red: 2009"),
    ]
    for decade in 0...decades {
      let x = left + width * Double(decade) / Double(decades)
      lines += [line(x, top - 8, bottom, "#ddd"), text(x, bottom + 18, "middle", decade == 0 ? "1" : "1" + String(repeating: "0", count: decade))]
    }
    for (index, measurement) in measurements.enumerated() {
      let y = top + rowHeight * Double(index)
      let name = measurement.technique.rawValue + (measurement.cpuCount > 1 ? " × \(measurement.cpuCount)" : "")
      let end = position(measurement.median)
      lines += [
        text(left - 8, y + 15, "end", name),
        "  <rect x=\"\(HypercallReport.number(left))\" y=\"\(HypercallReport.number(y + 3))\" width=\"\(HypercallReport.number(end - left))\" height=\"16\" fill=\"#4a7ab5\"/>",
        text(end + 6, y + 15, "start", HypercallReport.number(measurement.median)),
      ]
      if let figures = measurement.technique.figuresOf2009 {
        let mean = figures.reduce(0) { $0 + Double($1) } / Double(figures.count)
        lines.append(line(position(mean), y + 1, y + 21, "#c33"))
      }
    }
    return (lines + ["</svg>", ""]).joined(separator: "\n")
  }
}

// SPDX-License-Identifier: Apache-2.0
// Tables of text for the listing commands: columns as wide as their widest entry, numbers to the right.

import Lguest

struct Table {
  let lines: [String]

  /// - Parameters:
  ///   - rows: May be what strangers say.
  ///   - leftColumns: Columns whose entries begin at the left; the last of them is not padded.
  init(_ head: [String], _ rows: [[String]], leftColumns: Set<Int>) {
    let all = [head] + rows.map { $0.map { PlainText.of($0) } }
    let widths = head.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
    lines = all.map { row in
      row.indices.map { column in
        let padding = String(repeating: " ", count: widths[column] - row[column].count)
        guard leftColumns.contains(column) else { return padding + row[column] }
        return column == row.count - 1 ? row[column] : row[column] + padding
      }.joined(separator: "  ")
    }
  }

  /// Seconds as people read them: 4s, 3m05s, 2h07m.
  static func duration(_ seconds: Double) -> String {
    let whole = Int(min(max(seconds, 0), 1e9))
    func two(_ value: Int) -> String { value < 10 ? "0\(value)" : "\(value)" }
    switch whole {
    case ..<60: return "\(whole)s"
    case ..<3600: return "\(whole / 60)m\(two(whole % 60))s"
    default: return "\(whole / 3600)h\(two(whole / 60 % 60))m"
    }
  }

  /// One digit behind the point for numbers under a hundred, none for larger ones.
  static func number(_ value: Double) -> String {
    guard value < 100 else { return String(Int(min(value, 1e15).rounded())) }
    let tenths = Int((max(value, 0) * 10).rounded())
    return "\(tenths / 10).\(tenths % 10)"
  }
}

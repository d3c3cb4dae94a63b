// SPDX-License-Identifier: Apache-2.0
// The one JSON encoder: a value built by hand and its text. Keys keep the order they were given in.

/// A JSON value.
package indirect enum JSON: Sendable {
  case null
  case bool(Bool)
  case integer(Int64)
  case unsigned(UInt64)
  /// Not-a-number and the infinities have no JSON form and are written as null.
  case double(Double)
  case string(String)
  case array([JSON])
  case object([(key: String, value: JSON)])

  /// Seconds, as a double.
  package static func seconds(_ duration: Duration?) -> JSON {
    guard let duration else { return .null }
    return .double(duration.inSeconds)
  }

  /// The value as text; `indented` puts one member on a line.
  package func text(indented: Bool = true) -> String {
    var out = ""
    write(to: &out, indent: indented ? 0 : nil)
    return out
  }

  private func write(to out: inout String, indent: Int?) {
    switch self {
    case .null: out += "null"
    case .bool(let value): out += value ? "true" : "false"
    case .integer(let value): out += String(value)
    case .unsigned(let value): out += String(value)
    case .double(let value): out += value.isFinite ? "\(value)" : "null"
    case .string(let value): JSON.write(quoted: value, to: &out)
    case .array(let values):
      JSON.write(brackets: ("[", "]"), count: values.count, indent: indent, to: &out) { index, inner, out in
        values[index].write(to: &out, indent: inner)
      }
    case .object(let members):
      JSON.write(brackets: ("{", "}"), count: members.count, indent: indent, to: &out) { index, inner, out in
        JSON.write(quoted: members[index].key, to: &out)
        out += inner == nil ? ":" : ": "
        members[index].value.write(to: &out, indent: inner)
      }
    }
  }

  private static func write(
    brackets: (String, String), count: Int, indent: Int?, to out: inout String,
    member: (Int, Int?, inout String) -> Void
  ) {
    out += brackets.0
    let inner = indent.map { $0 + 2 }
    for index in 0..<count {
      if index > 0 { out += "," }
      if let inner { out += "\n" + String(repeating: " ", count: inner) }
      member(index, inner, &out)
    }
    if let indent, count > 0 { out += "\n" + String(repeating: " ", count: indent) }
    out += brackets.1
  }

  private static func write(quoted value: String, to out: inout String) {
    out += "\""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": out += "\\\""
      case "\\": out += "\\\\"
      case "\n": out += "\\n"
      case "\r": out += "\\r"
      case "\t": out += "\\t"
      // Control characters must be escaped; DEL, the C1 set and what turns the direction of text are, so that a guest's
      // console text cannot drive the terminal of whoever prints the file.
      case _ where !PlainText.isPlain(scalar):
        for unit in UTF16.encode(scalar) ?? .init() {
          let digits = String(unit, radix: 16)
          out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        }
      default: out.unicodeScalars.append(scalar)
      }
    }
    out += "\""
  }
}

extension JSON: ExpressibleByStringLiteral, ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
  ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral, ExpressibleByNilLiteral
{
  package init(stringLiteral value: String) { self = .string(value) }
  package init(booleanLiteral value: Bool) { self = .bool(value) }
  package init(integerLiteral value: Int64) { self = .integer(value) }
  package init(arrayLiteral elements: JSON...) { self = .array(elements) }
  package init(dictionaryLiteral elements: (String, JSON)...) { self = .object(elements.map { ($0.0, $0.1) }) }
  package init(nilLiteral: ()) { self = .null }
}

extension Duration {
  /// Seconds, as a double.
  package var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) / 1e18 }
}

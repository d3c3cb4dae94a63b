// SPDX-License-Identifier: Apache-2.0
// JSON from text, for the control socket: strict (RFC 8259), with a limit on depth, since the text may be anybody's.

/// Reads one JSON value from UTF-8.
struct JSONParser {
  /// Deeper nesting is refused.
  static let deepest = 32
  /// Numbers with more digits and signs are refused: no value needs them.
  static let longestNumber = 100

  private let bytes: [UInt8]
  private var at = 0

  private struct Malformed: Error {}

  /// The value of a whole text; nil if it is not JSON or something follows it.
  static func value(_ text: String) -> JSON? {
    var parser = JSONParser(bytes: Array(text.utf8))
    // `.none` throughout: `nil` can also be read as JSON's null.
    guard let value = try? parser.value(depth: 0) else { return .none }
    parser.skipSpace()
    guard parser.at == parser.bytes.count else { return .none }
    return value
  }

  private init(bytes: [UInt8]) { self.bytes = bytes }

  private var next: UInt8? { at < bytes.count ? bytes[at] : nil }

  private mutating func skipSpace() {
    while let byte = next, [0x20, 0x09, 0x0A, 0x0D].contains(byte) { at += 1 }
  }

  private mutating func take(_ byte: Character) -> Bool {
    guard next == byte.asciiValue else { return false }
    at += 1
    return true
  }

  private mutating func word(_ text: String, _ value: JSON) throws -> JSON {
    for byte in text.utf8 {
      guard next == byte else { throw Malformed() }
      at += 1
    }
    return value
  }

  private mutating func value(depth: Int) throws -> JSON {
    guard depth < JSONParser.deepest else { throw Malformed() }
    skipSpace()
    switch next.map({ Character(Unicode.Scalar($0)) }) {
    case "{": return try object(depth: depth)
    case "[": return try array(depth: depth)
    case "\"": return .string(try string())
    case "t": return try word("true", .bool(true))
    case "f": return try word("false", .bool(false))
    case "n": return try word("null", .null)
    default: return try number()
    }
  }

  private mutating func object(depth: Int) throws -> JSON {
    at += 1
    var members: [(key: String, value: JSON)] = []
    skipSpace()
    if take("}") { return .object(members) }
    repeat {
      skipSpace()
      guard next == UInt8(ascii: "\"") else { throw Malformed() }
      let key = try string()
      skipSpace()
      guard take(":") else { throw Malformed() }
      members.append((key, try value(depth: depth + 1)))
      skipSpace()
    } while take(",")
    guard take("}") else { throw Malformed() }
    return .object(members)
  }

  private mutating func array(depth: Int) throws -> JSON {
    at += 1
    var values: [JSON] = []
    skipSpace()
    if take("]") { return .array(values) }
    repeat {
      values.append(try value(depth: depth + 1))
      skipSpace()
    } while take(",")
    guard take("]") else { throw Malformed() }
    return .array(values)
  }

  private mutating func string() throws -> String {
    at += 1
    var text: [UInt8] = []
    while let byte = next, byte != UInt8(ascii: "\"") {
      guard byte >= 0x20 else { throw Malformed() }
      at += 1
      text += byte == UInt8(ascii: "\\") ? Array(String(try escaped()).utf8) : [byte]
    }
    guard take("\"") else { throw Malformed() }
    return String(decoding: text, as: UTF8.self)
  }

  private mutating func escaped() throws -> Unicode.Scalar {
    guard let byte = next else { throw Malformed() }
    at += 1
    switch Character(Unicode.Scalar(byte)) {
    case "\"": return "\""
    case "\\": return "\\"
    case "/": return "/"
    case "b": return "\u{8}"
    case "f": return "\u{C}"
    case "n": return "\n"
    case "r": return "\r"
    case "t": return "\t"
    case "u":
      let first = try unit()
      if let scalar = Unicode.Scalar(first) { return scalar }
      // A surrogate: the other half must follow.
      guard first < 0xDC00, take("\\"), take("u") else { throw Malformed() }
      let second = try unit()
      guard (0xDC00...0xDFFF).contains(second),
        let scalar = Unicode.Scalar(0x1_0000 + (first - 0xD800) << 10 + (second - 0xDC00))
      else { throw Malformed() }
      return scalar
    default: throw Malformed()
    }
  }

  /// Four hexadecimal digits.
  private mutating func unit() throws -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<4 {
      guard let digit = next.flatMap({ Character(Unicode.Scalar($0)).hexDigitValue }) else { throw Malformed() }
      value = value << 4 | UInt32(digit)
      at += 1
    }
    return value
  }

  private mutating func number() throws -> JSON {
    let start = at
    while let byte = next, (0x30...0x39).contains(byte) || [0x2B, 0x2D, 0x2E, 0x45, 0x65].contains(byte) { at += 1 }
    guard at - start <= JSONParser.longestNumber else { throw Malformed() }
    let text = String(decoding: bytes[start..<at], as: UTF8.self)
    guard text.wholeMatch(of: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/) != nil else { throw Malformed() }
    if let value = UInt64(text) { return .unsigned(value) }
    if let value = Int64(text) { return .integer(value) }
    guard let value = Double(text) else { throw Malformed() }
    return .double(value)
  }
}

extension JSON {
  /// A member of an object.
  package subscript(key: String) -> JSON? {
    guard case .object(let members) = self else { return .none }
    return members.first { $0.key == key }?.value
  }

  package var stringValue: String? { if case .string(let text) = self { text } else { nil } }
  package var unsignedValue: UInt64? { if case .unsigned(let value) = self { value } else { nil } }
  package var numberValue: Double? {
    switch self {
    case .unsigned(let value): Double(value)
    case .integer(let value): Double(value)
    case .double(let value): value
    default: nil
    }
  }
  package var elements: [JSON]? { if case .array(let values) = self { values } else { nil } }
  package var members: [(key: String, value: JSON)]? { if case .object(let members) = self { members } else { nil } }
}

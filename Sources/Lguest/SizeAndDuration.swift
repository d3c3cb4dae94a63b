// SPDX-License-Identifier: Apache-2.0
// Sizes and times as people write them: `1G`, `512M`, `90s`, `1500ms`. Everything else is refused in one line that
// says what would have been accepted.

/// Why a size or a time was refused.
package struct QuantityError: Error, Sendable, Equatable, CustomStringConvertible {
  package let description: String
}

/// A number of bytes as a person writes it.
package enum ByteSize {
  private static let units: [(suffix: Character, shift: UInt64)] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)]

  /// Reads a whole number of bytes with an optional binary suffix K, M, G or T (either case).
  package static func parse(_ text: String) throws(QuantityError) -> UInt64 {
    var digits = Substring(text)
    var shift: UInt64 = 0
    if let last = digits.last, let unit = units.first(where: { $0.suffix.lowercased() == last.lowercased() }) {
      shift = unit.shift
      digits.removeLast()
    }
    guard !digits.isEmpty, digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
      throw QuantityError(
        description: "'\(text)' is not a size; write a whole number with K, M or G, such as 512M or 1G")
    }
    guard let number = UInt64(digits), number <= UInt64.max >> shift else {
      throw QuantityError(
        description: "'\(text)' is larger than any computer's memory; write a size such as 512M or 1G")
    }
    return number << shift
  }

  /// The shortest exact form: `1G`, `1536M`, `4097`.
  package static func text(_ bytes: UInt64) -> String {
    for unit in units.reversed() where bytes != 0 && bytes & ((1 << unit.shift) - 1) == 0 {
      return "\(bytes >> unit.shift)\(unit.suffix)"
    }
    return "\(bytes)"
  }
}

/// A time limit as a person writes it.
package enum TimeLimit {
  private static let units: [(suffix: String, milliseconds: Double)] = [
    ("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000),
  ]

  /// Reads a number with the suffix ms, s, m or h (none means seconds). 0 means no limit, which is nil.
  package static func parse(_ text: String) throws(QuantityError) -> Duration? {
    let unit = units.first { text.hasSuffix($0.suffix) } ?? ("", 1_000)
    let number = text.dropLast(unit.suffix.count)
    let isPlain =
      !number.isEmpty
      && number.utf8.allSatisfy {
        (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) || $0 == UInt8(ascii: ".")
      }
    guard isPlain, number.first != ".", number.last != ".", let value = Double(number) else {
      throw QuantityError(description: "'\(text)' is not a time; write a number with ms, s, m or h, such as 90s or 2m")
    }
    let milliseconds = value * unit.milliseconds
    let aCentury = 100.0 * 365 * 24 * 3_600_000
    guard milliseconds <= aCentury else {
      throw QuantityError(description: "'\(text)' is longer than a century; write 0 for no limit")
    }
    guard milliseconds > 0 else { return nil }
    return .microseconds(Int64((milliseconds * 1_000).rounded(.up)))
  }

  /// The shortest exact form: `2m`, `90s`, `1500ms`.
  package static func text(_ limit: Duration?) -> String {
    guard let limit else { return "0" }
    let milliseconds = Int64((limit.inSeconds * 1_000).rounded())
    for (suffix, scale) in [("h", Int64(3_600_000)), ("m", 60_000), ("s", 1_000)] where milliseconds % scale == 0 {
      return "\(milliseconds / scale)\(suffix)"
    }
    return "\(milliseconds)ms"
  }
}

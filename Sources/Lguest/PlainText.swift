// SPDX-License-Identifier: Apache-2.0
// Text from a guest, a file or a socket as it may stand in a line of ours: what would move a cursor, begin a line or turn
// the direction of what follows is replaced.

/// Makes text of strangers fit for a line.
package enum PlainText {
  /// The text with U+FFFD for each control character, format character (those that turn the direction among them) and
  /// separator of lines and paragraphs (Cc, Cf, Zl and Zp of Unicode).
  ///
  /// - Parameter keepsTabs: Whether a tab stays one.
  package static func of(_ text: some StringProtocol, keepsTabs: Bool = false) -> String {
    var plain = String.UnicodeScalarView()
    for scalar in text.unicodeScalars {
      plain.append(isPlain(scalar) || keepsTabs && scalar == "\t" ? scalar : "\u{FFFD}")
    }
    return String(plain)
  }

  /// Whether a character stays as it is.
  static func isPlain(_ scalar: Unicode.Scalar) -> Bool {
    if scalar.isASCII { return (0x20..<0x7F).contains(scalar.value) }
    return switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator: false
    default: true
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// What strangers say, in lines of ours and in JSON: nothing that moves a cursor, begins a line or turns text around.

import Testing

@testable import Lguest

@Suite("Plain text") struct PlainTextTests {
  static let strange: [Unicode.Scalar] = [
    "\u{0}", "\u{1B}", "\n", "\t", "\u{7F}", "\u{9B}", "\u{AD}", "\u{200B}", "\u{200E}", "\u{2028}", "\u{2029}",
    "\u{202A}", "\u{202E}", "\u{2066}", "\u{2069}", "\u{FEFF}", "\u{E0001}",
  ]

  @Test("control and format characters and separators of lines are replaced", arguments: strange)
  func replaced(scalar: Unicode.Scalar) {
    #expect(PlainText.of("a\(Character(scalar))b") == "a\u{FFFD}b")
  }

  @Test("all else stays") func stays() {
    let text = "vmlinuz-6.1 ~ é ü 日本 \u{1F600} \u{FFFD}\u{A0}|"
    #expect(PlainText.of(text) == text && PlainText.of("a\tb", keepsTabs: true) == "a\tb")
  }

  @Test("JSON has them as numbers, and means the same", arguments: strange)
  func json(scalar: Unicode.Scalar) throws {
    let value = JSON.string("a\(Character(scalar))b")
    #expect(value.text(indented: false).unicodeScalars.allSatisfy { PlainText.isPlain($0) })
    #expect(JSONParser.value(value.text(indented: false))?.stringValue == value.stringValue)
  }

  @Test("a console's line is plain, but for tabs") func console() {
    var tail = ConsoleTail()
    for byte in "\tgood\u{202E}live\u{2028}\n".utf8 { tail.append(byte) }
    #expect(tail.text == ["\tgood\u{FFFD}live\u{FFFD}"])
  }
}

// SPDX-License-Identifier: Apache-2.0
// What the console said last, kept byte by byte without allocating: the last forty lines for a post-mortem, and two
// phrases watched for as they go by, a kernel panic and the beginning of user space.

/// The last lines of a console and the phrases seen in it. Belongs to whoever feeds it.
package struct ConsoleTail: Sendable {
  /// Lines kept.
  package static let lineCount = 40
  /// Bytes kept of a line; the rest of a longer line is dropped.
  package static let lineLength = 512

  private var lines: [UInt8]
  private var lengths: [Int]
  /// Row being filled, and how many rows have been filled (at most all).
  private var row = 0
  private var filled = 0
  private var length = 0
  private var panic = PhraseMatcher("Kernel panic - not syncing")
  private var panicEnd = PhraseMatcher("end Kernel panic")
  private var user = PhraseMatcher("Run /")
  private var userSuffix = PhraseMatcher(" as init process")

  /// A line contained `Kernel panic - not syncing`.
  package private(set) var sawPanic = false
  /// What the first such line said behind it, when it is whole: the line itself may be older than those kept.
  package private(set) var panicReason: String?
  /// A whole line announced that the kernel has nothing more to say (`---[ end Kernel panic - not syncing`).
  package private(set) var sawPanicEnd = false
  /// A line announced that the kernel starts init (`Run /init as init process`).
  package private(set) var sawUserSpace = false

  package init() {
    lines = [UInt8](repeating: 0, count: ConsoleTail.lineCount * ConsoleTail.lineLength)
    lengths = [Int](repeating: 0, count: ConsoleTail.lineCount)
  }

  /// Takes one byte the guest wrote.
  package mutating func append(_ byte: UInt8) {
    if byte == UInt8(ascii: "\n") {
      endLine()
      return
    }
    if panic.advance(byte) { sawPanic = true }
    _ = panicEnd.advance(byte)
    if !user.isMatched {
      _ = user.advance(byte)
    } else if userSuffix.advance(byte) {
      sawUserSpace = true
    }
    if byte == UInt8(ascii: "\r") { return }
    if length < ConsoleTail.lineLength {
      lines[row * ConsoleTail.lineLength + length] = byte
      length += 1
    }
  }

  private mutating func endLine() {
    lengths[row] = length
    if panic.isMatched, panicReason == nil { panicReason = reason(line(row, length)) }
    row = (row + 1) % ConsoleTail.lineCount
    filled = min(filled + 1, ConsoleTail.lineCount)
    length = 0
    if panicEnd.isMatched && sawPanic { sawPanicEnd = true }
    panicEnd.restart()
    panic.restart()
    user.restart()
    userSuffix.restart()
  }

  /// The lines, oldest first, an unfinished one last. Bytes that are not UTF-8 are replaced, and so are control
  /// characters: a guest must not drive the terminal of whoever reads its last words.
  package var text: [String] {
    let whole = length > 0 ? min(filled, ConsoleTail.lineCount - 1) : filled
    var result: [String] = []
    for back in stride(from: whole, to: 0, by: -1) {
      let index = (row + ConsoleTail.lineCount - back) % ConsoleTail.lineCount
      result.append(line(index, lengths[index]))
    }
    if length > 0 { result.append(line(row, length)) }
    return result
  }

  /// "sysrq triggered crash", of "[    1.05] Kernel panic - not syncing: sysrq triggered crash".
  private func reason(_ line: String) -> String? {
    guard let phrase = line.firstRange(of: "Kernel panic - not syncing: ") else { return nil }
    return String(line[phrase.upperBound...])
  }

  private func line(_ index: Int, _ count: Int) -> String {
    let start = index * ConsoleTail.lineLength
    return PlainText.of(String(decoding: lines[start..<start + count], as: UTF8.self), keepsTabs: true)
  }
}

/// Finds a phrase in a stream of bytes (Knuth, Morris, Pratt), within a line.
struct PhraseMatcher: Sendable {
  private let phrase: [UInt8]
  /// For each prefix, the longest proper prefix that is also its suffix.
  private let fallback: [Int]
  private var position = 0
  private(set) var isMatched = false

  init(_ text: StaticString) {
    let phrase = Array(text.description.utf8)
    var fallback = [Int](repeating: 0, count: phrase.count)
    var length = 0
    for index in phrase.indices.dropFirst() {
      while length > 0, phrase[index] != phrase[length] { length = fallback[length - 1] }
      if phrase[index] == phrase[length] { length += 1 }
      fallback[index] = length
    }
    self.phrase = phrase
    self.fallback = fallback
  }

  /// Takes a byte; true when it completes the phrase.
  mutating func advance(_ byte: UInt8) -> Bool {
    while position > 0, position == phrase.count || phrase[position] != byte { position = fallback[position - 1] }
    if phrase[position] == byte { position += 1 }
    guard position == phrase.count else { return false }
    isMatched = true
    return true
  }

  /// Forgets everything: a new line begins.
  mutating func restart() {
    position = 0
    isMatched = false
  }
}

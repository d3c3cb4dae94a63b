// SPDX-License-Identifier: Apache-2.0
// Integers in byte arrays, as image headers and boot structures store them.

extension [UInt8] {
  /// The little-endian integer at an offset, or `nil` if the array ends before it does.
  func little<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T? {
    let size = T.bitWidth / 8
    guard offset >= 0, size <= count, offset <= count - size else { return nil }
    var value: T = 0
    for i in (0..<size).reversed() { value = value << 8 | T(truncatingIfNeeded: self[offset + i]) }
    return value
  }

  /// Stores a little-endian integer; the bytes must exist.
  mutating func setLittle<T: FixedWidthInteger>(_ value: T, at offset: Int) {
    for i in 0..<T.bitWidth / 8 { self[offset + i] = UInt8(truncatingIfNeeded: value >> T(i * 8)) }
  }

  /// Adds a little-endian integer at the end.
  mutating func appendLittle<T: FixedWidthInteger>(_ value: T) {
    for i in 0..<T.bitWidth / 8 { append(UInt8(truncatingIfNeeded: value >> T(i * 8))) }
  }

  /// Whether the bytes at an offset are these.
  func matches(_ bytes: [UInt8], at offset: Int = 0) -> Bool {
    offset >= 0 && bytes.count <= count && offset <= count - bytes.count
      && self[offset..<offset + bytes.count].elementsEqual(bytes)
  }

  /// Whether the bytes at an offset are this ASCII text.
  func matches(_ text: String, at offset: Int = 0) -> Bool { matches([UInt8](text.utf8), at: offset) }
}

extension ArraySlice<UInt8> {
  /// The text up to the first NUL, control characters replaced so that it can be printed.
  var printable: String {
    let text = prefix { $0 != 0 }.map { $0 < 0x20 || $0 == 0x7F ? UInt8(ascii: "?") : $0 }
    return String(decoding: text, as: UTF8.self)
  }
}

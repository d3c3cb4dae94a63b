// SPDX-License-Identifier: Apache-2.0
// The dozen AML encodings a DSDT of ours needs, as functions from parts to bytes (ACPI 6.5, chapter 20.2).

enum AML {
  /// A name of up to four characters, padded with underscores; a leading backslash is kept.
  static func path(_ name: String) -> [UInt8] {
    let isRooted = name.hasPrefix("\\")
    let segment = Array(name.utf8.dropFirst(isRooted ? 1 : 0))
    precondition((1...4).contains(segment.count), "one name segment")
    return (isRooted ? [0x5C] : []) + segment + [UInt8](repeating: UInt8(ascii: "_"), count: 4 - segment.count)
  }

  /// ByteConst, WordConst or DWordConst, or the one-byte forms of 0 and 1.
  static func integer(_ value: UInt32) -> [UInt8] {
    switch value {
    case 0, 1: [UInt8(value)]
    case ...0xFF: [0x0A, UInt8(value)]
    case ...0xFFFF: [0x0B] + value.littleEndianBytes.prefix(2)
    default: [0x0C] + value.littleEndianBytes
    }
  }

  static func string(_ text: String) -> [UInt8] { [0x0D] + Array(text.utf8) + [0] }

  /// A compressed EISA identifier such as PNP0501 (three letters, four hexadecimal digits), big-endian.
  static func eisaID(_ id: String) -> [UInt8] {
    let characters = Array(id.utf8)
    precondition(characters.count == 7, "three letters and four digits")
    guard let digits = UInt16(id.dropFirst(3), radix: 16) else { preconditionFailure("not hexadecimal") }
    let letters = characters.prefix(3).reduce(UInt16(0)) { $0 << 5 | UInt16($1 & 0x1F) }
    return [0x0C, UInt8(letters >> 8), UInt8(letters & 0xFF), UInt8(digits >> 8), UInt8(digits & 0xFF)]
  }

  static func name(_ name: String, _ value: [UInt8]) -> [UInt8] { [0x08] + path(name) + value }

  static func scope(_ name: String, _ body: [UInt8]) -> [UInt8] { [0x10] + packaged(path(name) + body) }

  static func device(_ name: String, _ body: [UInt8]) -> [UInt8] { [0x5B, 0x82] + packaged(path(name) + body) }

  static func package(_ elements: [[UInt8]]) -> [UInt8] {
    [0x12] + packaged([UInt8(elements.count)] + elements.flatMap(\.self))
  }

  /// A resource template: the descriptors, an end tag with a checksum of 0 (none), in a buffer.
  static func resources(_ descriptors: [[UInt8]]) -> [UInt8] {
    let bytes = descriptors.flatMap(\.self) + [0x79, 0x00]
    return [0x11] + packaged(integer(UInt32(bytes.count)) + bytes)
  }

  /// IO (Decode16, base, base, 1, count).
  static func ports(_ base: UInt16, count: UInt8) -> [UInt8] {
    [0x47, 0x01] + base.littleEndianBytes + base.littleEndianBytes + [1, count]
  }

  /// IRQNoFlags () {irq}: edge, active high.
  static func irq(_ irq: UInt8) -> [UInt8] { [0x22] + (UInt16(1) << UInt16(irq & 15)).littleEndianBytes }

  /// Memory32Fixed (ReadWrite, base, count).
  static func memory(_ base: UInt32, count: UInt32) -> [UInt8] {
    [0x86, 9, 0, 1] + base.littleEndianBytes + count.littleEndianBytes
  }

  /// Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) {gsi}, or Edge.
  static func interrupt(_ gsi: UInt32, isEdge: Bool) -> [UInt8] {
    [0x89, 6, 0, isEdge ? 0b0011 : 0b0001, 1] + gsi.littleEndianBytes
  }

  /// PkgLength, which counts itself, and then the contents.
  static func packaged(_ contents: [UInt8]) -> [UInt8] {
    let count = contents.count
    if count + 1 < 1 << 6 { return [UInt8(count + 1)] + contents }
    let extra = count + 2 < 1 << 12 ? 1 : count + 3 < 1 << 20 ? 2 : 3
    let total = UInt32(count + 1 + extra)
    let lead = UInt8(extra << 6) | UInt8(total & 0xF)
    return [lead] + (total >> 4).littleEndianBytes.prefix(extra) + contents
  }
}

extension FixedWidthInteger {
  /// The value's bytes, lowest first.
  var littleEndianBytes: [UInt8] {
    (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self >> Self($0 * 8)) }
  }
}

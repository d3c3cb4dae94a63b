// SPDX-License-Identifier: Apache-2.0
// The host's decompression libraries, each given what its own tool has written, whole and damaged.

import Foundation
import Testing

@testable import Host

@Suite struct DecompressionTests {
  /// "The quick brown fox jumps over the lazy dog. " again and again, 1,500 bytes.
  static let text = Array(
    [UInt8](String(repeating: "The quick brown fox jumps over the lazy dog. ", count: 40).utf8)[..<1500])

  /// The same as `gzip -9n`, `xz --check=crc32 --x86 --lzma2`, `zstd -19` and `lz4 -l -9` pack it.
  static let packed: [Decompression: [UInt8]] = [
    .gzip: bytes(
      "H4sIAAAAAAACAwvJSFUoLM1MzlZIKsovz1NIy69QyCrNLShWyC9LLVIoAUrnJFZVKqTkp+sphIwqHlU8qnhU8ajioaAYAA4lZS/cBQAA"),
    .xz: bytes(
      "/Td6WFoAAAFpIt42AgEEACEBFgANhjUf4AXbADtdACoaCKIDJWbxS3jFogX/LubZ0iAarTT44h3oQTb63AZpuzzkEDQnCeuzZuPtN5jtkq3VJ0UIMFuvXoQAAAAOJWUvAAFT3AsAAADdu0vSPjANiwIAAAAAAVla"
    ),
    .zstd: bytes(
      "KLUv/WTcBLUBANQCVGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIHRoZSBsYXp5IGRvZy4gAQBlDf6qDK/Wqts="),
    .lz4: bytes(
      "AiFMGD0AAAD/HlRoZSBxdWljayBicm93biBmb3gganVtcHMgb3ZlciB0aGUgbGF6eSBkb2cuIC0A//////+cUGJyb3du"),
  ]

  private static func bytes(_ base64: String) -> [UInt8] { [UInt8](Data(base64Encoded: base64)!) }

  private func unpack(_ format: Decompression, _ bytes: [UInt8], room: Int) -> [UInt8]? {
    var target = [UInt8](repeating: 0, count: room)
    let count = unsafe target.withUnsafeMutableBytes { unsafe format.decode(bytes, into: $0) }
    return count.map { Array(target[..<$0]) }
  }

  @Test("what the tools pack is unpacked", arguments: Decompression.allCases)
  func whole(format: Decompression) throws {
    let packed = try #require(Self.packed[format])
    #expect(unpack(format, packed, room: 1500) == Self.text)
    #expect(unpack(format, packed, room: 5000) == Self.text)
    #expect(unpack(format, packed, room: 1499) == nil, "less room than text")
    if format != .zstd { #expect(unpack(format, packed + [0, 0, 5, 0xDC], room: 1500) == Self.text, "a trailer") }
  }

  @Test("a file of exactly the size asked for", arguments: Decompression.allCases)
  func file(format: Decompression) throws {
    let packed = try #require(Self.packed[format])
    let file = try #require(format.decode(packed, byteCount: 1500, description: "a text"))
    #expect(try file.bytes(at: 0, count: 1500) == Self.text && file.byteCount == 1500)
    #expect(format.decode(packed, byteCount: 1501, description: "a text") == nil)
  }

  @Test("what is damaged is not", arguments: Decompression.allCases)
  func damaged(format: Decompression) throws {
    let packed = try #require(Self.packed[format])
    for count in 0..<packed.count { #expect(unpack(format, Array(packed[..<count]), room: 1500) != Self.text) }
    for index in packed.indices {
      var changed = packed
      changed[index] ^= 0x55
      _ = unpack(format, changed, room: 1500)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Fields in bytes: each kind comes back, and nothing impossible does.

import GuestMemory
import Host
import SystemPackage
import TestSupport
import Testing
import X86

@testable import Lguest
@testable import Saving

@Suite("State archives") struct StateArchiveTests {
  private struct Everything: SavedState, Equatable {
    enum Kind: UInt8 { case one = 1, two }
    var byte: UInt8 = 0
    var negative: Int64 = 0
    var truth = false
    var kind = Kind.one
    var perhaps: UInt16?
    var list: [UInt32] = []
    var text = ""
    var instant: UInt64 = 0
    var noInstant: UInt64?

    mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
      try archive.transfer(&byte, "byte")
      try archive.transfer(&negative, "negative")
      try archive.transfer(&truth, "truth")
      try archive.transfer(&kind, "kind")
      try archive.transfer(&perhaps, "perhaps")
      try archive.transfer(&list, "list", limit: 4)
      try archive.transfer(&text, "text", limit: 10)
      try archive.transfer(instant: &instant, "instant")
      try archive.transfer(instant: &noInstant, "no instant")
    }
  }

  @Test("every kind of field comes back; moments move") func fields() throws {
    var before = Everything(
      byte: 200, negative: -5, truth: true, kind: .two, perhaps: 9, list: [1, .max], text: "été", instant: 1000)
    var saving = StateArchive(savingAt: 1500)
    try before.transfer(&saving)
    var after = Everything(perhaps: 1, noInstant: 4)
    var restoring = StateArchive(restoring: saving.bytes, at: 10_500)
    try after.transfer(&restoring)
    try restoring.finish()
    before.instant = 10_000
    #expect(after == before)
    // A host younger than the moment is past.
    restoring = StateArchive(restoring: saving.bytes, at: 100)
    try after.transfer(&restoring)
    #expect(after.instant == 0)
    for length in 0..<saving.bytes.count {
      var short = StateArchive(restoring: Array(saving.bytes.prefix(length)), at: 0)
      #expect(throws: SavedStateError.self) { try after.transfer(&short) }
    }
    var long = StateArchive(restoring: saving.bytes + [0], at: 0)
    try after.transfer(&long)
    #expect(throws: SavedStateError.excess(byteCount: 1)) { try long.finish() }
  }

  @Test("impossible values") func impossible() throws {
    var value = Everything(list: [1])
    var saving = StateArchive(savingAt: 0)
    try value.transfer(&saving)
    for (place, byte, name) in [
      (9, UInt8(2), "truth 0x2"), (10, 3, "kind 0x3"), (11, 7, "perhaps's presence 0x7"),
      (17, 200, "list's length 0xc8000001"),
    ] {
      var bytes = saving.bytes
      bytes[place] = byte
      var archive = StateArchive(restoring: bytes, at: 0)
      #expect(throws: SavedStateError.invalid("machine \(name)"), "\(place)") {
        try archive.part("machine") { archive throws(SavedStateError) in try value.transfer(&archive) }
      }
    }
  }

  @Test("bits, ranges and sets are kept to, and a refusal says which field") func rules() throws {
    func restore(_ bytes: [UInt8], _ body: (inout StateArchive) throws(SavedStateError) -> Void) -> String? {
      var archive = StateArchive(restoring: bytes, at: 0)
      do throws(SavedStateError) {
        try body(&archive)
        return nil
      } catch { return "\(error)" }
    }
    var (byte, word, set): (UInt8, Int16, FeatureSet) = (0, 0, [])
    #expect(restore([0x81]) { archive throws(SavedStateError) in try archive.transfer(&byte, "a", bits: 0x81) } == nil)
    #expect(
      restore([0x83]) { archive throws(SavedStateError) in try archive.transfer(&byte, "a", bits: 0x81) }
        == "impossible a 0x83")
    #expect(
      restore([0xFE, 0xFF]) { archive throws(SavedStateError) in try archive.transfer(&word, "b", in: -2...5) } == nil)
    #expect(
      restore([6, 0]) { archive throws(SavedStateError) in try archive.transfer(&word, "b", in: -2...5) }
        == "impossible b 0x6")
    #expect(
      restore([4, 0, 0, 0, 0, 0, 0, 0]) { archive throws(SavedStateError) in
        try archive.transfer(&set, "c", within: FeatureSet(rawValue: 3))
      } == "impossible c 0x4")
    #expect(
      restore([1]) { archive throws(SavedStateError) in
        try archive.part("outer") { archive throws(SavedStateError) in
          try archive.part("inner") { archive throws(SavedStateError) in try archive.transfer(&word, "d") }
        }
      } == "it ends before its outer inner d")
  }

  @Test("who asks is told where every field is") func places() throws {
    var value = Everything(list: [1, 2], text: "abc")
    var saving = StateArchive(savingAt: 0)
    try value.transfer(&saving)
    var archive = StateArchive(restoring: saving.bytes, at: 0, listsFields: true)
    try value.transfer(&archive)
    let fields = try #require(archive.fields)
    // One after the other, without a gap.
    var end = 0
    for field in fields {
      #expect(field.offset == end)
      end += field.elementSize * field.count
    }
    #expect(end == saving.bytes.count)
    #expect(fields.contains(SavedField(name: "list", offset: 18, elementSize: 4, count: 2)))
    #expect(fields.map(\.name).contains("no instant's presence") && saving.fields == nil)
  }

  @Test("the header comes back, and none of its bytes may change") func header() throws {
    var header = SaveFileHeader()
    header.fileByteCount = 1 << 40
    header.memoryByteCount = 12345
    header.entries = (0..<SaveFileHeader.sectionLimit).map { number in
      SaveFileHeader.Entry(
        name: "section \(number)", version: 1, checksum: UInt32(number), offset: UInt64(number),
        byteCount: 7)
    }
    let page = header.encoded()
    #expect(page.count == SaveFileHeader.byteCount)
    #expect(try SaveFileHeader(page) == header)
    for place in page.indices {
      var bad = page
      bad[place] ^= 1 << UInt8(place % 8)
      #expect(throws: SaveFileProblem.self, "\(place)") { try SaveFileHeader(bad) }
    }
    #expect(throws: SaveFileProblem.truncated) { try SaveFileHeader(Array(page.prefix(4000))) }
    #expect(throws: SaveFileProblem.truncated) { try SaveFileHeader([]) }
  }

  @Test(
    "RAM comes back page by page, also the second time, and above 4 GiB",
    arguments: [16 << 20, (3 << 30) + (32 << 20)] as [UInt64])
  func memory(_ byteCount: UInt64) throws {
    try Moving.withPath { path in
      var memory = try GuestMemory(byteCount: byteCount)
      let top = memory.highEnd > GuestMemory.highStart ? memory.highEnd : memory.lowEnd
      var places: [UInt64: UInt64] = [0: 1, 0x5008: 2, memory.lowEnd - 8: 3]
      places[top - 8] = 4
      for round in 0..<3 {
        places[UInt64(round) * 0x10_0000 + 0x9000] = UInt64(round) + 100
        places[0x5008] = UInt64(round) + 50
        for (place, value) in places { try memory.store(value, at: GuestPhysical(place)) }
        // Written, and zero again.
        try memory.store(UInt64(1), at: GuestPhysical(0xA000))
        try memory.store(UInt64(0), at: GuestPhysical(0xA000))
        let file = try ReplacementFile(path)
        let sums = try memory.writeImage(to: file.output, at: 4096)
        try file.commit()
        #expect(sums.filter { $0 != Checksum.zeroPage }.count == Set(places.keys.map { $0 >> 12 }).count)
        let image = try HostFile(path, role: "image")
        memory = try GuestMemory(byteCount: byteCount, image: image, at: 4096)
        let same = try memory.firstDifference(from: sums, threadCount: 2)
        #expect(same.page == nil && same.byteCount > 0)
        for (place, value) in places { #expect(try memory.load(UInt64.self, at: GuestPhysical(place)) == value) }
        var wrong = sums
        wrong[5] ^= 1
        #expect(try memory.firstDifference(from: wrong, threadCount: 2).page == 5)
        wrong = sums
        wrong[0x20] = 77  // a hole
        #expect(try memory.firstDifference(from: wrong, threadCount: 1).page == 0x20)
      }
    }
  }

  @Test("the checksum is CRC-32C") func checksum() {
    // RFC 3720, B.4.
    #expect(Checksum.crc32c([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
    #expect(Checksum.crc32c([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
    #expect(Checksum.crc32c(Array(0..<32)) == 0x46DD_794E)
    #expect(Checksum.crc32c(Array("123456789".utf8)) == 0xE306_9283)
  }

  @Test("pages are summed as bytes are, however many", arguments: [0, 1, 3, 4, 5, 8, 11]) func pages(count: Int) {
    var random = SeededGenerator("sums of pages", salt: count)
    let pages = (0..<count).map { _ in (0..<4096).map { _ in UInt8.random(in: 0...255, using: &random) } }
    let sums = unsafe Array(pages.joined()).withUnsafeBytes { bytes in
      unsafe bytes.baseAddress.map { unsafe Checksum.ofPages($0, count: count) } ?? []
    }
    #expect(sums == pages.map { Checksum.crc32c($0) })
  }

  @Test("many words there and back; too many and too few are refused") func words() throws {
    var words: [UInt32] = [1, 0x8000_0002, 0, .max]
    var archive = StateArchive(savingAt: 0)
    try archive.transfer(words: &words, "words", limit: 4)
    var next: UInt8 = 7
    try archive.transfer(&next, "next")
    let bytes = archive.bytes
    #expect(bytes == [4, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0x80, 0, 0, 0, 0, 255, 255, 255, 255, 7])
    archive = StateArchive(restoring: bytes, at: 0)
    var back: [UInt32] = []
    next = 0
    try archive.transfer(words: &back, "back", limit: 4)
    try archive.transfer(&next, "next")
    try archive.finish()
    #expect(back == words && next == 7)
    archive = StateArchive(restoring: bytes, at: 0)
    #expect(throws: SavedStateError.self) { try archive.transfer(words: &back, "back", limit: 3) }
    archive = StateArchive(restoring: Array(bytes.prefix(19)), at: 0)
    #expect(throws: SavedStateError.self) { try archive.transfer(words: &back, "back", limit: 4) }
  }
}

// SPDX-License-Identifier: Apache-2.0
// A saved machine as a file: a header of one page that names the sections, the guest's RAM page by page, so that it can
// be mapped, and behind it the sections. Every byte that is not a hole is covered by a checksum. docs/save-file.md has
// the layout.

import GuestMemory
import Host
import Logging
import Saving
package import SystemPackage

/// The first page of the file.
struct SaveFileHeader: SavedState, Equatable {
  struct Entry: Equatable {
    var name = ""
    var version: UInt32 = 0
    var checksum: UInt32 = 0
    var offset: UInt64 = 0
    var byteCount: UInt64 = 0

    mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
      var letters = InlineArray<16, UInt8>(repeating: 0)
      for (place, byte) in name.utf8.prefix(SaveFileHeader.nameByteCount).enumerated() { letters[place] = byte }
      try archive.transfer(&letters, "name")
      let all = (0..<SaveFileHeader.nameByteCount).map { letters[$0] }
      let used = all.prefix { $0 != 0 }
      // Messages show it.
      try archive.require(!used.isEmpty && used.allSatisfy { (0x20..<0x7F).contains($0) }, "name")
      try archive.require(all.dropFirst(used.count).allSatisfy { $0 == 0 }, "name")
      name = String(decoding: used, as: UTF8.self)
      try archive.transfer(&version, "version")
      try archive.require(version > 0, "version", version)
      try archive.transfer(&checksum, "checksum")
      try archive.transfer(&offset, "place")
      try archive.transfer(&byteCount, "length")
    }
  }

  static let byteCount = 4096
  /// "lguestVM", little-endian.
  static let magic: UInt64 = 0x4D56_7473_6575_676C
  /// Of the whole file, the highest; a section has its own as well. Guests of lguest's interface came with 2.
  static let version: UInt32 = 2
  static let plainVersion: UInt32 = 1
  static let nameByteCount = 16
  private static let checksumOffset = byteCount - 4
  static let sectionLimit = 100
  /// The section with a checksum for each page of RAM.
  static let checksumSection = "page checksums"

  var magic = SaveFileHeader.magic
  var version = SaveFileHeader.plainVersion
  var fileByteCount: UInt64 = 0
  var memoryOffset: UInt64 = 0
  var memoryByteCount: UInt64 = 0
  var entries: [Entry] = []

  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&magic, "magic number")
    try archive.transfer(&version, "format")
    try archive.require(version > 0, "format", version)
    var count = UInt32(entries.count)
    try archive.transfer(&count, "number of sections", in: 0...UInt32(SaveFileHeader.sectionLimit))
    try archive.transfer(&fileByteCount, "length")
    try archive.transfer(&memoryOffset, "place of RAM")
    try archive.transfer(&memoryByteCount, "size of RAM")
    if archive.isRestoring { entries = [Entry](repeating: Entry(), count: Int(count)) }
    for index in entries.indices {
      try archive.part("section \(index)'s") { archive throws(SavedStateError) in
        try entries[index].transfer(&archive)
        try archive.require(!entries[..<index].contains { $0.name == entries[index].name }, "name, which another has")
      }
    }
  }

  /// Pages of RAM.
  var pageCount: Int { Int(clamping: memoryByteCount / UInt64(hostPageSize)) }

  /// Whether everything lies where it can, and is no longer than what it is needs.
  func checkPlaces() throws(SaveFileProblem) {
    let begin = UInt64(SaveFileHeader.byteCount)
    guard memoryOffset == begin, fileByteCount >= begin else { throw .damaged("its header: impossible place of RAM") }
    guard memoryByteCount >= VirtualMachine.Configuration.minimumMemory,
      memoryByteCount % UInt64(hostPageSize) == 0, memoryByteCount <= fileByteCount - begin
    else { throw .damaged("its header: impossible size of RAM") }
    // That of such a guest is bounded, and so is what is read before it is known to be one.
    if entries.contains(where: { $0.name == SavedLguest.section })
      || entries.contains(where: { $0.name == SavedFirstMemory.section })
    {
      guard memoryByteCount <= LguestLayout.limit(VirtualMachine.Configuration.maximumLguestMemory) else {
        throw .damaged("its header: impossible size of RAM")
      }
    }
    for entry in entries {
      guard entry.offset >= begin + memoryByteCount, entry.offset <= fileByteCount else {
        throw .damaged("its header: impossible place of section \(entry.name)")
      }
      let longest =
        switch entry.name {
        case SaveFileHeader.checksumSection: 4 + 4 * pageCount
        case SavedFirstMemory.section: SavedFirstMemory.longest(memoryByteCount: memoryByteCount)
        default: SavedSections.longest
        }
      guard entry.byteCount <= min(fileByteCount - entry.offset, UInt64(longest)) else {
        throw .damaged("its header: impossible length of section \(entry.name)")
      }
    }
  }

  /// The page.
  func encoded() -> [UInt8] {
    var archive = StateArchive(savingAt: 0)
    var header = self
    // Saving does not fail.
    try? header.transfer(&archive)
    var page = archive.bytes + [UInt8](repeating: 0, count: SaveFileHeader.checksumOffset - archive.bytes.count)
    let checksum = Checksum.crc32c(page)
    for shift in stride(from: UInt32(0), to: 32, by: 8) { page.append(UInt8(truncatingIfNeeded: checksum >> shift)) }
    return page
  }

  /// Reads the page.
  ///
  /// - Throws: what is wrong, as words that follow the file's name.
  init(_ page: [UInt8]) throws(SaveFileProblem) {
    var archive = StateArchive(restoring: page, at: 0)
    var (magic, version): (UInt64, UInt32) = (0, 0)
    do throws(SavedStateError) { try archive.transfer(&magic, "magic number") } catch { throw .truncated }
    guard magic == SaveFileHeader.magic else { throw .foreign }
    do throws(SavedStateError) { try archive.transfer(&version, "format") } catch { throw .truncated }
    guard version <= SaveFileHeader.version else { throw .newer(format: version) }
    guard page.count == SaveFileHeader.byteCount else { throw .truncated }
    let sum = (0..<4).reduce(UInt32(0)) { $0 | UInt32(page[SaveFileHeader.checksumOffset + $1]) << UInt32(8 * $1) }
    guard sum == Checksum.crc32c(Array(page[..<SaveFileHeader.checksumOffset])) else { throw .damaged("its header") }
    archive = StateArchive(restoring: page, at: 0)
    do throws(SavedStateError) { try transfer(&archive) } catch { throw .damaged("its header: \(error)") }
  }

  init() {}
}

/// What is wrong with a file that should be a saved machine.
enum SaveFileProblem: Error, Equatable {
  case foreign
  case truncated
  case newer(format: UInt32)
  /// Which part.
  case damaged(String)

  func configurationError(_ path: FilePath) -> ConfigurationError {
    switch self {
    case .foreign:
      ConfigurationError("'\(path)' is not a saved machine", remedy: "name a file that 'lguest save' wrote")
    case .truncated:
      ConfigurationError("saved machine '\(path)' is truncated", remedy: "copy it again, or save the machine again")
    case .newer(let format):
      ConfigurationError(
        "saved machine '\(path)' was written by a newer lguest (format \(format), this one reads \(SaveFileHeader.version))",
        remedy: "restore it with that version")
    case .damaged(let part):
      ConfigurationError(
        "saved machine '\(path)' is damaged: \(part)", remedy: "copy it again, or save the machine again")
    }
  }
}

/// A saved machine, open and checked but for its RAM.
package final class SaveFile: Sendable {
  package let path: FilePath
  let file: HostFile
  let header: SaveFileHeader
  /// All but the checksums of RAM's pages, which are read with the pages.
  let sections: [SavedSections.Section]

  /// Opens a file and checks everything but the RAM, which `makeMemory` does.
  package init(_ path: FilePath) throws(ConfigurationError) {
    self.path = path
    do throws(HostError) {
      file = try HostFile(path, role: "saved machine")
    } catch { throw ConfigurationError(error) }
    do throws(SaveFileProblem) {
      header = try SaveFileHeader(SaveFile.bytes(of: file, at: 0, count: min(SaveFileHeader.byteCount, file.byteCount)))
      guard file.byteCount >= header.fileByteCount else { throw .truncated }
      guard file.byteCount == header.fileByteCount else { throw .damaged("it is too long") }
      try header.checkPlaces()
    } catch { throw error.configurationError(path) }
    // Before anything is read whose size depends on it.
    do throws(ConfigurationError) { try VirtualMachine.Configuration.checkMemory(header.memoryByteCount) } catch {
      throw ConfigurationError(
        "cannot restore saved machine '\(path)': \(error.problem)", remedy: "restore it on a host that has more")
    }
    do throws(SaveFileProblem) {
      var sections: [SavedSections.Section] = []
      for entry in header.entries where entry.name != SaveFileHeader.checksumSection {
        sections.append(try SaveFile.section(entry, of: file))
      }
      self.sections = sections
    } catch { throw error.configurationError(path) }
  }

  private static func bytes(of file: HostFile, at offset: Int, count: Int) throws(SaveFileProblem) -> [UInt8] {
    do throws(HostError) { return try file.bytes(at: offset, count: count) } catch { throw .truncated }
  }

  private static func section(
    _ entry: SaveFileHeader.Entry, of file: HostFile
  ) throws(SaveFileProblem) -> SavedSections.Section {
    let bytes = try bytes(of: file, at: Int(entry.offset), count: Int(entry.byteCount))
    guard Checksum.crc32c(bytes) == entry.checksum else { throw .damaged("section \(entry.name)") }
    return SavedSections.Section(name: entry.name, version: entry.version, bytes: bytes)
  }

  /// The sections, to be read.
  func reading() -> SavedSections { SavedSections(restoring: sections, of: path) }

  /// RAM with the guest's pages, each compared with its checksum. How fast that went is logged.
  ///
  /// - Parameter fetchDelay: As in `GuestMemory`.
  func makeMemory(_ logger: Logger?, fetchDelay: UInt64? = nil) throws(ConfigurationError) -> GuestMemory {
    let sums = try readChecksums()
    let threadCount = min(HostCapacity.current().cpus, SaveFile.threadLimit)
    let difference: (page: Int?, byteCount: Int)
    let memory: GuestMemory
    let begin = HostClock.monotonic
    do throws(HostError) {
      memory = try GuestMemory(
        byteCount: header.memoryByteCount, image: file, at: Int(header.memoryOffset), fetchDelay: fetchDelay)
      difference = try memory.firstDifference(from: sums, threadCount: threadCount)
    } catch { throw ConfigurationError(error) }
    if let page = difference.page { throw SaveFileProblem.damaged("page \(page) of its RAM").configurationError(path) }
    let microseconds = (HostClock.monotonic - begin) / 1000
    logger?.debug("verified \(difference.byteCount) bytes of RAM in \(microseconds) us on \(threadCount) threads")
    return memory
  }

  /// The checksums of RAM's pages.
  private func readChecksums() throws(ConfigurationError) -> [UInt32] {
    var found: [SavedSections.Section] = []
    do throws(SaveFileProblem) {
      for entry in header.entries where entry.name == SaveFileHeader.checksumSection {
        found.append(try SaveFile.section(entry, of: file))
      }
    } catch { throw error.configurationError(path) }
    var sections = SavedSections(restoring: found, of: path)
    var sums: [UInt32] = []
    try sections.section(SaveFileHeader.checksumSection) { archive throws(SavedStateError) in
      try archive.transfer(words: &sums, "sums", limit: header.pageCount)
      try archive.require(sums.count == header.pageCount, "number of sums", sums.count)
    }
    return sums
  }

  /// Summing pages is bound by the memory's speed, which a few processors reach.
  private static let threadLimit = 8

  /// Writes a file, which is empty: RAM, sections, and last the header. Then it is on the disk.
  static func write(_ memory: GuestMemory, _ sections: SavedSections, to file: PositionedOutput) throws(HostError) {
    var header = SaveFileHeader()
    if sections.all.contains(where: { $0.name == SavedLguest.section }) { header.version = SaveFileHeader.version }
    header.memoryOffset = UInt64(SaveFileHeader.byteCount)
    header.memoryByteCount = memory.byteCount
    var sums = try memory.writeImage(to: file, at: SaveFileHeader.byteCount)
    var archive = StateArchive(savingAt: 0)
    // Saving does not fail.
    try? archive.transfer(words: &sums, "sums", limit: sums.count)
    let last = SavedSections.Section(
      name: SaveFileHeader.checksumSection, version: SavedSections.version, bytes: archive.bytes)
    var end = SaveFileHeader.byteCount + Int(memory.byteCount)
    for section in sections.all + [last] {
      try file.write(section.bytes, at: end)
      header.entries.append(
        SaveFileHeader.Entry(
          name: section.name, version: section.version, checksum: Checksum.crc32c(section.bytes), offset: UInt64(end),
          byteCount: UInt64(section.bytes.count)))
      end += section.bytes.count
    }
    header.fileByteCount = UInt64(end)
    try file.write(header.encoded(), at: 0)
    guard file.byteCount == end else {
      throw HostError("write", file.description, reason: "it is open for appending, or somebody else writes to it")
    }
    try file.synchronize()
  }
}

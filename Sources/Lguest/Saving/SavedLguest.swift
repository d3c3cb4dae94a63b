// SPDX-License-Identifier: Apache-2.0
// What a saved machine has besides if its guest is one of lguest's interface: how it began, for it restarts in the same run,
// and which disks it had, which are files of the host's and are not in it.

import GuestMemory
import Host
import Paravirt
import Saving
import SystemPackage
import X86

/// The section that says so, which other machines have not.
struct SavedLguest: SavedState, Equatable {
  static let section = "lguest start"
  /// Of a path, which is for people, in characters of at most four bytes.
  static let pathLength = 1024

  /// A disk as it was.
  struct Disk: Equatable {
    /// An absolute path, for people.
    var file = ""
    var isReadOnly = false
    /// Of the file.
    var byteCount: UInt64 = 0
  }

  /// The kernel's first instruction, and what its host must know of the start.
  var entry: UInt32 = 0
  var room: Range<UInt64> = 0..<0
  var pageOffset: UInt32?
  /// Nanoseconds since 1970 when it was saved.
  var time: UInt64 = 0
  var disks: [Disk] = []

  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&entry, "kernel's entry point")
    var (begin, end) = (room.lowerBound, room.upperBound)
    try archive.transfer(&begin, "beginning of free memory")
    try archive.transfer(&end, "end of free memory")
    // No address of such a guest has more bits.
    try archive.require(begin <= end && end <= 1 << 32, "end of free memory", end)
    room = begin..<end
    try archive.transfer(&pageOffset, "kernel's first address")
    try archive.transfer(&time, "time of saving")
    var count = UInt8(truncatingIfNeeded: disks.count)
    // The rest of a configuration's rules is the configuration's.
    try archive.transfer(&count, "number of disks", in: 0...31)
    if archive.isRestoring { disks = [Disk](repeating: Disk(), count: Int(count)) }
    for index in disks.indices {
      try archive.part("disk \(index)") { archive throws(SavedStateError) in
        try archive.transfer(&disks[index].file, "path", limit: 4096)
        try archive.transfer(&disks[index].isReadOnly, "right to read only")
        try archive.transfer(&disks[index].byteCount, "size")
      }
      // It is shown to people, and must not move their cursors.
      if archive.isRestoring { disks[index].file = PlainText.of(disks[index].file) }
    }
  }
}

/// The section with what RAM holds when the guest begins; not there if a restart ends the run.
struct SavedFirstMemory {
  static let section = "first RAM"
  /// Of an address and a length.
  private static let pieceBytes = 12

  var content = MemoryContent()

  /// How long the section may be for so much RAM.
  static func longest(memoryByteCount: UInt64) -> Int {
    let pages = memoryByteCount / UInt64(hostPageSize)
    return 4 + Int(clamping: memoryByteCount + pages * UInt64(pieceBytes))
  }

  /// - Parameter memoryByteCount: Bytes of RAM, all below 3 GiB.
  mutating func transfer(_ archive: inout StateArchive, memoryByteCount: UInt64) throws(SavedStateError) {
    let most = memoryByteCount / UInt64(hostPageSize)
    var count = UInt32(truncatingIfNeeded: content.pieces.count)
    try archive.transfer(&count, "number of pieces", in: 0...UInt32(clamping: most))
    for index in 0..<Int(count) {
      try archive.part("piece \(index)") { archive throws(SavedStateError) in
        var (address, bytes) =
          archive.isRestoring ? (0, []) : (content.pieces[index].address.value, content.pieces[index].bytes)
        try archive.transfer(&address, "address", in: 0...memoryByteCount)
        try archive.transfer(&bytes, "bytes", limit: Int(clamping: memoryByteCount - address))
        if archive.isRestoring { content.pieces.append((GuestPhysical(address), bytes)) }
      }
    }
  }
}

extension SaveFile {
  private func has(_ name: String) -> Bool { sections.contains { $0.name == name } }

  /// How a guest of lguest's interface began; nil: the guest is a PC's.
  var lguest: SavedLguest? {
    get throws(ConfigurationError) {
      guard has(SavedLguest.section) else { return nil }
      var (saved, sections) = (SavedLguest(), reading())
      try sections.section(SavedLguest.section) { archive throws(SavedStateError) in try saved.transfer(&archive) }
      return saved
    }
  }

  /// Whether the guest can restart.
  var hasFirstMemory: Bool { has(SavedFirstMemory.section) }

  /// What RAM held when the guest began; nil if a restart ends the run.
  var firstMemory: MemoryContent? {
    get throws(ConfigurationError) {
      guard hasFirstMemory else { return nil }
      var (saved, sections) = (SavedFirstMemory(), reading())
      try sections.section(SavedFirstMemory.section) { archive throws(SavedStateError) in
        try saved.transfer(&archive, memoryByteCount: header.memoryByteCount)
      }
      return saved.content
    }
  }
}

extension LguestBeginning {
  /// As a saved machine has it.
  init(_ file: SaveFile, _ saved: SavedLguest, _ configuration: VirtualMachine.Configuration) throws(ConfigurationError)
  {
    self.init(
      state: LguestHost.firstState(entry: UInt64(saved.entry)),
      start: LguestStart(memorySize: configuration.memorySize, room: saved.room, pageOffset: saved.pageOffset),
      memory: configuration.restartsGuest ? try file.firstMemory : nil)
  }
}

extension LguestMachine {
  /// What a file says besides of the machine. While no disk is written.
  var saved: SavedLguest {
    var saved = SavedLguest()
    saved.entry = UInt32(truncatingIfNeeded: beginning.state.rip)
    (saved.room, saved.pageOffset) = (beginning.start.room, beginning.start.pageOffset)
    saved.time = HostClock.wall
    saved.disks = disks.map {
      SavedLguest.Disk(
        file: String($0.path.string.unicodeScalars.prefix(SavedLguest.pathLength)), isReadOnly: $0.isReadOnly,
        byteCount: $0.byteCount)
    }
    return saved
  }

  /// Writes the sections that say how the guest began.
  func save(to sections: inout SavedSections, memoryByteCount: UInt64) throws(ConfigurationError) {
    var saved = saved
    try sections.section(SavedLguest.section) { archive throws(SavedStateError) in try saved.transfer(&archive) }
    guard let content = beginning.memory else { return }
    var first = SavedFirstMemory(content: content)
    try sections.section(SavedFirstMemory.section) { archive throws(SavedStateError) in
      try first.transfer(&archive, memoryByteCount: memoryByteCount)
    }
  }

  /// Interrupts, clock and devices; what of these is the guest's memory is there. While they stand still.
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try interrupts.transfer(&archive)
    try timer.transfer(&archive)
    try transferBus(&archive)
  }
}

extension VirtualMachine.Configuration {
  /// Whether there are as many as the guest knows, to be written if it may write them. The file knows where they were, and
  /// is not believed: who wrote it could give its guest any file of whoever restores it.
  func validateDisks(_ old: [SavedLguest.Disk]) throws(ConfigurationError) {
    guard disks.map(\.isReadOnly) != old.map(\.isReadOnly) else { return }
    if old.isEmpty { throw ConfigurationError("the saved machine has no disks", remedy: "name none") }
    let names = old.map { "'\($0.file)\($0.isReadOnly ? ":ro" : "")'" }.joined(separator: ", ")
    throw ConfigurationError(
      "the saved machine has \(old.count) disk\(old.count == 1 ? "" : "s"), and \(disks.count) were named; they were \(names)",
      remedy: "name where each is now, in this order (--disk)")
  }
}

extension SavedLguest.Disk {
  /// Whether a file can be the disk that the guest knows: it has the size, and its date says that nobody has written it
  /// since. Under another name it may still be the same file, so no name is an exception.
  func check(_ file: DiskFile, savedAt time: UInt64) throws(ConfigurationError) {
    guard file.byteCount == byteCount else {
      throw ConfigurationError(
        "disk '\(file.path)' has \(file.byteCount) bytes, and the saved machine's had \(byteCount)",
        remedy: "name a copy of that time")
    }
    guard file.modified <= time else {
      throw ConfigurationError(
        "disk '\(file.path)' has been written since the machine was saved, and its guest would damage it",
        remedy: "name a copy of that time with its date, as cp -p makes it")
    }
  }
}

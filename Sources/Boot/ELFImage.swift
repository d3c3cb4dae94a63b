// SPDX-License-Identifier: Apache-2.0
// Uncompressed kernels (vmlinux) and other ELF executables: reading the headers with suspicion, since the file may
// be anything, and placing the segments at their physical addresses.

import GuestMemory
import Host

/// An ELF executable for x86, its loadable segments checked against the file.
public struct ELFImage: Sendable {
  /// A PT_LOAD segment. All quantities in bytes.
  public struct LoadSegment: Sendable, Equatable {
    public var offset: Int
    public var fileByteCount: Int
    public var virtualAddress: UInt64
    public var physicalAddress: UInt64
    public var memoryByteCount: UInt64
    /// Does not wrap: checked when read.
    var physicalEnd: UInt64 { physicalAddress + memoryByteCount }

    /// Copies the segment to its physical address and clears what the file does not fill.
    ///
    /// - Throws: `BootError` `.memory` if it is not all RAM.
    func load(from file: HostFile, into memory: GuestMemory) throws(BootError) {
      let address = GuestPhysical(physicalAddress)
      guard memory.contains(address, count: Int(memoryByteCount)) else {
        throw BootError(
          .memory,
          "\(file) needs memory at \(address)...0x\(String(physicalEnd, radix: 16)), the guest has \(describe(byteCount: memory.byteCount))",
          remedy: "give the guest more memory")
      }
      do throws(HostError) {
        try memory.read(from: file, at: offset, count: fileByteCount, to: address)
      } catch { throw BootError(error) }
      try memory.clear(address + UInt64(fileByteCount), count: Int(memoryByteCount) - fileByteCount)
    }
  }

  public let is64Bit: Bool
  /// Physical, even if the file gives a virtual one.
  public let entry: UInt64
  /// At least one, in the file's order.
  public let segments: [LoadSegment]
  /// The 32-bit physical entry point of PVH (note "Xen", type 18 PHYS32_ENTRY), if there is one.
  public let pvhEntry: UInt64?
  /// Whether it has the note (owner "lguest", type 1) by which a kernel says that it is made for lguest's interface.
  let hasLguestNote: Bool
  /// The multiboot 1 header, if there is one.
  public let multiboot: MultibootHeader?

  /// From the lowest physical address it occupies to the highest.
  public let physicalRange: Range<UInt64>

  static let magic: [UInt8] = [0x7F, 0x45, 0x4C, 0x46]
  /// Linux's own kernels have five program headers, those of other systems a dozen. Each may cost a copy as large as
  /// guest memory.
  static let programHeaderLimit = 128
  /// Over all note segments; Linux's have some hundred bytes.
  static let noteByteLimit = 1 << 20

  /// Machines by their number in e_machine (System V ABI), as far as Linux runs on them.
  private static let machines: [UInt16: String] = [
    2: "SPARC", 8: "MIPS", 15: "PA-RISC", 18: "SPARC", 20: "PowerPC", 21: "64-bit PowerPC", 22: "s390", 40: "Arm",
    42: "SuperH", 43: "64-bit SPARC", 50: "Itanium", 93: "Xtensa", 183: "arm64", 243: "RISC-V", 247: "BPF",
    258: "LoongArch",
  ]

  /// Reads the headers.
  ///
  /// - Parameter head: The file's first 64 KiB, or all of it.
  init(_ head: [UInt8], _ file: HostFile) throws(BootError) {
    func malformed(_ what: String) -> BootError {
      BootError(.malformed, "\(file) is a damaged ELF file: \(what)", remedy: "copy, download or build it again")
    }
    func bytes(_ offset: UInt64, _ count: Int, _ what: String) throws(BootError) -> [UInt8] {
      guard count <= file.byteCount, offset <= UInt64(file.byteCount - count) else {
        throw BootError(
          .truncated, "\(file) is truncated: its \(what) lies beyond the end at \(file.byteCount) bytes",
          remedy: "copy or download it again")
      }
      do throws(HostError) { return try file.bytes(at: Int(offset), count: count) } catch { throw BootError(error) }
    }
    func number<T: FixedWidthInteger>(_ type: T.Type, _ bytes: [UInt8], _ offset: Int) throws(BootError) -> T {
      guard let value = bytes.little(type, at: offset) else { throw malformed("its header ends too early") }
      return value
    }
    let header = try bytes(0, 52, "header")
    let machine = try number(UInt16.self, header, 18)
    guard header[5] == 1 || header[5] == 2 else { throw malformed("its byte order is neither little nor big") }
    if header[5] == 2 {
      throw BootError(
        .foreign, "\(file) is a big-endian \(ELFImage.machines[machine.byteSwapped] ?? "ELF file"), not an x86 kernel",
        remedy: "use a kernel built for x86")
    }
    guard machine == 62 || machine == 3 else {
      throw BootError(
        .foreign, "\(file) is built for \(ELFImage.machines[machine] ?? "ELF machine \(machine)"), not for x86",
        remedy: "use a kernel built for x86")
    }
    let is64Bit = header[4] == 2
    guard header[4] == 1 || is64Bit else { throw malformed("its class is neither 32 nor 64 bits") }
    let type = try number(UInt16.self, header, 16)
    guard type == 2 || type == 3 else {
      let what = type == 1 ? "an object file or kernel module" : type == 4 ? "a core dump" : "ELF type \(type)"
      throw BootError(
        .notAKernel, "\(file) is \(what), not a kernel", remedy: "use a bzImage or an uncompressed vmlinux")
    }

    let full = is64Bit ? try bytes(0, 64, "header") : header
    func word(_ bytes: [UInt8], _ at64: Int, _ at32: Int) throws(BootError) -> UInt64 {
      is64Bit ? try number(UInt64.self, bytes, at64) : UInt64(try number(UInt32.self, bytes, at32))
    }
    let entry = try word(full, 24, 24)
    let tableOffset = try word(full, 32, 28)
    let entrySize = Int(try number(UInt16.self, full, is64Bit ? 54 : 42))
    let entryCount = Int(try number(UInt16.self, full, is64Bit ? 56 : 44))
    guard entryCount > 0 else { throw malformed("it has no program headers") }
    guard entryCount <= ELFImage.programHeaderLimit else {
      throw malformed("it has \(entryCount) program headers, more than \(ELFImage.programHeaderLimit)")
    }
    guard entrySize == (is64Bit ? 56 : 32) else { throw malformed("its program headers have \(entrySize) bytes each") }
    let table = try bytes(tableOffset, entrySize * entryCount, "program header table")

    var segments: [LoadSegment] = []
    var pvhEntry: UInt64?
    var hasLguestNote = false
    var noteRoom = UInt64(ELFImage.noteByteLimit)
    for index in 0..<entryCount {
      let row = [UInt8](table[index * entrySize..<(index + 1) * entrySize])
      let kind = try number(UInt32.self, row, 0)
      let offset = try word(row, 8, 4)
      let fileCount = try word(row, 32, 16)
      if kind == 2 || kind == 3 {
        throw BootError(
          .notAKernel, "\(file) is a dynamically linked program, not a kernel",
          remedy: "use a bzImage or an uncompressed vmlinux")
      }
      if kind == 4, fileCount <= noteRoom {
        noteRoom -= fileCount
        let notes = try bytes(offset, Int(fileCount), "note segment")
        pvhEntry = pvhEntry ?? ELFImage.pvhEntry(inNotes: notes)
        hasLguestNote = hasLguestNote || ELFImage.note("lguest\0", 1, in: notes) != nil
      }
      guard kind == 1 else { continue }
      let memoryCount = try word(row, 40, 20)
      let physical = try word(row, 24, 12)
      guard memoryCount > 0 else { continue }
      guard fileCount <= memoryCount else { throw malformed("segment \(index) is larger in the file than in memory") }
      guard offset <= UInt64(file.byteCount), fileCount <= UInt64(file.byteCount) - offset else {
        throw BootError(
          .truncated, "\(file) is truncated: segment \(index) lies beyond the end at \(file.byteCount) bytes",
          remedy: "copy or download it again")
      }
      guard physical < 1 << 52, memoryCount < 1 << 52 else {
        throw malformed("segment \(index) has no physical address")
      }
      segments.append(
        LoadSegment(
          offset: Int(offset), fileByteCount: Int(fileCount), virtualAddress: try word(row, 16, 8),
          physicalAddress: physical, memoryByteCount: memoryCount))
    }
    guard let first = segments.first else { throw malformed("it has nothing to load") }
    physicalRange = segments.reduce(first.physicalAddress..<first.physicalEnd) {
      min($0.lowerBound, $1.physicalAddress)..<max($0.upperBound, $1.physicalEnd)
    }
    func isIn(_ address: UInt64, _ start: UInt64, _ segment: LoadSegment) -> Bool {
      address >= start && address - start < segment.memoryByteCount
    }
    if segments.contains(where: { isIn(entry, $0.physicalAddress, $0) }) {
      self.entry = entry
    } else if let segment = segments.first(where: { isIn(entry, $0.virtualAddress, $0) }) {
      self.entry = entry - segment.virtualAddress + segment.physicalAddress
    } else {
      throw malformed("its entry point 0x\(String(entry, radix: 16)) is in no segment")
    }
    self.is64Bit = is64Bit
    self.segments = segments
    self.pvhEntry = pvhEntry
    self.hasLguestNote = hasLguestNote
    multiboot = MultibootHeader(in: head)
  }

  /// Looks for PHYS32_ENTRY, of 4 or 8 bytes, among notes.
  private static func pvhEntry(inNotes notes: [UInt8]) -> UInt64? {
    guard let descriptor = note("Xen\0", 18, in: notes) else { return nil }
    if descriptor.count >= 8 { return notes.little(UInt64.self, at: descriptor.lowerBound) }
    return notes.little(UInt32.self, at: descriptor.lowerBound).map(UInt64.init)
  }

  /// Where the descriptor of a note is: name and descriptor sizes, type, then both padded to four bytes. It may end
  /// behind the last byte.
  private static func note(_ owner: String, _ wanted: UInt32, in notes: [UInt8]) -> Range<Int>? {
    var offset = 0
    while let nameCount = notes.little(UInt32.self, at: offset), let count = notes.little(UInt32.self, at: offset + 4),
      let type = notes.little(UInt32.self, at: offset + 8), nameCount <= notes.count, count <= notes.count
    {
      let descriptor = offset + 12 + (Int(nameCount) + 3) & ~3
      if type == wanted, Int(nameCount) == owner.utf8.count, notes.matches(owner, at: offset + 12) {
        return descriptor..<descriptor + Int(count)
      }
      offset = descriptor + (Int(count) + 3) & ~3
    }
    return nil
  }

  /// Copies the segments to their physical addresses and clears what the file does not fill.
  ///
  /// - Throws: `BootError` `.memory` if a segment is not all RAM, or touches the first MiB, where boot data lies.
  func load(from file: HostFile, into memory: GuestMemory) throws(BootError) {
    for segment in segments {
      let address = GuestPhysical(segment.physicalAddress)
      guard segment.physicalAddress >= 1 << 20 else {
        throw BootError(
          .malformed, "\(file) wants to be loaded at \(address), in the first MiB, where the boot data lies",
          remedy: "link it at 1 MiB or higher")
      }
      try segment.load(from: file, into: memory)
    }
  }
}

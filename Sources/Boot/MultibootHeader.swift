// SPDX-License-Identifier: Apache-2.0
// The header by which a kernel says that a multiboot loader may start it: magic, flags and checksum within the first
// 8 KiB, and with flag 16 the addresses to load it at (Multiboot specification 0.6.96, 3.1).

import Host

/// A multiboot 1 header whose checksum is right.
public struct MultibootHeader: Sendable, Equatable {
  /// Where the file goes in memory, for kernels whose file format says nothing of it: the fields that flag 16
  /// announces (specification, 3.1.3).
  public struct Addresses: Sendable, Equatable {
    /// Where the header itself goes: ties the others to offsets in the file.
    public var header: UInt32
    public var load: UInt32
    /// The end of what the file holds; 0 means all of it.
    public var loadEnd: UInt32
    /// The end of what is to be cleared behind it; 0 means nothing is.
    public var bssEnd: UInt32
    public var entry: UInt32
  }

  /// In the file.
  public let offset: Int
  public let flags: UInt32
  /// With flag 16, which outranks what the file's own headers say.
  public let addresses: Addresses?

  static let magic: UInt32 = 0x1BAD_B002
  private static let searchedByteCount = 8192
  /// What a loader must do or refuse: module alignment (0) and memory information (1) are done always, a video mode
  /// (2) cannot be set, and the others mean nothing yet.
  private static let requirements: UInt32 = 0xFFFF
  private static let understood: UInt32 = 0b11
  private static let hasAddresses: UInt32 = 1 << 16

  /// Finds the header.
  ///
  /// - Parameter head: The file's beginning, 8 KiB or all of it.
  init?(in head: [UInt8]) {
    guard
      let offset = MultibootHeader.candidates(in: head).first(where: { MultibootHeader.sum(in: head, at: $0) == 0 }),
      let flags = head.little(UInt32.self, at: offset + 4)
    else { return nil }
    self.offset = offset
    self.flags = flags
    func field(_ index: Int) -> UInt32? { head.little(UInt32.self, at: offset + 12 + 4 * index) }
    if flags & MultibootHeader.hasAddresses != 0, let header = field(0), let load = field(1), let loadEnd = field(2),
      let bssEnd = field(3), let entry = field(4)
    {
      addresses = Addresses(header: header, load: load, loadEnd: loadEnd, bssEnd: bssEnd, entry: entry)
    } else {
      addresses = nil
    }
  }

  /// Whether there is the magic number but no checksum to go with it.
  static func isDamaged(in head: [UInt8]) -> Bool { !candidates(in: head).isEmpty && MultibootHeader(in: head) == nil }

  private static func candidates(in head: [UInt8]) -> [Int] {
    stride(from: 0, to: min(searchedByteCount, head.count) - 11, by: 4).filter {
      head[$0] == 0x02 && head.little(UInt32.self, at: $0) == magic
    }
  }

  private static func sum(in head: [UInt8], at offset: Int) -> UInt32 {
    (0..<3).compactMap { head.little(UInt32.self, at: offset + 4 * $0) }.reduce(0, &+)
  }

  /// Refuses what this loader cannot do for the kernel (specification, 3.1.2: a loader must).
  func checkRequirements(_ file: HostFile) throws(BootError) {
    let unmet = flags & MultibootHeader.requirements & ~MultibootHeader.understood
    guard unmet == 0 else {
      throw BootError(
        .entryPoint,
        unmet == 4
          ? "\(file) asks its multiboot loader for a video mode, and there is no display"
          : "\(file) asks its multiboot loader for something unknown (flags 0x\(String(flags, radix: 16)))",
        remedy: "build it without that flag or enter it in another way")
    }
    if flags & MultibootHeader.hasAddresses != 0, addresses == nil {
      throw BootError(
        .truncated, "\(file) ends inside its multiboot header", remedy: "copy, download or build it again")
    }
  }

  /// The one segment the address fields describe.
  ///
  /// - Throws: `BootError`: they contradict each other or the file.
  func segment(_ fields: Addresses, of file: HostFile) throws(BootError) -> ELFImage.LoadSegment {
    func malformed(_ what: String) -> BootError {
      BootError(
        .malformed, "\(file) has a multiboot header with impossible addresses: \(what)",
        remedy: "copy, download or build it again")
    }
    guard fields.load <= fields.header, Int(fields.header - fields.load) <= offset else {
      throw malformed("the header at 0x\(String(fields.header, radix: 16)) is not in what is loaded")
    }
    let start = offset - Int(fields.header - fields.load)
    let rest = file.byteCount - start
    guard fields.loadEnd == 0 || fields.loadEnd >= fields.load else {
      throw malformed("what is loaded ends before it begins")
    }
    let count = fields.loadEnd == 0 ? rest : Int(fields.loadEnd - fields.load)
    guard count <= rest else {
      throw BootError(
        .truncated,
        "\(file) is truncated: its multiboot header wants \(count) bytes from \(start) on, \(rest) are there",
        remedy: "copy or download it again")
    }
    let loadEnd = UInt64(fields.load) + UInt64(count)
    guard fields.bssEnd == 0 || fields.bssEnd >= loadEnd else {
      throw malformed("what is cleared ends before it begins")
    }
    let end = max(loadEnd, UInt64(fields.bssEnd))
    guard UInt64(fields.entry) >= UInt64(fields.load), UInt64(fields.entry) < end else {
      throw malformed("the entry point 0x\(String(fields.entry, radix: 16)) is not in what is loaded")
    }
    return ELFImage.LoadSegment(
      offset: start, fileByteCount: count, virtualAddress: UInt64(fields.load), physicalAddress: UInt64(fields.load),
      memoryByteCount: end - UInt64(fields.load))
  }
}

// SPDX-License-Identifier: Apache-2.0
// lguest's guest side in a kernel (CONFIG_LGUEST_GUEST): whether a 32-bit kernel has it, told by the texts that come with
// it, for no header says so. Before anything is believed of it the kernel itself must make lguest's first hypercall.

import Host
public import SystemPackage

/// What the texts of a kernel say.
struct LguestGuestSide {
  /// A kernel of Linux 2.6.23 begins right behind this word, wherever it is.
  private static let word = [UInt8]("GenuineLguest".utf8)
  /// What every later one has: the name of its memory map, its own name, and the line that tells it.
  private static let texts = [
    [UInt8]("LGUEST\0".utf8), [UInt8]("lguest\0".utf8), [UInt8]("Booting paravirtualized kernel on".utf8),
  ]
  /// More is not looked at, nor unpacked: no kernel has as much.
  static let byteLimit = 256 << 20
  private static let chunk = 1 << 20

  private var found = [Bool](repeating: false, count: texts.count)
  /// Where a kernel of Linux 2.6.23 begins, as an offset in what was looked at.
  private(set) var start: Int?

  /// Whether it can be started as lguest's guest.
  var isPresent: Bool { start != nil || !found.contains(false) }

  /// Looks at all the bytes of a kernel.
  init(in bytes: [UInt8]) { look(bytes, at: 0) }

  /// Looks at what a vmlinux loads.
  init(in elf: ELFImage, _ file: HostFile) throws(HostError) {
    var room = LguestGuestSide.byteLimit
    for segment in elf.segments {
      var offset = segment.offset
      let end = segment.offset + segment.fileByteCount
      while offset < end, room > 0 {
        // Overlapping, so that a text across two chunks is seen whole.
        let count = min(LguestGuestSide.chunk + 64, end - offset)
        look(try file.bytes(at: offset, count: count), at: offset)
        room -= LguestGuestSide.chunk
        offset += LguestGuestSide.chunk
      }
    }
  }

  private mutating func look(_ bytes: [UInt8], at base: Int) {
    let span = bytes.span
    func isThere(_ text: [UInt8], _ place: Int) -> Bool {
      guard text.count <= span.count - place else { return false }
      for index in text.indices where span[place + index] != text[index] { return false }
      return true
    }
    for index in 0..<span.count {
      switch span[index] {
      case UInt8(ascii: "G"):
        if start == nil, isThere(LguestGuestSide.word, index) { start = base + index + LguestGuestSide.word.count }
      case UInt8(ascii: "L"), UInt8(ascii: "l"), UInt8(ascii: "B"):
        // A name is a text of its own, not the end of a longer one; a line has its level before it.
        let isOwn = index == 0 || span[index - 1] < 0x20 || span[index] == UInt8(ascii: "B")
        for (number, text) in LguestGuestSide.texts.enumerated() where isOwn && !found[number] && isThere(text, index) {
          found[number] = true
        }
      default: break
      }
    }
  }
}

extension KernelImage {
  /// Whether the kernel says of itself that it is made for lguest's interface alone, as guests of level 1 that are no
  /// Linux do.
  public var isLguestGuest: Bool { elf.map { !$0.is64Bit && $0.hasLguestNote } ?? false }

  /// The same of a file, of which only the headers are read; false if it is no ELF file.
  ///
  /// - Throws: `BootError`: the file cannot be read or is damaged.
  public static func isLguestGuest(_ path: FilePath) throws(BootError) -> Bool {
    let file: HostFile
    let head: [UInt8]
    do throws(HostError) {
      file = try HostFile(path, role: "kernel image")
      head = try file.bytes(at: 0, count: min(file.byteCount, KernelImage.headByteCount))
    } catch { throw BootError(error) }
    guard head.matches(ELFImage.magic) else { return false }
    let elf = try ELFImage(head, file)
    return !elf.is64Bit && elf.hasLguestNote
  }

  /// Whether the kernel can be started as lguest's guest; nil if it cannot be told, for it is not unpacked here.
  var hasLguestEntry: Bool? {
    switch format {
    case .multiboot: return false
    case .elf(let elf):
      if elf.is64Bit { return false }
      if elf.hasLguestNote { return true }
      do throws(HostError) { return try LguestGuestSide(in: elf, file).isPresent } catch { return nil }
    case .bzImage(let header):
      if header.has64BitEntry { return false }
      return header.unpacked(file).map { LguestGuestSide(in: $0).isPresent }
    }
  }
}

extension SetupHeader {
  /// The kernel inside a bzImage, unpacked; nil if this host cannot, or it is larger than any kernel. Before protocol
  /// 2.08 the header does not say where it is, and all used gzip.
  func unpacked(_ file: HostFile) -> [UInt8]? {
    guard let payload else { return unpackedByMagic(file) }
    guard payload.byteCount > 4, payload.byteCount <= LguestGuestSide.byteLimit,
      let packed = try? file.bytes(at: payload.offset, count: payload.byteCount)
    else { return nil }
    if compression == PayloadCompression.none { return packed }
    guard let decompression = compression.flatMap({ Decompression(rawValue: $0.rawValue) }) else { return nil }
    // The last four bytes are the unpacked size: gzip's own, added by the kernel's build to the others.
    let size = Int(packed.little(UInt32.self, at: packed.count - 4) ?? 0)
    return decode(decompression == .gzip ? packed : [UInt8](packed.dropLast(4)), decompression, room: size)
  }

  private func unpackedByMagic(_ file: HostFile) -> [UInt8]? {
    guard kernelByteCount <= LguestGuestSide.byteLimit,
      let kernel = try? file.bytes(at: kernelOffset, count: kernelByteCount),
      // A member's magic number, and the one method there is (RFC 1952, 2.3.1).
      let start = kernel.indices.first(where: { kernel[$0] == 0x1F && kernel.matches([0x1F, 0x8B, 8], at: $0) })
    else { return nil }
    return decode([UInt8](kernel[start...]), .gzip, room: 64 << 20)
  }

  private func decode(_ packed: [UInt8], _ decompression: Decompression, room: Int) -> [UInt8]? {
    room <= LguestGuestSide.byteLimit ? decompression.decode(packed, room: room) : nil
  }
}

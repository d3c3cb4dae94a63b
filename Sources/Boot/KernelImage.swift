// SPDX-License-Identifier: Apache-2.0
// What a file is, told from its content: a kernel we can start, or something that deserves a better message than
// "bad magic". Names and suffixes are never looked at.

import Host
import SystemPackage

/// Where execution begins, and with which conventions.
public enum EntryPoint: String, Sendable, CaseIterable, Codable {
  /// The best the image offers.
  case auto
  /// Linux in 64-bit mode, zero page in RSI.
  case linux64
  /// Linux in protected mode without paging, zero page in ESI.
  case linux32
  /// Xen's PVH: protected mode without paging, start information in EBX.
  case pvh
  /// Multiboot 1: protected mode without paging, information record in EBX.
  case multiboot
}

/// A kernel image, opened and understood.
public struct KernelImage: Sendable {
  /// What it is.
  public enum Format: Sendable {
    case bzImage(SetupHeader)
    case elf(ELFImage)
    /// Neither, but with a multiboot header that says where the file goes.
    case multiboot(MultibootHeader)
  }

  public let file: HostFile
  public let format: Format
  /// The kernel's own words: "6.1.0-56-cloud-amd64 (debian-kernel@...) #1 SMP ...".
  public let version: String?
  /// What can be asked for, best first; never empty, never `auto`.
  public let entryPoints: [EntryPoint]

  var elf: ELFImage? { if case .elf(let elf) = format { elf } else { nil } }
  var multiboot: MultibootHeader? { if case .multiboot(let header) = format { header } else { elf?.multiboot } }

  /// What of a file its headers are looked for in.
  static let headByteCount = 65536

  /// Opens a file and finds out what it is.
  ///
  /// - Throws: `BootError`: the file cannot be read, is damaged, or is no kernel for this machine.
  public init(_ path: FilePath) throws(BootError) {
    let head: [UInt8]
    do throws(HostError) {
      file = try HostFile(path, role: "kernel image")
      head = try file.bytes(at: 0, count: min(file.byteCount, KernelImage.headByteCount))
    } catch { throw BootError(error) }
    guard !head.isEmpty else {
      throw BootError(.empty, "\(file) is empty", remedy: "copy or download it again")
    }
    if SetupHeader.isPresent(in: head) {
      let header = try SetupHeader(head, file)
      format = .bzImage(header)
      version = header.version
      entryPoints = header.has64BitEntry ? [.linux64, .linux32] : [.linux32]
    } else if head.matches(ELFImage.magic) {
      let image = try ELFImage(head, file)
      format = .elf(image)
      let version = try KernelImage.linuxVersion(in: file, image)
      self.version = version
      let linux: EntryPoint = image.is64Bit ? .linux64 : .linux32
      // Linux takes its own protocol best; what is not Linux says by its headers what it takes.
      let others: [EntryPoint] = (image.pvhEntry == nil ? [] : [.pvh]) + (image.multiboot == nil ? [] : [.multiboot])
      entryPoints = version != nil ? [linux] + others : others.isEmpty ? [linux] : others
    } else if let header = MultibootHeader(in: head), header.addresses != nil {
      format = .multiboot(header)
      version = nil
      entryPoints = [.multiboot]
    } else {
      throw KernelImage.whatElse(head, file)
    }
  }

  /// The entry point `wanted` stands for.
  package func resolve(_ wanted: EntryPoint) throws(BootError) -> EntryPoint {
    let entry = wanted == .auto ? entryPoints[0] : wanted
    guard entryPoints.contains(entry) else {
      throw BootError(
        .entryPoint, "\(file) has no \(entry.rawValue) entry point",
        remedy: "it has: \(entryPoints.map(\.rawValue).joined(separator: ", "))")
    }
    return entry
  }

  /// How much of a vmlinux is searched for its banner: it is one of the first constants, right behind the text, of
  /// which no kernel has as much.
  private static let searchedByteCount = 256 << 20

  /// Finds the banner "Linux version ..." among the loaded bytes of a vmlinux. Segments may overlap in the file; no byte
  /// is searched twice.
  private static func linuxVersion(in file: HostFile, _ image: ELFImage) throws(BootError) -> String? {
    let banner = [UInt8]("Linux version ".utf8)
    let chunk = 1 << 20
    var room = searchedByteCount
    var searchedEnd = 0
    for segment in image.segments.sorted(by: { $0.offset < $1.offset }) {
      let end = segment.offset + segment.fileByteCount
      var offset = max(segment.offset, searchedEnd)
      while offset < end, room > 0 {
        // Overlapping, so that a banner across two chunks is seen whole.
        let count = min(chunk + 512, end - offset)
        let bytes: [UInt8]
        do throws(HostError) { bytes = try file.bytes(at: offset, count: count) } catch {
          throw BootError(error)
        }
        if let start = find(banner, in: bytes, before: chunk) {
          let rest = bytes[(start + banner.count)..<min(bytes.count, start + 500)]
          return rest.prefix { $0 != 0x0A }.printable
        }
        room -= min(chunk, end - offset)
        offset += chunk
      }
      searchedEnd = max(searchedEnd, end)
    }
    return nil
  }

  /// The first place before `limit` where `pattern`, which begins with "Li", begins, a digit following it.
  private static func find(_ pattern: [UInt8], in bytes: [UInt8], before limit: Int) -> Int? {
    let span = bytes.span
    var i = 0
    let end = min(limit, span.count - pattern.count)
    while i < end {
      if span[i] == pattern[0], span[i + 1] == pattern[1] {
        var same = 2
        while same < pattern.count, span[i + same] == pattern[same] { same += 1 }
        // A digit: the format string "Linux version %s" is not a banner.
        if same == pattern.count, (0x30...0x39).contains(span[i + same]) { return i }
      }
      i += 1
    }
    return nil
  }

  /// Names what a file is that is not a kernel for x86.
  private static func whatElse(_ head: [UInt8], _ file: HostFile) -> BootError {
    let ours = "use a bzImage or an uncompressed vmlinux for x86"
    let foreign: [(String, Int, String)] = [
      ("ARM\u{64}", 56, "an arm64 kernel image"), ("RISCV", 48, "a RISC-V kernel image"),
      ("\u{18}\u{28}\u{6F}\u{01}", 36, "a 32-bit Arm zImage"),
      ("zimg", 4, "an EFI zboot kernel of another architecture"),
    ]
    for (magic, offset, name) in foreign where head.matches(magic, at: offset) {
      return BootError(.foreign, "\(file) is \(name)", remedy: "use a kernel built for x86")
    }
    if head.matches([0x27, 0x05, 0x19, 0x56]) {
      return BootError(.foreign, "\(file) is a U-Boot image", remedy: ours)
    }
    if let compression = PayloadCompression(magic: head) {
      return BootError(
        .compressed, "\(file) is compressed with \(compression.rawValue)",
        remedy: "decompress it first (\(compression.command)); a bzImage needs no decompression")
    }
    let others: [([UInt8], String, String)] = [
      ([0x30, 0x37, 0x30, 0x37, 0x30], "an initial RAM disk (cpio)", "give it as the initrd and name a kernel"),
      (
        [0x21, 0x3C, 0x61, 0x72, 0x63, 0x68, 0x3E], "a Debian package or archive",
        "extract it (dpkg-deb -x) and name the vmlinuz in it"
      ),
      ([0xED, 0xAB, 0xEE, 0xDB], "an RPM package", "extract it (rpm2cpio) and name the vmlinuz in it"),
      ([0x51, 0x46, 0x49, 0xFB], "a qcow2 disk image", "name a kernel; a disk cannot be booted directly"),
      ([0x68, 0x73, 0x71, 0x73], "a squashfs file system", "name the kernel inside it"),
      ([0x4D, 0x5A], "an EFI or DOS program without a Linux setup header", ours),
      ([0x23, 0x21], "a script", ours), ([0x3C], "an HTML or XML text", "check the address it was downloaded from"),
    ]
    for (magic, name, remedy) in others where head.matches(magic) {
      return BootError(.notAKernel, "\(file) is \(name), not a kernel", remedy: remedy)
    }
    if MultibootHeader(in: head) != nil {
      return BootError(
        .entryPoint, "\(file) is no ELF file, and its multiboot header does not say where it goes",
        remedy: "set flag 16 in the header and fill the address fields in")
    }
    if MultibootHeader.isDamaged(in: head) {
      return BootError(
        .malformed, "\(file) has a multiboot header with a wrong checksum", remedy: "copy, download or build it again")
    }
    if head.allSatisfy({ $0 == 0 }) {
      return BootError(.notAKernel, "\(file) begins with \(head.count) zero bytes", remedy: "copy or download it again")
    }
    if head.matches([0x55, 0xAA], at: 0x1FE) {
      return BootError(.notAKernel, "\(file) is a boot sector or disk image, not a kernel", remedy: ours)
    }
    if head.count < 0x206 {
      return BootError(
        .notAKernel, "\(file) has only \(head.count) bytes: too short for a kernel", remedy: "copy or download it again"
      )
    }
    return BootError(.notAKernel, "\(file) is not a kernel image", remedy: ours)
  }
}

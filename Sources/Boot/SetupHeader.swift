// SPDX-License-Identifier: Apache-2.0
// The header of a bzImage: what the kernel tells its boot loader. Offsets are those of the file and of the zero
// page alike (Linux, Documentation/arch/x86/boot.rst).

import Host

/// How a bzImage's payload is compressed, told by its first bytes.
public enum PayloadCompression: String, Sendable, Codable {
  case gzip, xz, zstd, lz4, lzma, bzip2, lzo, none

  /// Looks at the first bytes of a payload or file; `nil` if they are none of ours.
  init?(magic bytes: [UInt8]) {
    let known: [([UInt8], PayloadCompression)] = [
      ([0x1F, 0x8B], .gzip), ([0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00], .xz), ([0x28, 0xB5, 0x2F, 0xFD], .zstd),
      ([0x02, 0x21, 0x4C, 0x18], .lz4), ([0x04, 0x22, 0x4D, 0x18], .lz4), ([0x42, 0x5A, 0x68], .bzip2),
      ([0x89, 0x4C, 0x5A, 0x4F, 0x00], .lzo), ([0x5D, 0x00, 0x00], .lzma), ([0x7F, 0x45, 0x4C, 0x46], .none),
    ]
    guard let match = known.first(where: { bytes.matches($0.0) }) else { return nil }
    self = match.1
  }

  /// The command that undoes it.
  var command: String {
    switch self {
    case .gzip: "gzip -dc"
    case .xz: "xz -dc"
    case .zstd: "zstd -dc"
    case .lz4: "lz4 -dc"
    case .lzma: "xz --format=lzma -dc"
    case .bzip2: "bzip2 -dc"
    case .lzo: "lzop -dc"
    case .none: "cat"
    }
  }
}

/// The setup header of a bzImage, with the defaults of protocol versions that lack a field filled in.
public struct SetupHeader: Sendable {
  /// The bytes to copy into the zero page at 0x1F1.
  let bytes: [UInt8]
  /// Boot protocol, 0x020F for 2.15.
  public let protocolVersion: UInt16
  /// File offset and size of the protected-mode kernel, in bytes.
  public let kernelOffset: Int
  public let kernelByteCount: Int
  /// Where the kernel prefers to be, and whether it can be elsewhere at multiples of `alignment`.
  public let preferredAddress: UInt64
  public let isRelocatable: Bool
  public let alignment: UInt64
  /// Memory the kernel needs from its load address on before it knows the memory map, in bytes.
  public let initByteCount: UInt64
  /// The highest address the last byte of an initial RAM disk may have.
  public let initrdAddressMax: UInt64
  /// The longest command line in bytes, without its NUL.
  public let commandLineMax: Int
  /// XLF_* bits; 0 before protocol 2.12.
  public let xloadflags: UInt16
  public let compression: PayloadCompression?
  /// File offset and size of the compressed vmlinux; `nil` before protocol 2.08.
  public let payload: (offset: Int, byteCount: Int)?
  /// The text `uname -r` begins with, followed by who built it and when.
  public let version: String?

  /// Whether the 64-bit entry point exists (XLF_KERNEL_64).
  public var has64BitEntry: Bool { xloadflags & 1 != 0 }

  /// Whether a file that begins so is meant to be a bzImage.
  static func isPresent(in head: [UInt8]) -> Bool { head.matches("HdrS", at: 0x202) }

  /// Reads the header.
  ///
  /// - Parameter head: The file's first 64 KiB, or all of it.
  init(_ head: [UInt8], _ file: HostFile) throws(BootError) {
    func truncated() -> BootError {
      BootError(
        .truncated, "\(file) is truncated: it ends after \(file.byteCount) bytes",
        remedy: "copy or download it again")
    }
    guard let spoken = head.little(UInt16.self, at: 0x206), let sectors = head.little(UInt8.self, at: 0x1F1),
      let paragraphs = head.little(UInt32.self, at: 0x1F4), let loadflags = head.little(UInt8.self, at: 0x211)
    else { throw truncated() }
    func field<T: FixedWidthInteger>(_ type: T.Type, _ offset: Int, since: UInt16, else value: T) throws(BootError) -> T
    {
      guard spoken >= since else { return value }
      guard let value = head.little(type, at: offset) else { throw truncated() }
      return value
    }
    guard spoken >= 0x0202, spoken < 0x1000, loadflags & 1 != 0 else {
      throw BootError(
        .notAKernel, "\(file) is a zImage or speaks boot protocol \(spoken >> 8).\(spoken & 0xFF), older than 2.02",
        remedy: "use a bzImage of Linux 2.4 or later")
    }
    protocolVersion = spoken
    kernelOffset = ((sectors == 0 ? 4 : Int(sectors)) + 1) * 512
    // Before 2.04 the size was 16 bits wide; the next two bytes belonged to something else.
    let declared = Int(spoken >= 0x0204 ? paragraphs : paragraphs & 0xFFFF) * 16
    // Before 2.08 the size was rounded up, and the file was not.
    let rounding = spoken < 0x0208 ? 15 : 0
    guard file.byteCount > kernelOffset, file.byteCount + rounding >= kernelOffset + declared else { throw truncated() }
    kernelByteCount = declared > 0 ? min(declared, file.byteCount - kernelOffset) : file.byteCount - kernelOffset
    // A signed image ends with its signatures, behind what the setup header counts.
    guard file.byteCount >= SetupHeader.signatureEnd(in: head) else { throw truncated() }

    let end = min(0x202 + Int(head[0x201]), 0x290)
    guard head.count >= end, end > 0x230 || spoken < 0x0205, end > 0x214 else { throw truncated() }
    bytes = [UInt8](head[0x1F1..<end])
    initrdAddressMax = UInt64(try field(UInt32.self, 0x22C, since: 0x0203, else: 0x37FF_FFFF))
    alignment = UInt64(try field(UInt32.self, 0x230, since: 0x0205, else: 0x10_0000))
    isRelocatable = try field(UInt8.self, 0x234, since: 0x0205, else: 0) != 0
    xloadflags = try field(UInt16.self, 0x236, since: 0x020C, else: 0)
    commandLineMax = Int(try field(UInt32.self, 0x238, since: 0x0206, else: 255))
    preferredAddress = try field(UInt64.self, 0x258, since: 0x020A, else: 0x10_0000)
    // Older kernels do not say; none decompresses to more than five times its size.
    initByteCount = UInt64(try field(UInt32.self, 0x260, since: 0x020A, else: UInt32(clamping: kernelByteCount * 5)))
    guard alignment > 0, alignment & (alignment - 1) == 0, alignment <= 1 << 30,
      preferredAddress >= 0x10_0000, preferredAddress < 1 << 32
    else {
      throw BootError(
        .malformed, "\(file) has a damaged setup header: alignment \(alignment), load address \(preferredAddress)",
        remedy: "copy or download it again")
    }

    let payloadOffset = Int(try field(UInt32.self, 0x248, since: 0x0208, else: 0))
    let payloadCount = Int(try field(UInt32.self, 0x24C, since: 0x0208, else: 0))
    if payloadOffset > 0, payloadCount > 0 {
      guard payloadOffset + payloadCount <= file.byteCount - kernelOffset else { throw truncated() }
      payload = (kernelOffset + payloadOffset, payloadCount)
      do throws(HostError) {
        compression = PayloadCompression(
          magic: try file.bytes(at: kernelOffset + payloadOffset, count: min(8, payloadCount)))
      } catch { throw BootError(error) }
    } else {
      payload = nil
      compression = nil
    }
    // An offset into the real-mode part, counted from 0x200.
    let textOffset = Int(head.little(UInt16.self, at: 0x20E) ?? 0)
    if textOffset > 0, textOffset + 0x200 < min(head.count, kernelOffset) {
      version = head[(textOffset + 0x200)..<min(head.count, kernelOffset)].printable
    } else {
      version = nil
    }
  }

  /// File offset of the end of an EFI image's certificate table, 0 if it has none (PE format specification, optional
  /// header, data directory 4).
  private static func signatureEnd(in head: [UInt8]) -> Int {
    guard head.matches([0x4D, 0x5A]), let header = head.little(UInt32.self, at: 0x3C).map({ Int($0) }),
      head.matches([0x50, 0x45, 0, 0], at: header),
      let magic = head.little(UInt16.self, at: header + 24), magic == 0x20B || magic == 0x10B
    else { return 0 }
    let directories = header + 24 + (magic == 0x20B ? 112 : 96)
    guard let count = head.little(UInt32.self, at: directories - 4), count > 4,
      let offset = head.little(UInt32.self, at: directories + 4 * 8),
      let byteCount = head.little(UInt32.self, at: directories + 4 * 8 + 4)
    else { return 0 }
    return Int(offset) + Int(byteCount)
  }
}

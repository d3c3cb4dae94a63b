// SPDX-License-Identifier: Apache-2.0
// The initial RAM disk: one or more archives, from files or made in memory, laid end to end. Linux unpacks cpio
// archives that follow each other as one (Documentation/driver-api/early-userspace/buffer-format.rst), which is how
// our modules and init join an initrd of the user's.

import GuestMemory
import Host
import SystemPackage

/// What the kernel unpacks into its first root file system.
public struct InitialRAMDisk: Sendable {
  /// A piece of it.
  public enum Part: Sendable {
    case file(FilePath)
    case bytes([UInt8])
  }
  /// In the order the kernel sees them; later files replace earlier ones.
  public var parts: [Part]

  public init(_ parts: [Part]) { self.parts = parts }
  /// A file as it is.
  public init(_ path: FilePath) { parts = [.file(path)] }

  /// What the first part is called, for protocols that name it.
  var name: String {
    if case .file(let path)? = parts.first { path.string } else { "" }
  }

  /// Which end of the room to use.
  enum Place { case lowest, highest }

  /// Copies the parts to the top of the RAM below `limit`, or right above the floor, page-aligned, each part at a
  /// multiple of 4 bytes.
  ///
  /// - Parameters:
  ///   - floor: The end of the memory the kernel needs.
  ///   - limit: The first address it may not use, by the kernel's own word or the end of RAM.
  /// - Returns: The range, ending with the last byte; `nil` if there are no parts.
  /// - Throws: `BootError` `.initrd` if it does not fit, `.host` if a file cannot be read.
  func load(
    into memory: GuestMemory, above floor: UInt64, below limit: UInt64, place: Place = .highest
  ) throws(BootError) -> Range<UInt64>? {
    var opened: [(file: HostFile?, bytes: [UInt8], offset: UInt64, count: Int)] = []
    var size: UInt64 = 0
    for part in parts {
      size = (size + 3) & ~3
      switch part {
      case .bytes(let bytes):
        opened.append((nil, bytes, size, bytes.count))
        size += UInt64(bytes.count)
      case .file(let path):
        let file: HostFile
        do throws(HostError) { file = try HostFile(path, role: "initrd") } catch { throw BootError(error) }
        guard file.byteCount > 0 else {
          throw BootError(.initrd, "\(file) is empty", remedy: "copy or build it again, or leave it out")
        }
        opened.append((file, [], size, file.byteCount))
        size += UInt64(file.byteCount)
      }
    }
    guard size > 0 else { return nil }
    let highest = limit > size ? (limit - size) & ~4095 : 0
    guard floor < limit, size <= limit - floor, floor <= highest, (floor + 4095) & ~4095 <= highest else {
      let room = limit > floor ? limit - floor : 0
      throw BootError(
        .initrd,
        "the initrd of \(describe(byteCount: size)) does not fit: \(describe(byteCount: room)) are left beside the kernel",
        remedy: room < memory.lowEnd / 2 && limit == memory.lowEnd || memory.highEnd == GuestMemory.highStart
          ? "give the guest more memory" : "use a smaller initrd")
    }
    let start = place == .lowest ? (floor + 4095) & ~4095 : highest
    for part in opened {
      let address = GuestPhysical(start + part.offset)
      if let file = part.file {
        do throws(HostError) { try memory.read(from: file, at: 0, count: part.count, to: address) } catch {
          throw BootError(error)
        }
      } else {
        try memory.place(part.bytes, at: address.value)
      }
      // Padding between parts is zero even if the guest is started for the second time.
      let end = part.offset + UInt64(part.count)
      let padding = Int((end + 3) & ~3 - end)
      if end < size { try memory.clear(GuestPhysical(start + end), count: padding) }
    }
    return start..<start + size
  }
}

// SPDX-License-Identifier: Apache-2.0
// Archives in cpio's "newc" form, made in memory: what the kernel unpacks into its first root file system
// (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). No temporary file, no cpio, no root needed
// for device nodes.

/// An archive under construction.
///
/// Parents must come before their children. Everything belongs to root and is dated 1970, so that equal contents give
/// equal bytes.
package struct Initramfs: Sendable {
  private var archive: [UInt8] = []
  private var inode: UInt32 = 1

  package init() {}

  private enum Kind: UInt32 {
    case directory = 0o040000, file = 0o100000, symbolicLink = 0o120000, characterDevice = 0o020000
    case blockDevice = 0o060000
  }

  /// Adds a directory.
  ///
  /// - Parameter path: Relative to the root, with or without a leading `/`.
  package mutating func directory(_ path: String, mode: UInt32 = 0o755) {
    append(path, .directory, mode, [])
  }

  /// Adds a file; at most 4 GiB, the format's limit.
  package mutating func file(_ path: String, _ contents: [UInt8], mode: UInt32 = 0o644) {
    append(path, .file, mode, contents)
  }

  /// Adds a symbolic link to `target`.
  package mutating func symbolicLink(_ path: String, to target: String) {
    append(path, .symbolicLink, 0o777, [UInt8](target.utf8))
  }

  /// Adds a character device.
  package mutating func characterDevice(_ path: String, major: UInt32, minor: UInt32, mode: UInt32 = 0o600) {
    append(path, .characterDevice, mode, [], major, minor)
  }

  /// Adds a block device.
  package mutating func blockDevice(_ path: String, major: UInt32, minor: UInt32, mode: UInt32 = 0o600) {
    append(path, .blockDevice, mode, [], major, minor)
  }

  /// The archive with its end mark, a multiple of 512 bytes.
  package var bytes: [UInt8] {
    var copy = self
    copy.entry("TRAILER!!!", mode: 0, links: 1, inode: 0, [], 0, 0)
    copy.archive += [UInt8](repeating: 0, count: (512 - copy.archive.count % 512) % 512)
    return copy.archive
  }

  private mutating func append(
    _ path: String, _ kind: Kind, _ mode: UInt32, _ contents: [UInt8], _ major: UInt32 = 0, _ minor: UInt32 = 0
  ) {
    precondition(mode <= 0o7777 && contents.count <= UInt32.max && !path.utf8.contains(0))
    // cpio takes "." for the root and refuses empty names.
    let relative = path.drop { $0 == "/" }
    entry(
      relative.isEmpty ? "." : String(relative), mode: kind.rawValue | mode, links: kind == .directory ? 2 : 1,
      inode: inode, contents, major, minor)
    inode += 1
  }

  /// Writes one entry: a magic number and 13 words of eight hexadecimal digits, the name with its NUL, the contents;
  /// name and contents each padded to a multiple of four bytes.
  private mutating func entry(
    _ name: String, mode: UInt32, links: UInt32, inode: UInt32, _ contents: [UInt8], _ major: UInt32, _ minor: UInt32
  ) {
    archive += "070701".utf8
    let user: UInt32 = 0, group: UInt32 = 0, time: UInt32 = 0, checksum: UInt32 = 0
    let device: (major: UInt32, minor: UInt32) = (0, 0)
    for word in [
      inode, mode, user, group, links, time, UInt32(contents.count), device.major, device.minor, major, minor,
      UInt32(name.utf8.count + 1), checksum,
    ] {
      for shift in stride(from: UInt32(28), through: 0, by: -4) {
        let digit = UInt8(truncatingIfNeeded: word >> shift & 15)
        archive.append(digit < 10 ? 0x30 + digit : 0x41 - 10 + digit)
      }
    }
    archive += name.utf8
    archive.append(0)
    pad()
    archive += contents
    pad()
  }

  private mutating func pad() {
    while archive.count % 4 != 0 { archive.append(0) }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Small made-up kernels: just enough header to be taken for one, and bytes that tell where they were put.

import Boot
import Foundation
import SystemPackage

/// A directory that goes away with the test.
final class Scratch {
  let path = FilePath(NSTemporaryDirectory()).appending("lguest-boot-\(UInt64.random(in: 0 ... .max))")

  init() throws {
    try FileManager.default.createDirectory(atPath: path.string, withIntermediateDirectories: true)
  }
  deinit { try? FileManager.default.removeItem(atPath: path.string) }

  func write(_ bytes: [UInt8], _ name: String = "image") throws -> FilePath {
    let file = path.appending(name)
    try Data(bytes).write(to: URL(fileURLWithPath: file.string))
    return file
  }
}

/// The processor time of this thread so far.
func threadTime() -> Duration {
  var time = timespec()
  _ = unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
  return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
}

func put<T: FixedWidthInteger>(_ value: T, _ offset: Int, _ bytes: inout [UInt8]) {
  for i in 0..<T.bitWidth / 8 { bytes[offset + i] = UInt8(truncatingIfNeeded: value >> T(8 * i)) }
}

func little(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> UInt64 {
  (0..<count).reversed().reduce(0) { $0 << 8 | UInt64(bytes[offset + $1]) }
}

/// A bzImage of 2 KiB of setup and 8 KiB of kernel: 0xA0 bytes, an xz magic number at 0x400.
func syntheticBzImage(_ change: (inout [UInt8]) -> Void = { _ in }) -> [UInt8] {
  var image = [UInt8](repeating: 0, count: 4 * 512) + [UInt8](repeating: 0xA0, count: 8192)
  image[0x1F1] = 3
  put(UInt32(8192 / 16), 0x1F4, &image)
  put(UInt16(0xAA55), 0x1FE, &image)
  image[0x200] = 0xEB
  image[0x201] = 0x6A
  image.replaceSubrange(0x202..<0x206, with: "HdrS".utf8)
  put(UInt16(0x020F), 0x206, &image)
  put(UInt16(0x300), 0x20E, &image)
  image.replaceSubrange(0x500..<0x50B, with: "9.9.9-test\0".utf8)
  image[0x211] = 0x81
  put(UInt32(0x7FFF_FFFF), 0x22C, &image)
  put(UInt32(0x20_0000), 0x230, &image)
  image[0x234] = 1
  put(UInt16(0x7F), 0x236, &image)
  put(UInt32(2047), 0x238, &image)
  put(UInt32(0x400), 0x248, &image)
  put(UInt32(0x1000), 0x24C, &image)
  put(UInt64(0x100_0000), 0x258, &image)
  put(UInt32(0x40_0000), 0x260, &image)
  image.replaceSubrange(2048 + 0x400..<2048 + 0x406, with: [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0])
  change(&image)
  return image
}

/// An ELF executable with one segment of 4 KiB in the file and 8 KiB in memory at 1 MiB, optionally the Linux
/// banner, a PVH note and a multiboot header.
func syntheticELF(
  is64Bit: Bool = true, machine: UInt16? = nil, physical: UInt64 = 0x10_0000, entry: UInt64 = 0x10_0010,
  banner: Bool = true, pvh: UInt64? = nil, multiboot: Bool = false
) -> [UInt8] {
  var image = [UInt8](repeating: 0, count: 0x1000) + [UInt8](repeating: 0xB0, count: 0x1000)
  image.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, is64Bit ? 2 : 1, 1, 1])
  put(UInt16(2), 16, &image)
  put(machine ?? (is64Bit ? 62 : 3), 18, &image)
  func word(_ value: UInt64, _ at64: Int, _ at32: Int) {
    if is64Bit { put(value, at64, &image) } else { put(UInt32(value), at32, &image) }
  }
  let base = is64Bit ? 64 : 52
  let size = is64Bit ? 56 : 32
  word(entry, 24, 24)
  word(UInt64(base), 32, 28)
  put(UInt16(size), is64Bit ? 54 : 42, &image)
  put(UInt16(2), is64Bit ? 56 : 44, &image)
  func segment(_ index: Int, _ type: UInt32, _ offset: UInt64, _ address: UInt64, _ fileCount: UInt64, _ count: UInt64)
  {
    let row = base + index * size
    put(type, row, &image)
    word(offset, row + 8, row + 4)
    word(is64Bit ? address &+ 0xFFFF_FFFF_8000_0000 : address + 0xC000_0000 & 0xFFFF_FFFF, row + 16, row + 8)
    word(address, row + 24, row + 12)
    word(fileCount, row + 32, row + 16)
    word(count, row + 40, row + 20)
  }
  segment(0, 1, 0x1000, physical, 0x1000, 0x2000)
  segment(1, 4, 0x800, 0, pvh == nil ? 0 : 40, 0)
  if let pvh {
    // Another note first, with a name and descriptor that need padding.
    put(UInt32(3), 0x800, &image)
    put(UInt32(1), 0x804, &image)
    put(UInt32(18), 0x808, &image)
    image.replaceSubrange(0x80C..<0x80F, with: "Xe\0".utf8)
    put(UInt32(4), 0x814, &image)
    put(UInt32(4), 0x818, &image)
    put(UInt32(18), 0x81C, &image)
    image.replaceSubrange(0x820..<0x824, with: "Xen\0".utf8)
    put(UInt32(pvh), 0x824, &image)
  }
  if banner { image.replaceSubrange(0x1800..<0x1818, with: "Linux version 9.9 (me)\n\0".utf8) }
  if multiboot {
    put(UInt32(0x1BAD_B002), 0x900, &image)
    put(UInt32(3), 0x904, &image)
    put(UInt32(0) &- 0x1BAD_B002 &- 3, 0x908, &image)
  }
  return image
}

/// An ELF executable with `count` program headers of `entrySize` bytes, of which 256 at most are there, for the same
/// 4 KiB: the first is a segment at 1 MiB, the others are of type `kind`.
func crowdedELF(_ count: Int, entrySize: Int = 56, kind: UInt32 = 1) -> [UInt8] {
  let content = (64 + min(count, 256) * entrySize + 4095) & ~4095
  var image = [UInt8](syntheticELF().prefix(64)) + [UInt8](repeating: 0, count: content - 64)
  put(UInt16(entrySize), 54, &image)
  put(UInt16(count), 56, &image)
  for index in 0..<min(count, 256) {
    let row = 64 + index * entrySize
    put(index == 0 ? 1 : kind, row, &image)
    let words = [content, 0x10_0000, 0x10_0000, 0x1000, 0x1000]
    for (word, value) in words.enumerated() { put(UInt64(value), row + 8 + 8 * word, &image) }
  }
  return image + [UInt8](repeating: 0xB0, count: 4096)
}

/// A flat file with a multiboot header 16 bytes in, whose address fields put it at 1 MiB: 4 KiB of 0xC0, 8 KiB of bss.
func syntheticMultiboot(_ change: (inout [UInt8]) -> Void = { _ in }) -> [UInt8] {
  var image = [UInt8](repeating: 0xC0, count: 0x1000)
  put(UInt32(0x1BAD_B002), 16, &image)
  put(UInt32(0x1_0003), 20, &image)
  for (index, field) in [0x10_0010, 0x10_0000, 0x10_1000, 0x10_3000, 0x10_0040].enumerated() {
    put(UInt32(field), 28 + 4 * index, &image)
  }
  change(&image)
  let flags = UInt32(little(image, 20, 4))
  put(0 &- 0x1BAD_B002 &- flags, 24, &image)
  return image
}

// SPDX-License-Identifier: Apache-2.0
// Kernels with lguest's guest side: told by note and by texts, started at the entry point or behind a word.

import Foundation
import GuestMemory
import SystemPackage
import Testing

@testable import Boot

/// A gzip member with its content as it is (RFC 1951, 3.2.4 and RFC 1952, 2.3).
private func stored(_ content: [UInt8]) -> [UInt8] {
  var sum = UInt32.max
  for byte in content {
    sum ^= UInt32(byte)
    for _ in 0..<8 { sum = sum >> 1 ^ (sum & 1 == 0 ? 0 : 0xEDB8_8320) }
  }
  func bytes(_ value: UInt32, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }
  let count = UInt32(content.count)
  return [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3, 1] + bytes(count, 2) + bytes(~count, 2) + content + bytes(~sum, 4)
    + bytes(count, 4)
}

@Suite("Kernels with lguest's guest side") struct LguestBootTests {
  private static let texts = "lguest\0LGUEST\0\u{1}6Booting paravirtualized kernel on %s\n\0"

  private func image(_ bytes: [UInt8]) throws -> KernelImage {
    let scratch = try Scratch()
    return try KernelImage(scratch.write(bytes))
  }

  private func elf(_ text: String, is64Bit: Bool = false) -> [UInt8] {
    var bytes = syntheticELF(is64Bit: is64Bit)
    bytes.replaceSubrange(0x1900..<0x1900 + text.utf8.count, with: text.utf8)
    return bytes
  }

  @Test(
    "a vmlinux is told by all the texts, each a text of its own",
    arguments: [
      ("\0" + texts, true), ("\0lguest\0LGUEST\0", false), ("x" + texts, false), ("\0GenuineLguest\u{90}", true),
      ("\0lguest\0Booting paravirtualized kernel on", false), ("", false),
    ])
  func vmlinux(text: String, expected: Bool) throws {
    let report = KernelReport(try image(elf(text)))
    #expect(report.hasLguestEntry == expected && !report.isLguestGuest)
    #expect(report.lines.contains("  lguest: possible (--abi lguest)") == expected)
    #expect(KernelReport(try image(elf(text, is64Bit: true))).hasLguestEntry == false)
  }

  @Test("the note makes it the default") func note() throws {
    var bytes = elf("")
    put(UInt32(24), 52 + 32 + 16, &bytes)
    put(UInt32(7), 0x800, &bytes)
    put(UInt32(1), 0x808, &bytes)
    bytes.replaceSubrange(0x80C..<0x813, with: "lguest\0".utf8)
    let report = KernelReport(try image(bytes))
    #expect(report.hasLguestEntry == true && report.isLguestGuest)
    let scratch = try Scratch()
    #expect(try KernelImage.isLguestGuest(scratch.write(bytes)))
    put(UInt32(2), 0x808, &bytes)
    #expect(try !KernelImage.isLguestGuest(scratch.write(bytes)))
    #expect(try !KernelImage.isLguestGuest(scratch.write(syntheticBzImage())))
  }

  /// A 32-bit bzImage with this payload.
  private func bzImage(_ payload: [UInt8], protocolVersion: UInt16 = 0x020F) -> [UInt8] {
    syntheticBzImage { image in
      put(protocolVersion, 0x206, &image)
      put(UInt16(0), 0x236, &image)
      put(UInt32(payload.count), 0x24C, &image)
      image.replaceSubrange(2048 + 0x400..<2048 + 0x400 + payload.count, with: payload)
    }
  }

  @Test("a bzImage is unpacked to be told, or it is unknown") func packed() throws {
    let content = [UInt8](("\0" + LguestBootTests.texts).utf8)
    #expect(KernelReport(try image(bzImage(stored(content)))).hasLguestEntry == true)
    #expect(KernelReport(try image(bzImage(stored([1, 2, 3])))).hasLguestEntry == false)
    // Before protocol 2.08 it has to be found.
    #expect(KernelReport(try image(bzImage(stored(content), protocolVersion: 0x0206))).hasLguestEntry == true)
    var broken = stored(content)
    broken[20] ^= 1
    let report = KernelReport(try image(bzImage(broken)))
    #expect(report.hasLguestEntry == nil && report.lines.contains { $0.contains("lguest: unknown") })
  }

  private func load(_ bytes: [UInt8]) throws -> (LguestBoot.Start, GuestMemory) {
    let memory = try GuestMemory(byteCount: 32 << 20)
    let start = try LguestBoot.load(
      image(bytes), initrd: InitialRAMDisk([.bytes([1, 2, 3])]), commandLine: "a b", byteCount: 32 << 20, into: memory)
    return (start, memory)
  }

  @Test("a vmlinux begins at its entry point, or behind the word where it is linked") func starts() throws {
    let (start, memory) = try load(elf("\0" + LguestBootTests.texts))
    #expect(start.entry == 0x10_0010 && start.pageOffset == nil)
    // Two pages of kernel; the disk at the top.
    #expect(start.room == 0x10_2000..<(32 << 20) - 4096)
    #expect(try memory.load(UInt32.self, at: GuestPhysical(0x23C)) == 1)
    let (old, _) = try load(elf("\0GenuineLguest\u{90}"))
    #expect(old.entry == 0xC010_0000 + 0x90E && old.pageOffset == 0xC000_0000)
  }

  @Test("a bzImage of 2.6.23 is unpacked by the host") func oldBzImage() throws {
    // Loads of EAX from kernel data, and one of something else.
    let loads: [UInt8] = [0xA1, 0, 0, 0x10, 0xC0, 0xA1, 4, 0, 0x20, 0xC0, 0xA1, 1, 2, 3, 4]
    let content = loads + [UInt8]("GenuineLguest".utf8) + [0x90]
    let (start, memory) = try load(bzImage(stored(content), protocolVersion: 0x0206))
    #expect(start.pageOffset == 0xC000_0000 && start.entry == 0xC010_0000 + UInt64(content.count) - 1)
    #expect(try memory.bytes(at: GuestPhysical(0x10_0000), count: content.count) == content)
    // A later kernel unpacks itself.
    let (later, _) = try load(bzImage(stored(content)))
    #expect(later.pageOffset == nil && later.entry == 0x10_0000)
  }

  @Test("no room for page tables is found before the start") func noRoom() throws {
    let memory = try GuestMemory(byteCount: 4 << 20)
    let kernel = try image(elf("\0GenuineLguest\u{90}"))
    #expect(throws: BootError.self) {
      try LguestBoot.load(kernel, initrd: nil, commandLine: "", byteCount: 0x10_3000, into: memory)
    }
  }
}

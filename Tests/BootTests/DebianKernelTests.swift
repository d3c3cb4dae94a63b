// SPDX-License-Identifier: Apache-2.0
// The loaders against Debian's kernels, which scripts/test fetches: the bzImages, and the vmlinux inside each.

import Foundation
import GuestMemory
import Host
import SystemPackage
import Testing
import X86

@testable import Boot

/// The bzImages in the cache, by the variables of scripts/test.
private let kernels = ["KERNEL", "GENERIC_KERNEL", "KERNEL_686_PAE", "KERNEL_686"]
  .compactMap { ProcessInfo.processInfo.environment["LGUEST_TEST_\($0)"] }.filter { !$0.isEmpty }

@Suite(
  "Debian's kernels", .enabled(if: !kernels.isEmpty, "no kernel in the cache; run scripts/test once without --offline"))
struct DebianKernelTests {
  /// `vmlinuz-RELEASE`
  private static func release(_ path: String) -> String {
    String(FilePath(path).lastComponent!.string.dropFirst("vmlinuz-".count))
  }

  /// Whether this host has every library of `Decompression`.
  private static let canUnpack = ["libz.so.1", "liblzma.so.5", "libzstd.so.1", "liblz4.so.1"]
    .allSatisfy { HostLibrary($0) != nil }

  /// Writes the vmlinux inside a bzImage to a file, and gives it to `body`.
  private func withUnpacked(_ path: String, _ body: (KernelImage) throws -> Void) throws {
    let image = try KernelImage(FilePath(path))
    guard case .bzImage(let header) = image.format, let payload = header.payload,
      let format = header.compression.flatMap({ Decompression(rawValue: $0.rawValue) })
    else {
      Issue.record("\(path) is no bzImage with a kernel in it")
      return
    }
    let file = try HostFile(FilePath(path), role: "kernel image")
    let packed = try file.bytes(at: payload.offset, count: payload.byteCount)
    // The last four bytes are the size; of gzip they are part of the stream.
    let size = packed.little(UInt32.self, at: packed.count - 4) ?? 0
    let stream = format == .gzip ? packed : Array(packed.dropLast(4))
    let unpacked = try #require(
      format.decode(stream, byteCount: Int(size), description: "the kernel in \(path)"), "\(format) is not undone")
    let copy = FileManager.default.temporaryDirectory.appending(path: "vmlinux-\(UUID().uuidString)")
    defer { try? FileManager.default.removeItem(at: copy) }
    try Data(unpacked.bytes(at: 0, count: Int(size))).write(to: copy)
    try body(try KernelImage(FilePath(copy.path)))
  }

  @Test("A bzImage is understood and loaded", arguments: kernels)
  func bzImage(path: String) throws {
    let image = try KernelImage(FilePath(path))
    let release = DebianKernelTests.release(path)
    let is64Bit = release.hasSuffix("amd64")
    #expect(image.version?.hasPrefix(release) == true)
    #expect(image.entryPoints == (is64Bit ? [.linux64, .linux32] : [.linux32]))
    let report = KernelReport(image)
    #expect(report.compression != nil && report.isRelocatable == true && report.commandLineMax == 2047)
    let memory = try GuestMemory(byteCount: 256 << 20)
    for entry in image.entryPoints {
      let cpu = try BootLoader.load(image, commandLine: "console=ttyS0", into: memory, entry: entry)
      #expect(cpu.rip == report.loadAddress + (entry == .linux64 ? 0x200 : 0))
      // The decompressor begins with CLD at either entry.
      #expect(try memory.load(UInt8.self, at: GuestPhysical(cpu.rip)) == 0xFC)
    }
  }

  @Test(
    "A bzImage unpacked by the host is the vmlinux inside",
    .enabled(if: canUnpack, "no zlib, liblzma, libzstd or liblz4"),
    arguments: kernels.filter { $0.hasSuffix("amd64") })
  func unpacked(path: String) throws {
    let image = try KernelImage(FilePath(path))
    try withUnpacked(path) { vmlinux in
      guard case .elf(let elf) = vmlinux.format else {
        Issue.record("what is inside is no ELF file")
        return
      }
      let memory = try GuestMemory(byteCount: 256 << 20)
      let own = try BootLoader.load(vmlinux, commandLine: "", into: memory)
      func contents() throws -> [[UInt8]] {
        try elf.segments.map { try memory.bytes(at: GuestPhysical($0.physicalAddress), count: Int($0.memoryByteCount)) }
      }
      let expected = try contents()
      let fixed = try BootLoader.load(image, commandLine: "quiet nokaslr", into: memory)
      #expect(fixed.rip == own.rip)
      #expect(try contents() == expected)
      #expect(try memory.load(UInt8.self, at: GuestPhysical(fixed.registers[6] + 0x211)) & 2 == 0)
      let random = try BootLoader.load(image, commandLine: "quiet", into: memory)
      #expect(try memory.load(UInt8.self, at: GuestPhysical(random.registers[6] + 0x211)) & 2 == 2)
    }
  }

  @Test(
    "The vmlinux inside is understood and loaded", .enabled(if: canUnpack, "no zlib, liblzma, libzstd or liblz4"),
    arguments: kernels)
  func vmlinux(path: String) throws {
    let release = DebianKernelTests.release(path)
    try withUnpacked(path) { image in
      #expect(image.version?.hasPrefix(release) == true)
      #expect(image.entryPoints.first == (release.hasSuffix("amd64") ? .linux64 : .linux32))
      if release.hasSuffix("cloud-amd64") { #expect(image.entryPoints.contains(.pvh)) }
      let memory = try GuestMemory(byteCount: 512 << 20)
      for entry in image.entryPoints {
        let cpu = try BootLoader.load(image, commandLine: "console=ttyS0", into: memory, entry: entry)
        #expect(cpu.rip == (entry == .pvh ? KernelReport(image).pvhEntryAddress : KernelReport(image).entryAddress))
        #expect(try memory.load(UInt64.self, at: GuestPhysical(cpu.rip)) != 0)
      }
    }
  }
}

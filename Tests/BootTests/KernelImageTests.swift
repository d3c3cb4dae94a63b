// SPDX-License-Identifier: Apache-2.0
// What a file is taken for: kernels by content, everything else by a helpful error, no crash for any bytes at all.

import Boot
import SystemPackage
import Testing

private struct Case: Sendable, CustomTestStringConvertible {
  var testDescription: String
  var bytes: [UInt8]
  var kind: BootError.Kind
  /// What the message must say.
  var words: [String]
}

private func padded(_ bytes: [UInt8], at offset: Int = 0) -> [UInt8] {
  var image = [UInt8](repeating: 0, count: 4096)
  image.replaceSubrange(offset..<offset + bytes.count, with: bytes)
  return image
}

private let refused: [Case] = [
  Case(testDescription: "empty", bytes: [], kind: .empty, words: ["is empty"]),
  Case(testDescription: "one byte", bytes: [1], kind: .notAKernel, words: ["1 byte"]),
  Case(testDescription: "zeros", bytes: padded([]), kind: .notAKernel, words: ["zero bytes"]),
  Case(testDescription: "text", bytes: padded([UInt8]("hello".utf8)), kind: .notAKernel, words: ["not a kernel image"]),
  Case(testDescription: "gzip", bytes: padded([0x1F, 0x8B, 8]), kind: .compressed, words: ["gzip -dc"]),
  Case(testDescription: "xz", bytes: padded([0xFD, 0x37, 0x7A, 0x58, 0x5A, 0]), kind: .compressed, words: ["xz -dc"]),
  Case(testDescription: "zstd", bytes: padded([0x28, 0xB5, 0x2F, 0xFD]), kind: .compressed, words: ["zstd -dc"]),
  Case(
    testDescription: "arm64", bytes: padded([UInt8]("ARM\u{64}".utf8), at: 56), kind: .foreign, words: ["arm64", "x86"]),
  Case(testDescription: "RISC-V", bytes: padded([UInt8]("RISCV".utf8), at: 48), kind: .foreign, words: ["RISC-V"]),
  Case(testDescription: "arm64 ELF", bytes: syntheticELF(machine: 183), kind: .foreign, words: ["arm64"]),
  Case(testDescription: "cpio", bytes: padded([UInt8]("070701".utf8)), kind: .notAKernel, words: ["initrd"]),
  Case(testDescription: "deb", bytes: padded([UInt8]("!<arch>\n".utf8)), kind: .notAKernel, words: ["dpkg-deb"]),
  Case(
    testDescription: "boot sector", bytes: padded([0x55, 0xAA], at: 0x1FE), kind: .notAKernel, words: ["boot sector"]),
  Case(testDescription: "zImage", bytes: syntheticBzImage { $0[0x211] = 0 }, kind: .notAKernel, words: ["zImage"]),
  Case(
    testDescription: "protocol 2.01", bytes: syntheticBzImage { put(UInt16(0x0201), 0x206, &$0) }, kind: .notAKernel,
    words: ["2.1", "2.02"]),
  Case(
    testDescription: "bad alignment", bytes: syntheticBzImage { put(UInt32(3), 0x230, &$0) }, kind: .malformed,
    words: ["alignment 3"]),
  Case(
    testDescription: "payload outside", bytes: syntheticBzImage { put(UInt32.max, 0x24C, &$0) }, kind: .truncated,
    words: ["truncated"]),
  Case(
    testDescription: "signature outside",
    bytes: syntheticBzImage { image in
      image.replaceSubrange(0..<2, with: [0x4D, 0x5A])
      put(UInt32(0x40), 0x3C, &image)
      image.replaceSubrange(0x40..<0x44, with: [0x50, 0x45, 0, 0])
      put(UInt16(0x20B), 0x58, &image)
      put(UInt32(6), 0x58 + 108, &image)
      put(UInt32(UInt32(image.count)), 0x58 + 112 + 32, &image)
      put(UInt32(1), 0x58 + 112 + 36, &image)
    }, kind: .truncated, words: ["truncated"]),
  Case(
    testDescription: "entry outside", bytes: syntheticELF(entry: 0x20_0000), kind: .malformed, words: ["entry point"]),
  Case(
    testDescription: "129 program headers", bytes: crowdedELF(129), kind: .malformed, words: ["129 program headers"]),
  Case(
    testDescription: "65535 program headers", bytes: crowdedELF(65535), kind: .malformed,
    words: ["65535 program headers"]),
  Case(
    testDescription: "program headers of 57 bytes", bytes: crowdedELF(1, entrySize: 57), kind: .malformed,
    words: ["57 bytes each"]),
  Case(
    testDescription: "object file",
    bytes: {
      var image = syntheticELF()
      image[16] = 1
      return image
    }(), kind: .notAKernel, words: ["kernel module"]),
]

@Suite("Kernel images")
struct KernelImageTests {
  @Test("What is no kernel for us is named, and the remedy too", arguments: refused)
  private func refuses(_ one: Case) throws {
    let scratch = try Scratch()
    let path = try scratch.write(one.bytes)
    let error = #expect(throws: BootError.self) { try KernelImage(path) }
    let text = error?.description ?? ""
    #expect(error?.kind == one.kind, "\(text)")
    #expect(text.contains(path.string) && !text.contains("\n") && !text.isEmpty && error?.remedy.isEmpty == false)
    for word in one.words { #expect(text.contains(word), "\(text)") }
  }

  @Test("Paths that are no regular files", arguments: ["/", "/dev/null", "/nonexistent/vmlinuz", ""])
  func paths(path: String) throws {
    let error = #expect(throws: BootError.self) { try KernelImage(FilePath(path)) }
    #expect(error?.kind == .host && error?.remedy.isEmpty == false, "\(error as Any)")
  }

  @Test("Every truncation of a bzImage and of an ELF file is refused, none crashes")
  func truncations() throws {
    let scratch = try Scratch()
    for (name, image) in [("bz", syntheticBzImage()), ("elf", syntheticELF(pvh: 0x10_0000, multiboot: true))] {
      for count in Array(0..<0x300) + Array(stride(from: 0x300, to: image.count, by: 251)) + [image.count - 1] {
        let path = try scratch.write([UInt8](image.prefix(count)), name)
        #expect(throws: BootError.self, "\(name) of \(count) bytes") { try KernelImage(path) }
      }
      _ = try KernelImage(try scratch.write(image, name))
    }
  }

  @Test("A bzImage's facts")
  func bzImage() throws {
    let scratch = try Scratch()
    let image = try KernelImage(try scratch.write(syntheticBzImage()))
    #expect(image.version == "9.9.9-test")
    #expect(image.entryPoints == [.linux64, .linux32])
    let report = KernelReport(image)
    #expect(report.format == "bzImage" && report.bootProtocol == "2.15" && report.compression == .xz)
    #expect(report.loadAddress == 0x100_0000 && report.memoryByteCount == 0x40_0000 && report.isRelocatable == true)
    #expect(report.lines.contains { $0.contains("9.9.9-test") })
    let old = try KernelImage(
      try scratch.write(
        syntheticBzImage {
          put(UInt16(0x0204), 0x206, &$0)
          $0[0x201] = 0x2E
        }))
    // Fields a 2.04 header does not have are not read.
    #expect(old.entryPoints == [.linux32])
    #expect(KernelReport(old).commandLineMax == 255 && KernelReport(old).loadAddress == 0x10_0000)
  }

  @Test("Whatever the headers say, no byte is searched twice for the banner, and not without end")
  func search() throws {
    let scratch = try Scratch()
    let rows = 128
    let image = crowdedELF(rows)
    let path = try scratch.write(image)
    let file = try FileDescriptor.open(path, .readWrite)
    defer { try? file.close() }
    let content = image.count - 4096
    /// Has all headers mean everything to the file's end.
    func resize(to byteCount: Int) throws {
      try file.resize(to: Int64(byteCount))
      var counts = [UInt8](repeating: 0, count: 16)
      put(UInt64(byteCount - content), 0, &counts)
      put(UInt64(byteCount - content), 8, &counts)
      for row in 0..<rows { try file.writeAll(toAbsoluteOffset: Int64(64 + row * 56 + 32), counts) }
    }
    // A hole, which is quickly read once; 4 GiB take longer.
    try resize(to: 32 << 20)
    let before = threadTime()
    #expect(try KernelImage(path).version == nil)
    #expect(threadTime() - before < .seconds(1))
    // So far behind no kernel has it.
    try resize(to: 300 << 20)
    try file.writeAll(toAbsoluteOffset: 290 << 20, "Linux version 9.9 (me)\n".utf8)
    #expect(try KernelImage(path).version == nil)
    try file.writeAll(toAbsoluteOffset: 20 << 20, "Linux version 9.8 (me)\n".utf8)
    #expect(try KernelImage(path).version == "9.8 (me)")
  }

  @Test("Notes are read as long as there are not too many of them")
  func notes() throws {
    let scratch = try Scratch()
    func pvh(after other: Int) throws -> UInt64? {
      let rows = 3
      var image = crowdedELF(rows, kind: 4)
      let content = image.count - 4096
      // One that says nothing, then the one that counts.
      image += [UInt8](repeating: 0, count: 2 << 20)
      put(UInt64(content + 4096), 64 + 56 + 8, &image)
      put(UInt64(other), 64 + 56 + 32, &image)
      for (index, word) in [4, 4, 18, 0x00_6E_65_58, 0x10_0010].enumerated() {
        put(UInt32(word), content + 4 * index, &image)
      }
      return KernelReport(try KernelImage(try scratch.write(image))).pvhEntryAddress
    }
    #expect(try pvh(after: 4096) == 0x10_0010)
    #expect(try pvh(after: 1 << 20) == nil)
  }

  @Test("An ELF file's entry points, best first")
  func elf() throws {
    let scratch = try Scratch()
    func entries(_ bytes: [UInt8]) throws -> [EntryPoint] { try KernelImage(try scratch.write(bytes)).entryPoints }
    #expect(try entries(syntheticELF()) == [.linux64])
    #expect(try entries(syntheticELF(pvh: 0x10_0100)) == [.linux64, .pvh])
    #expect(try entries(syntheticELF(banner: false, pvh: 0x10_0100)) == [.pvh])
    #expect(try entries(syntheticELF(is64Bit: false)) == [.linux32])
    #expect(try entries(syntheticELF(is64Bit: false, banner: false, multiboot: true)) == [.multiboot])
    let image = try KernelImage(try scratch.write(syntheticELF(entry: 0xFFFF_FFFF_8010_0020, pvh: 0x10_0100)))
    let report = KernelReport(image)
    #expect(image.version == "9.9 (me)")
    #expect(report.entryAddress == 0x10_0020 && report.pvhEntryAddress == 0x10_0100)
    #expect(report.loadAddress == 0x10_0000 && report.memoryByteCount == 0x2000)
  }
}

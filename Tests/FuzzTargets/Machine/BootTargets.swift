// SPDX-License-Identifier: Apache-2.0
// Targets that read what people give a machine to boot: kernels in every format, and initial RAM disks.

import Foundation
import GuestMemory
import Host
import Lguest
import SystemPackage
import X86

@testable import Boot

/// A file that holds one input after the other.
final class InputFile: @unchecked Sendable {
  private let scratch: Scratch
  let path: FilePath

  init(_ name: String) throws {
    scratch = try Scratch()
    path = try scratch.write([], name)
  }

  func write(_ bytes: [UInt8]) throws {
    let file = try FileDescriptor.open(path, .writeOnly, options: [.truncate])
    defer { try? file.close() }
    try file.writeAll(bytes)
  }
}

/// Checks what everything that refuses owes its reader.
func checkRefusal(_ error: BootError) throws {
  if error.description.isEmpty || error.description.contains("\n") || error.remedy.isEmpty {
    throw FuzzFailure("a refusal that says too little or too much: \(error.description)")
  }
}

/// RAM that inputs share: they are to write, not to read.
final class SharedMemories: Sendable {
  let all: [GuestMemory]
  init() throws {
    all = try [4 << 20, 64 << 20, (3 << 30) + (64 << 20)].map { try GuestMemory(byteCount: $0) }
  }
}

/// bzImage, ELF, multiboot and PVH.
enum KernelImages {
  private static let file = Result { try InputFile("kernel") }
  private static let memories = Result { try SharedMemories() }

  static let words: [[UInt8]] = [
    Array("HdrS".utf8), [0x7F, 0x45, 0x4C, 0x46], [0x02, 0xB0, 0xAD, 0x1B], Array("Linux version ".utf8),
    Array("Xen\0".utf8), [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0], [0x1F, 0x8B, 8], [0x28, 0xB5, 0x2F, 0xFD], [0x55, 0xAA],
    [0x4D, 0x5A], [0x50, 0x45, 0, 0], [0x02, 0x21, 0x4C, 0x18], [0x42, 0x5A, 0x68],
  ]

  static func samples() -> [[UInt8]] {
    let kernels = [
      syntheticBzImage(), syntheticELF(pvh: 0x10_0000, multiboot: true), syntheticELF(is64Bit: false, pvh: 0x10_0010),
      syntheticELF(is64Bit: false, banner: false, multiboot: true), syntheticMultiboot(),
      // As many headers as may be, one more, and what no file has room for.
      crowdedELF(ELFImage.programHeaderLimit), crowdedELF(ELFImage.programHeaderLimit, kind: 4),
      crowdedELF(ELFImage.programHeaderLimit + 1), crowdedELF(1, entrySize: 65535), crowdedELF(65535),
    ]
    // How it is loaded: by the first bytes.
    return kernels.flatMap { kernel in [[0, 0, 0], [1, 1, 1], [2, 2, 2]].map { $0 + kernel } }
  }

  static func run(_ input: inout FuzzInput) throws {
    let memory = try input.choose(memories.get().all)
    let entries = EntryPoint.allCases
    let entry = input.choose(entries)
    let commandLine = String(repeating: "a", count: Int(input.byte()) * 12)
    let file = try file.get()
    try file.write(input.rest())
    do throws(BootError) {
      let kernel = try KernelImage(file.path)
      let report = KernelReport(kernel)
      if report.lines.contains(where: { $0.contains("\n") }) { throw BootError(.malformed, "\n", remedy: "") }
      _ = report.json.text()
      let state = try BootLoader.load(
        kernel, initrd: InitialRAMDisk([.bytes([1, 2, 3])]), commandLine: commandLine, into: memory, entry: entry)
      if !memory.contains(GuestPhysical(state.rip), count: 1) { throw BootError(.entryPoint, "\n", remedy: "") }
    } catch { try checkRefusal(error) }
  }
}

/// Initial RAM disks.
enum InitialRAMDisks {
  private static let memory = Result { try GuestMemory(byteCount: 2 << 20) }
  private static let file = Result { try InputFile("initrd") }
  private static let canary: UInt8 = 0xA5

  static let words: [[UInt8]] = [Array("070701".utf8), Array("TRAILER!!!".utf8)]

  static func samples() -> [[UInt8]] { (0..<16).map { kind in (0..<200).map { UInt8(truncatingIfNeeded: $0 * kind) } } }

  static func run(_ input: inout FuzzInput) throws {
    try place(&input)
    try archive(&input)
  }

  private static func place(_ input: inout FuzzInput) throws {
    let (memory, file) = (try memory.get(), try file.get())
    var parts: [InitialRAMDisk.Part] = []
    var contents: [UInt8] = []
    for _ in 0..<input.below(4) {
      var bytes = input.take(input.chance(4) ? Int(input.word(UInt16.self)) : Int(input.byte()))
      if input.chance(4) { bytes += [UInt8](repeating: 7, count: Int(input.word(UInt16.self))) }
      while contents.count % 4 != 0 { contents.append(0) }
      contents += bytes
      parts.append(.bytes(bytes))
    }
    if input.chance(4) {
      let bytes = input.take(Int(input.byte()))
      try file.write(bytes)
      while contents.count % 4 != 0 { contents.append(0) }
      contents += bytes
      parts.append(.file(file.path))
    }
    let floor = input.value(addresses: 2 << 20),
      limit = input.chance(2) ? memory.lowEnd : input.value(addresses: 2 << 20)
    let around: UInt64 = 1 << 16
    do throws(BootError) {
      // Never above RAM: whoever calls sees to that.
      let disk = InitialRAMDisk(parts)
      let capped = min(limit, memory.lowEnd)
      for base in stride(from: UInt64(0), to: memory.lowEnd, by: 4096) { try memory.clearCanary(base, canary) }
      guard
        let range = try disk.load(
          into: memory, above: floor, below: capped, place: input.chance(2) ? .lowest : .highest)
      else {
        if !contents.isEmpty { throw BootError(.initrd, "\n", remedy: "") }
        return
      }
      guard range.lowerBound >= floor, range.upperBound <= capped, range.lowerBound % 4096 == 0 else {
        throw BootError(.initrd, "\n", remedy: "")
      }
      func bytes(_ begin: UInt64, _ end: UInt64) throws(BootError) -> [UInt8] {
        do throws(MemoryError) { return try memory.bytes(at: GuestPhysical(begin), count: Int(end - begin)) } catch {
          throw BootError(error)
        }
      }
      let before = try bytes(range.lowerBound - min(range.lowerBound, around), range.lowerBound)
      let after = try bytes(range.upperBound, min(range.upperBound + around, memory.lowEnd))
      let inside = try bytes(range.lowerBound, range.upperBound)
      guard before.allSatisfy({ $0 == canary }), after.allSatisfy({ $0 == canary }), inside == contents else {
        throw BootError(.initrd, "\n", remedy: "")
      }
    } catch { try checkRefusal(error) }
  }

  /// An archive of anything is a whole number of blocks, and begins and ends as one does.
  private static func archive(_ input: inout FuzzInput) throws {
    var archive = Initramfs()
    for _ in 0..<input.below(6) {
      let name = String(decoding: input.take(Int(input.byte() & 31)).map { $0 == 0 ? 0x2F : $0 }, as: UTF8.self)
      let mode = UInt32(input.word(UInt16.self)) & 0o7777
      switch input.byte() % 5 {
      case 0: archive.directory(name, mode: mode)
      case 1: archive.file(name, input.take(Int(input.byte())), mode: mode)
      case 2: archive.symbolicLink(name, to: name)
      case 3: archive.characterDevice(name, major: input.word(), minor: input.word(), mode: mode)
      default: archive.blockDevice(name, major: input.word(), minor: input.word(), mode: mode)
      }
    }
    let bytes = archive.bytes
    guard bytes.count % 512 == 0, bytes.starts(with: Array("070701".utf8)) else {
      throw FuzzFailure("an archive that is none")
    }
  }
}

extension GuestMemory {
  /// Fills a page, if it does not hold that already.
  fileprivate func clearCanary(_ page: UInt64, _ byte: UInt8) throws(BootError) {
    do throws(MemoryError) { try fill(GuestPhysical(page), count: 4096, with: byte) } catch { throw BootError(error) }
  }
}

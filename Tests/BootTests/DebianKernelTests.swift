// SPDX-License-Identifier: Apache-2.0
// The loaders against Debian's kernels, which scripts/fetch-test-kernels fetches.

import Foundation
import GuestMemory
import Lguest
import SystemPackage
import Testing
import X86

private let directory = ProcessInfo.processInfo.environment["LGUEST_TEST_KERNELS"] ?? "/tmp/lguest-test-kernels"

private func kernels(_ prefix: String) -> [String] {
  ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []).filter { $0.hasPrefix(prefix) }.sorted()
}

@Suite("Debian's kernels", .enabled(if: !kernels("vmlinux-").isEmpty, "run scripts/fetch-test-kernels first"))
struct DebianKernelTests {
  private func open(_ name: String) throws -> KernelImage { try KernelImage(FilePath(directory).appending(name)) }

  @Test("A bzImage is understood and loaded", arguments: kernels("vmlinuz-"))
  func bzImage(name: String) throws {
    let image = try open(name)
    let release = name.dropFirst("vmlinuz-".count)
    let is64Bit = name.hasSuffix("amd64")
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

  @Test("A bzImage unpacked by the host is the vmlinux inside", arguments: kernels("vmlinuz-").filter { $0.hasSuffix("amd64") })
  func unpacked(name: String) throws {
    let image = try open(name)
    let vmlinux = try open(name.replacing("vmlinuz-", with: "vmlinux-"))
    guard case .elf(let elf) = vmlinux.format else { return }
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

  @Test("The vmlinux inside is understood and loaded", arguments: kernels("vmlinux-"))
  func vmlinux(name: String) throws {
    let image = try open(name)
    #expect(image.version?.hasPrefix(name.dropFirst("vmlinux-".count)) == true)
    #expect(image.entryPoints.first == (name.hasSuffix("amd64") ? .linux64 : .linux32))
    if name.hasSuffix("cloud-amd64") { #expect(image.entryPoints.contains(.pvh)) }
    let memory = try GuestMemory(byteCount: 512 << 20)
    for entry in image.entryPoints {
      let cpu = try BootLoader.load(image, commandLine: "console=ttyS0", into: memory, entry: entry)
      #expect(cpu.rip == (entry == .pvh ? KernelReport(image).pvhEntryAddress : KernelReport(image).entryAddress))
      #expect(try memory.load(UInt64.self, at: GuestPhysical(cpu.rip)) != 0)
    }
  }
}

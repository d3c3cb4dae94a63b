// SPDX-License-Identifier: Apache-2.0
// Multiboot 1: what is accepted as a header, what the CPU and the information record hold at the first instruction,
// and that nothing lies where it should not (Multiboot specification 0.6.96).

import Boot
import GuestMemory
import SystemPackage
import Testing
import X86

@Suite("Multiboot")
struct MultibootTests {
  private func load(
    _ bytes: [UInt8], memory: UInt64 = 64 << 20, initrd: InitialRAMDisk? = nil, commandLine: String = "kernel a=b",
    entry: EntryPoint = .auto
  ) throws -> (CPUState, GuestMemory) {
    let scratch = try Scratch()
    let memory = try GuestMemory(byteCount: memory)
    try memory.fill(GuestPhysical(0x10_0000), count: 0x8000, with: 0xFF)
    let image = try KernelImage(try scratch.write(bytes))
    let state = try BootLoader.load(image, initrd: initrd, commandLine: commandLine, into: memory, entry: entry)
    return (state, memory)
  }

  private func text(_ memory: GuestMemory, _ address: UInt64) throws -> String {
    String(decoding: try memory.bytes(at: GuestPhysical(address), count: 64).prefix { $0 != 0 }, as: UTF8.self)
  }

  @Test("An ELF kernel: machine state, information record, module")
  func elf() throws {
    let bytes = syntheticELF(is64Bit: false, banner: false, multiboot: true)
    let (cpu, memory) = try load(bytes, memory: (3072 + 64) << 20, initrd: InitialRAMDisk([.bytes([7, 8, 9])]))
    #expect(cpu.rip == 0x10_0010 && cpu.registers[0] == 0x2BAD_B002 && cpu.rflags == 2)
    #expect(cpu.cr0 == 0x11 && cpu.cr4 == 0 && cpu.efer == 0)
    #expect(cpu.cs == .flatCode32 && [cpu.ds, cpu.es, cpu.fs, cpu.gs, cpu.ss].allSatisfy { $0 == .flatData })
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0x10_0FFF)) == 0xB0)
    #expect(try memory.bytes(at: GuestPhysical(0x10_1000), count: 0x1000).allSatisfy { $0 == 0 })

    let info = try memory.bytes(at: GuestPhysical(cpu.registers[3]), count: 116)
    #expect(little(info, 0, 4) == 0b10_0100_1101)
    #expect(little(info, 4, 4) == 639 && little(info, 8, 4) == 3071 * 1024)
    #expect(try text(memory, little(info, 16, 4)) == "kernel a=b")
    #expect(try text(memory, little(info, 64, 4)) == "lguest")
    #expect(little(info, 20, 4) == 1)
    let module = try memory.bytes(at: GuestPhysical(little(info, 24, 4)), count: 16)
    #expect(little(module, 0, 4) == 0x10_2000 && little(module, 4, 4) == 0x10_2003 && little(module, 12, 4) == 0)
    #expect(try text(memory, little(module, 8, 4)) == "")
    #expect(try memory.bytes(at: GuestPhysical(0x10_2000), count: 3) == [7, 8, 9])
    let map = try memory.bytes(at: GuestPhysical(little(info, 48, 4)), count: Int(little(info, 44, 4)))
    let rows = (0..<map.count / 24).map { i in
      [little(map, 24 * i, 4), little(map, 24 * i + 4, 8), little(map, 24 * i + 12, 8), little(map, 24 * i + 20, 4)]
    }
    #expect(rows.count == 6 && rows[0] == [20, 0, 0x9FC00, 1] && rows[5] == [20, 4096 << 20, 64 << 20, 1])
    // Descriptors for the selectors in use, should the kernel be so careless as to load one again.
    #expect(try memory.load(UInt64.self, at: GuestPhysical(cpu.gdtr.base) + 0x10) == 0x00CF_9B00_0000_FFFF)
  }

  @Test("A flat kernel by its address fields")
  func flat() throws {
    let (cpu, memory) = try load(syntheticMultiboot())
    #expect(cpu.rip == 0x10_0040)
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0x10_0FFF)) == 0xC0)
    #expect(try memory.bytes(at: GuestPhysical(0x10_1000), count: 0x2000).allSatisfy { $0 == 0 })
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0x10_3000)) == 0xFF)
    let info = try memory.bytes(at: GuestPhysical(cpu.registers[3]), count: 116)
    #expect(little(info, 20, 4) == 0)
    // The end of the file and no bss, said with zeros.
    let (whole, other) = try load(syntheticMultiboot { for i in 36..<44 { $0[i] = 0 } })
    #expect(whole.rip == 0x10_0040)
    #expect(try other.load(UInt16.self, at: GuestPhysical(0x10_0FFF)) == 0xFFC0)
    // In an ELF file the fields outrank its own headers.
    var both = syntheticELF(is64Bit: true, banner: false, multiboot: true)
    put(UInt32(0x1_0003), 0x904, &both)
    put(UInt32(0) &- 0x1BAD_B002 &- 0x1_0003, 0x908, &both)
    for (index, field) in [0x20_0900, 0x20_0800, 0, 0, 0x20_0A00].enumerated() {
      put(UInt32(field), 0x90C + 4 * index, &both)
    }
    let (state, third) = try load(both)
    #expect(state.rip == 0x20_0A00)
    #expect(try third.load(UInt32.self, at: GuestPhysical(0x20_0900)) == 0x1BAD_B002)
  }

  @Test(
    "Boot data touches neither the kernel nor what kernels take without asking",
    arguments: [(0x10_0000, 0x3000), (0x1000, 0x9000), (0x10000, 0x20000), (0x30000, 0x60000), (0x1000, 0x90000)])
  func placement(address: Int, count: Int) throws {
    let image = syntheticMultiboot {
      for (index, field) in [address + 16, address, 0, address + count, address + 0x40].enumerated() {
        put(UInt32(field), 28 + 4 * index, &$0)
      }
    }
    for length in [0, 40_000, 200_000] {
      let line = String(repeating: "x", count: length)
      let (cpu, memory) = try load(
        image, initrd: InitialRAMDisk([.bytes([UInt8](repeating: 1, count: 70_000))]), commandLine: line)
      let info = try memory.bytes(at: GuestPhysical(cpu.registers[3]), count: 116)
      let module = try memory.bytes(at: GuestPhysical(little(info, 24, 4)), count: 16)
      let ours = [
        cpu.registers[3]..<cpu.registers[3] + 116, cpu.gdtr.base..<cpu.gdtr.base + 48,
        cpu.idtr.base..<cpu.idtr.base + 8,
        little(info, 16, 4)..<little(info, 16, 4) + UInt64(length) + 1, little(info, 24, 4)..<little(info, 24, 4) + 16,
        little(info, 48, 4)..<little(info, 48, 4) + little(info, 44, 4), little(module, 0, 4)..<little(module, 4, 4),
        little(info, 64, 4)..<little(info, 64, 4) + 7, cpu.registers[4] - 4096..<cpu.registers[4],
      ]
      let taken: [Range<UInt64>] = [
        0..<0x10000, 0x42000..<0x43000, 0x9FC00..<0x10_0000, UInt64(address)..<UInt64(address + count),
      ]
      for range in ours { #expect(!taken.contains { $0.overlaps(range) }, "\(range)") }
      for (index, range) in ours.enumerated() {
        #expect(!ours[..<index].contains { $0.overlaps(range) }, "\(range)")
      }
      #expect(
        try memory.bytes(at: GuestPhysical(UInt64(address) + 0x1000), count: count - 0x1000).allSatisfy { $0 == 0 })
    }
  }

  /// What makes a header bad, and what the message must say.
  private static let bad: [(String, [UInt8], [String])] = [
    (
      "checksum",
      {
        var image = syntheticMultiboot(); image[24] ^= 1; return image
      }(), ["checksum"]
    ),
    ("no addresses", syntheticMultiboot { $0[22] = 0 }, ["flag 16"]),
    ("video", syntheticMultiboot { $0[20] = 7 }, ["video mode"]),
    ("unknown requirement", syntheticMultiboot { $0[21] = 0x80 }, ["0x18003"]),
    ("header outside", syntheticMultiboot { put(UInt32(0x10_0020), 28, &$0) }, ["impossible"]),
    ("load above header", syntheticMultiboot { put(UInt32(0x10_0020), 32, &$0) }, ["impossible"]),
    ("load end below load", syntheticMultiboot { put(UInt32(1), 36, &$0) }, ["impossible"]),
    ("load end beyond file", syntheticMultiboot { put(UInt32(0x10_1001), 36, &$0) }, ["truncated"]),
    ("bss end below load end", syntheticMultiboot { put(UInt32(0x10_0800), 40, &$0) }, ["impossible"]),
    ("entry outside", syntheticMultiboot { put(UInt32(0x10_3000), 44, &$0) }, ["entry point"]),
    ("no such memory", syntheticMultiboot { put(UInt32(0xFFFF_FFFF), 40, &$0) }, ["memory"]),
    ("truncated", [UInt8](syntheticMultiboot().prefix(40)), []),
    (
      "reserved memory",
      syntheticMultiboot {
        for (index, field) in [0xA_0010, 0xA_0000, 0, 0, 0xA_0040].enumerated() {
          put(UInt32(field), 28 + 4 * index, &$0)
        }
      }, ["1 MiB"]
    ),
  ]

  @Test("Bad headers are one line", arguments: 0..<MultibootTests.bad.count)
  func refused(index: Int) throws {
    let (name, bytes, words) = MultibootTests.bad[index]
    let error = #expect(throws: BootError.self, "\(name)") { try load(bytes) }
    let line = error?.description ?? ""
    #expect(!line.isEmpty && !line.contains("\n") && error?.remedy.isEmpty == false, "\(name)")
    for word in words { #expect(line.contains(word), "\(name): \(line)") }
  }

  @Test("inspect knows it")
  func report() throws {
    let scratch = try Scratch()
    let flat = KernelReport(try KernelImage(try scratch.write(syntheticMultiboot())))
    #expect(flat.format == "multiboot" && flat.entryPoints == [.multiboot] && flat.defaultEntryPoint == .multiboot)
    #expect(flat.loadAddress == 0x10_0000 && flat.memoryByteCount == 0x3000 && flat.entryAddress == 0x10_0040)
    #expect(flat.multibootFlags == 0x1_0003 && flat.lines.contains { $0.contains("flags 0x10003") })
    let elf = KernelReport(
      try KernelImage(try scratch.write(syntheticELF(is64Bit: false, banner: false, multiboot: true))))
    #expect(elf.format == "ELF32" && elf.defaultEntryPoint == .multiboot && elf.multibootFlags == 3)
  }
}

// SPDX-License-Identifier: Apache-2.0
// What lies in guest memory and in the CPU when the first instruction is due, byte by byte as the protocols say.

import Boot
import GuestMemory
import SystemPackage
import Testing
import X86

private let mib: UInt64 = 1 << 20

@Suite("Boot loader")
struct BootLoaderTests {
  private func load(
    _ bytes: [UInt8], memory: UInt64 = 64 << 20, initrd: InitialRAMDisk? = nil, commandLine: String = "a=b",
    rsdp: UInt64? = nil, entry: EntryPoint = .auto
  ) throws -> (CPUState, GuestMemory) {
    let scratch = try Scratch()
    let memory = try GuestMemory(byteCount: memory)
    let image = try KernelImage(try scratch.write(bytes))
    let state = try BootLoader.load(
      image, initrd: initrd, commandLine: commandLine, into: memory, rsdp: rsdp, entry: entry)
    return (state, memory)
  }

  @Test("A bzImage that the guest has no room for is not unpacked first")
  func tooLarge() throws {
    // A zstd frame of 1 GiB: each block is one byte 128 Ki times (RFC 8878, 3.1.1).
    let size: UInt32 = 1 << 30
    let blocks: UInt32 = size >> 17
    var frame: [UInt8] = [0x28, 0xB5, 0x2F, 0xFD, 0xA0, 0, 0, 0, 0]
    put(size, 5, &frame)
    for block in 1...blocks {
      let isLast: UInt32 = block == blocks ? 1 : 0
      let header = 0x20000 << 3 | 1 << 1 | isLast
      frame += [UInt8(header & 0xFF), UInt8(header >> 8 & 0xFF), UInt8(header >> 16), 0]
    }
    frame += [0, 0, 0, 0]
    put(size, frame.count - 4, &frame)
    let image = syntheticBzImage { image in
      image = image.prefix(2048 + 0x400) + frame
      image += [UInt8](repeating: 0, count: 16 - image.count % 16)
      put(UInt32((image.count - 2048) / 16), 0x1F4, &image)
      put(UInt32(frame.count), 0x24C, &image)
      put(UInt32(0xF000_0000), 0x260, &image)
    }
    let before = threadTime()
    let error = #expect(throws: BootError.self) { try load(image) }
    #expect(error?.kind == .memory && error?.description.contains("the guest has") == true, "\(error as Any)")
    #expect(threadTime() - before < .milliseconds(100))
  }

  @Test("64-bit entry of a bzImage")
  func linux64() throws {
    let disk = InitialRAMDisk([.bytes([1, 2, 3, 4, 5]), .bytes([6])])
    let (cpu, memory) = try load(syntheticBzImage(), memory: 3072 * mib + 64 * mib, initrd: disk, rsdp: 0xE0010)
    #expect(cpu.rip == 0x100_0200 && cpu.registers[6] == 0x7000 && cpu.rflags == 2)
    #expect(cpu.cr0 == 0x8000_0011 && cpu.cr4 == 0x20 && cpu.efer == 0x500 && cpu.cr3 == 0x9000)
    #expect(cpu.cs == .flatCode64 && cpu.ds == .flatData && cpu.es == .flatData && cpu.ss == .flatData)
    #expect(cpu.tr.attributes & 0x1F == 0x0B)
    // The kernel, all of it and nothing else.
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0x100_0000)) == 0xA0)
    #expect(try memory.load(UInt16.self, at: GuestPhysical(0x100_1FFF)) == 0x00A0)
    // The descriptors the selectors name.
    let gdt = GuestPhysical(cpu.gdtr.base)
    #expect(try memory.load(UInt64.self, at: gdt + 0x10) == 0x00AF_9B00_0000_FFFF)
    #expect(try memory.load(UInt64.self, at: gdt + 0x18) == 0x00CF_9300_0000_FFFF)
    // The zero page.
    let page = try memory.bytes(at: GuestPhysical(0x7000), count: 4096)
    #expect(page[0x1EF] == 0 && page[0x210] == 0xFF && page[0x211] == 1)
    #expect(little(page, 0x202, 4) == 0x5372_6448 && little(page, 0x206, 2) == 0x020F)
    #expect(little(page, 0x214, 4) == 0x100_0000 && little(page, 0x70, 8) == 0xE0010)
    #expect(try memory.bytes(at: GuestPhysical(little(page, 0x228, 4)), count: 4) == [0x61, 0x3D, 0x62, 0])
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0xE0000)) == 0)
    try BootLoader.place(acpiTables: [0xAC], at: 0xE0000, in: memory)
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0xE0000)) == 0xAC)
    // The initial RAM disk: highest page below the kernel's limit, second part at a multiple of four.
    #expect(little(page, 0x218, 4) == 0x7FFF_F000 && little(page, 0x21C, 4) == 9)
    #expect(try memory.bytes(at: GuestPhysical(0x7FFF_F000), count: 9) == [1, 2, 3, 4, 5, 0, 0, 0, 6])
    // The memory map.
    let map = (0..<Int(page[0x1E8])).map { i in
      [little(page, 0x2D0 + 20 * i, 8), little(page, 0x2D8 + 20 * i, 8), little(page, 0x2E0 + 20 * i, 4)]
    }
    #expect(
      map == [
        [0, 0x9FC00, 1], [0x9FC00, 0x400, 2], [0xE0000, 0x20000, 2], [0x10_0000, 3071 * mib, 1],
        [0xFEC0_0000, 0x30_0000, 2], [4096 * mib, 64 * mib, 1],
      ])
    // Page tables: every 2 MiB of 4 GiB maps to itself.
    for address in stride(from: UInt64(0), to: 4096 * mib, by: 2 << 20) {
      let pml4 = try memory.load(UInt64.self, at: GuestPhysical(cpu.cr3))
      let pdpt = try memory.load(UInt64.self, at: GuestPhysical(pml4 & ~0xFFF) + (address >> 30) * 8)
      let entry = try memory.load(UInt64.self, at: GuestPhysical(pdpt & ~0xFFF) + (address >> 21 & 511) * 8)
      #expect(pml4 & 0xFFF == 3 && pdpt & 0xFFF == 3 && entry == address | 0x83)
    }
  }

  @Test("32-bit entry of the same image")
  func linux32() throws {
    let (cpu, _) = try load(syntheticBzImage(), entry: .linux32)
    #expect(cpu.rip == 0x100_0000 && cpu.registers[6] == 0x7000 && cpu.cr0 == 0x11 && cpu.cr4 == 0 && cpu.efer == 0)
    #expect(cpu.registers[3] == 0 && cpu.registers[5] == 0 && cpu.registers[7] == 0)
    #expect(cpu.cs == .flatCode32 && cpu.ds == .flatData && cpu.ss == .flatData && cpu.rflags == 2)
  }

  @Test("A kernel needs room where it prefers to be, also if it could be moved: it unpacks itself no lower")
  func small() throws {
    for isRelocatable in [UInt8(0), 1] {
      let error = #expect(throws: BootError.self) {
        try load(syntheticBzImage { $0[0x234] = isRelocatable }, memory: 16 << 20)
      }
      #expect(error?.kind == .memory && error?.remedy.contains("20 MiB") == true, "\(error as Any)")
    }
  }

  @Test("An ELF kernel: segments, cleared rest, made-up header")
  func elf() throws {
    let scratch = try Scratch()
    let memory = try GuestMemory(byteCount: 16 << 20)
    try memory.fill(GuestPhysical(0x10_0000), count: 0x4000, with: 0xFF)
    let image = try KernelImage(try scratch.write(syntheticELF()))
    let cpu = try BootLoader.load(image, commandLine: "", into: memory)
    #expect(cpu.rip == 0x10_0010 && cpu.efer == 0x500 && cpu.registers[6] == 0x7000)
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0x10_0FFF)) == 0xB0)
    #expect(try memory.bytes(at: GuestPhysical(0x10_1000), count: 0x1000).allSatisfy { $0 == 0 })
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0x10_2000)) == 0xFF)
    #expect(try memory.load(UInt32.self, at: GuestPhysical(0x7202)) == 0x5372_6448)
  }

  @Test("PVH: start information, memory map, module")
  func pvh() throws {
    let disk = InitialRAMDisk([.bytes([9, 9, 9])])
    let (cpu, memory) = try load(syntheticELF(pvh: 0x10_0100), initrd: disk, rsdp: 0xE0000, entry: .pvh)
    #expect(cpu.rip == 0x10_0100 && cpu.cr0 == 0x11 && cpu.cr4 == 0 && cpu.cs == .flatCode32)
    #expect(cpu.tr == Segment(selector: 0x20, base: 0, limit: 0x67, attributes: 0x8B))
    let info = try memory.bytes(at: GuestPhysical(cpu.registers[3]), count: 56)
    #expect(little(info, 0, 4) == 0x336E_C578 && little(info, 4, 4) == 1 && little(info, 12, 4) == 1)
    #expect(little(info, 32, 8) == 0xE0000 && little(info, 48, 4) == 5)
    let module = try memory.bytes(at: GuestPhysical(little(info, 16, 8)), count: 32)
    #expect(
      try memory.bytes(at: GuestPhysical(little(module, 0, 8)), count: 3) == [9, 9, 9] && little(module, 8, 8) == 3)
    let map = try memory.bytes(at: GuestPhysical(little(info, 40, 8)), count: 24)
    #expect(little(map, 0, 8) == 0 && little(map, 8, 8) == 0x9FC00 && little(map, 16, 4) == 1)
    #expect(try memory.bytes(at: GuestPhysical(little(info, 24, 8)), count: 4) == [0x61, 0x3D, 0x62, 0])
  }

  @Test("Entry points the image does not have")
  func entryPoints() throws {
    for (bytes, entry) in [
      (syntheticELF(), EntryPoint.pvh), (syntheticELF(), .linux32), (syntheticBzImage(), .pvh),
      (syntheticBzImage { put(UInt16(0), 0x236, &$0) }, .linux64),
      (syntheticELF(), .multiboot),
    ] {
      let error = #expect(throws: BootError.self) { try load(bytes, entry: entry) }
      #expect(error?.kind == .entryPoint && error?.remedy.isEmpty == false)
    }
    // Outside every segment.
    #expect(throws: BootError.self) { try load(syntheticELF(pvh: 0x80_0000), entry: .pvh) }
  }

  @Test("Command lines: as long as the kernel takes, no NUL")
  func commandLine() throws {
    _ = try load(syntheticBzImage(), commandLine: String(repeating: "x", count: 2047))
    for line in [String(repeating: "x", count: 2048), "a\0b"] {
      #expect(throws: BootError.self) { try load(syntheticBzImage(), commandLine: line) }
    }
  }

  @Test("Initial RAM disks that cannot be used")
  func initrd() throws {
    let scratch = try Scratch()
    let large = InitialRAMDisk([.bytes([UInt8](repeating: 1, count: 13 << 20))])
    let error = #expect(throws: BootError.self) { try load(syntheticBzImage(), memory: 32 << 20, initrd: large) }
    #expect(error?.kind == .initrd && error?.remedy.contains("memory") == true, "\(error as Any)")
    for path in [try scratch.write([], "empty"), "/", "/nonexistent"] {
      #expect(throws: BootError.self) { try load(syntheticBzImage(), initrd: InitialRAMDisk(path)) }
    }
    // Exactly fitting: from the end of the kernel's memory to the end of RAM.
    let fitting = InitialRAMDisk([.bytes([UInt8](repeating: 1, count: 12 << 20))])
    let (_, memory) = try load(syntheticBzImage(), memory: 32 << 20, initrd: fitting)
    #expect(try memory.load(UInt32.self, at: GuestPhysical(0x7218)) == 0x140_0000)
  }

  @Test("Too little memory, and segments where boot data lies")
  func memory() throws {
    #expect(throws: BootError.self) { try load(syntheticBzImage(), memory: 2 << 20) }
    #expect(throws: BootError.self) { try load(syntheticELF(physical: 0x4000_0000, entry: 0x4000_0000)) }
    let low = #expect(throws: BootError.self) { try load(syntheticELF(physical: 0x7000, entry: 0x7000)) }
    #expect(low?.description.contains("first MiB") == true)
  }
}

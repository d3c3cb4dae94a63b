// SPDX-License-Identifier: Apache-2.0
// Multiboot 1, the protocol of GRUB's own kernels and of conformance suites: flat protected mode, paging off, EAX
// holds a magic number and EBX an information record (Multiboot specification 0.6.96, 3.2 and 3.3).

import GuestMemory
import Host
import SystemPackage
import X86

enum MultibootBoot {
  private static let bootMagic: UInt64 = 0x2BAD_B002
  private static let infoByteCount = 116
  private static let hasMemory: UInt32 = 1 << 0, hasCommandLine: UInt32 = 1 << 2, hasModules: UInt32 = 1 << 3
  private static let hasMemoryMap: UInt32 = 1 << 6, hasLoaderName: UInt32 = 1 << 9

  /// Loads a kernel with all it is told and returns the CPU at its entry point.
  ///
  /// - Parameters:
  ///   - header: The kernel's multiboot header.
  ///   - elf: The kernel if it is an ELF file; only a header with addresses can do without.
  ///   - initrd: The one module; its name is its first part's.
  static func load(
    _ header: MultibootHeader, _ elf: ELFImage?, _ file: HostFile, initrd: InitialRAMDisk?, commandLine: String,
    into memory: GuestMemory
  ) throws(BootError) -> CPUState {
    try header.checkRequirements(file)
    let segments: [ELFImage.LoadSegment]
    let entry: UInt64
    if let fields = header.addresses {
      segments = [try header.segment(fields, of: file)]
      entry = UInt64(fields.entry)
    } else if let elf {
      segments = elf.segments
      entry = elf.entry
    } else {
      throw BootError(
        .entryPoint, "\(file) is no ELF file, and its multiboot header does not say where it goes",
        remedy: "set flag 16 in the header and fill the address fields in")
    }
    for segment in segments {
      try check(segment, file, memory)
      try segment.load(from: file, into: memory)
    }
    let end = segments.reduce(0) { max($0, $1.physicalEnd) }
    let module = try initrd?.load(
      into: memory, above: max(end, BootLayout.kernelFloor), below: memory.lowEnd, place: .lowest)
    let block = try placeInformation(
      commandLine, module, named: initrd?.name ?? "",
      clearOf: segments.map { $0.physicalAddress..<$0.physicalEnd } + (module.map { [$0] } ?? []), in: memory)
    var state = try FlatSegments.install(in: memory, code: .flatCode32, at: block)
    state.cr0 = CR0.et | CR0.pe
    state.rip = entry
    state[register: GPR.rax] = bootMagic
    state[register: GPR.rbx] = block + UInt64(infoOffset)
    // No stack is promised; one that overwrites nothing is friendlier than the protocol.
    state[register: GPR.rsp] = block
    return state
  }

  /// A segment may lie in what the memory map calls RAM, the first MiB's too.
  private static func check(
    _ segment: ELFImage.LoadSegment, _ file: HostFile, _ memory: GuestMemory
  ) throws(BootError) {
    guard segment.physicalEnd <= BootLayout.lowMemoryEnd || segment.physicalAddress >= BootLayout.kernelFloor else {
      throw BootError(
        .malformed,
        "\(file) wants to be loaded at \(GuestPhysical(segment.physicalAddress)), where the first MiB's reserved part is",
        remedy: "link it at 1 MiB or higher")
    }
  }

  // MARK: What the kernel is told

  /// Behind the descriptor tables.
  private static let infoOffset = 0x80
  /// Kernels put their interrupt tables, their processors' first instructions and what they exchange with 16-bit code
  /// here without asking: the first 64 KiB, and a page in the fifth.
  private static let avoided: [Range<UInt64>] = [0..<0x10000, 0x42000..<0x43000]

  /// Writes descriptor tables, information record, module list, memory map and texts as one block.
  ///
  /// - Returns: Where the block begins.
  private static func placeInformation(
    _ commandLine: String, _ module: Range<UInt64>?, named name: String, clearOf taken: [Range<UInt64>],
    in memory: GuestMemory
  ) throws(BootError) -> UInt64 {
    let map = MemoryRange.map(of: memory)
    let texts = [commandLine, name, "lguest"].map { [UInt8]($0.utf8) + [0] }
    guard !commandLine.utf8.contains(0) else {
      throw BootError(.commandLine, "the kernel command line contains a NUL byte", remedy: "leave it out")
    }
    let moduleOffset = infoOffset + infoByteCount + 4
    let mapOffset = moduleOffset + 16
    let textOffset = mapOffset + 24 * map.count
    let byteCount = textOffset + texts.reduce(0) { $0 + $1.count }
    let block = try freeRange(byteCount: UInt64(byteCount), clearOf: taken + avoided, in: memory)

    let textAddresses = texts.indices.map { block + UInt64(textOffset + texts[..<$0].reduce(0) { $0 + $1.count }) }
    var bytes = [UInt8](repeating: 0, count: infoOffset + infoByteCount + 4)
    func set(_ offset: Int, _ value: UInt64) {
      bytes.setLittle(UInt32(truncatingIfNeeded: value), at: infoOffset + offset)
    }
    set(0, UInt64(hasMemory | hasCommandLine | hasModules | hasMemoryMap | hasLoaderName))
    set(4, BootLayout.lowMemoryEnd >> 10)
    set(8, (memory.lowEnd - BootLayout.kernelFloor) >> 10)
    set(16, textAddresses[0])
    set(20, module == nil ? 0 : 1)
    set(24, block + UInt64(moduleOffset))
    set(44, UInt64(24 * map.count))
    set(48, block + UInt64(mapOffset))
    set(64, textAddresses[2])
    for word in [module?.lowerBound ?? 0, module?.upperBound ?? 0, textAddresses[1], 0] {
      bytes.appendLittle(UInt32(truncatingIfNeeded: word))
    }
    for range in map {
      bytes.appendLittle(UInt32(20))  // the size of an entry, itself not counted
      bytes.appendLittle(range.start)
      bytes.appendLittle(range.end - range.start)
      bytes.appendLittle(range.kind.rawValue)
    }
    try memory.place(bytes + texts.joined(), at: block)
    return block
  }

  /// The lowest page-aligned range of RAM that touches nothing given, with a page for a stack below it.
  private static func freeRange(
    byteCount: UInt64, clearOf taken: [Range<UInt64>], in memory: GuestMemory
  ) throws(BootError) -> UInt64 {
    let stack: UInt64 = 4096
    var address = stack
    while true {
      let range = address - stack..<address + byteCount
      if let obstacle = taken.first(where: { $0.overlaps(range) }) {
        address = ((obstacle.upperBound + 4095) & ~4095) + stack
      } else if range.overlaps(BootLayout.lowMemoryEnd..<BootLayout.kernelFloor) {
        address = BootLayout.kernelFloor + stack
      } else {
        break
      }
    }
    guard address + byteCount <= memory.lowEnd else {
      throw BootError(
        .memory, "no room is left beside the kernel for its boot data", remedy: "give the guest more memory")
    }
    return address
  }
}

// SPDX-License-Identifier: Apache-2.0
// Starting a ring-1 guest of lguest: the kernel where it wants to be, boot_params at 0 and the command line behind them,
// a memory map of one range, and "hardware_subarch" 1, by which the kernel's own start-up code knows where it is (Linux,
// Documentation/arch/x86/boot.rst, hardware_subarch). A kernel of Linux 2.6.23 has no such code: it begins behind the word
// "GenuineLguest", in page tables that have all RAM where the kernel is linked.

import GuestMemory
import Host
import X86

/// Starts 32-bit kernels that have lguest's guest side.
public enum LguestBoot {
  private static let commandLineAddress: UInt64 = 0x1000

  /// How a kernel begins.
  public struct Start: Sendable {
    /// Linear: physical too, if there is no `pageOffset`.
    public let entry: UInt64
    /// How much higher linear addresses are, for a kernel that begins in page tables.
    public let pageOffset: UInt32?
    /// The RAM between the kernel and its initial RAM disk.
    public let room: Range<UInt64>
  }

  /// A kernel in memory.
  private struct Loaded {
    var parameters = BootParameters()
    var entry: UInt64
    var pageOffset: UInt32?
    /// The first address that it does not need.
    var end: UInt64
  }

  /// Puts a kernel and all it needs into guest memory, and says how it begins.
  ///
  /// - Parameters:
  ///   - commandLine: At most 2047 bytes, without NUL.
  ///   - byteCount: The RAM that the guest is told of, from 0 on; `memory` may have more.
  /// - Throws: `BootError`: the kernel is no 32-bit Linux, or something does not fit.
  public static func load(
    _ image: KernelImage, initrd: InitialRAMDisk?, commandLine: String, byteCount: UInt64, into memory: GuestMemory
  ) throws(BootError) -> Start {
    let kernel: Loaded
    switch image.format {
    case .bzImage(let header) where !header.has64BitEntry:
      if let unpacked = try loadUnpacked(header, image, byteCount, memory) {
        kernel = unpacked
      } else {
        kernel = try load(header, image, byteCount, memory)
      }
    case .elf(let elf) where !elf.is64Bit: kernel = try load(elf, image, byteCount, memory)
    default:
      throw BootError(
        .foreign, "\(image.file) is no 32-bit Linux kernel, as lguest's guests are", remedy: "leave out --abi lguest")
    }
    let floor = (kernel.end + 4095) & ~4095
    let disk = try initrd?.load(into: memory, above: floor, below: byteCount)
    let top = disk?.lowerBound ?? byteCount
    // A directory, and a table for each 4 MiB.
    if kernel.pageOffset != nil { try checkRoom(floor + 4096 * (1 + (byteCount >> 22) + 1), top, image) }
    let text = [UInt8](commandLine.utf8)
    guard text.count < 2048 else {
      throw BootError(
        .commandLine, "the kernel command line has \(text.count) bytes, this kernel takes at most 2047",
        remedy: "shorten it")
    }
    try memory.place(text + [0], at: commandLineAddress)
    var parameters = kernel.parameters
    parameters.setCommandLine(commandLineAddress)
    parameters.setMemoryMap([MemoryRange(start: 0, end: byteCount, kind: .ram)])
    parameters.setSubarchitecture(1)
    if let disk { parameters.setInitrd(disk) }
    try memory.place(parameters.bytes, at: 0)
    return Start(entry: kernel.entry, pageOffset: kernel.pageOffset, room: min(floor, top)..<top)
  }

  private static func load(
    _ header: SetupHeader, _ image: KernelImage, _ byteCount: UInt64, _ memory: GuestMemory
  ) throws(BootError) -> Loaded {
    let address = BootLayout.kernelFloor
    let needed = max(header.initByteCount, UInt64(header.kernelByteCount))
    try checkRoom(address + needed, byteCount, image)
    do throws(HostError) {
      try memory.read(
        from: image.file, at: header.kernelOffset, count: header.kernelByteCount, to: GuestPhysical(address))
    } catch { throw BootError(error) }
    var parameters = BootParameters(header)
    parameters.setLoadAddress(address)
    return Loaded(parameters: parameters, entry: address, end: address + needed)
  }

  private static func load(
    _ elf: ELFImage, _ image: KernelImage, _ byteCount: UInt64, _ memory: GuestMemory
  ) throws(BootError) -> Loaded {
    try checkRoom(elf.physicalRange.upperBound, byteCount, image)
    try elf.load(from: image.file, into: memory)
    var kernel = Loaded(entry: elf.entry, end: elf.physicalRange.upperBound)
    let word: Int?
    do throws(HostError) { word = try LguestGuestSide(in: elf, image.file).start } catch { throw BootError(error) }
    if let word, let segment = elf.segments.first(where: { $0.fileRange.contains(word) }) {
      kernel.entry = (segment.virtualAddress &+ UInt64(word - segment.offset)) & 0xFFFF_FFFF
      kernel.pageOffset = UInt32(truncatingIfNeeded: segment.virtualAddress &- segment.physicalAddress)
    }
    return kernel
  }

  /// A bzImage of Linux 2.6.23, whose own decompressor is none of lguest's; nil if it is another. What is in it is no ELF
  /// file, and goes to 1 MiB.
  private static func loadUnpacked(
    _ header: SetupHeader, _ image: KernelImage, _ byteCount: UInt64, _ memory: GuestMemory
  ) throws(BootError) -> Loaded? {
    guard header.payload == nil, let bytes = header.unpacked(image.file),
      let word = LguestGuestSide(in: bytes).start
    else { return nil }
    let address = BootLayout.kernelFloor
    let end = address + max(UInt64(bytes.count), header.initByteCount)
    try checkRoom(end, byteCount, image)
    try memory.place(bytes, at: address)
    let offset = pageOffset(of: bytes)
    return Loaded(
      parameters: BootParameters(header), entry: UInt64(offset) + address + UInt64(word), pageOffset: offset, end: end)
  }

  /// Where a kernel without headers is linked: the upper byte that most loads of EAX from memory (opcode A1) have, for a
  /// kernel's data lies in its first 16 MiB.
  private static func pageOffset(of kernel: [UInt8]) -> UInt32 {
    var counts = [Int](repeating: 0, count: 256)
    for index in kernel.indices.dropLast(4) where kernel[index] == 0xA1 { counts[Int(kernel[index + 4])] += 1 }
    // Below is user space in every configuration.
    let best = (0x40...0xFE).max { counts[$0] < counts[$1] } ?? 0xC0
    return UInt32(best) << 24
  }

  private static func checkRoom(_ end: UInt64, _ byteCount: UInt64, _ image: KernelImage) throws(BootError) {
    guard end <= byteCount else {
      throw BootError(
        .memory,
        "\(image.file) needs the memory up to \(describe(byteCount: end)), the guest has \(describe(byteCount: byteCount))",
        remedy: "give it more memory")
    }
  }
}

extension ELFImage.LoadSegment {
  /// Where in the file it is.
  fileprivate var fileRange: Range<Int> { offset..<offset + fileByteCount }
}

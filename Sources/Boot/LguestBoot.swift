// SPDX-License-Identifier: Apache-2.0
// Starting a ring-1 guest of lguest: the kernel where it wants to be, boot_params at 0 and the command line behind them,
// a memory map of one range, and "hardware_subarch" 1, by which the kernel's own start-up code knows where it is (Linux,
// Documentation/arch/x86/boot.rst, hardware_subarch).

import GuestMemory
import Host
import X86

/// Starts 32-bit kernels that have lguest's guest side.
public enum LguestBoot {
  private static let commandLineAddress: UInt64 = 0x1000

  /// Puts a kernel and all it needs into guest memory, and says where it begins.
  ///
  /// - Parameters:
  ///   - commandLine: At most 2047 bytes, without NUL.
  ///   - byteCount: The RAM that the guest is told of, from 0 on; `memory` may have more.
  /// - Throws: `BootError`: the kernel is no 32-bit Linux, or something does not fit.
  public static func load(
    _ image: KernelImage, initrd: InitialRAMDisk?, commandLine: String, byteCount: UInt64, into memory: GuestMemory
  ) throws(BootError) -> UInt64 {
    var parameters: BootParameters
    let entry: UInt64, end: UInt64
    switch image.format {
    case .bzImage(let header) where !header.has64BitEntry:
      parameters = BootParameters(header)
      let address = BootLayout.kernelFloor
      let needed = max(header.initByteCount, UInt64(header.kernelByteCount))
      try checkRoom(address + needed, byteCount, image)
      do throws(HostError) {
        try memory.read(
          from: image.file, at: header.kernelOffset, count: header.kernelByteCount, to: GuestPhysical(address))
      } catch { throw BootError(error) }
      (entry, end) = (address, address + needed)
      parameters.setLoadAddress(address)
    case .elf(let elf) where !elf.is64Bit:
      try checkRoom(elf.physicalRange.upperBound, byteCount, image)
      try elf.load(from: image.file, into: memory)
      parameters = BootParameters()
      (entry, end) = (elf.entry, elf.physicalRange.upperBound)
    default:
      throw BootError(
        .foreign, "\(image.file) is no 32-bit Linux kernel, as lguest's guests are", remedy: "leave out --abi lguest")
    }
    let disk = try initrd?.load(into: memory, above: (end + 4095) & ~4095, below: byteCount)
    let text = [UInt8](commandLine.utf8)
    guard text.count < 2048 else {
      throw BootError(
        .commandLine, "the kernel command line has \(text.count) bytes, this kernel takes at most 2047",
        remedy: "shorten it")
    }
    try memory.place(text + [0], at: commandLineAddress)
    parameters.setCommandLine(commandLineAddress)
    parameters.setMemoryMap([MemoryRange(start: 0, end: byteCount, kind: .ram)])
    parameters.setSubarchitecture(1)
    if let disk { parameters.setInitrd(disk) }
    try memory.place(parameters.bytes, at: 0)
    return entry
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

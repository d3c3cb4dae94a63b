// SPDX-License-Identifier: Apache-2.0
// From an image to a CPU about to execute its first instruction: the one place that knows the order. Check
// everything, place the kernel, place the initial RAM disk beside it, write the boot data, choose the CPU's state.

import GuestMemory
import Host
import SystemPackage
import X86

/// Starts kernels.
public enum BootLoader {
  /// Puts a kernel and all it needs into guest memory.
  ///
  /// - Parameters:
  ///   - image: The kernel.
  ///   - initrd: Its initial RAM disk; without parts or `nil`, none.
  ///   - commandLine: Without NUL; at most what the kernel takes.
  ///   - memory: At least 4 MiB. Need not be clear: what the kernel expects to be zero is cleared.
  ///   - rsdp: Where the ACPI tables' root pointer will be, 16-byte aligned in `[0xE0000, 0x100000)`, so that old kernels
  ///     find it by scanning; `nil` boots without ACPI. The range is cleared: the tables come later.
  ///   - entry: `auto` chooses by the image's content.
  /// - Returns: The boot CPU, interrupts off, at the kernel's entry point. Other CPUs wait for INIT and SIPI.
  public static func load(
    _ image: KernelImage, initrd: InitialRAMDisk? = nil, commandLine: String, into memory: GuestMemory,
    rsdp: UInt64? = nil, entry: EntryPoint = .auto
  ) throws(BootError) -> CPUState {
    // Asked for by name, the entry point is the image's own.
    let mayUnpack = entry == .auto
    let entry = try image.resolve(entry)
    guard memory.byteCount >= BootLayout.minimumByteCount else {
      throw BootError(
        .memory, "the guest has only \(describe(byteCount: memory.byteCount))",
        remedy: "give it at least \(describe(byteCount: BootLayout.minimumByteCount))")
    }
    // A guest started for the second time must not find the first one's tables.
    try memory.clear(GuestPhysical(BootLayout.acpi.lowerBound), count: BootLayout.acpi.count)

    if entry == .multiboot, let header = image.multiboot {
      return try MultibootBoot.load(
        header, image.elf, image.file, initrd: initrd, commandLine: commandLine, into: memory)
    }
    let loaded: LoadedKernel
    switch image.format {
    case .bzImage(let header):
      // Before it is unpacked: what the guest has no room for costs the host nothing.
      let room = try room(for: header, image.file, in: memory)
      let unpacked = mayUnpack && entry == .linux64 ? UnpackedKernel(header, in: image.file) : nil
      loaded = try load(header, image.file, unpacked, entry, commandLine, into: memory, room)
    case .elf(let elf): loaded = try load(elf, image.file, entry, into: memory)
    case .multiboot: preconditionFailure("has one entry point only")
    }
    try place(commandLine, limit: loaded.commandLineMax, in: memory)
    let disk = try initrd?.load(
      into: memory, above: loaded.end, below: min(memory.lowEnd, loaded.initrdLimit))

    if entry == .pvh {
      return try PVHBoot.prepare(memory, entry: loaded.entry, initrd: disk, rsdp: rsdp ?? 0)
    }
    var parameters = loaded.parameters
    parameters.setCommandLine(BootLayout.commandLine)
    parameters.setMemoryMap(MemoryRange.map(of: memory))
    if let disk { parameters.setInitrd(disk) }
    if let rsdp { parameters.setRSDP(rsdp) }
    try memory.place(parameters.bytes, at: BootLayout.zeroPage)
    return entry == .linux64
      ? try LinuxBoot64.prepare(memory, entry: loaded.entry) : try LinuxBoot32.prepare(memory, entry: loaded.entry)
  }

  /// What the common part needs to know of a kernel in memory.
  private struct LoadedKernel {
    var entry: UInt64
    /// The first address the kernel does not need.
    var end: UInt64
    /// The first address an initial RAM disk may not touch.
    var initrdLimit: UInt64
    var commandLineMax: Int
    var parameters: BootParameters
  }

  /// The memory a bzImage needs, all of which is RAM.
  private static func room(
    for header: SetupHeader, _ file: HostFile, in memory: GuestMemory
  ) throws(BootError) -> Range<UInt64> {
    // A kernel unpacks itself no lower than it prefers to be, wherever it was put.
    let needed = max(header.initByteCount, UInt64(header.kernelByteCount))
    let address = header.preferredAddress
    guard memory.contains(GuestPhysical(address), count: Int(needed)) else {
      throw BootError(
        .memory,
        "\(file) needs \(describe(byteCount: needed)) at 0x\(String(address, radix: 16)), the guest has \(describe(byteCount: memory.byteCount))",
        remedy: "give it at least \(describe(byteCount: address + needed))")
    }
    return address..<address + needed
  }

  private static func load(
    _ header: SetupHeader, _ file: HostFile, _ unpacked: UnpackedKernel?, _ entry: EntryPoint, _ commandLine: String,
    into memory: GuestMemory, _ room: Range<UInt64>
  ) throws(BootError) -> LoadedKernel {
    let address = room.lowerBound
    var parameters = BootParameters(header)
    parameters.setLoadAddress(address)
    var entryAddress = entry == .linux64 ? address + 0x200 : address
    if let unpacked {
      parameters.setRandomized(try unpacked.load(into: memory, header, commandLine: commandLine))
      entryAddress = unpacked.image.entry
    } else {
      do throws(HostError) {
        try memory.read(
          from: file, at: header.kernelOffset, count: header.kernelByteCount, to: GuestPhysical(address))
      } catch { throw BootError(error) }
    }
    return LoadedKernel(
      entry: entryAddress, end: room.upperBound,
      initrdLimit: header.initrdAddressMax + 1, commandLineMax: header.commandLineMax, parameters: parameters)
  }

  private static func load(
    _ elf: ELFImage, _ file: HostFile, _ entry: EntryPoint, into memory: GuestMemory
  ) throws(BootError) -> LoadedKernel {
    try elf.load(from: file, into: memory)
    let address = (entry == .pvh ? elf.pvhEntry : nil) ?? elf.entry
    guard elf.segments.contains(where: { address >= $0.physicalAddress && address < $0.physicalEnd }) else {
      throw BootError(
        .malformed, "\(file) has its entry point at 0x\(String(address, radix: 16)), in no segment",
        remedy: "copy, download or build it again")
    }
    var parameters = BootParameters()
    parameters.setLoadAddress(elf.physicalRange.lowerBound)
    return LoadedKernel(
      entry: address, end: (elf.physicalRange.upperBound + 4095) & ~4095,
      // 32-bit kernels reach no more than 896 MiB directly; 64-bit ones all of it. Linux's own limits in a bzImage.
      initrdLimit: elf.is64Bit ? 0x8000_0000 : 0x3800_0000, commandLineMax: 2047, parameters: parameters)
  }

  /// Puts ACPI tables, made elsewhere, beside a kernel that was loaded with their `rsdp`.
  ///
  /// - Parameter address: With all the bytes in `[0xE0000, 0x100000)`.
  /// - Throws: `BootError`, if the guest has no such memory.
  public static func place(acpiTables bytes: [UInt8], at address: UInt64, in memory: GuestMemory) throws(BootError) {
    precondition(
      BootLayout.acpi.contains(address) && UInt64(bytes.count) <= BootLayout.acpi.upperBound - address,
      "the ACPI tables do not fit their place")
    try memory.place(bytes, at: address)
  }

  private static func place(_ commandLine: String, limit: Int, in memory: GuestMemory) throws(BootError) {
    let bytes = [UInt8](commandLine.utf8)
    let limit = min(limit, BootLayout.commandLineRoom - 1)
    guard bytes.count <= limit else {
      throw BootError(
        .commandLine, "the kernel command line has \(bytes.count) bytes, this kernel takes at most \(limit)",
        remedy: "shorten it")
    }
    guard !bytes.contains(0) else {
      throw BootError(.commandLine, "the kernel command line contains a NUL byte", remedy: "leave it out")
    }
    try memory.place(bytes + [0], at: BootLayout.commandLine)
  }
}

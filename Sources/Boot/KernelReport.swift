// SPDX-License-Identifier: Apache-2.0
// What `lguest inspect FILE` says about a kernel: the facts that decide whether and how it boots.

import Host

/// The facts about a kernel image.
public struct KernelReport: Sendable, Equatable, Encodable {
  /// What the file was called on the command line, with its role.
  public var file: String
  /// "bzImage", "ELF64", "ELF32" or "multiboot".
  public var format: String
  public var byteCount: Int
  public var version: String?
  /// Best first.
  public var entryPoints: [EntryPoint]
  /// What `auto` stands for; `nil` if nothing can be started.
  public var defaultEntryPoint: EntryPoint?
  /// bzImage only: "2.15".
  public var bootProtocol: String?
  /// bzImage only.
  public var compression: PayloadCompression?
  /// bzImage only: the names of the XLF_* bits that are set.
  public var flags: [String]?
  public var isRelocatable: Bool?
  /// Where it goes by preference, and the memory it needs from there on.
  public var loadAddress: UInt64
  public var memoryByteCount: UInt64
  /// bzImage only: without the NUL.
  public var commandLineMax: Int?
  /// bzImage only: the last usable address.
  public var initrdAddressMax: UInt64?
  /// ELF and multiboot only: where execution begins.
  public var entryAddress: UInt64?
  public var pvhEntryAddress: UInt64?
  /// The flags of the multiboot header, if there is one.
  public var multibootFlags: UInt32?
  /// Whether a 32-bit kernel can be started as lguest's guest; nil if it cannot be told.
  public var hasLguestEntry: Bool?
  /// Whether it is made for that alone, so that it is started so unless something else is asked for.
  public var isLguestGuest: Bool

  /// Collects the facts.
  public init(_ image: KernelImage) {
    file = image.file.description
    byteCount = image.file.byteCount
    version = image.version
    entryPoints = image.entryPoints
    defaultEntryPoint = try? image.resolve(.auto)
    multibootFlags = image.multiboot?.flags
    hasLguestEntry = image.hasLguestEntry
    isLguestGuest = image.isLguestGuest
    switch image.format {
    case .multiboot(let header):
      format = "multiboot"
      let fields = header.addresses!
      loadAddress = UInt64(fields.load)
      memoryByteCount = (try? header.segment(fields, of: image.file))?.memoryByteCount ?? 0
      entryAddress = UInt64(fields.entry)
    case .bzImage(let header):
      format = "bzImage"
      bootProtocol = "\(header.protocolVersion >> 8).\(header.protocolVersion & 0xFF)"
      compression = header.compression
      let names = [
        "64-bit entry", "loads above 4 GiB", "EFI handover 32", "EFI handover 64", "EFI kexec", "5-level paging",
        "5-level enabled",
      ]
      flags = names.enumerated().filter { header.xloadflags >> UInt16($0.offset) & 1 != 0 }.map(\.element)
      isRelocatable = header.isRelocatable
      loadAddress = header.preferredAddress
      memoryByteCount = header.initByteCount
      commandLineMax = header.commandLineMax
      initrdAddressMax = header.initrdAddressMax
    case .elf(let elf):
      format = elf.is64Bit ? "ELF64" : "ELF32"
      loadAddress = elf.physicalRange.lowerBound
      memoryByteCount = elf.physicalRange.upperBound - elf.physicalRange.lowerBound
      entryAddress = elf.entry
      pvhEntryAddress = elf.pvhEntry
    }
  }

  /// The report as text, a fact a line.
  public var lines: [String] {
    func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
    var lines = [file]
    func fact(_ name: String, _ value: String?) {
      guard let value else { return }
      lines.append("  " + name + String(repeating: " ", count: max(1, 14 - name.utf8.count)) + value)
    }
    fact("format", format + (bootProtocol.map { ", boot protocol \($0)" } ?? ""))
    fact("version", version ?? "unknown")
    fact(
      "entry points",
      entryPoints.map { $0.rawValue + ($0 == defaultEntryPoint ? " (default)" : "") }.joined(separator: ", "))
    fact("compression", compression?.rawValue)
    fact("flags", flags.flatMap { $0.isEmpty ? nil : $0.joined(separator: ", ") })
    fact("load address", hex(loadAddress) + (isRelocatable.map { $0 ? ", relocatable" : ", fixed" } ?? ""))
    fact("memory", "\(memoryByteCount / 1024) KiB from there on")
    fact("entry", entryAddress.map(hex))
    fact("PVH entry", pvhEntryAddress.map(hex))
    fact("multiboot", multibootFlags.map { "flags " + hex(UInt64($0)) })
    fact("command line", commandLineMax.map { "at most \($0) bytes" })
    fact("initrd", initrdAddressMax.map { "up to \(hex($0))" })
    switch hasLguestEntry {
    case true?: lines.append("  lguest: possible (--abi lguest)" + (isLguestGuest ? ", the default for it" : ""))
    case nil: lines.append("  lguest: unknown, the kernel in the file cannot be unpacked here")
    case false?: break
    }
    return lines
  }
}

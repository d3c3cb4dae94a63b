// SPDX-License-Identifier: Apache-2.0
// Linux's "zero page" (struct boot_params): what a boot loader tells an x86 kernel, 4 KiB with fixed offsets
// (Linux, Documentation/arch/x86/zero-page.rst and boot.rst).

/// The zero page.
struct BootParameters {
  private(set) var bytes = [UInt8](repeating: 0, count: 4096)

  /// Starts from a bzImage's own header; everything else, the sentinel at 0x1EF too, is zero.
  init(_ header: SetupHeader) {
    bytes.replaceSubrange(0x1F1..<0x1F1 + header.bytes.count, with: header.bytes)
    fillIn()
  }

  /// Makes a header up for a vmlinux, which carries none.
  init() {
    bytes.setLittle(UInt16(0xAA55), at: 0x1FE)
    bytes.replaceSubrange(0x202..<0x206, with: "HdrS".utf8)
    bytes.setLittle(UInt16(0x020F), at: 0x206)
    bytes[0x211] = 1  // LOADED_HIGH
    bytes.setLittle(UInt32(0x10_0000), at: 0x230)  // kernel_alignment
    fillIn()
  }

  private mutating func fillIn() {
    bytes[0x210] = 0xFF  // type_of_loader: one without a number
    bytes[0x211] &= 1  // of loadflags only LOADED_HIGH: no heap, not quiet, no segments kept
  }

  /// Where the protected-mode kernel was put.
  mutating func setLoadAddress(_ address: UInt64) {
    bytes.setLittle(UInt32(truncatingIfNeeded: address), at: 0x214)
  }

  /// Which start-up code the kernel takes (hardware_subarch, 0 for a PC), and that it must not load segments before.
  mutating func setSubarchitecture(_ number: UInt32) {
    bytes.setLittle(number, at: 0x23C)
    bytes[0x211] |= 0x40  // KEEP_SEGMENTS
  }

  /// Whether the kernel may place its memory at random (loadflags, KASLR_FLAG): what its decompressor would tell it.
  mutating func setRandomized(_ isRandomized: Bool) { if isRandomized { bytes[0x211] |= 2 } }

  /// The address of the NUL-terminated command line.
  mutating func setCommandLine(_ address: UInt64) {
    bytes.setLittle(UInt32(truncatingIfNeeded: address), at: 0x228)
    bytes.setLittle(UInt32(truncatingIfNeeded: address >> 32), at: 0xC8)
  }

  /// The initial RAM disk.
  mutating func setInitrd(_ range: Range<UInt64>) {
    let count = range.upperBound - range.lowerBound
    bytes.setLittle(UInt32(truncatingIfNeeded: range.lowerBound), at: 0x218)
    bytes.setLittle(UInt32(truncatingIfNeeded: count), at: 0x21C)
    bytes.setLittle(UInt32(truncatingIfNeeded: range.lowerBound >> 32), at: 0xC0)
    bytes.setLittle(UInt32(truncatingIfNeeded: count >> 32), at: 0xC4)
  }

  /// The ACPI root pointer. Kernels before protocol 2.14 ignore it and scan 0xE0000...0xFFFFF.
  mutating func setRSDP(_ address: UInt64) { bytes.setLittle(address, at: 0x70) }

  /// The memory map, at most 128 ranges.
  mutating func setMemoryMap(_ map: [MemoryRange]) {
    precondition(map.count <= 128)
    bytes[0x1E8] = UInt8(map.count)
    for (i, range) in map.enumerated() {
      bytes.setLittle(range.start, at: 0x2D0 + 20 * i)
      bytes.setLittle(range.end - range.start, at: 0x2D0 + 20 * i + 8)
      bytes.setLittle(range.kind.rawValue, at: 0x2D0 + 20 * i + 16)
    }
    // Kernels of before e820 was certain read the KiB above 1 MiB from here.
    let above = map.first { $0.kind == .ram && $0.start == 0x10_0000 }
    bytes.setLittle(UInt32(clamping: (above.map { $0.end - $0.start } ?? 0) / 1024), at: 0x1E0)
  }
}

// SPDX-License-Identifier: Apache-2.0
// The kernel inside a bzImage, unpacked by the host: the same work its own decompressor would do as guest code, at
// the speed of the host. Whatever is not as expected makes it nil, and then the guest unpacks itself.

import GuestMemory
import Host

/// A 64-bit vmlinux taken out of a bzImage, with the list of places to change when it runs at another address.
struct UnpackedKernel {
  let file: HostFile
  let image: ELFImage
  private let relocations: KernelRelocations?

  /// Unpacks the payload of a 64-bit bzImage whose `initByteCount` the guest has: neither the payload nor what becomes
  /// of it is larger.
  init?(_ header: SetupHeader, in bzImage: HostFile) {
    guard header.has64BitEntry, let payload = header.payload, payload.byteCount > 4,
      UInt64(payload.byteCount) <= header.initByteCount,
      let compression = header.compression.flatMap({ Decompression(rawValue: $0.rawValue) }),
      let packed = try? bzImage.bytes(at: payload.offset, count: payload.byteCount)
    else { return nil }
    // The last four bytes are the unpacked size: gzip's own, added by the kernel's build to the others.
    let size = Int(packed.little(UInt32.self, at: packed.count - 4) ?? 0)
    let stream = compression == .gzip ? packed : [UInt8](packed.dropLast(4))
    guard size > 0, UInt64(size) <= header.initByteCount,
      let file = compression.decode(stream, byteCount: size, description: "the kernel in \(bzImage)"),
      let head = try? file.bytes(at: 0, count: min(size, 65536)), head.matches([0x7F, 0x45, 0x4C, 0x46]),
      let image = try? ELFImage(head, file), image.is64Bit,
      image.physicalRange.lowerBound == header.preferredAddress,
      image.physicalRange.upperBound - header.preferredAddress <= header.initByteCount
    else { return nil }
    self.file = file
    self.image = image
    relocations = KernelRelocations(head, file, image)
  }

  /// Loads it where it prefers to be in physical memory and, unless the command line forbids it or the image cannot,
  /// moves it to a random place in its virtual address space, as its own decompressor would.
  ///
  /// - Returns: Whether the kernel may randomize what it can (the zero page's KASLR_FLAG).
  func load(into memory: GuestMemory, _ header: SetupHeader, commandLine: String) throws(BootError) -> Bool {
    try image.load(from: file, into: memory)
    guard header.isRelocatable, !commandLine.split(separator: " ").contains("nokaslr") else { return false }
    guard let relocations else { return true }
    // Multiples of the alignment, so that the image stays inside the kernel's gigabyte (Linux,
    // boot/compressed/kaslr.c).
    let room = KernelRelocations.imageRoom - header.preferredAddress
    guard header.initByteCount < room else { return true }
    let slots = 1 + (room - header.initByteCount) / header.alignment
    try relocations.apply(delta: .random(in: 0..<slots) * header.alignment, to: memory, image)
    return true
  }
}

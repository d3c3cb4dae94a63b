// SPDX-License-Identifier: Apache-2.0
// The list behind a relocatable vmlinux of the places that hold its virtual addresses, and adding to them.

import GuestMemory
import Host

/// What Linux's build tool `relocs` appends to a 64-bit kernel: lists of addresses as 32-bit numbers, each list behind
/// a zero: places with 64-bit addresses, places with negated 32-bit ones (absent since 6.15), places with 32-bit ones.
struct KernelRelocations {
  /// Virtual addresses of the kernel image: the last two GiB, of which it uses the first (Linux, page_64_types.h).
  static let imageBase: UInt64 = 0xFFFF_FFFF_8000_0000
  static let imageRoom: UInt64 = 1 << 30

  private let absolute64: ArraySlice<UInt32>
  private let negated32: ArraySlice<UInt32>
  private let absolute32: ArraySlice<UInt32>

  /// Reads what follows the ELF file proper; nil if that is not such lists.
  init?(_ head: [UInt8], _ file: HostFile, _ image: ELFImage) {
    guard let tableOffset = head.little(UInt64.self, at: 40), let entrySize = head.little(UInt16.self, at: 58),
      let entryCount = head.little(UInt16.self, at: 60), tableOffset < UInt64(file.byteCount)
    else { return nil }
    let start = Int(tableOffset) + Int(entrySize) * Int(entryCount)
    guard start < file.byteCount, (file.byteCount - start) % 4 == 0,
      let bytes = try? file.bytes(at: start, count: file.byteCount - start)
    else { return nil }
    let words = stride(from: 0, to: bytes.count, by: 4).compactMap { bytes.little(UInt32.self, at: $0) }
    let lists = words.split(separator: 0, maxSplits: 4, omittingEmptySubsequences: false)
    // More lists than there are kinds are none of ours. Nothing stands before the first zero.
    guard lists.count == 3 || lists.count == 4, lists[0].isEmpty else { return nil }
    absolute64 = lists[1]
    negated32 = lists.count == 4 ? lists[2] : []
    absolute32 = lists[lists.count - 1]
    let low = UInt32(truncatingIfNeeded: image.segments[0].virtualAddress)
    guard lists.allSatisfy({ list in list.allSatisfy { $0 >= low } }) else { return nil }
  }

  /// Moves the kernel's virtual addresses up by `delta` bytes. It has been loaded where its headers say.
  func apply(delta: UInt64, to memory: GuestMemory, _ image: ELFImage) throws(BootError) {
    guard delta != 0 else { return }
    let delta32 = UInt32(truncatingIfNeeded: delta)
    do throws(MemoryError) {
      for place in absolute64 {
        let address = physical(place)
        try memory.store(try memory.load(UInt64.self, at: address) &+ delta, at: address)
      }
      for place in negated32 {
        let address = physical(place)
        try memory.store(try memory.load(UInt32.self, at: address) &- delta32, at: address)
      }
      for place in absolute32 {
        let address = physical(place)
        try memory.store(try memory.load(UInt32.self, at: address) &+ delta32, at: address)
      }
    } catch { throw BootError(error) }
  }

  /// A kernel's virtual address is its physical one above `imageBase`; the list has the low halves.
  private func physical(_ place: UInt32) -> GuestPhysical { GuestPhysical(UInt64(place) &- 0x8000_0000) }
}

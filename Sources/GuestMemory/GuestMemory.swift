// SPDX-License-Identifier: Apache-2.0
// The guest's RAM and the one bounds check in front of it. Everything outside the translator reaches RAM through
// here; the translator's own walk uses the same base address and the same page flags (CHost/include/chost.h).
//
//   guest-physical     0 ......... lowEnd      3 GiB ... 4 GiB         4 GiB ...... highEnd
//                      RAM                     devices (APICs, virtio)  the RAM above 3 GiB
//   host address       base + the guest-physical address, for every byte of RAM
//
// The whole range is one reservation of address space, with nothing else in reach of a 32-bit displacement from any of
// it; only RAM is mapped into it, so a stray access past the checks faults in the host rather than touching something
// else.

public import Host
import Synchronization

/// Guest-physical RAM.
///
/// Any number of threads may use it at once. Aligned accesses of 1, 2, 4 and 8 bytes are single; larger ones may be
/// seen half done by a running guest, as with any bus.
@safe public final class GuestMemory: Sendable {
  /// Where RAM stops growing below 4 GiB: the last GiB is for devices.
  public static let lowLimit: UInt64 = 3 << 30
  /// Where RAM goes on.
  public static let highStart: UInt64 = 4 << 30
  /// The largest size: what fits below 46 bits of host address space with room to spare.
  public static let maximumByteCount: UInt64 = 16 << 40

  /// RAM in bytes, both parts together.
  public let byteCount: UInt64
  /// RAM is `[0, lowEnd)` ...
  public let lowEnd: UInt64
  /// ... and `[4 GiB, highEnd)`; 4 GiB if there is none.
  public let highEnd: UInt64

  /// Host address of guest-physical 0, for the engine. Only addresses of RAM may be added to it.
  public nonisolated(unsafe) let baseAddress: UnsafeMutableRawPointer
  /// A byte per guest page from 0 to the end of RAM (`PageFlags`), for the engine.
  public nonisolated(unsafe) let pageFlags: UnsafeMutablePointer<UInt8>

  private let region: Mapping
  /// What is behind RAM: a memory file of its own, or the pages of an image, private copies where they were written.
  /// Once it is mapped the memory file is closed, unless pages are to go away.
  private let file: MemoryFile?
  private let image: (file: HostFile, offset: Int)?
  /// Tells which pages of an image are its own copies by now.
  let pageMap: PageMap?
  /// Where pages are that have gone away; nil if none ever does.
  @usableFromInline let store: PageStore?
  private let flagRegion: Mapping
  let codeWriteHandler = Mutex<CodeWriteHandler?>(nil)

  /// Makes zeroed, sparse RAM: host memory is taken page by page as the guest touches it.
  ///
  /// - Parameters:
  ///   - byteCount: A multiple of 4 KiB, at least one page, at most `maximumByteCount`.
  ///   - hugePages: Whether to ask the host for huge pages: faster, less sparse.
  ///   - fetchDelay: How long pages take to come back that have gone away (PageStore.swift), in ns; nil: none goes.
  public convenience init(
    byteCount: UInt64, hugePages: Bool = false, fetchDelay: UInt64? = nil
  ) throws(HostError) {
    try self.init(byteCount: byteCount, hugePages: hugePages, fetchDelay: fetchDelay, image: nil)
  }

  /// Makes RAM whose content is that of a file from `offset` on, a multiple of 4 KiB: the RAM below 4 GiB, then that
  /// above. The file does not change when the guest writes, and must not be changed by others.
  ///
  /// With a delay the file is read at once: a page that went away would still be in the file, and show as it once was.
  public convenience init(
    byteCount: UInt64, image file: HostFile, at offset: Int, fetchDelay: UInt64? = nil
  ) throws(HostError) {
    try self.init(
      byteCount: byteCount, hugePages: false, fetchDelay: fetchDelay, image: fetchDelay == nil ? (file, offset) : nil)
    if fetchDelay != nil { try readImage(file, at: offset) }
  }

  private init(
    byteCount: UInt64, hugePages: Bool, fetchDelay: UInt64?, image: (file: HostFile, offset: Int)?
  ) throws(HostError) {
    guard byteCount > 0, byteCount % 4096 == 0, byteCount <= GuestMemory.maximumByteCount else {
      throw HostError(
        "make", "guest memory of \(byteCount) bytes", reason: "the size is not a multiple of 4 KiB up to 16 TiB",
        remedy: "ask for a whole number of MiB")
    }
    let lowEnd = min(byteCount, GuestMemory.lowLimit)
    let highCount = byteCount - lowEnd
    let highEnd = GuestMemory.highStart + highCount
    let end = highCount > 0 ? highEnd : lowEnd

    // 2 MiB more, so that guest-physical 0 can be 2 MiB aligned.
    let alignment = 2 << 20
    region = try .reserveAlone(byteCount: Int(end) + alignment)
    let slack = unsafe (alignment - Int(bitPattern: region.base) % alignment) % alignment
    let parts = [(0, slack, Int(lowEnd)), (Int(lowEnd), slack + Int(GuestMemory.highStart), Int(highCount))]
    self.image = image
    pageMap = image == nil ? nil : PageMap()
    if let image {
      file = nil
      for (offset, place, count) in parts where count > 0 {
        try region.place(
          copyOf: image.file, fileOffset: image.offset + offset, at: place, byteCount: count, [.read, .write])
      }
    } else {
      let file = try MemoryFile(name: "lguest-memory", byteCount: Int(byteCount))
      for (offset, place, count) in parts where count > 0 {
        try region.place(file, fileOffset: offset, at: place, byteCount: count, [.read, .write])
      }
      if fetchDelay == nil { self.file = nil } else { self.file = consume file }
    }
    store = if let fetchDelay { try PageStore(byteCount: byteCount, delay: fetchDelay) } else { nil }
    region.adviseHugePages(hugePages)
    region.excludeFromCoreDumps()
    flagRegion = try .anonymous(byteCount: Int(end >> 12))
    self.byteCount = byteCount
    self.lowEnd = lowEnd
    self.highEnd = highEnd
    unsafe baseAddress = region.base + slack
    unsafe pageFlags = flagRegion.base.assumingMemoryBound(to: UInt8.self)
  }

  /// The parts of what is behind RAM that may hold anything but zeros, as offsets in an image of it. What a guest has
  /// written to pages of an image is not in them.
  var dataExtents: [Range<Int>] {
    if let image {
      return image.file.dataExtents(in: image.offset..<image.offset + Int(byteCount)).map {
        $0.lowerBound - image.offset..<$0.upperBound - image.offset
      }
    }
    if let extents = file?.dataExtents(in: 0..<Int(byteCount)) { return extents }
    return writtenPages.map { pages in
      let offset = pages.lowerBound < lowEnd ? 0 : Int(GuestMemory.highStart - lowEnd)
      return Int(pages.lowerBound) - offset..<Int(pages.upperBound) - offset
    }
  }

  /// Gives back what is behind a part of RAM that is no image's, by its place in one; false if the host refuses.
  func discard(at offset: Int, byteCount: Int) -> Bool { file?.discard(at: offset, byteCount: byteCount) ?? false }

  /// Whether RAM began as an image.
  var isImage: Bool { image != nil }

  /// Whether `count` bytes from `address` on are all RAM.
  @inlinable @inline(__always)
  public func contains(_ address: GuestPhysical, count: Int) -> Bool {
    guard count >= 0 else { return false }
    let wanted = UInt64(count)
    // Subtract, never add: address + count may wrap past zero and look small.
    if wanted <= lowEnd && address.value <= lowEnd &- wanted { return true }
    return address.value >= GuestMemory.highStart && wanted <= highEnd &- GuestMemory.highStart
      && address.value <= highEnd &- wanted
  }

  /// Runs `body` with the host address of a range that is all RAM, and there while `body` runs.
  @inlinable @inline(__always)
  func access<Result>(
    _ address: GuestPhysical, _ count: Int, _ body: (UnsafeMutableRawPointer) -> Result
  ) throws(MemoryError) -> Result {
    guard contains(address, count: count) else { throw MemoryError(address, byteCount: count) }
    if let store { return unsafe accessStored(store, address, count, body) }
    return unsafe body(baseAddress + Int(truncatingIfNeeded: address.value))
  }

  /// Reads an integer, little-endian, at any alignment.
  @inlinable
  public func load<T: FixedWidthInteger & BitwiseCopyable>(
    _ type: T.Type = T.self, at address: GuestPhysical
  ) throws(MemoryError) -> T {
    // SAFETY: `access` proved the range to be inside the mapping, here and in every accessor below.
    unsafe try access(address, MemoryLayout<T>.size) { unsafe $0.loadUnaligned(as: T.self) }
  }

  /// Writes an integer, little-endian, at any alignment; translated code on the page is told.
  @inlinable
  public func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: GuestPhysical) throws(MemoryError) {
    unsafe try access(address, MemoryLayout<T>.size) { unsafe $0.storeBytes(of: value, as: T.self) }
    didWrite(address, count: MemoryLayout<T>.size)
  }

  /// Copies bytes into RAM.
  public func copy(from source: UnsafeRawBufferPointer, to address: GuestPhysical) throws(MemoryError) {
    unsafe try access(address, source.count) { target in
      if let first = source.baseAddress { unsafe target.copyMemory(from: first, byteCount: source.count) }
    }
    didWrite(address, count: source.count)
  }

  /// Copies bytes into RAM.
  public func copy(from source: RawSpan, to address: GuestPhysical) throws(MemoryError) {
    var failure: MemoryError?
    unsafe source.withUnsafeBytes { source in
      do throws(MemoryError) { unsafe try copy(from: source, to: address) } catch { failure = error }
    }
    if let failure { throw failure }
  }

  /// Copies bytes into RAM.
  public func copy(from source: [UInt8], to address: GuestPhysical) throws(MemoryError) {
    unsafe try copy(from: source.span.bytes, to: address)
  }

  /// Copies RAM out, as many bytes as the buffer has.
  public func read(into target: UnsafeMutableRawBufferPointer, at address: GuestPhysical) throws(MemoryError) {
    unsafe try access(address, target.count) { source in
      if let first = target.baseAddress { unsafe first.copyMemory(from: source, byteCount: target.count) }
    }
  }

  /// Copies RAM out. `count` is checked against RAM before anything is allocated.
  public func bytes(at address: GuestPhysical, count: Int) throws(MemoryError) -> [UInt8] {
    unsafe try access(address, count) { unsafe [UInt8](UnsafeRawBufferPointer(start: $0, count: count)) }
  }

  /// Sets every byte of a range.
  public func fill(_ address: GuestPhysical, count: Int, with byte: UInt8 = 0) throws(MemoryError) {
    unsafe try access(address, count) {
      unsafe _ = $0.initializeMemory(as: UInt8.self, repeating: byte, count: count)
    }
    didWrite(address, count: count)
  }

  /// Reads a piece of a host file straight into RAM.
  ///
  /// - Throws: `HostError` when the file cannot be read or is shorter; the range may then be partly written.
  public func read(
    from file: HostFile, at offset: Int, count: Int, to address: GuestPhysical
  ) throws(HostError) {
    var failure: HostError?
    do throws(MemoryError) {
      unsafe try access(address, count) { target in
        do throws(HostError) {
          unsafe try file.read(into: UnsafeMutableRawBufferPointer(start: target, count: count), at: offset)
        } catch { failure = error }
      }
    } catch {
      throw HostError("load", file.description, reason: "\(error)", remedy: "give the guest more memory")
    }
    didWrite(address, count: count)
    if let failure { throw failure }
  }
}

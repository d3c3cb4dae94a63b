// SPDX-License-Identifier: Apache-2.0
// RAM in and out of a file: every page at its place, pages of zeros as holes, a checksum for each page. The file's
// pages become the RAM of a restored guest as they are, copied when the guest writes.

public import Host
import Synchronization

extension GuestMemory {
  /// Bytes that are looked at, and written, together.
  private static let writeStride = 1 << 20
  /// Bytes that a thread verifies before it takes more: two page tables, since threads that fill the same one in wait
  /// for each other.
  private static let verifyStride = 4 << 20

  /// Host address of a byte of the image, in which the RAM from 4 GiB on follows that below.
  private func address(ofImageByte offset: Int) -> UnsafeMutableRawPointer {
    let low = Int(lowEnd)
    return unsafe baseAddress + (offset < low ? offset : offset - low + Int(GuestMemory.highStart))
  }

  /// Parts of at most `size` bytes that end at its multiples, none across the gap below 4 GiB.
  private func pieces(_ extents: [Range<Int>], of size: Int) -> [Range<Int>] {
    let low = Int(lowEnd)
    var pieces: [Range<Int>] = []
    for extent in extents {
      var start = extent.lowerBound
      while start < extent.upperBound {
        var end = min((start / size + 1) * size, extent.upperBound)
        if start < low { end = min(end, low) }
        pieces.append(start..<end)
        start = end
      }
    }
    return pieces
  }

  /// The parts of RAM that may hold anything but zeros, as offsets in an image of it.
  private var touchedExtents: [Range<Int>] {
    guard isImage else { return dataExtents }
    let pageCount = Int(byteCount) / hostPageSize
    var isTouched: [Bool] = []
    for part in [0..<Int(lowEnd), Int(lowEnd)..<Int(byteCount)] where !part.isEmpty {
      let start = unsafe address(ofImageByte: part.lowerBound)
      guard let own = unsafe pageMap?.ownPages(start, count: part.count / hostPageSize) else {
        return [0..<Int(byteCount)]
      }
      isTouched += own
    }
    for extent in dataExtents {
      for page in extent.lowerBound / hostPageSize..<extent.upperBound / hostPageSize { isTouched[page] = true }
    }
    var extents: [Range<Int>] = []
    var page = 0
    while page < pageCount {
      let begin = page
      while page < pageCount, isTouched[page] { page += 1 }
      if page > begin { extents.append(begin * hostPageSize..<page * hostPageSize) }
      page += 1
    }
    return extents
  }

  /// Reads an image into RAM that is all zeros; holes stay holes.
  func readImage(_ file: HostFile, at offset: Int) throws(HostError) {
    let extents = file.dataExtents(in: offset..<offset + Int(byteCount)).map {
      $0.lowerBound - offset..<$0.upperBound - offset
    }
    for piece in pieces(extents, of: GuestMemory.writeStride) {
      let target = unsafe UnsafeMutableRawBufferPointer(
        start: address(ofImageByte: piece.lowerBound), count: piece.count)
      unsafe try file.read(into: target, at: offset + piece.lowerBound)
    }
  }

  /// Writes RAM to a file from `offset` on, which is at or beyond its end so far. No guest may run. Pages that have gone
  /// away come back, without delay.
  ///
  /// - Returns: The checksum of each page.
  public func writeImage(to file: PositionedOutput, at offset: Int) throws(HostError) -> [UInt32] {
    try withAllPages { () throws(HostError) in try writePages(to: file, at: offset) }
  }

  private func writePages(to file: PositionedOutput, at offset: Int) throws(HostError) -> [UInt32] {
    var sums = [UInt32](repeating: Checksum.zeroPage, count: Int(byteCount) / hostPageSize)
    try file.setSize(offset + Int(byteCount))
    for piece in pieces(touchedExtents, of: GuestMemory.writeStride) {
      let start = unsafe address(ofImageByte: piece.lowerBound)
      let count = piece.count / hostPageSize
      let found = unsafe Checksum.ofPages(start, count: count)
      let first = piece.lowerBound / hostPageSize
      sums.replaceSubrange(first..<first + count, with: found)
      var page = 0
      while page < count {
        let begin = page
        // Another page may have the checksum of zeros.
        while page < count,
          unsafe found[page] != Checksum.zeroPage || !Checksum.isZero(start + page * hostPageSize)
        { page += 1 }
        if page > begin {
          let bytes = unsafe UnsafeRawBufferPointer(
            start: start + begin * hostPageSize, count: (page - begin) * hostPageSize)
          unsafe try file.write(bytes, at: offset + piece.lowerBound + begin * hostPageSize)
        }
        page += 1
      }
    }
    return sums
  }

  /// Compares RAM that was made from an image, is unchanged, and is all there, with the checksums of its pages, one for each.
  ///
  /// - Returns: The first page that differs, by its number in the image, nil if none does; and how many bytes were
  ///   read, since holes need not be.
  public func firstDifference(
    from sums: [UInt32], threadCount: Int
  ) throws(HostError) -> (page: Int?, byteCount: Int) {
    let extents = dataExtents
    var next = 0
    for extent in extents + [Int(byteCount)..<Int(byteCount)] {
      let end = extent.lowerBound / hostPageSize
      if let page = (next..<end).first(where: { sums[$0] != Checksum.zeroPage }) { return (page, 0) }
      next = extent.upperBound / hostPageSize
    }
    let search = Search(pieces: pieces(extents, of: GuestMemory.verifyStride), sums: sums)
    var threads: [HostThread] = []
    for _ in 1..<max(threadCount, 1) where threads.count + 1 < search.pieces.count {
      threads.append(try HostThread(name: "lguest-verify", stackBytes: 512 << 10) { search.run(self) })
    }
    search.run(self)
    for thread in threads { thread.join() }
    let first = search.first.load(ordering: .acquiring)
    return (first == .max ? nil : first, extents.reduce(0) { $0 + $1.count })
  }

  /// A comparison that several threads share.
  private final class Search: Sendable {
    let pieces: [Range<Int>]
    let sums: [UInt32]
    let next = Atomic<Int>(0)
    let first = Atomic<Int>(.max)

    init(pieces: [Range<Int>], sums: [UInt32]) {
      self.pieces = pieces
      self.sums = sums
    }

    func run(_ memory: GuestMemory) {
      while true {
        let index = next.add(1, ordering: .relaxed).oldValue
        guard index < pieces.count else { return }
        let piece = pieces[index]
        // The mapping's pages come in as they are read, 16 at a time: faster than asking for all of them
        // (MADV_POPULATE_READ), which takes them one by one.
        let start = unsafe memory.address(ofImageByte: piece.lowerBound)
        let found = unsafe Checksum.ofPages(start, count: piece.count / hostPageSize)
        let page = piece.lowerBound / hostPageSize
        if let bad = found.indices.first(where: { found[$0] != sums[page + $0] }) {
          first.min(page + bad, ordering: .acquiringAndReleasing)
        }
      }
    }
  }
}

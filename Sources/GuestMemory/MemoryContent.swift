// SPDX-License-Identifier: Apache-2.0
// A snapshot of RAM: what it held at a moment, kept by the host so that a guest can begin again with it though the files
// it was loaded from have gone or changed.

/// What RAM held at a moment; zeros are left out.
public struct MemoryContent: Sendable {
  /// Bytes and where they were.
  public var pieces: [(address: GuestPhysical, bytes: [UInt8])] = []

  /// Nothing but zeros.
  public init() {}
}

extension GuestMemory {
  private var ranges: [(address: GuestPhysical, count: Int)] {
    let high = Int(highEnd - GuestMemory.highStart)
    return [(GuestPhysical(0), Int(lowEnd))] + (high > 0 ? [(GuestPhysical(GuestMemory.highStart), high)] : [])
  }

  /// What RAM holds now. Host memory is taken for all pages that are not holes: best before the guest runs.
  public func content() throws(MemoryError) -> MemoryContent {
    var content = MemoryContent()
    for extent in dataExtents {
      // RAM above 4 GiB follows that below.
      for part in [extent.clamped(to: 0..<Int(lowEnd)), extent.clamped(to: Int(lowEnd)..<Int(byteCount))]
      where !part.isEmpty {
        let start = UInt64(part.lowerBound)
        let address = GuestPhysical(start < lowEnd ? start : start - lowEnd + GuestMemory.highStart)
        content.pieces.append((address, try bytes(at: address, count: part.count)))
      }
    }
    return content
  }

  /// Makes RAM what it was. No vCPU may run; translated code is told.
  public func reset(to content: MemoryContent) throws(MemoryError) {
    // A page that has gone away would come back as it was.
    let isEmpty = store == nil && discard(at: 0, byteCount: Int(byteCount))
    for range in ranges {
      if isEmpty { didWrite(range.address, count: range.count) } else { try fill(range.address, count: range.count) }
    }
    for piece in content.pieces { try copy(from: piece.bytes, to: piece.address) }
  }
}

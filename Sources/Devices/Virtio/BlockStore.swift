// SPDX-License-Identifier: Apache-2.0
// The medium behind a block device: sectors of 512 bytes, wherever the host keeps them. Block devices of every kind have
// one, virtio's and others.

/// Where a disk's bytes are. Any thread may call it; it may take as long as the medium does.
public protocol BlockStore: Sendable {
  /// Sectors of 512 bytes.
  var sectorCount: UInt64 { get }
  /// Whether it cannot be written.
  var isReadOnly: Bool { get }
  /// Up to 20 bytes that tell one disk from another.
  var identity: String { get }
  /// The bytes `[offset, offset + count)`, all below the last sector's end; nil: they cannot be read.
  func read(at offset: UInt64, count: Int) -> [UInt8]?
  /// Stores bytes there; false: they cannot be written, or not all of them.
  func write(_ bytes: [UInt8], at offset: UInt64) -> Bool
  /// Makes what was written last; false: it may be lost.
  func flush() -> Bool
}

extension BlockStore {
  /// Whether so many bytes from a sector on are whole sectors, and on the medium.
  public func contains(sector: UInt64, byteCount: UInt64) -> Bool {
    byteCount % 512 == 0 && sector <= sectorCount && byteCount / 512 <= sectorCount - sector
  }
}

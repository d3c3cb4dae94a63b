// SPDX-License-Identifier: Apache-2.0
// Buffers of direct memory access as lguest's drivers of Linux 2.6.23 have them (struct lguest_dma of its
// linux/lguest_launcher.h): how many bytes are used, and up to sixteen pieces of RAM, each within a page.

import Saving

/// What devices with such buffers reach of their machine.
public struct DMAHost: Sendable {
  let memory: any DeviceMemory
  let raise: @Sendable (UInt8) -> Void

  /// - Parameter raise: Raises an interrupt by number.
  public init(_ memory: any DeviceMemory, raise: @escaping @Sendable (UInt8) -> Void) {
    (self.memory, self.raise) = (memory, raise)
  }

  /// What is in a buffer that a driver sends, which finds it taken; nil if it is no buffer.
  public func take(_ address: UInt32) -> [UInt8]? {
    guard let buffer = DMABuffer(at: UInt64(address), in: memory), let bytes = buffer.bytes(in: memory) else {
      return nil
    }
    buffer.setUsed(bytes.count, in: memory)
    return bytes
  }
}

/// A buffer as it was when it was looked at: its driver may change it afterwards.
struct DMABuffer: Sendable {
  struct Piece: Sendable {
    var address: UInt32
    var count: UInt16
  }

  /// Bytes of the structure: a word for those used, the pieces' addresses, and their lengths, of which 0 is behind the last.
  static let byteCount = 100
  private static let mostPieces = 16, addresses = 4, lengths = 68
  private static let pageBytes: UInt32 = 4096

  /// Of the structure.
  private(set) var address: UInt64
  private(set) var pieces: [Piece] = []
  /// Bytes of all pieces, 64 KiB at most.
  var count: Int { pieces.reduce(0) { $0 + Int($1.count) } }

  /// Nil: the structure or a piece is not all RAM, or a piece lies across pages.
  init?(at address: UInt64, in memory: any DeviceMemory) {
    guard let bytes = memory.bytes(at: address, count: DMABuffer.byteCount) else { return nil }
    func number(_ place: Int, _ count: Int) -> UInt32 {
      bytes[place..<place + count].reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }
    self.address = address
    for index in 0..<DMABuffer.mostPieces {
      let piece = Piece(
        address: number(DMABuffer.addresses + index * 4, 4),
        count: UInt16(truncatingIfNeeded: number(DMABuffer.lengths + index * 2, 2)))
      if piece.count == 0 { break }
      guard DMABuffer.isPossible(piece, memory) else { return nil }
      pieces.append(piece)
    }
  }

  private static func isPossible(_ piece: Piece, _ memory: any DeviceMemory) -> Bool {
    piece.address % pageBytes + UInt32(piece.count) <= pageBytes
      && memory.contains(UInt64(piece.address), count: Int(piece.count))
  }

  /// What is in the pieces.
  func bytes(in memory: any DeviceMemory) -> [UInt8]? {
    var all: [UInt8] = []
    for piece in pieces {
      guard let bytes = memory.bytes(at: UInt64(piece.address), count: Int(piece.count)) else { return nil }
      all += bytes
    }
    return all
  }

  /// Stores bytes, from the first piece on, and then says how many; false: there is no room for them.
  func fill(_ bytes: [UInt8], in memory: any DeviceMemory) -> Bool {
    guard bytes.count <= count else { return false }
    var done = 0
    for piece in pieces where done < bytes.count {
      let end = min(done + Int(piece.count), bytes.count)
      guard memory.store(Array(bytes[done..<end]), at: UInt64(piece.address)) else { return false }
      done = end
    }
    return setUsed(bytes.count, in: memory)
  }

  @discardableResult
  func setUsed(_ count: Int, in memory: any DeviceMemory) -> Bool {
    memory.storeWord(UInt32(truncatingIfNeeded: count), at: address)
  }

  /// The buffer in a saved machine, which is one that could be looked at.
  mutating func transfer(_ archive: inout StateArchive, _ memory: any DeviceMemory) throws(SavedStateError) {
    var addresses = pieces.map(\.address), counts = pieces.map(\.count)
    try archive.transfer(&address, "buffer")
    try archive.require(memory.contains(address, count: DMABuffer.byteCount), "buffer", address)
    try archive.transfer(&addresses, "pieces", limit: DMABuffer.mostPieces)
    try archive.transfer(&counts, "pieces' lengths", limit: DMABuffer.mostPieces)
    try archive.require(addresses.count == counts.count, "pieces' lengths' length", counts.count)
    pieces = zip(addresses, counts).map { Piece(address: $0, count: $1) }
    for piece in pieces {
      try archive.require(piece.count > 0 && DMABuffer.isPossible(piece, memory), "piece", piece.address)
    }
  }

  /// One to be replaced from a file.
  init(restoredAt address: UInt64) { self.address = address }
}

// SPDX-License-Identifier: Apache-2.0
// The block device of lguest's guests of Linux 2.6.23: a page in which the driver writes one request, a buffer that it
// sends, with the data if they are to be written, and a buffer that it has bound, for data that are read. A thread does
// the work and may wait for the medium.

public import Saving
import Synchronization

/// The block device.
public final class DMABlock: Sendable {
  /// Words of the page (struct lguest_block_page).
  private enum Word: UInt64 {
    case kind = 0, sector = 4, byteCount = 8, result = 12, sectorCount = 16
  }
  private enum Kind { static let read: UInt32 = 0, write: UInt32 = 1 }
  private enum Result { static let pending: UInt32 = 0, done: UInt32 = 1, failed: UInt32 = 2 }

  /// What the driver waits for. It is done again if the machine is saved before its end.
  private struct Request: Sendable {
    var isWrite = false
    var sector: UInt32 = 0
    var byteCount: UInt32 = 0
    var buffer: DMABuffer
  }

  private struct State {
    var request: Request?
    /// Counts resets, so that a request of before one is known.
    var generation: UInt64 = 0
  }

  /// The key that it has, and the address of its page.
  public let page: UInt32
  /// What the driver has bound to the key.
  public let receiver: DMAReceiver

  private let state = Mutex(State())
  private let store: any BlockStore
  private let host: DMAHost
  private let wake: @Sendable () -> Void

  /// - Parameter wake: Has a thread call `work` soon.
  public init(_ store: any BlockStore, _ host: DMAHost, page: UInt32, wake: @escaping @Sendable () -> Void) {
    (self.store, self.host, self.page, self.wake) = (store, host, page, wake)
    receiver = DMAReceiver(host)
  }

  private func word(_ word: Word) -> UInt32 { host.memory.loadWord(at: UInt64(page) + word.rawValue) ?? 0 }
  private func setWord(_ word: Word, _ value: UInt32) {
    _ = host.memory.storeWord(value, at: UInt64(page) + word.rawValue)
  }

  /// Writes the page that a driver begins with.
  public func describe() {
    for word in [Word.kind, .sector, .byteCount, .result] { setWord(word, 0) }
    setWord(.sectorCount, UInt32(clamping: store.sectorCount))
  }

  /// Forgets the request, which stores nothing any more, and what was bound.
  public func reset() {
    state.withLock { state in
      state.request = nil
      state.generation &+= 1
    }
    receiver.reset()
  }

  /// The driver has sent a buffer: there is a request in the page. It has one at a time; another is lost.
  public func send(_ address: UInt32) {
    guard state.withLock({ $0.request == nil }), let sent = DMABuffer(at: UInt64(address), in: host.memory) else {
      return
    }
    let (kind, sector, byteCount) = (word(.kind), word(.sector), word(.byteCount))
    // The structure may be gone once the call is over, its pieces are not.
    sent.setUsed(sent.count, in: host.memory)
    let request = (kind == Kind.write ? sent : kind == Kind.read ? receiver.takeFree() : nil)
      .map { Request(isWrite: kind == Kind.write, sector: sector, byteCount: byteCount, buffer: $0) }
    guard let request, isPossible(request) else {
      setWord(.result, Result.failed)
      return receiver.raise()
    }
    state.withLock { $0.request = request }
    wake()
  }

  private func isPossible(_ request: Request) -> Bool {
    let room = request.buffer.count
    return (request.isWrite ? Int(request.byteCount) == room && !store.isReadOnly : Int(request.byteCount) <= room)
      && request.byteCount > 0 && store.contains(sector: UInt64(request.sector), byteCount: UInt64(request.byteCount))
  }

  /// Does what the guest has asked for, on a thread that may wait.
  ///
  /// - Parameter goesOn: Asked between two pieces of work; once it says no, what is left stays undone.
  public func work(while goesOn: () -> Bool = { true }) {
    while goesOn() {
      let (next, generation) = state.withLock { ($0.request, $0.generation) }
      guard let request = next else { return }
      let offset = UInt64(request.sector) * 512
      if request.isWrite {
        let bytes = request.buffer.bytes(in: host.memory)
        // After a reset memory is another's, and what was copied may be its.
        guard state.withLock({ $0.generation == generation }) else { continue }
        finish(generation, bytes.map { store.write($0, at: offset) } ?? false)
      } else {
        let bytes = store.read(at: offset, count: Int(request.byteCount))
        finish(generation, bytes != nil) { [host] in
          if let bytes { _ = request.buffer.fill(bytes, in: host.memory) }
        }
      }
    }
  }

  /// Ends the request, unless a reset has.
  ///
  /// - Parameter fill: Stores what was read.
  private func finish(_ generation: UInt64, _ isDone: Bool, _ fill: () -> Void = {}) {
    let isOver = state.withLock { state in
      guard state.generation == generation else { return false }
      state.request = nil
      fill()
      setWord(.result, isDone ? Result.done : Result.failed)
      return true
    }
    if isOver { receiver.raise() }
  }
}

extension DMABlock: SavedState {
  /// While nobody does its work.
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try receiver.transfer(&archive)
    let old = state.withLock { $0.request }
    var isThere = old != nil
    try archive.transfer(&isThere, "request's presence")
    var request: Request?
    if isThere {
      var new = old ?? Request(buffer: DMABuffer(restoredAt: 0))
      try archive.transfer(&new.isWrite, "request's direction")
      try archive.transfer(&new.sector, "request's sector")
      try archive.transfer(&new.byteCount, "request's length")
      try new.buffer.transfer(&archive, host.memory)
      try archive.require(isPossible(new), "request's sector", new.sector)
      request = new
    }
    guard archive.isRestoring else { return }
    state.withLock { [request] state in
      state.request = request
      state.generation &+= 1
    }
    if isThere { wake() }
  }
}

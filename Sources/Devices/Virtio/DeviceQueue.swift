// SPDX-License-Identifier: Apache-2.0
// A virtqueue in a device: the driver sets it up, takes it away, and may break it, while a thread of the device serves
// it. How every device takes a chain, reaches its bytes and gives it back stands here once.

public import Saving
import Synchronization

/// A chain that a device has taken and not given back.
public struct TakenChain: Sendable {
  fileprivate let chain: VirtQueue.Chain
  /// Which queue it was of.
  fileprivate let generation: UInt64
  /// Bytes that the device reads, and that it writes.
  public let readableCount: UInt64, writableCount: UInt64
}

/// A device's end of a queue. Any thread may call it; nothing here waits for a device's work.
///
/// A chain outlives a reset of its queue in the hands of the device, but nothing is stored in its buffers any more. A
/// driver that breaks the rules is told so where its transport can, and the queue is as if it had been taken away.
public final class DeviceQueue: Sendable {
  private struct State {
    var queue: VirtQueue?
    /// Counts queues, so that a chain of one before is known.
    var generation: UInt64 = 0
  }
  private let state = Mutex(State())

  public init() {}

  /// Gives the device a queue, or takes it away: it was reset.
  public func set(_ queue: VirtQueue?) {
    state.withLock { state in
      state.queue = queue
      state.generation &+= 1
    }
  }

  /// Whether the driver has set it up.
  public var isThere: Bool { state.withLock { $0.queue != nil } }
  /// Whether it is there and the driver has made a chain available.
  public var hasNext: Bool { state.withLock { $0.queue?.hasNext ?? false } }
  /// Which headers its transport has.
  public var headers: VirtioHeaders { state.withLock { $0.queue?.headers ?? .version1 } }

  /// The next chain that the driver has made available; nil if there is none.
  public func take() -> TakenChain? {
    let taken: TakenChain?? = serve(nil) { queue, generation throws(VirtQueueError) in
      try queue.takeNext().map { chain in
        TakenChain(
          chain: chain, generation: generation, readableCount: chain.readableCount, writableCount: chain.writableCount)
      }
    }
    return taken ?? nil
  }

  /// Copies out what a chain has to read from byte `offset` on, `count` bytes or as many as there are; nil if the queue
  /// is no longer the one it was of, or a buffer is not all RAM.
  public func read(_ taken: TakenChain, at offset: UInt64 = 0, count: Int) -> [UInt8]? {
    serve(taken) { queue, _ throws(VirtQueueError) in try queue.read(taken.chain, at: offset, count: count) }
  }

  /// Stores bytes in what a chain has to write from byte `offset` on, as many as there is room for; false as above.
  public func write(_ bytes: [UInt8], to taken: TakenChain, at offset: UInt64 = 0) -> Bool {
    serve(taken) { queue, _ throws(VirtQueueError) in try queue.write(bytes, to: taken.chain, at: offset) } != nil
  }

  /// Gives a chain back and tells the driver, if it wants to know.
  ///
  /// - Parameter written: Bytes stored, all of them from the first on.
  public func giveBack(_ taken: TakenChain, written: UInt64) {
    let notify: (@Sendable (VirtQueue.Event) -> Void)?? = serve(taken) { queue, _ throws(VirtQueueError) in
      try queue.putUsed(taken.chain, written: UInt32(clamping: written))
      return queue.wantsInterrupt ? queue.notify : nil
    }
    if case .some(let notify?) = notify { notify(.used) }
  }

  /// The device cannot make sense of a chain: the driver has broken the device's rules, and not the queue's.
  public func refuse(_ taken: TakenChain) {
    _ = serve(taken) { _, _ throws(VirtQueueError) in throw VirtQueueError(reason: "a request without meaning") }
  }

  /// The queue in a saved machine: whether it is there, and how far the device has come. While nobody serves it.
  ///
  /// - Parameter make: The queue where the driver has put it; nil if it has not.
  public func transfer(_ archive: inout StateArchive, _ make: () -> VirtQueue?) throws(SavedStateError) {
    let old = state.withLock { $0.queue }
    var isThere = old != nil
    try archive.transfer(&isThere, "queue's presence")
    var returned = old?.returned ?? 0
    try archive.transfer(&returned, "queue's place")
    guard archive.isRestoring else { return }
    var new = isThere ? make() : nil
    try archive.require((new != nil) == isThere, "queue's presence")
    new?.returned = returned
    set(new)
  }

  /// Does something with the queue, which is gone afterwards if that found a rule broken.
  ///
  /// - Parameter taken: A chain that the queue must still be the one of.
  private func serve<Result: Sendable>(
    _ taken: TakenChain?, _ body: (inout VirtQueue, UInt64) throws(VirtQueueError) -> Result
  ) -> Result? {
    let (result, notify) = state.withLock { state -> (Result?, (@Sendable (VirtQueue.Event) -> Void)?) in
      guard var queue = state.queue, taken.map({ $0.generation == state.generation }) ?? true else { return (nil, nil) }
      do throws(VirtQueueError) {
        let result = try body(&queue, state.generation)
        state.queue = queue
        return (result, nil)
      } catch {
        state.queue = nil
        state.generation &+= 1
        return (nil, queue.notify)
      }
    }
    notify?(.broken)
    return result
  }
}

// SPDX-License-Identifier: Apache-2.0
// A split virtqueue, the device's side: descriptors, the ring in which the driver makes chains of them available, and the
// ring in which they are returned (Virtual I/O Device specification 1.0, 2.4). What the driver writes there is believed
// nowhere: every number is checked before it is used.

/// The driver has broken the rules of a queue, which does no more work until it is reset.
public struct VirtQueueError: Error, Equatable {
  /// Which rule.
  public let reason: String
}

/// What some devices have in front of requests and frames: it changed with the transports.
public enum VirtioHeaders: Sendable {
  /// Linux 2.6.24's, of before there was a specification.
  case linux2_6_24
  /// Of transports before version 1.0.
  case legacy
  case version1
}

/// A queue with its rings.
public struct VirtQueue: Sendable {
  /// Buffers that belong together.
  public struct Chain: Sendable {
    /// The number by which it is returned.
    let head: UInt16
    /// What the device reads, and what it writes, in order.
    public let readable: [Buffer], writable: [Buffer]
    /// Their bytes, at most what a chain of the device may hold.
    public var readableCount: UInt64 { readable.reduce(0) { $0 &+ UInt64($1.count) } }
    public var writableCount: UInt64 { writable.reduce(0) { $0 &+ UInt64($1.count) } }
  }

  /// What the driver is told of a queue.
  public enum Event: Sendable {
    /// Chains have been returned.
    case used
    /// The driver has broken the rules, and the queue does no more work until it is reset.
    case broken
  }

  /// A piece of RAM.
  public struct Buffer: Sendable, Equatable {
    /// Guest-physical.
    public let address: UInt64
    /// In bytes.
    public let count: UInt32
  }

  private static let next: UInt16 = 1, write: UInt16 = 2
  private let memory: any DeviceMemory
  /// Descriptors, at most 32,768 and a power of two.
  public let size: UInt16
  private let descriptors: UInt64, available: UInt64, used: UInt64
  /// Bytes of a chain, at most; more are a mistake of the driver's.
  private let mostBytes: UInt64
  /// Which headers its transport has.
  public let headers: VirtioHeaders
  /// Tells the driver, by its transport's interrupt.
  let notify: @Sendable (Event) -> Void
  private var nextAvailable: UInt16 = 0
  private var nextUsed: UInt16 = 0

  /// How many chains have been given back, of a number of 16 bits. A queue that goes on from there takes those again that
  /// had been taken and not given back.
  var returned: UInt16 {
    get { nextUsed }
    set { (nextAvailable, nextUsed) = (newValue, newValue) }
  }

  /// A queue whose three parts lie where the driver has put them.
  ///
  /// - Parameters:
  ///   - mostBytes: What a chain may hold.
  ///   - notify: Tells the driver. Any thread.
  public init(
    _ memory: any DeviceMemory, size: UInt16, descriptors: UInt64, available: UInt64, used: UInt64, mostBytes: UInt64,
    headers: VirtioHeaders = .version1, notify: @escaping @Sendable (Event) -> Void
  ) {
    (self.memory, self.size, self.mostBytes) = (memory, size, mostBytes)
    (self.headers, self.notify) = (headers, notify)
    (self.descriptors, self.available, self.used) = (descriptors, available, used)
  }

  /// A queue of the legacy layout: the parts follow each other, the last at the next page (2.4.2).
  public init(
    _ memory: any DeviceMemory, size: UInt16, legacyAt start: UInt64, mostBytes: UInt64,
    headers: VirtioHeaders = .legacy, notify: @escaping @Sendable (Event) -> Void
  ) {
    let available = start &+ UInt64(size) * 16
    self.init(
      memory, size: size, descriptors: start, available: available,
      used: (available &+ 6 &+ UInt64(size) * 2 &+ 4095) & ~4095, mostBytes: mostBytes, headers: headers, notify: notify
    )
  }

  /// Bytes of a queue of the legacy layout.
  public static func legacyByteCount(size: UInt16) -> UInt64 {
    let front = (UInt64(size) * 18 + 6 + 4095) & ~4095
    return front + (UInt64(size) * 8 + 6 + 4095) & ~4095
  }

  /// Whether the driver has made a chain available.
  public var hasNext: Bool { memory.loadShort(at: available &+ 2).map { $0 != nextAvailable } ?? false }

  /// The next chain that the driver has made available; nil if there is none.
  public mutating func takeNext() throws(VirtQueueError) -> Chain? {
    guard size > 0, let index = memory.loadShort(at: available &+ 2) else {
      throw VirtQueueError(reason: "a ring outside RAM")
    }
    if index == nextAvailable { return nil }
    guard index &- nextAvailable <= size else { throw VirtQueueError(reason: "more chains than descriptors") }
    let place = available &+ 4 &+ UInt64(nextAvailable % size) * 2
    guard let head = memory.loadShort(at: place) else { throw VirtQueueError(reason: "a ring outside RAM") }
    let chain = try self.chain(from: head)
    nextAvailable &+= 1
    return chain
  }

  private func chain(from head: UInt16) throws(VirtQueueError) -> Chain {
    var readable: [Buffer] = [], writable: [Buffer] = []
    var (index, total) = (head, UInt64(0))
    for _ in 0..<size {
      guard index < size, let bytes = memory.bytes(at: descriptors &+ UInt64(index) * 16, count: 16) else {
        throw VirtQueueError(reason: "a descriptor that does not exist")
      }
      func number(_ range: Range<Int>) -> UInt64 { bytes[range].reversed().reduce(0) { $0 << 8 | UInt64($1) } }
      let buffer = Buffer(address: number(0..<8), count: UInt32(truncatingIfNeeded: number(8..<12)))
      let flags = UInt16(truncatingIfNeeded: number(12..<14))
      guard flags & ~(VirtQueue.next | VirtQueue.write) == 0 else {
        throw VirtQueueError(reason: "a descriptor of a kind that was not offered")
      }
      total += UInt64(buffer.count)
      guard total <= mostBytes else { throw VirtQueueError(reason: "a chain without end") }
      if flags & VirtQueue.write != 0 {
        writable.append(buffer)
      } else {
        guard writable.isEmpty else { throw VirtQueueError(reason: "a buffer to read behind one to write") }
        readable.append(buffer)
      }
      if flags & VirtQueue.next == 0 { return Chain(head: head, readable: readable, writable: writable) }
      index = UInt16(truncatingIfNeeded: number(14..<16))
    }
    throw VirtQueueError(reason: "a chain that goes round")
  }

  // MARK: The bytes of a chain

  /// Copies out what is readable from byte `offset` on, `count` bytes or as many as there are.
  func read(_ chain: Chain, at offset: UInt64, count: Int) throws(VirtQueueError) -> [UInt8] {
    var result: [UInt8] = []
    for piece in try VirtQueue.pieces(chain.readable, offset, count) {
      guard let bytes = memory.bytes(at: piece.address, count: Int(piece.count)) else {
        throw VirtQueueError(reason: "a buffer outside RAM")
      }
      result += bytes
    }
    return result
  }

  /// Stores bytes in what is writable from byte `offset` on, as many as there is room for.
  func write(_ bytes: [UInt8], to chain: Chain, at offset: UInt64) throws(VirtQueueError) {
    var done = 0
    for piece in try VirtQueue.pieces(chain.writable, offset, bytes.count) {
      let part = Array(bytes[done..<done + Int(piece.count)])
      guard memory.store(part, at: piece.address) else { throw VirtQueueError(reason: "a buffer outside RAM") }
      done += part.count
    }
  }

  /// Where those bytes are.
  private static func pieces(
    _ buffers: [Buffer], _ offset: UInt64, _ count: Int
  ) throws(VirtQueueError) -> [Buffer] {
    var (skip, left, found) = (offset, UInt64(max(count, 0)), [Buffer]())
    for buffer in buffers where left > 0 {
      let size = UInt64(buffer.count)
      guard skip < size else {
        skip -= size
        continue
      }
      let (address, isBeyond) = buffer.address.addingReportingOverflow(skip)
      guard !isBeyond else { throw VirtQueueError(reason: "a buffer outside RAM") }
      let taken = min(size - skip, left)
      found.append(Buffer(address: address, count: UInt32(taken)))
      (skip, left) = (0, left - taken)
    }
    return found
  }

  /// Returns a chain to the driver.
  ///
  /// - Parameter written: Bytes stored in its writable buffers.
  public mutating func putUsed(_ chain: Chain, written: UInt32) throws(VirtQueueError) {
    let place = used &+ 4 &+ UInt64(nextUsed % size) * 8
    let entry = [UInt32(chain.head), written].flatMap { word in
      (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32($0 * 8)) }
    }
    guard memory.store(entry, at: place), memory.storeShort(nextUsed &+ 1, at: used &+ 2) else {
      throw VirtQueueError(reason: "a ring outside RAM")
    }
    nextUsed &+= 1
  }

  /// Whether the driver wants to be interrupted when chains have been returned.
  public var wantsInterrupt: Bool { memory.loadShort(at: available).map { $0 & 1 == 0 } ?? false }
}

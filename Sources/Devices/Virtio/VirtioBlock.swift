// SPDX-License-Identifier: Apache-2.0
// The virtio block device: one queue of requests, each a header, data and a byte for how it went (Virtual I/O Device
// specification 1.0, 5.2). Kicks only ring for a thread, which does the work and may wait for the medium.

/// The block device.
public final class VirtioBlock: VirtioDevice {
  private enum Request {
    static let `in`: UInt32 = 0, out: UInt32 = 1, flush: UInt32 = 4, identity: UInt32 = 8
    /// Type, a reserved word, and the first sector; Linux 2.6.24 has a number of its own behind them.
    static func headerBytes(_ headers: VirtioHeaders) -> Int { headers == .linux2_6_24 ? 24 : 16 }
  }

  private enum Status: UInt8 { case ok, ioError, unsupported }

  /// Feature bits (5.2.3).
  private enum Feature { static let segments: UInt64 = 1 << 2, readOnly: UInt64 = 1 << 5, flush: UInt64 = 1 << 9 }

  /// Buffers of a request, at most: those of a queue of 256 but for header and status.
  private static let mostSegments: UInt32 = 254
  /// Bytes on their way between RAM and the medium at once.
  private static let pieceBytes: UInt64 = 256 << 10

  public let deviceType: UInt8 = 2, mostBytes: UInt64 = 1 << 30
  public let features: UInt64
  /// Capacity in sectors, no limit to the size of a buffer, and how many buffers a request may have.
  public let configuration: [UInt8]
  public var queues: [DeviceQueue] { [queue] }

  private let queue = DeviceQueue()
  private let store: any BlockStore
  private let wake: @Sendable () -> Void

  /// - Parameter wake: Has a thread call `work` soon.
  public init(_ store: any BlockStore, wake: @escaping @Sendable () -> Void) {
    (self.store, self.wake) = (store, wake)
    features = Feature.segments | Feature.flush | (store.isReadOnly ? Feature.readOnly : 0)
    configuration =
      (0..<8).map { UInt8(truncatingIfNeeded: store.sectorCount >> UInt64($0 * 8)) } + [0, 0, 0, 0]
      + (0..<4).map { UInt8(truncatingIfNeeded: VirtioBlock.mostSegments >> UInt32($0 * 8)) }
  }

  public func kick(_ number: Int) { wake() }

  /// Does what the guest has asked for, on a thread that may wait.
  ///
  /// - Parameters:
  ///   - begins: Asked before each request; once it says no, those that are left wait for the next call.
  ///   - goesOn: Asked between two pieces of a request; once it says no, what is left of it stays undone.
  public func work(before begins: () -> Bool = { true }, while goesOn: () -> Bool = { true }) {
    while begins(), let request = queue.take() { serve(request, goesOn) }
  }

  private func serve(_ request: TakenChain, _ goesOn: () -> Bool) {
    let headerBytes = Request.headerBytes(queue.headers)
    // Without a byte for its status, and without a header, it is no request.
    guard request.writableCount > 0, let header = queue.read(request, count: headerBytes) else {
      return queue.refuse(request)
    }
    guard header.count == headerBytes else { return queue.refuse(request) }
    func number(_ range: Range<Int>) -> UInt64 { header[range].reversed().reduce(0) { $0 << 8 | UInt64($1) } }
    let sector = number(8..<16)
    let room = request.writableCount - 1
    var (status, written) = (Status.ok, UInt64(0))
    switch UInt32(truncatingIfNeeded: number(0..<4)) {
    case Request.in:
      written = read(request, sector, room, goesOn)
      status = written == room && room % 512 == 0 ? .ok : .ioError
    case Request.out:
      status = write(request, from: UInt64(headerBytes), sector, goesOn) ? .ok : .ioError
    case Request.flush: status = store.flush() ? .ok : .ioError
    case Request.identity:
      let text = Array(store.identity.utf8.prefix(20))
      let bytes = (text + [UInt8](repeating: 0, count: 20 - text.count)).prefix(Int(min(room, 20)))
      guard queue.write(Array(bytes), to: request) else { return }
      written = UInt64(bytes.count)
    default: status = .unsupported
    }
    // The status is the last byte, wherever the data end. What is told as written is so from the first byte on.
    guard goesOn(), queue.write([status.rawValue], to: request, at: room) else { return }
    queue.giveBack(request, written: written == room ? room + 1 : written)
  }

  /// Reads from the medium into RAM, and says how many bytes.
  private func read(_ request: TakenChain, _ sector: UInt64, _ count: UInt64, _ goesOn: () -> Bool) -> UInt64 {
    guard store.contains(sector: sector, byteCount: count) else { return 0 }
    var done: UInt64 = 0
    while done < count, goesOn() {
      let piece = Int(min(count - done, VirtioBlock.pieceBytes))
      guard let bytes = store.read(at: sector * 512 + done, count: piece), queue.write(bytes, to: request, at: done)
      else { break }
      done += UInt64(piece)
    }
    return done
  }

  /// Writes from RAM to the medium what lies from byte `start` on; whether that was all.
  private func write(_ request: TakenChain, from start: UInt64, _ sector: UInt64, _ goesOn: () -> Bool) -> Bool {
    let count = request.readableCount - start
    guard !store.isReadOnly, store.contains(sector: sector, byteCount: count) else { return false }
    var done: UInt64 = 0
    while done < count, goesOn() {
      let piece = Int(min(count - done, VirtioBlock.pieceBytes))
      guard let bytes = queue.read(request, at: start + done, count: piece),
        store.write(bytes, at: sector * 512 + done)
      else { return false }
      done += UInt64(piece)
    }
    return done == count
  }
}

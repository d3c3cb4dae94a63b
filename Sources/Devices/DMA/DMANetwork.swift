// SPDX-License-Identifier: Apache-2.0
// The network card of lguest's guests of Linux 2.6.23: a page with the addresses of those on the network, in which the
// guest has a place and its peer another, which it sends frames to by a key. What it receives goes to buffers that it has
// bound to its own place's key.

public import Saving
import Synchronization

/// The network card.
public final class DMANetwork: FramePort {
  /// Places in the page, of six bytes each; their keys are four apart.
  private static let peerPlace: UInt32 = 0
  /// The guest's.
  public static let ownPlace: UInt32 = 1
  private static let keyBytes: UInt32 = 4, addressBytes = 6
  /// Of the address in a place: who is there wants every frame. So the guest sends its peer every one.
  private static let wantsAll: UInt8 = 1
  /// Frames on their way out, and their bytes, at most; more are lost, and the guest is told so.
  private static let mostFrames = 256, mostBytes = 256 << 10

  private struct State {
    var frames: [[UInt8]] = []
    var byteCount: Int { frames.reduce(0) { $0 + $1.count } }
  }

  /// The address of its page, and the key that the guest sends to.
  public let page: UInt32
  /// The key for which the guest binds buffers.
  public var receivingKey: UInt32 { page + DMANetwork.ownPlace * DMANetwork.keyBytes }
  /// What it has bound.
  public let receiver: DMAReceiver

  private let state = Mutex(State())
  /// Whether a frame waits for a buffer.
  private let isWaiting = Atomic(false)
  private let host: DMAHost
  private let wake: @Sendable () -> Void
  private let wantsRoom: @Sendable () -> Void

  /// - Parameters:
  ///   - wake: Has a thread take frames, and deliver those that wait, soon.
  ///   - wantsRoom: Has `look` called soon.
  public init(
    _ host: DMAHost, page: UInt32, wake: @escaping @Sendable () -> Void, wantsRoom: @escaping @Sendable () -> Void
  ) {
    (self.host, self.page, self.wake, self.wantsRoom) = (host, page, wake, wantsRoom)
    receiver = DMAReceiver(host)
  }

  /// Writes the page that a driver begins with.
  public func describe() {
    let peer = EthernetFrame.localAddress([DMANetwork.wantsAll])
    _ = host.memory.store(
      [peer[0] | DMANetwork.wantsAll] + peer.dropFirst() + [UInt8](repeating: 0, count: DMANetwork.addressBytes),
      at: UInt64(page))
  }

  /// Forgets what was bound, and frames on their way out.
  public func reset() {
    state.withLock { $0.frames = [] }
    receiver.reset()
  }

  /// The guest sends a frame.
  public func send(_ address: UInt32) {
    guard let buffer = DMABuffer(at: UInt64(address), in: host.memory),
      EthernetFrame.sizes.contains(buffer.count), let frame = buffer.bytes(in: host.memory)
    else { return }
    let hasRoom = state.withLock { state in
      guard state.frames.count < DMANetwork.mostFrames, state.byteCount + frame.count <= DMANetwork.mostBytes else {
        return false
      }
      state.frames.append(frame)
      return true
    }
    guard hasRoom else { return }
    buffer.setUsed(frame.count, in: host.memory)
    wake()
  }

  /// A driver does not say that it has emptied a buffer: whether a frame still waits for one. Costs next to nothing while
  /// none does.
  public func look() -> Bool {
    guard isWaiting.load(ordering: .acquiring) else { return false }
    if case .full = receiver.reception { return true }
    isWaiting.store(false, ordering: .releasing)
    wake()
    return false
  }

  // MARK: The host's side

  public var reception: FrameReception {
    let reception = receiver.reception
    if case .full = reception {
      isWaiting.store(true, ordering: .releasing)
      wantsRoom()
    }
    return reception
  }

  public func takeFrame() -> [UInt8]? { state.withLock { $0.frames.isEmpty ? nil : $0.frames.removeFirst() } }

  @discardableResult
  public func deliver(_ frame: [UInt8]) -> Bool {
    EthernetFrame.sizes.contains(frame.count) && receiver.put(frame)
  }
}

extension DMANetwork: SavedState {
  /// While nobody moves frames.
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try receiver.transfer(&archive)
    var frames = state.withLock { $0.frames }
    var count = UInt32(frames.count)
    try archive.transfer(&count, "number of frames", in: 0...UInt32(DMANetwork.mostFrames))
    if archive.isRestoring { frames = Array(repeating: [], count: Int(count)) }
    for index in frames.indices {
      try archive.transfer(&frames[index], "frame", limit: EthernetFrame.sizes.upperBound)
      try archive.require(EthernetFrame.sizes.contains(frames[index].count), "frame's length", frames[index].count)
    }
    let new = State(frames: frames)
    try archive.require(new.byteCount <= DMANetwork.mostBytes, "frames' length", new.byteCount)
    guard archive.isRestoring else { return }
    state.withLock { $0 = new }
    if count > 0 { wake() }
  }
}

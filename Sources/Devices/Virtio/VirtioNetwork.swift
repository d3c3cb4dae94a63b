// SPDX-License-Identifier: Apache-2.0
// The virtio network device: queue 0 receives, queue 1 transmits, and each frame has a header, which says nothing without
// offloads (Virtual I/O Device specification 1.0, 5.1). Kicks only ring for the thread that moves frames.

/// The network device.
public final class VirtioNetwork: VirtioDevice, FramePort {
  /// VIRTIO_NET_F_MAC.
  private static let hasAddress: UInt64 = 1 << 5

  public let deviceType: UInt8 = 1, mostBytes: UInt64 = 1 << 17
  public let features = VirtioNetwork.hasAddress
  /// The station's address.
  public let configuration: [UInt8]
  public var queues: [DeviceQueue] { [receive, transmit] }

  private let receive = DeviceQueue(), transmit = DeviceQueue()
  private let wake: @Sendable () -> Void

  /// - Parameters:
  ///   - address: The station's, 6 bytes.
  ///   - wake: Has a thread take frames, and deliver those that wait, soon.
  public init(address: [UInt8], wake: @escaping @Sendable () -> Void) {
    (configuration, self.wake) = (Array(address.prefix(6)), wake)
  }

  public func kick(_ number: Int) { wake() }

  /// A legacy header has no count of buffers (5.1.6); Linux 2.6.24's has no length of headers either (struct
  /// virtio_net_hdr).
  private static func headerBytes(_ headers: VirtioHeaders) -> Int {
    switch headers {
    case .linux2_6_24: 8
    case .legacy: 10
    case .version1: 12
    }
  }

  public var reception: FrameReception { receive.hasNext ? .ready : receive.isThere ? .full : .off }

  public func takeFrame() -> [UInt8]? {
    let header = VirtioNetwork.headerBytes(transmit.headers)
    guard let chain = transmit.take() else { return nil }
    guard chain.readableCount >= UInt64(header) else {
      transmit.refuse(chain)
      return nil
    }
    let size = chain.readableCount - UInt64(header)
    let isFrame = EthernetFrame.sizes.contains(Int(size))
    guard let frame = transmit.read(chain, at: UInt64(header), count: isFrame ? Int(size) : 0) else { return nil }
    transmit.giveBack(chain, written: 0)
    return frame
  }

  @discardableResult
  public func deliver(_ frame: [UInt8]) -> Bool {
    guard EthernetFrame.sizes.contains(frame.count) else { return false }
    let headers = receive.headers
    guard let chain = receive.take() else { return false }
    var bytes = [UInt8](repeating: 0, count: VirtioNetwork.headerBytes(headers))
    // The frame is in one buffer.
    if headers == .version1 { bytes[10] = 1 }
    bytes += frame
    guard chain.writableCount >= UInt64(bytes.count) else {
      // Too small for this frame: the chain goes back empty, as the specification forbids to keep it.
      if chain.writableCount < UInt64(bytes.count - frame.count + EthernetFrame.sizes.lowerBound) {
        receive.refuse(chain)
      } else {
        receive.giveBack(chain, written: 0)
      }
      return false
    }
    guard receive.write(bytes, to: chain) else { return false }
    receive.giveBack(chain, written: UInt64(bytes.count))
    return true
  }
}

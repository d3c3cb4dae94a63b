// SPDX-License-Identifier: Apache-2.0
// The virtio entropy device: one queue, whose buffers are filled with random bytes (Virtual I/O Device specification 1.0,
// 5.4).

/// The entropy device.
public final class VirtioEntropy: VirtioDevice {
  /// Bytes for one request, so that a vCPU is not kept; a driver asks for the rest again.
  private static let mostAtOnce: UInt64 = 256

  public let deviceType: UInt8 = 4, mostBytes: UInt64 = 1 << 20
  public let features: UInt64 = 0
  public let configuration: [UInt8] = []
  public var queues: [DeviceQueue] { [queue] }

  private let queue = DeviceQueue()
  private let random: @Sendable (Int) -> [UInt8]

  /// - Parameter random: So many bytes, at once.
  public init(random: @escaping @Sendable (Int) -> [UInt8]) { self.random = random }

  public func kick(_ number: Int) {
    while let chain = queue.take() {
      // A request for nothing would be given back for ever.
      guard chain.writableCount > 0 else { return queue.refuse(chain) }
      let count = min(chain.writableCount, VirtioEntropy.mostAtOnce)
      guard queue.write(random(Int(count)), to: chain) else { return }
      queue.giveBack(chain, written: count)
    }
  }
}

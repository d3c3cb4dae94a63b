// SPDX-License-Identifier: Apache-2.0
// The virtio console with one port: queue 0 takes what is typed to the guest, queue 1 what the guest writes (Virtual I/O
// Device specification 1.0, 5.3). It knows neither the bus it is on nor when that was built.

import Synchronization

/// The console device.
public final class VirtioConsole: VirtioDevice {
  /// VIRTIO_CONSOLE_F_EMERG_WRITE, and where in the configuration such a byte is written (5.3.3 and 5.3.4).
  private static let emergencyWrite: UInt64 = 1 << 2, emergencyOffset = 8

  public let deviceType: UInt8 = 3, mostBytes: UInt64 = 1 << 20
  public let features = VirtioConsole.emergencyWrite
  /// A page of descriptors does not tell when a guest writes to it.
  public let legacyFeatures: UInt32 = 0
  /// No size in columns and rows, one port, and the place for a byte in an emergency.
  public let configuration: [UInt8] = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
  public var queues: [DeviceQueue] { [input, output] }

  /// Bytes that are taken before somebody else is asked whether that may go on; a chain counts for a few at least.
  private static let mostAtOnce = 64 << 10, leastOfChain = 64

  private let input = DeviceQueue(), output = DeviceQueue()
  private let isLeftBehind = Atomic<Bool>(false)
  private let write: @Sendable (UInt8) -> Void
  private let wantsInput: @Sendable () -> Void

  /// - Parameters:
  ///   - write: Takes what the guest writes, on the thread that kicks the queue. May block.
  ///   - wantsInput: Called when the guest has room for input again.
  public init(write: @escaping @Sendable (UInt8) -> Void, wantsInput: @escaping @Sendable () -> Void) {
    (self.write, self.wantsInput) = (write, wantsInput)
  }

  public func writeConfiguration(offset: Int, size: Int, value: UInt32) {
    if offset == VirtioConsole.emergencyOffset { write(UInt8(truncatingIfNeeded: value)) }
  }

  public func kick(_ number: Int) {
    if number == 0 { wantsInput() } else { goOn() }
  }

  /// Whether the guest has written more than is taken at once: `goOn` takes more of it.
  public var isBehind: Bool { isLeftBehind.load(ordering: .acquiring) }

  /// Takes some of what the guest has written.
  public func goOn() {
    var count = 0
    while count < VirtioConsole.mostAtOnce {
      guard let chain = output.take(), let text = output.read(chain, count: Int(chain.readableCount)) else { break }
      output.giveBack(chain, written: 0)
      for byte in text { write(byte) }
      count += max(text.count, VirtioConsole.leastOfChain)
    }
    isLeftBehind.store(count >= VirtioConsole.mostAtOnce && output.hasNext, ordering: .releasing)
  }

  /// Has `goOn` called if there is something that nobody was told of: the machine goes on from a file.
  public func lookAgain() { isLeftBehind.store(output.hasNext, ordering: .releasing) }

  /// Whether the guest has room for input.
  public var hasRoom: Bool { input.hasNext }

  /// Hands a byte to the guest; false if it has no room.
  public func receive(_ byte: UInt8) -> Bool {
    guard let chain = input.take() else { return false }
    guard chain.writableCount > 0 else {
      input.refuse(chain)
      return false
    }
    guard input.write([byte], to: chain) else { return false }
    input.giveBack(chain, written: 1)
    return true
  }
}

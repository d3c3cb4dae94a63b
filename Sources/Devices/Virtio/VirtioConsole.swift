// SPDX-License-Identifier: Apache-2.0
// The virtio console with one port: queue 0 takes what is typed to the guest, queue 1 what the guest writes (Virtual I/O
// Device specification 1.0, 5.3). It knows neither the bus it is on nor when that was built.

import Synchronization

/// The console device.
public final class VirtioConsole: VirtioDevice {
  /// Of `queues`.
  private static let input = 0, output = 1
  /// VIRTIO_CONSOLE_F_EMERG_WRITE, and where in the configuration such a byte is written (5.3.3 and 5.3.4).
  private static let emergencyWrite: UInt64 = 1 << 2, emergencyOffset = 8

  public let deviceType: UInt8 = 3, queueCount = 2, mostBytes: UInt64 = 1 << 20
  public let features = VirtioConsole.emergencyWrite
  /// No size in columns and rows, one port, and the place for a byte in an emergency.
  public let configuration: [UInt8] = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]

  private let queues = Mutex<[VirtQueue?]>([nil, nil])
  private let memory: any DeviceMemory
  private let write: @Sendable (UInt8) -> Void
  private let wantsInput: @Sendable () -> Void
  private let interrupt: @Sendable (Int) -> Void

  /// - Parameters:
  ///   - write: Takes what the guest writes, on the thread that kicks the queue. May block.
  ///   - wantsInput: Called when the guest has room for input again.
  ///   - interrupt: Raises the interrupt of a queue.
  public init(
    _ memory: any DeviceMemory, write: @escaping @Sendable (UInt8) -> Void,
    wantsInput: @escaping @Sendable () -> Void, interrupt: @escaping @Sendable (Int) -> Void
  ) {
    (self.memory, self.write, self.wantsInput, self.interrupt) = (memory, write, wantsInput, interrupt)
  }

  public func writeConfiguration(offset: Int, size: Int, value: UInt32) {
    if offset == VirtioConsole.emergencyOffset { write(UInt8(truncatingIfNeeded: value)) }
  }

  public func setQueue(_ number: Int, _ queue: VirtQueue?) { queues.withLock { $0[number] = queue } }

  public func kick(_ number: Int) {
    if number == VirtioConsole.input { return wantsInput() }
    while let text = takeOutput() { for byte in text { write(byte) } }
  }

  /// What the next chain holds, which goes back at once; nil if there is none, or the driver has broken the rules.
  private func takeOutput() -> [UInt8]? {
    let (text, wakes) = queues.withLock { queues -> ([UInt8]?, Bool) in
      do throws(VirtQueueError) {
        guard let chain = try queues[VirtioConsole.output]?.takeNext() else { return (nil, false) }
        var text: [UInt8] = []
        for buffer in chain.readable {
          guard let bytes = memory.bytes(at: buffer.address, count: Int(buffer.count)) else {
            throw VirtQueueError(reason: "a buffer outside RAM")
          }
          text += bytes
        }
        try queues[VirtioConsole.output]?.putUsed(chain, written: 0)
        return (text, queues[VirtioConsole.output]?.wantsInterrupt ?? false)
      } catch {
        queues[VirtioConsole.output] = nil
        return (nil, false)
      }
    }
    if wakes { interrupt(VirtioConsole.output) }
    return text
  }

  /// Whether the guest has room for input.
  public var hasRoom: Bool { queues.withLock { $0[VirtioConsole.input]?.hasNext ?? false } }

  /// Hands a byte to the guest; false if it has no room.
  public func receive(_ byte: UInt8) -> Bool {
    let (isTaken, wakes) = queues.withLock { queues -> (Bool, Bool) in
      do throws(VirtQueueError) {
        guard let chain = try queues[VirtioConsole.input]?.takeNext() else { return (false, false) }
        guard let buffer = chain.writable.first(where: { $0.count > 0 }), memory.store([byte], at: buffer.address)
        else {
          throw VirtQueueError(reason: "a buffer outside RAM")
        }
        try queues[VirtioConsole.input]?.putUsed(chain, written: 1)
        return (true, queues[VirtioConsole.input]?.wantsInterrupt ?? false)
      } catch {
        queues[VirtioConsole.input] = nil
        return (false, false)
      }
    }
    if wakes { interrupt(VirtioConsole.input) }
    return isTaken
  }
}

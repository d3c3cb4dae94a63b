// SPDX-License-Identifier: Apache-2.0
// The virtio device, as its transports see it: what kind it is, what it offers, its configuration and its queues (Virtual
// I/O Device specification 1.0, 2). How a driver finds and sets up all that is the transport's.

/// A device without a bus. Its methods may be called by any thread, one at a time for each queue.
public protocol VirtioDevice: AnyObject, Sendable {
  /// The device type (5).
  var deviceType: UInt8 { get }
  /// Device features but those of transports, a bit each.
  var features: UInt64 { get }
  /// Those that a transport of before version 1.0 offers.
  var legacyFeatures: UInt32 { get }
  /// What the driver sets up, by number.
  var queues: [DeviceQueue] { get }
  /// Bytes that a chain of its queues may hold.
  var mostBytes: UInt64 { get }
  /// Its configuration space as the driver reads it.
  var configuration: [UInt8] { get }
  /// The driver writes to it: `value` has `size` bytes (1, 2 or 4).
  func writeConfiguration(offset: Int, size: Int, value: UInt32)
  /// The driver has made buffers available. Called on a vCPU's thread, which must not wait for a device.
  func kick(_ number: Int)
}

extension VirtioDevice {
  public var legacyFeatures: UInt32 { UInt32(truncatingIfNeeded: features) }
  /// Most configurations can only be read.
  public func writeConfiguration(offset: Int, size: Int, value: UInt32) {}
}

// SPDX-License-Identifier: Apache-2.0
// Device descriptors on the page behind RAM, in the two forms that guests of lguest's interface know: records since Linux
// 2.6.25, and before that lists of fields, each with a type and a length.

import Devices

/// How a device is described.
enum LguestDescription: Sendable {
  case fields, records

  /// Descriptors of a queue.
  static let queueSize: UInt16 = 256
  /// Types of fields: a queue, and of the device's own the first (2.6.24's linux/virtio_config.h, virtio_blk.h and
  /// virtio_net.h). The guest sets bit 7 of those it has used.
  private static let queueField: UInt8 = 2, ownField: UInt8 = 0x41

  /// Where a descriptor has its status.
  var status: UInt64 { self == .records ? 4 : 2 }
  /// What requests and frames have in front of them.
  var headers: VirtioHeaders { self == .records ? .legacy : .linux2_6_24 }
  /// Whether a guest says when it sets the status; else a queue begins with its first kick.
  var tellsStatus: Bool { self == .records }

  /// The bytes of a descriptor.
  func bytes(of device: any VirtioDevice, _ queues: [(place: UInt64, interrupt: UInt8)]) -> [UInt8] {
    let places = queues.map { queue -> [UInt8] in
      let words = UInt64(LguestDescription.queueSize) | UInt64(queue.interrupt) << 16 | (queue.place >> 12) << 32
      return (0..<8).map { UInt8(truncatingIfNeeded: words >> UInt64($0 * 8)) }
    }
    return self == .records ? record(of: device, places) : fields(of: device, places)
  }

  /// Type, queues, lengths of features and configuration, status; the queues; features offered and accepted; configuration.
  private func record(of device: any VirtioDevice, _ queues: [[UInt8]]) -> [UInt8] {
    let features = device.legacyFeatures
    let featureBytes = features == 0 ? 0 : 4
    let own = device.configuration.prefix(255)
    return [device.deviceType, UInt8(queues.count), UInt8(featureBytes), UInt8(own.count), 0] + queues.flatMap { $0 }
      + (0..<featureBytes).map { UInt8(truncatingIfNeeded: features >> UInt32($0 * 8)) }
      + [UInt8](repeating: 0, count: featureBytes) + own
  }

  /// Type, length of the fields, status; the fields.
  private func fields(of device: any VirtioDevice, _ queues: [[UInt8]]) -> [UInt8] {
    let own = device.configuration
    // The parts of a configuration that had a type then: a disk's capacity and how many buffers a request may have, and
    // a network's address.
    let parts: [(type: UInt8, bytes: ArraySlice<UInt8>)] =
      switch device.deviceType {
      case 1: [(LguestDescription.ownField, own.prefix(6))]
      case 2:
        [(LguestDescription.ownField, own.prefix(8)), (LguestDescription.ownField + 2, own.dropFirst(12).prefix(4))]
      default: []
      }
    let fields =
      queues.map { [LguestDescription.queueField, UInt8($0.count)] + $0 }
      + parts.filter { !$0.bytes.isEmpty }.map { [$0.type, UInt8($0.bytes.count)] + $0.bytes }
    let all = fields.flatMap { $0 }
    return [device.deviceType, UInt8(clamping: all.count), 0] + all
  }
}

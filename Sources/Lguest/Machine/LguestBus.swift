// SPDX-License-Identifier: Apache-2.0
// The bus of lguest's guests from Linux 2.6.31 to 3.19: a page of descriptors right behind RAM, and behind it the queues
// of each device, in the legacy layout. A guest that has something to say notifies the descriptor's address, or a queue's.

import Devices
import GuestMemory
import Synchronization

/// The descriptors and queues of a machine's devices.
final class LguestBus: Sendable {
  private static let queueSize: UInt16 = 256
  private static let failed: UInt8 = 0x80
  /// Where a descriptor has its status.
  private static let status: UInt64 = 4

  /// A device, where its descriptor is, and where its queues and their interrupts are, by number.
  private final class Row: Sendable {
    let device: any VirtioDevice
    let descriptor: UInt64
    let queues: [(place: UInt64, interrupt: UInt8)]
    /// Whether its queues are the guest's, from its first status on to the next reset.
    let isStarted = Mutex(false)

    init(_ device: any VirtioDevice, descriptor: UInt64, queues: [(place: UInt64, interrupt: UInt8)]) {
      (self.device, self.descriptor, self.queues) = (device, descriptor, queues)
    }

    /// Type, queues, lengths of features and configuration, status; for each queue its size, interrupt and first page;
    /// features offered and accepted; configuration.
    var bytes: [UInt8] {
      let features = device.legacyFeatures
      let featureBytes = features == 0 ? 0 : 4
      let own = device.configuration
      var bytes = [device.deviceType, UInt8(queues.count), UInt8(featureBytes), UInt8(clamping: own.count), 0]
      for queue in queues {
        let words = UInt64(LguestBus.queueSize) | UInt64(queue.interrupt) << 16 | (queue.place >> 12) << 32
        bytes += (0..<8).map { UInt8(truncatingIfNeeded: words >> UInt64($0 * 8)) }
      }
      bytes += (0..<featureBytes).map { UInt8(truncatingIfNeeded: features >> UInt32($0 * 8)) }
      return bytes + [UInt8](repeating: 0, count: featureBytes) + own.prefix(255)
    }
  }

  private let memory: GuestDeviceMemory
  /// The page of descriptors.
  private let page: UInt64
  private let rows: [Row]
  private let raise: @Sendable (UInt8) -> Void

  /// - Parameters:
  ///   - page: The first address behind RAM.
  ///   - devices: In the order in which the guest meets them. Each of their queues has an interrupt of its own, and
  ///     there are 31: interrupt 0 is the timer's.
  ///   - raise: Raises an interrupt by number.
  init(
    _ memory: GuestMemory, page: UInt64, devices: [any VirtioDevice], raise: @escaping @Sendable (UInt8) -> Void
  ) {
    (self.memory, self.page, self.raise) = (GuestDeviceMemory(memory: memory), page, raise)
    let queueBytes = VirtQueue.legacyByteCount(size: LguestBus.queueSize)
    var (rows, descriptor, count) = ([Row](), page, 0)
    for device in devices {
      let queues = device.queues.indices.map { number in
        (place: page + 4096 + UInt64(count + number) * queueBytes, interrupt: UInt8(1 + count + number))
      }
      let row = Row(device, descriptor: descriptor, queues: queues)
      rows.append(row)
      descriptor += UInt64(row.bytes.count)
      count += queues.count
    }
    self.rows = rows
  }

  /// Writes the page of descriptors.
  func describe() {
    // Type 0 ends the list.
    _ = memory.store(rows.flatMap(\.bytes) + [0], at: page)
  }

  /// NOTIFY: false if nothing of the bus's is there.
  func notify(_ address: UInt64) -> Bool {
    for row in rows {
      if row.descriptor == address {
        statusChanged(row)
        return true
      }
      if let number = row.queues.firstIndex(where: { $0.place == address }) {
        row.device.kick(number)
        return true
      }
    }
    return false
  }

  /// The driver has written a device's status, or says so again.
  private func statusChanged(_ row: Row) {
    let status = memory.bytes(at: row.descriptor + LguestBus.status, count: 1)?.first ?? 0
    let isReset = status == 0 || status & LguestBus.failed != 0
    let isNew = row.isStarted.withLock { isStarted in
      defer { isStarted = !isReset }
      return isStarted == isReset
    }
    if status == 0 { clear(row) }
    guard isNew else { return }
    for (number, queue) in row.queues.enumerated() {
      let interrupt = queue.interrupt
      row.device.queues[number].set(
        isReset
          ? nil
          : VirtQueue(
            memory, size: LguestBus.queueSize, legacyAt: queue.place, mostBytes: row.device.mostBytes,
            notify: { [raise] event in if case .used = event { raise(interrupt) } }))
    }
  }

  /// What a reset leaves: a descriptor as in the beginning, and queues of zeros, in which a driver begins anew.
  private func clear(_ row: Row) {
    for queue in row.device.queues { queue.set(nil) }
    _ = memory.store(row.bytes, at: row.descriptor)
    let zeros = [UInt8](repeating: 0, count: Int(VirtQueue.legacyByteCount(size: LguestBus.queueSize)))
    for queue in row.queues { _ = memory.store(zeros, at: queue.place) }
  }
}

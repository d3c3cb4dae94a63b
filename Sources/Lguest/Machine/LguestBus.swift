// SPDX-License-Identifier: Apache-2.0
// The bus of lguest's guests from Linux 2.6.24 to 3.19: a page of descriptors right behind RAM, and behind it the queues
// of each device, in the legacy layout. A guest that has something to say notifies the descriptor's address, or a queue's.

import Devices
import GuestMemory
import Saving
import Synchronization

/// The descriptors and queues of a machine's devices.
final class LguestBus: Sendable {
  private static let failed: UInt8 = 0x80

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
  }

  private let memory: GuestDeviceMemory
  /// The page of descriptors.
  private let page: UInt64
  private let description: LguestDescription
  private let rows: [Row]
  private let raise: @Sendable (UInt8) -> Void

  /// - Parameters:
  ///   - page: The first address behind RAM.
  ///   - description: How devices are described there.
  ///   - devices: In the order in which the guest meets them. Each of their queues has an interrupt of its own, and
  ///     there are 31: interrupt 0 is the timer's.
  ///   - raise: Raises an interrupt by number.
  init(
    _ memory: GuestMemory, page: UInt64, _ description: LguestDescription, devices: [any VirtioDevice],
    raise: @escaping @Sendable (UInt8) -> Void
  ) {
    (self.memory, self.page, self.raise) = (GuestDeviceMemory(memory: memory), page, raise)
    self.description = description
    let queueBytes = VirtQueue.legacyByteCount(size: LguestDescription.queueSize)
    var (rows, descriptor, count) = ([Row](), page, 0)
    for device in devices {
      let queues = device.queues.indices.map { number in
        (place: page + 4096 + UInt64(count + number) * queueBytes, interrupt: UInt8(1 + count + number))
      }
      let row = Row(device, descriptor: descriptor, queues: queues)
      rows.append(row)
      descriptor += UInt64(description.bytes(of: device, queues).count)
      count += queues.count
    }
    self.rows = rows
  }

  /// Writes the page of descriptors.
  func describe() {
    // Type 0 ends the list.
    _ = memory.store(rows.flatMap { description.bytes(of: $0.device, $0.queues) } + [0], at: page)
  }

  /// Takes the queues from every device, as a reset does.
  func reset() {
    for row in rows {
      row.isStarted.withLock { $0 = false }
      for queue in row.device.queues { queue.set(nil) }
    }
  }

  /// NOTIFY: false if nothing of the bus's is there.
  func notify(_ address: UInt64) -> Bool {
    for row in rows {
      if row.descriptor == address {
        statusChanged(row)
        return true
      }
      if let number = row.queues.firstIndex(where: { $0.place == address }) {
        if !description.tellsStatus { setStarted(true, row) }
        row.device.kick(number)
        return true
      }
    }
    return false
  }

  /// The driver has written a device's status, or says so again.
  private func statusChanged(_ row: Row) {
    let status = memory.bytes(at: row.descriptor + description.status, count: 1)?.first ?? 0
    let isReset = status == 0 || status & LguestBus.failed != 0
    if status == 0 { clear(row) }
    setStarted(!isReset, row)
  }

  /// Gives the device its queues or takes them away.
  private func setStarted(_ starts: Bool, _ row: Row) {
    let isNew = row.isStarted.withLock { isStarted in
      defer { isStarted = starts }
      return isStarted != starts
    }
    guard isNew else { return }
    for number in row.queues.indices { row.device.queues[number].set(starts ? virtQueue(row, number) : nil) }
  }

  /// The device's end of a queue, which is always at its place.
  private func virtQueue(_ row: Row, _ number: Int) -> VirtQueue {
    let (place, interrupt) = row.queues[number]
    return VirtQueue(
      memory, size: LguestDescription.queueSize, legacyAt: place, mostBytes: row.device.mostBytes,
      headers: description.headers, notify: { [raise] event in if case .used = event { raise(interrupt) } })
  }

  /// Which devices are the guest's, and their queues; the descriptors are in the guest's memory. While nobody serves them.
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    for (number, row) in rows.enumerated() {
      try archive.part("device \(number)") { archive throws(SavedStateError) in
        var isStarted = row.isStarted.withLock { $0 }
        try archive.transfer(&isStarted, "start")
        row.isStarted.withLock { [isStarted] in $0 = isStarted }
        for place in row.queues.indices {
          try archive.part("queue \(place)") { archive throws(SavedStateError) in
            try row.device.queues[place].transfer(&archive) { isStarted ? virtQueue(row, place) : nil }
          }
        }
      }
    }
  }

  /// What a reset leaves: a descriptor as in the beginning, and queues of zeros, in which a driver begins anew.
  private func clear(_ row: Row) {
    for queue in row.device.queues { queue.set(nil) }
    _ = memory.store(description.bytes(of: row.device, row.queues), at: row.descriptor)
    let zeros = [UInt8](repeating: 0, count: Int(VirtQueue.legacyByteCount(size: LguestDescription.queueSize)))
    for queue in row.queues { _ = memory.store(zeros, at: queue.place) }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Direct memory access as guests of Linux 2.6.23 ask for it: a hypercall sends a buffer to whom a key belongs to, another
// binds buffers to a key for what comes from there. Key 0 is the console's; a device with a page has keys in that page.

import Devices
import GuestMemory
import Saving

/// The devices of that era: a page that describes them, and whom a key belongs to.
final class LguestDMA: Sendable {
  /// Types of devices.
  private enum Kind { static let console: UInt16 = 1, network: UInt16 = 2, block: UInt16 = 3 }
  /// In a device's features: its interrupts come at moments that nobody foresees. This era has no device for random numbers.
  private static let isRandom: UInt16 = 0x8000
  private static let consoleKey: UInt32 = 0
  /// Devices of a guest, at most.
  private static let mostDevices = 16

  /// The first of the devices' pages, behind that which describes them.
  static func firstPage(_ memorySize: UInt64) -> UInt64 { memorySize + 4096 }

  private let memory: GuestDeviceMemory
  private let page: UInt64
  private let host: DMAHost
  private let console: DMAReceiver
  private let disks: [DMABlock]
  private let networks: [DMANetwork]
  private let write: @Sendable (UInt8) -> Void

  /// - Parameters:
  ///   - page: The first address behind RAM.
  ///   - write: Takes what the guest writes to its console.
  init(
    _ memory: GuestMemory, page: UInt64, _ host: DMAHost, disks: [DMABlock], networks: [DMANetwork],
    write: @escaping @Sendable (UInt8) -> Void
  ) {
    (self.memory, self.page, self.write) = (GuestDeviceMemory(memory: memory), page, write)
    (self.host, self.disks, self.networks) = (host, disks, networks)
    console = DMAReceiver(host)
  }

  /// Writes the page of descriptors: type, features, status and number of pages, 16 bits each, and the first page. There
  /// are sixteen, of which one of type 0 is free; a driver's interrupt is by its place.
  ///
  /// - Returns: Why that cannot be.
  func describe() -> String? {
    let count = disks.count + networks.count
    guard count < LguestDMA.mostDevices else {
      return "\(count) disks and networks: a guest of Linux 2.6.23 has \(LguestDMA.mostDevices - 1) of them at most"
    }
    var bytes: [UInt8] = []
    func add(_ kind: UInt16, _ features: UInt16, pages: UInt16, _ address: UInt32) {
      let number = address >> 12
      for half in [kind, features, 0, pages, UInt16(truncatingIfNeeded: number), UInt16(number >> 16)] {
        bytes += [UInt8(truncatingIfNeeded: half), UInt8(half >> 8)]
      }
    }
    add(Kind.console, 0, pages: 0, 0)
    for disk in disks {
      add(Kind.block, LguestDMA.isRandom, pages: 1, disk.page)
      disk.describe()
    }
    for network in networks {
      add(Kind.network, LguestDMA.isRandom | UInt16(DMANetwork.ownPlace), pages: 1, network.page)
      network.describe()
    }
    _ = memory.store(bytes + [UInt8](repeating: 0, count: 4096 - bytes.count), at: page)
    return nil
  }

  /// Forgets all buffers, requests and frames.
  func reset() {
    console.reset()
    for disk in disks { disk.reset() }
    for network in networks { network.reset() }
  }

  /// BIND_DMA: no buffers is the end of a binding. Says whether it is done.
  func bind(_ key: UInt32, buffers: UInt32, count: UInt32, interrupt: UInt8) -> Bool {
    let receiver =
      key == LguestDMA.consoleKey
      ? console
      : disks.first { $0.page == key }?.receiver ?? networks.first { $0.receivingKey == key }?.receiver
    return receiver?.bind(buffers, count: count, interrupt: interrupt) ?? false
  }

  /// SEND_DMA: what nobody owns is lost.
  func send(_ key: UInt32, buffer: UInt32) {
    if key == LguestDMA.consoleKey {
      host.take(buffer)?.forEach(write)
    } else if let disk = disks.first(where: { $0.page == key }) {
      disk.send(buffer)
    } else {
      networks.first { $0.page == key }?.send(buffer)
    }
  }

  /// Looks whether the guest has made room for frames; true: one still waits.
  func look() -> Bool {
    var waits = false
    for network in networks where network.look() { waits = true }
    return waits
  }
}

extension LguestDMA: ConsolePort {
  var takesInput: Bool { if case .ready = console.reception { true } else { false } }
  func take(_ byte: UInt8) { _ = console.put([byte]) }
}

extension LguestDMA: SavedState {
  /// While nobody does the devices' work.
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.part("console") { archive throws(SavedStateError) in try console.transfer(&archive) }
    for (number, disk) in disks.enumerated() {
      try archive.part("disk \(number)") { archive throws(SavedStateError) in try disk.transfer(&archive) }
    }
    for (number, network) in networks.enumerated() {
      try archive.part("network \(number)") { archive throws(SavedStateError) in try network.transfer(&archive) }
    }
  }
}

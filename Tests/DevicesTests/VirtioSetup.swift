// SPDX-License-Identifier: Apache-2.0
// A virtio device with a driver for each of its queues, on a transport of before version 1.0, as Linux 2.6.24 has it or
// later, or on PCI: what a device does must be the same on all.

import Devices
import Synchronization
import Testing

/// The transport by which a driver has set a device up.
enum Transport: CaseIterable, Sendable {
  case linux2_6_24, legacy, pci

  var headers: VirtioHeaders {
    switch self {
    case .linux2_6_24: .linux2_6_24
    case .legacy: .legacy
    case .pci: .version1
    }
  }
  /// Bytes in front of a disk's request, and of a frame.
  var blockHeader: UInt32 { self == .linux2_6_24 ? 24 : 16 }
  var frameHeader: UInt32 { [.linux2_6_24: 8, .legacy: 10, .pci: 12][self] ?? 0 }
}

/// A device that has been set up.
final class VirtioSetup: Sendable {
  let transport: Transport
  let memory = QueueMemory()
  let drivers: [QueueDriver]
  private let device: any VirtioDevice
  private let function: VirtioPCI

  init(_ device: any VirtioDevice, _ transport: Transport) {
    (self.device, self.transport) = (device, transport)
    let memory = memory
    drivers = device.queues.indices.map { QueueDriver(UInt64($0), in: memory) }
    function = VirtioPCI(device, memory, line: 1, region: 0x1000_0000) {}
    begin()
  }

  /// Gives the device its queues.
  func begin() {
    for (number, driver) in drivers.enumerated() {
      switch transport {
      case .linux2_6_24, .legacy:
        device.queues[number].set(driver.queue(mostBytes: device.mostBytes, headers: transport.headers))
      case .pci:
        function.writeRegion(22, size: 2, value: UInt32(number))
        function.writeRegion(24, size: 2, value: UInt32(QueueDriver.size))
        for (place, address) in [(32, driver.start), (40, driver.available), (48, driver.used)] {
          function.writeRegion(place, size: 4, value: UInt32(address))
        }
        function.writeRegion(28, size: 2, value: 1)
      }
    }
    if transport == .pci { function.writeRegion(20, size: 1, value: 15) }
  }

  /// Takes them away.
  func reset() {
    switch transport {
    case .linux2_6_24, .legacy: for queue in device.queues { queue.set(nil) }
    case .pci: function.writeRegion(20, size: 1, value: 0)
    }
  }

  func kick(_ number: Int) {
    switch transport {
    case .linux2_6_24, .legacy: device.kick(number)
    case .pci: function.writeRegion(0x38, size: 2, value: UInt32(number))
    }
  }

  /// Whether the driver has broken a rule; on PCI it is told so.
  func isBroken(_ number: Int = 0) -> Bool {
    let isGone = !device.queues[number].isThere
    if transport == .pci { #expect((function.readRegion(20, size: 1) & 0x40 != 0) == isGone) }
    return isGone
  }
}

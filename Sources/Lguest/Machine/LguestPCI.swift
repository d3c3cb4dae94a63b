// SPDX-License-Identifier: Apache-2.0
// The bus of lguest's guests from Linux 4.0 on: PCI by configuration mechanism #1 (ports 0xCF8 and 0xCFC, which level 1
// reaches through its host), a host bridge in slot 0 and virtio's devices from slot 1 on, the console first.

import Devices
import GuestMemory
import Saving
import Synchronization

/// The devices of a machine on PCI.
final class LguestPCI: Sendable {
  private let address = Mutex<UInt32>(0)
  /// From slot 1 on.
  private let functions: [VirtioPCI]

  /// - Parameters:
  ///   - region: Where memory regions begin, behind all RAM, a multiple of 4 KiB; each has a page.
  ///   - devices: From slot 1 on, where a console must be; at most 31. A slot's interrupt is its number: interrupt 0 is
  ///     the timer's.
  ///   - raise: Raises an interrupt by number.
  init(
    _ memory: GuestMemory, region: UInt64, devices: [any VirtioDevice], raise: @escaping @Sendable (UInt8) -> Void
  ) {
    let memory = GuestDeviceMemory(memory: memory)
    functions = devices.enumerated().map { number, device in
      let line = UInt8(1 + number)
      return VirtioPCI(device, memory, line: line, region: region + UInt64(number) * 4096) { raise(line) }
    }
  }

  /// Resets every function.
  func reset() {
    address.withLock { $0 = 0 }
    for function in functions { function.reset() }
  }

  /// The address that the next access is for, and every function.
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var selected = address.withLock { $0 }
    try archive.transfer(&selected, "configuration address")
    address.withLock { [selected] in $0 = selected }
    for (number, function) in functions.enumerated() {
      try archive.part("slot \(1 + number)") { archive throws(SavedStateError) in try function.transfer(&archive) }
    }
  }

  // MARK: Ports

  private static let addressPort: UInt16 = 0xCF8, dataPort: UInt16 = 0xCFC

  /// IN, of 1, 2 or 4 bytes; nil if the port is not this bus's.
  func readPort(_ port: UInt16, size: Int) -> UInt32? {
    if (LguestPCI.addressPort..<LguestPCI.dataPort).contains(port) {
      return address.withLock { $0 } >> (UInt32(port & 3) * 8)
    }
    guard (LguestPCI.dataPort..<LguestPCI.dataPort + 4).contains(port) else { return nil }
    guard let (slot, register) = target(port) else { return .max }
    // The bridge has a class, by which guests know mechanism #1, and no vendor, so that nobody drives it.
    if slot == 0 { return register == 0x08 ? 0x0600_0000 : register == 0x0A ? 0x0600 : register == 0x0B ? 6 : 0 }
    return functions.indices.contains(slot - 1) ? functions[slot - 1].readSpace(register, size: size) : .max
  }

  /// OUT; false if the port is not this bus's.
  func writePort(_ port: UInt16, size: Int, value: UInt32) -> Bool {
    if (LguestPCI.addressPort..<LguestPCI.dataPort).contains(port) {
      let shift = UInt32(port & 3) * 8
      let mask = (size == 4 ? UInt32.max : (1 << UInt32(size * 8)) - 1) << shift
      address.withLock { $0 = $0 & ~mask | value << shift & mask }
      return true
    }
    guard (LguestPCI.dataPort..<LguestPCI.dataPort + 4).contains(port) else { return false }
    if let (slot, register) = target(port), functions.indices.contains(slot - 1) {
      functions[slot - 1].writeSpace(register, size: size, value: value)
    }
    return true
  }

  /// What the data port leads to: slot and register; nil if nothing is there.
  private func target(_ port: UInt16) -> (slot: Int, register: Int)? {
    let address = address.withLock { $0 }
    // Enabled, of bus 0 and function 0.
    guard address & 0x80FF_0700 == 0x8000_0000 else { return nil }
    return (Int(address >> 11 & 31), Int(address & 0xFC) + Int(port & 3))
  }

  // MARK: Memory regions

  private func function(at address: UInt64) -> (VirtioPCI, offset: Int)? {
    functions.first { address >= $0.region && address - $0.region < $0.regionBytes }
      .map { ($0, Int(address - $0.region)) }
  }

  /// A load of 1, 2 or 4 bytes; nil if nothing is there.
  func readMemory(_ address: UInt64, size: Int) -> UInt32? {
    function(at: address).map { $0.readRegion($1, size: size) }
  }

  /// A store; false if nothing is there.
  func writeMemory(_ address: UInt64, size: Int, value: UInt32) -> Bool {
    guard let (function, offset) = function(at: address) else { return false }
    function.writeRegion(offset, size: size, value: value)
    return true
  }
}

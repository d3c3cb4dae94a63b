// SPDX-License-Identifier: Apache-2.0
// What travels between APICs: an IPI, an IOAPIC redirection, an MSI. One value, so that the sender's register
// format ends at the sender.

/// An interrupt on its way to one or more local APICs.
public struct InterruptMessage: Sendable, Equatable {
  /// SDM vol. 3, 11.6.1 (ICR) and 82093AA 3.2.4 (redirection table): the same encoding in both.
  public enum DeliveryMode: UInt8, Sendable {
    case fixed = 0, lowestPriority, systemManagement, remoteRead, nonMaskable, initialize, startup, external
  }

  /// Who should take it. Broadcast identifiers (0xFF, 0xFFFFFFFF) are turned into `all` by the sender.
  public enum Destination: Sendable, Equatable {
    /// An APIC ID.
    case physical(UInt32)
    /// A logical address, compared with each LDR in the way that APIC's mode says.
    case logical(UInt32)
    case all
    case allBut(UInt32)
  }

  public enum Trigger: Sendable, Equatable { case edge, level }

  public let vector: UInt8
  public let mode: DeliveryMode
  public let destination: Destination
  public let trigger: Trigger
  /// False only for the "INIT level de-assert" message, which modern processors ignore.
  public let isAsserted: Bool

  public init(
    vector: UInt8, mode: DeliveryMode = .fixed, destination: Destination, trigger: Trigger = .edge,
    isAsserted: Bool = true
  ) {
    self.vector = vector
    self.mode = mode
    self.destination = destination
    self.trigger = trigger
    self.isAsserted = isAsserted
  }

  /// The 32-bit fields of an IPI (SDM vol. 3, figure 11-12), from the ICR of APIC `sender`.
  ///
  /// - Parameter target: The destination field, 8 bits wide in xAPIC mode and 32 in x2APIC mode; the caller has
  ///   widened an 8-bit broadcast to 0xFFFFFFFF.
  /// - Note: Fixed IPIs are always edge triggered on processors since the Pentium 4.
  public init(commandRegister low: UInt32, target: UInt32, from sender: UInt32) {
    vector = UInt8(truncatingIfNeeded: low)
    mode = DeliveryMode(rawValue: UInt8(truncatingIfNeeded: low >> 8) & 7) ?? .fixed
    switch (low >> 18) & 3 {
    case 1: destination = .physical(sender)
    case 2: destination = .all
    case 3: destination = .allBut(sender)
    default:
      if target == .max {
        destination = .all
      } else {
        destination = low & (1 << 11) == 0 ? .physical(target) : .logical(target)
      }
    }
    trigger = .edge
    let isInitDeassert = mode == .initialize && low & (1 << 14) == 0 && low & (1 << 15) != 0
    isAsserted = !isInitDeassert
  }
}

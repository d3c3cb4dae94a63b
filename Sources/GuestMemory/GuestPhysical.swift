// SPDX-License-Identifier: Apache-2.0
// Guest-physical addresses as a type of their own: mixing them up with linear or host addresses, all of them 64
// bits, is the classic hypervisor bug.

/// An address on the guest's physical bus.
public struct GuestPhysical: Hashable, Comparable, Sendable, BitwiseCopyable, CustomStringConvertible {
  /// The address, in bytes from 0.
  public var value: UInt64

  @inlinable
  public init(_ value: UInt64) { self.value = value }

  @inlinable
  public static func < (a: GuestPhysical, b: GuestPhysical) -> Bool { a.value < b.value }

  /// The address `bytes` further; wraps at 2^64 as the bus does, so bounds checks must follow.
  @inlinable
  public static func + (address: GuestPhysical, bytes: UInt64) -> GuestPhysical {
    GuestPhysical(address.value &+ bytes)
  }

  /// The number of the 4 KiB page that holds the address.
  @inlinable
  public var page: UInt64 { value >> 12 }

  public var description: String { "0x" + String(value, radix: 16) }
}

/// A guest-physical range that is not RAM, or not all of it.
public struct MemoryError: Error, Sendable, Equatable, CustomStringConvertible {
  /// Where the access began.
  public var address: GuestPhysical
  /// How many bytes it wanted.
  public var byteCount: Int

  @inlinable
  public init(_ address: GuestPhysical, byteCount: Int) {
    self.address = address
    self.byteCount = byteCount
  }

  public var description: String { "\(byteCount) bytes at guest-physical \(address) are not all RAM" }
}

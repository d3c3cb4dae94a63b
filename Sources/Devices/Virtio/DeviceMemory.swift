// SPDX-License-Identifier: Apache-2.0
// Guest RAM as a device reaches it: direct memory access, by guest-physical address. Devices do not know how RAM is made.

/// Guest RAM as devices see it: copied in and out, never held.
public protocol DeviceMemory: Sendable {
  /// Whether a range is all RAM.
  func contains(_ address: UInt64, count: Int) -> Bool
  /// The bytes of a range; nil if it is not all RAM.
  func bytes(at address: UInt64, count: Int) -> [UInt8]?
  /// Stores bytes; false, and nothing is stored, if the range is not all RAM.
  func store(_ bytes: [UInt8], at address: UInt64) -> Bool
  /// A number of 16 bits, little-endian, in one access; nil outside RAM.
  func loadShort(at address: UInt64) -> UInt16?
  /// Stores such a number, after everything that was stored before.
  func storeShort(_ value: UInt16, at address: UInt64) -> Bool
  /// The same of 32 bits.
  func loadWord(at address: UInt64) -> UInt32?
  func storeWord(_ value: UInt32, at address: UInt64) -> Bool
}

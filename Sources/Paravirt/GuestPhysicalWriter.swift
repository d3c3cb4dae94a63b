// SPDX-License-Identifier: Apache-2.0
// How paravirtual code reaches guest RAM: a few integer-sized accesses. The structures it shares with a
// guest are read by other vCPUs while they are written, so what matters is the order and the size of the
// stores, and nothing here ever holds a pointer.

/// Guest-physical RAM as paravirtual interfaces see it.
///
/// Every access is bounds-checked, does nothing outside RAM, needs no alignment, counts as a device's
/// write (translated code on the page is discarded, the page is logged as written), and when naturally
/// aligned is one host instruction. Calls take effect in program order on x86-64.
public protocol GuestPhysicalWriter: Sendable {
  /// Whether all of `address ..< address + byteCount` is RAM; false if the sum wraps.
  func contains(_ address: UInt64, byteCount: UInt64) -> Bool
  /// `nil` outside RAM.
  func loadByte(at address: UInt64) -> UInt8?
  /// `nil` outside RAM. Little-endian.
  func loadWord(at address: UInt64) -> UInt32?
  /// `nil` outside RAM. Little-endian.
  func loadQuadword(at address: UInt64) -> UInt64?
  /// Whether a text is in a range, whose parts count that are RAM and have been written: a kernel, and not the room behind
  /// it.
  func has(_ text: String, in range: Range<UInt64>) -> Bool
  /// Replaces a byte in one step that no vCPU can come between; `nil` outside RAM, else what was there.
  func exchangeByte(_ value: UInt8, at address: UInt64) -> UInt8?
  /// False outside RAM.
  @discardableResult func store(_ value: UInt8, at address: UInt64) -> Bool
  /// False outside RAM. Little-endian.
  @discardableResult func store(_ value: UInt32, at address: UInt64) -> Bool
  /// False outside RAM. Little-endian.
  @discardableResult func store(_ value: UInt64, at address: UInt64) -> Bool
}

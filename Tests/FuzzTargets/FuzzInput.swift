// SPDX-License-Identifier: Apache-2.0
// The bytes of one input, read as numbers: whatever a target does at random it takes from here, so that an input is a
// reproduction. Behind the last byte all is zero, which ends every loop that asks for more.

/// An input being read.
public struct FuzzInput {
  private let bytes: [UInt8]
  private var place = 0

  public init(_ bytes: [UInt8]) { self.bytes = bytes }

  /// Whether all has been read.
  public var isOver: Bool { place >= bytes.count }

  /// Bytes that have not been read.
  public var left: Int { bytes.count - place }

  public mutating func byte() -> UInt8 {
    guard place < bytes.count else { return 0 }
    defer { place += 1 }
    return bytes[place]
  }

  /// A little-endian integer of its type's size.
  public mutating func word<T: FixedWidthInteger>(_ type: T.Type = T.self) -> T {
    var value: T = 0
    for shift in stride(from: 0, to: T.bitWidth, by: 8) { value |= T(truncatingIfNeeded: byte()) << T(shift) }
    return value
  }

  /// A number below `limit`, from as few bytes as hold one; 0 if `limit` is 0.
  public mutating func below(_ limit: Int) -> Int {
    guard limit > 1 else { return 0 }
    if limit <= 256 { return Int(byte()) % limit }
    if limit <= 65536 { return Int(word(UInt16.self)) % limit }
    return Int(word(UInt32.self)) % limit
  }

  /// Whether something that happens once in `times` happens; never behind the last byte.
  public mutating func chance(_ times: Int) -> Bool { below(times) == times - 1 && times > 1 }

  public mutating func choose<T>(_ list: [T]) -> T { list[below(list.count)] }

  /// The next bytes, fewer at the end.
  public mutating func take(_ count: Int) -> [UInt8] {
    let end = min(place + max(count, 0), bytes.count)
    defer { place = end }
    return Array(bytes[place..<end])
  }

  /// Everything that has not been read.
  public mutating func rest() -> [UInt8] { take(left) }

  /// A seed for what needs more random numbers than an input has bytes.
  public mutating func seed() -> UInt64 { word() }

  /// Numbers as guests have them: small ones, around powers of two, negative ones, addresses, noise.
  public mutating func value(addresses: UInt64 = 6 << 20) -> UInt64 {
    switch byte() % 9 {
    case 0: UInt64(byte())
    case 1: 0 &- UInt64(byte())
    case 2: 1 << UInt64(byte() & 63)
    case 3: (1 << UInt64(byte() & 63)) &- 1 &- UInt64(byte() & 7)
    case 4: UInt64(bitPattern: Int64(FuzzInput.edge(byte(), word(Int16.self))))
    case 5: 0x8000_0000_0000 &- 128 &+ UInt64(byte())
    case 6: word()
    default: UInt64(word(UInt32.self)) % addresses
    }
  }

  /// A displacement: near the limits of 8, 16 and 32 bits, small, or anything.
  public mutating func displacement() -> Int32 { FuzzInput.edge(byte(), word()) }

  private static func edge(_ kind: UInt8, _ distance: Int16) -> Int32 {
    let near = Int32(distance % 300)
    return switch kind % 8 {
    case 0: Int32.max &- abs(near)
    case 1: Int32.min &+ abs(near)
    case 2: 0x7FFF &+ near
    case 3: -0x8000 &+ near
    case 4: 0x7F &+ near % 16
    case 5: -0x80 &+ near % 16
    default: Int32(distance)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// The first page tables of a ring-1 guest that makes none itself, as those before Linux 3.1 did not: all RAM at one or two
// linear addresses, in pages at the end of RAM, which the guest uses until it has its own.

/// Where a guest begins, and what it may find there.
public struct LguestStart: Sendable {
  /// RAM in bytes.
  let memorySize: UInt64
  /// The room that neither the kernel nor its initial RAM disk needs at the start, guest-physical.
  public let room: Range<UInt64>
  /// How much higher linear addresses are for a kernel that begins in tables already, as those of Linux 2.6.23 did;
  /// else nil.
  public let pageOffset: UInt32?

  public init(memorySize: UInt64, room: Range<UInt64>, pageOffset: UInt32?) {
    (self.memorySize, self.room, self.pageOffset) = (memorySize, room, pageOffset)
  }
}

/// Makes them.
struct LguestFirstTables {
  /// Present, writable, for all levels.
  private static var rights: UInt64 { 7 }
  let memory: any GuestPhysicalWriter
  let start: LguestStart
  /// Whether entries have 64 bits (PAE).
  let isWide: Bool
  private var next: UInt64

  init(_ memory: any GuestPhysicalWriter, _ start: LguestStart, isWide: Bool) {
    (self.memory, self.start, self.isWide) = (memory, start, isWide)
    next = start.room.upperBound & ~4095
  }

  /// The root of tables with all RAM at each of these linear addresses, multiples of 4 MiB; nil if there is no room.
  mutating func make(at linears: [UInt32], limit: UInt32) -> UInt32? {
    guard let root = takePage() else { return nil }
    // RAM that a page of entries reaches, and entries of the level above that a page has.
    let reach: UInt64 = isWide ? 2 << 20 : 4 << 20
    var upper: [UInt64: UInt64] = isWide ? [:] : [0: root]
    for part in stride(from: UInt64(0), to: start.memorySize, by: Int(reach)) {
      guard let page = takePage() else { return nil }
      for entry in stride(from: UInt64(0), to: reach, by: 4096) where part + entry < start.memorySize {
        put(part + entry | LguestFirstTables.rights, page, Int(entry >> 12))
      }
      for linear in linears {
        let place = UInt64(linear) + part
        guard place + reach <= UInt64(limit) else { continue }
        let gibibyte = isWide ? place >> 30 : 0
        if upper[gibibyte] == nil {
          guard let page = takePage() else { return nil }
          upper[gibibyte] = page
          put(page | 1, root, Int(gibibyte))
        }
        if let table = upper[gibibyte] {
          put(page | LguestFirstTables.rights, table, isWide ? Int(place >> 21 & 511) : Int(place >> 22))
        }
      }
    }
    return UInt32(truncatingIfNeeded: root)
  }

  /// A page of zeros below the last.
  private mutating func takePage() -> UInt64? {
    guard next >= 4096, next - 4096 >= start.room.lowerBound else { return nil }
    next -= 4096
    for offset in stride(from: UInt64(0), to: 4096, by: 8) { memory.store(UInt64(0), at: next + offset) }
    return next
  }

  private func put(_ value: UInt64, _ page: UInt64, _ index: Int) {
    if isWide {
      memory.store(value, at: page + UInt64(index) * 8)
    } else {
      memory.store(UInt32(truncatingIfNeeded: value), at: page + UInt64(index) * 4)
    }
  }
}

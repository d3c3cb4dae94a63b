// SPDX-License-Identifier: Apache-2.0
// Two of these exist, one for ports and one for physical addresses that are not RAM: they find the device an
// access belongs to. The map is fixed when the machine is built, so lookups take no lock.

import Synchronization

/// Sorted, disjoint ranges of addresses, each answered by a device.
public final class Bus: Sendable {
  /// A range of addresses that a device answers.
  public struct Window: Sendable, Equatable {
    public let base: UInt64
    /// Number of addresses, at least 1.
    public let count: UInt64
    /// The device's offset of `base`: lets one device answer in several ranges.
    public let offset: UInt64
    /// Widest access the device understands, in bytes; wider ones arrive split, lowest address first.
    public let widestAccess: UInt8

    public init(_ base: UInt64, count: UInt64, offset: UInt64 = 0, widestAccess: UInt8 = 1) {
      precondition(count > 0 && base <= UInt64.max - (count - 1), "empty or wrapping range")
      precondition([1, 2, 4, 8].contains(widestAccess))
      (self.base, self.count, self.offset, self.widestAccess) = (base, count, offset, widestAccess)
    }
  }

  /// A window and who answers there.
  public struct Mapping: Sendable {
    public let window: Window
    public let device: any Device

    public init(_ window: Window, _ device: any Device) { (self.window, self.device) = (window, device) }
  }

  /// The most distinct unclaimed addresses that are remembered, and so reported.
  private static let reportLimit = 1024

  private let mappings: [Mapping]
  private let unclaimedCount = Atomic<UInt64>(0)
  private let reported = Mutex<[UInt64: UInt64]>([:])
  private let onUnclaimed: @Sendable (_ address: UInt64, _ size: UInt8, _ isWrite: Bool) -> Void

  /// Builds the map; ranges may come in any order but must not overlap.
  ///
  /// - Parameter onUnclaimed: Called once for each of the first 1,024 addresses that no device answers, on the
  ///   vCPU's thread.
  public init(
    _ mappings: [Mapping],
    onUnclaimed: @escaping @Sendable (_ address: UInt64, _ size: UInt8, _ isWrite: Bool) -> Void = { _, _, _ in }
  ) {
    self.mappings = mappings.sorted { $0.window.base < $1.window.base }
    self.onUnclaimed = onUnclaimed
    for (lower, upper) in zip(self.mappings, self.mappings.dropFirst()) {
      precondition(upper.window.base - lower.window.base >= lower.window.count, "device ranges overlap")
    }
  }

  /// How many accesses no device answered.
  public var unclaimedAccesses: UInt64 { unclaimedCount.load(ordering: .relaxed) }

  /// The same by address, for the addresses that are remembered.
  public var unclaimedByAddress: [UInt64: UInt64] { reported.withLock { $0 } }

  /// Reads `size` bytes (1, 2, 4 or 8), zero-extended. Where nothing answers, all bits are ones.
  public func read(_ address: UInt64, size: UInt8) -> UInt64 {
    guard let mapping = mapping(at: address) else { return unclaimed(address, size: size, isWrite: false) }
    let window = mapping.window
    let offset = address - window.base
    if size <= window.widestAccess, offset <= window.count &- UInt64(size), window.count >= UInt64(size) {
      return mapping.device.read(offset: window.offset &+ offset, size: size) & Self.mask(size)
    }
    // The buses of a PC split what is too wide or crosses a device's end; do it the same way.
    let step = Self.step(size, window)
    var value: UInt64 = 0
    for index in stride(from: UInt8(0), to: size, by: Int(step)) {
      let part = address &+ UInt64(index)
      let bits =
        part >= window.base && part - window.base <= window.count &- UInt64(step)
        ? mapping.device.read(offset: window.offset &+ (part - window.base), size: step) : UInt64.max
      value |= (bits & Self.mask(step)) << (UInt64(index) &* 8)
    }
    return value
  }

  /// Writes the low `size` bytes (1, 2, 4 or 8) of `value`. Where nothing answers, they are dropped.
  public func write(_ address: UInt64, size: UInt8, value: UInt64) {
    guard let mapping = mapping(at: address) else {
      _ = unclaimed(address, size: size, isWrite: true)
      return
    }
    let window = mapping.window
    let offset = address - window.base
    if size <= window.widestAccess, window.count >= UInt64(size), offset <= window.count &- UInt64(size) {
      mapping.device.write(offset: window.offset &+ offset, size: size, value: value & Self.mask(size))
      return
    }
    let step = Self.step(size, window)
    for index in stride(from: UInt8(0), to: size, by: Int(step)) {
      let part = address &+ UInt64(index)
      guard part >= window.base, part - window.base <= window.count &- UInt64(step) else { continue }
      let bits = (value >> (UInt64(index) &* 8)) & Self.mask(step)
      mapping.device.write(offset: window.offset &+ (part - window.base), size: step, value: bits)
    }
  }

  /// An access belongs to the device its first byte hits.
  private func mapping(at address: UInt64) -> Mapping? {
    var low = 0
    var high = mappings.count
    while low < high {
      let middle = (low + high) / 2
      if mappings[middle].window.base <= address { low = middle + 1 } else { high = middle }
    }
    guard low > 0 else { return nil }
    let candidate = mappings[low - 1]
    return address - candidate.window.base < candidate.window.count ? candidate : nil
  }

  private func unclaimed(_ address: UInt64, size: UInt8, isWrite: Bool) -> UInt64 {
    unclaimedCount.wrappingAdd(1, ordering: .relaxed)
    let isNew = reported.withLock { reported in
      guard reported.count < Self.reportLimit || reported[address] != nil else { return false }
      let count = reported[address, default: 0] &+ 1
      reported[address] = count
      return count == 1
    }
    if isNew { onUnclaimed(address, size, isWrite) }
    return Self.mask(size)
  }

  /// Bytes moved at a time by a split access: a crossing one goes byte by byte.
  private static func step(_ size: UInt8, _ window: Window) -> UInt8 {
    size <= window.widestAccess || window.count < UInt64(window.widestAccess) ? 1 : window.widestAccess
  }

  private static func mask(_ size: UInt8) -> UInt64 { size >= 8 ? .max : (1 << (UInt64(size) &* 8)) &- 1 }
}

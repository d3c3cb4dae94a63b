// SPDX-License-Identifier: Apache-2.0
// The memory-type range registers. Nothing here depends on memory types, but an operating system reads back what
// firmware or itself wrote and expects bad values to be refused (SDM volume 3, 11.11 and 11.12).

import X86

struct MemoryTypeRanges {
  /// Base and mask of the eight variable ranges, 200h...20Fh.
  private var variable:
    (
      UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64,
      UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64
    ) = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
  /// 250h, 258h, 259h, 268h...26Fh. After RESET the default type is UC and everything is disabled.
  private var fixed:
    (
      UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64
    ) = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
  private var defaultType: UInt64 = 0

  /// Eight variable ranges, fixed ranges, write combining.
  static let capability: UInt64 = 8 | 1 << 8 | 1 << 10

  /// The registers that can be written.
  static let indices: [UInt32] = [0x2FF] + Array(0x200...0x20F) + [0x250, 0x258, 0x259] + Array(0x268...0x26F)

  private static func fixedIndex(_ index: UInt32) -> Int? {
    switch index {
    case 0x250: 0
    case 0x258: 1
    case 0x259: 2
    case 0x268...0x26F: Int(index &- 0x268 &+ 3)
    default: nil
    }
  }

  static func contains(_ index: UInt32) -> Bool {
    index == 0xFE || index == 0x2FF || (0x200...0x20F).contains(index) || fixedIndex(index) != nil
  }

  func read(_ index: UInt32) -> UInt64? {
    switch index {
    case 0xFE: return Self.capability
    case 0x2FF: return defaultType
    case 0x200...0x20F:
      var copy = variable
      return unsafe withUnsafeBytes(of: &copy) { unsafe $0.load(fromByteOffset: Int(index & 15) &* 8, as: UInt64.self) }
    default:
      guard let number = Self.fixedIndex(index) else { return nil }
      var copy = fixed
      return unsafe withUnsafeBytes(of: &copy) { unsafe $0.load(fromByteOffset: number &* 8, as: UInt64.self) }
    }
  }

  /// Returns false if the value is invalid.
  mutating func write(_ index: UInt32, _ value: UInt64, physicalMask: UInt64) -> Bool {
    switch index {
    case 0x2FF:
      // Type 7:0, fixed enable 10, enable 11.
      guard value & ~0xCFF == 0, Self.isType(value & 0xFF) else { return false }
      defaultType = value
    case 0x200...0x20F:
      if index & 1 == 0 {
        guard value & ~(physicalMask & ~0xFFF | 0xFF) == 0, Self.isType(value & 0xFF) else { return false }
      } else {
        guard value & ~(physicalMask & ~0xFFF | 0x800) == 0 else { return false }
      }
      unsafe withUnsafeMutableBytes(of: &variable) {
        unsafe $0.storeBytes(of: value, toByteOffset: Int(index & 15) &* 8, as: UInt64.self)
      }
    default:
      guard let number = Self.fixedIndex(index) else { return false }
      for shift in UInt64(0)..<8 where !Self.isType(value >> (shift &* 8) & 0xFF) { return false }
      unsafe withUnsafeMutableBytes(of: &fixed) {
        unsafe $0.storeBytes(of: value, toByteOffset: number &* 8, as: UInt64.self)
      }
    }
    return true
  }

  /// UC, WC, WT, WP, WB.
  private static func isType(_ type: UInt64) -> Bool { type < 2 || (4...6).contains(type) }

  /// Whether all eight entries of a PAT are types (UC- besides) with no reserved bits.
  static func isPAT(_ value: UInt64) -> Bool {
    for shift in UInt64(0)..<8 {
      let type = value >> (shift &* 8) & 0xFF
      guard isType(type) || type == 7 else { return false }
    }
    return true
  }
}

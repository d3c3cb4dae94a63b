// SPDX-License-Identifier: Apache-2.0
// IRR, ISR and TMR: 256 bits that the guest reads as eight 32-bit registers and we search from the top.

import Saving

/// A set of interrupt vectors.
struct VectorSet: Sendable, Equatable {
  private var words = SIMD8<UInt32>(repeating: 0)

  var isEmpty: Bool { words == SIMD8(repeating: 0) }

  /// The highest vector in the set.
  var highest: UInt8? {
    for index in stride(from: 7, through: 0, by: -1) where words[index] != 0 {
      return UInt8(truncatingIfNeeded: index &* 32 &+ 31 &- words[index].leadingZeroBitCount)
    }
    return nil
  }

  /// Register `index` of the eight, modulo 8.
  func word(_ index: Int) -> UInt32 { words[index & 7] }

  subscript(vector: UInt8) -> Bool {
    get { words[Int(vector >> 5)] >> UInt32(vector & 31) & 1 != 0 }
    set {
      let bit: UInt32 = 1 << UInt32(vector & 31)
      if newValue { words[Int(vector >> 5)] |= bit } else { words[Int(vector >> 5)] &= ~bit }
    }
  }
}

extension VectorSet: SavedState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    // Vectors below 16 are no interrupts: no message of one is ever accepted.
    try archive.transfer(&words[0], "vectors 0 to 31", bits: ~0xFFFF)
    for index in 1..<8 { try archive.transfer(&words[index], "vectors \(index * 32) to \(index * 32 + 31)") }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Reproducible random numbers, and the choice of values that find bugs: edges, small numbers, floating-point
// specials.

import Glibc
import TestSupport

/// SplitMix64: the seed is the reproduction.
struct Random: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }

  mutating func below(_ bound: Int) -> Int { Int(next() >> 33) % bound }
  mutating func chance(_ percent: Int) -> Bool { below(100) < percent }
  mutating func pick<T>(_ array: [T]) -> T { array[below(array.count)] }

  /// A register value.
  mutating func value() -> UInt64 {
    switch below(8) {
    case 0: return UInt64(below(256))
    case 1: return pick(Random.edges)
    case 2: return pick(Random.edges) &+ UInt64(bitPattern: Int64(below(5) - 2))
    case 3: return UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: next())))
    case 4: return next() >> UInt64(below(64))
    default: return next()
    }
  }

  private static let edges: [UInt64] = [
    0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF,
    0x8000_0000_0000_0000, UInt64.max,
  ]

  /// A double or two floats that are not noise, or noise.
  mutating func lane() -> UInt64 {
    switch below(8) {
    case 0: return Double(below(2000) - 1000).bitPattern
    case 1: return (Double(below(2_000_000)) / 1024 - 900).bitPattern
    case 2: return pick(Random.doubles)
    case 3: return UInt64(float()) << 32 | UInt64(float())
    case 4: return value()
    default: return next()
    }
  }

  private mutating func float() -> UInt32 {
    switch below(3) {
    case 0: return (Float(below(4000)) / 16 - 100).bitPattern
    case 1: return pick([0, 0x8000_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 1, 0x7F7F_FFFF])
    default: return UInt32(truncatingIfNeeded: next())
    }
  }

  private static let doubles: [UInt64] = [
    0, 0x8000_0000_0000_0000, 0x3FF0_0000_0000_0000, 0xBFF0_0000_0000_0000, 0x7FF0_0000_0000_0000,
    0xFFF0_0000_0000_0000, 0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0001, 1, 0x000F_FFFF_FFFF_FFFF,
    0x7FEF_FFFF_FFFF_FFFF, 0x41DF_FFFF_FFC0_0000, 0x43E0_0000_0000_0000, 0xC3E0_0000_0000_0000,
  ]
}

/// How much to do: LGUEST_TEST_LONG=1 multiplies iterations, LGUEST_TEST_SEED reproduces.
enum Effort {
  static let isLong = unsafe getenv("LGUEST_TEST_LONG") != nil
  static let factor = isLong ? 40 : 1

  /// LGUEST_TEST_TRACE=1 prints every case before it runs: the last one is the one that crashed.
  static let traces = unsafe getenv("LGUEST_TEST_TRACE") != nil

  static func trace(_ text: @autoclosure () -> String) {
    guard traces else { return }
    print(text())
    fflush(nil)
  }

  /// The seed of this run, printed by every test.
  static var seed: UInt64 { TestSeed.fresh }
}

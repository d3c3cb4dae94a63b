// SPDX-License-Identifier: Apache-2.0
// The conversions: KVM's own scales, the guest's rate recovered from them, nothing early, nothing overflows.

import Paravirt
import TestSupport
import Testing

@Suite struct TimestampCounterTests {
  @Test(
    arguments: [
      (1_000_000, 1, 0x8000_0000), (2_000_000, 0, 0x8000_0000), (2_500_000, -1, 0xCCCC_CCCC),
      (3_000_000, -1, 0xAAAA_AAAA), (4_000_000, -1, 0x8000_0000), (100_000, 4, 0xA000_0000),
      (10_000, 7, 0xC800_0000), (1_000, 10, 0xFA00_0000),
    ] as [(UInt32, Int8, UInt32)])
  func scalesAreKVMs(kilohertz: UInt32, shift: Int8, multiplier: UInt32) throws {
    let counter = try #require(TimestampCounter(kilohertz: kilohertz))
    #expect(counter.nanosecondScale.shift == shift)
    #expect(counter.nanosecondScale.multiplier == multiplier)
  }

  @Test func noRateIsNoCounter() { #expect(TimestampCounter(kilohertz: 0) == nil) }

  @Test func scalesOfAllRatesAreNormal() throws {
    var rates: [UInt32] = [1, 2, 3, 999, 1001, .max, .max - 1]
    var generator = SeededGenerator("time-stamp counters of all rates")
    for _ in 0..<2000 { rates.append(UInt32.random(in: 1...UInt32.max, using: &generator)) }
    for rate in rates {
      let counter = try #require(TimestampCounter(kilohertz: rate))
      #expect(counter.nanosecondScale.multiplier >= 0x7FFF_FFFF, "\(rate)")
    }
    for (base, scaled) in [(0, 0), (1, UInt64.max), (UInt64.max, 1), (UInt64.max, UInt64.max)] as [(UInt64, UInt64)] {
      let scale = ClockScale(from: base, to: scaled)
      #expect(scale.convert(0) == 0)
      _ = scale.convert(.max)
      _ = scale.convertRoundingUp(.max)
    }
  }

  @Test(arguments: [1_000_000, 2_000_000, 2_595_192, 3_000_000, 3_999_999, 100_000, 1_000] as [UInt32])
  func conversionsAreTrue(kilohertz: UInt32) throws {
    let counter = try #require(TimestampCounter(kilohertz: kilohertz))
    for seconds: UInt64 in [0, 1, 10, 3600, 86_400 * 365] {
      for extra: UInt64 in [0, 1, 7, 12345] {
        let ticks = seconds * UInt64(kilohertz) * 1000 + extra
        let exact = ticks.multipliedFullWidth(by: 1_000_000)
        let (true_, rest) = UInt64(kilohertz).dividingFullWidth(exact)
        let down = counter.nanoseconds(inTicks: ticks)
        let up = counter.delay(until: ticks &+ 5, now: 5)
        #expect(down <= true_ && true_ - down <= 2 + true_ >> 31)
        #expect(up >= true_ + (rest == 0 ? 0 : 1), "early")
        #expect(up - true_ <= 2 + true_ >> 30)
        let back = counter.ticks(inNanoseconds: true_)
        #expect(back <= ticks && ticks - back <= 2 + UInt64(kilohertz) / 1_000_000 + ticks >> 31)
      }
    }
  }

  @Test func oneGigahertzIsExact() throws {
    let counter = try #require(TimestampCounter(kilohertz: 1_000_000))
    for value: UInt64 in [0, 1, 2, 999_999_999, 1 << 40, 1 << 62] {
      #expect(counter.nanoseconds(inTicks: value) == value)
      #expect(counter.ticks(inNanoseconds: value) == value)
    }
  }

  @Test func deadlinesSaturate() throws {
    let counter = try #require(TimestampCounter(kilohertz: 1_000))
    #expect(counter.delay(until: .max, now: 0) == .max)
    #expect(counter.delay(until: 5, now: 5) == 0)
    #expect(counter.delay(until: 4, now: 5) == 0)
    #expect(counter.delay(until: 6, now: 5) >= 1000)
    let fast = try #require(TimestampCounter(kilohertz: 4_000_000))
    #expect(fast.delay(until: .max, now: 0) >= 1 << 62)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Guest TSC ticks and nanoseconds. There is one conversion: the clock structures tell the guest to use it,
// the host uses it for the same purpose, and timers for deadlines are rounded up from it, so that no timer
// is ever early by the guest's own reckoning. Multiplications only, and none of them overflows.

/// A ratio of two frequencies as multiply and shift: `((ticks << shift) * multiplier) >> 32`.
///
/// Chosen as KVM chooses it (`kvm_get_time_scale`, Linux arch/x86/kvm/x86.c), since guests compute the TSC
/// rate back from it.
public struct ClockScale: Sendable, Equatable {
  /// 0x80000000...0xFFFFFFFF for any two usual frequencies.
  public let multiplier: UInt32
  /// Positive to the left.
  public let shift: Int8

  /// The conversion from ticks at one rate to ticks at another.
  ///
  /// - Parameters: both in Hz, 1...2^48; others are brought into that range.
  public init(from base: UInt64, to scaled: UInt64) {
    let limit: UInt64 = 1 << 48
    var base = min(max(base, 1), limit)
    var scaled = min(max(scaled, 1), limit)
    let word = UInt64(UInt32.max)
    var shift: Int8 = 0
    while base > scaled << 1 || base > word {
      base >>= 1
      shift -= 1
    }
    while base <= scaled || scaled > word {
      if scaled > word || base & 0x8000_0000 != 0 { scaled >>= 1 } else { base <<= 1 }
      shift += 1
    }
    // scaled < base, so the quotient has 32 bits.
    multiplier = UInt32(truncatingIfNeeded: (scaled << 32) / base)
    self.shift = shift
  }

  /// Rounded down; spans of more than 2^63 results are brought down to `UInt64.max`.
  public func convert(_ ticks: UInt64) -> UInt64 {
    guard let shifted = shiftedLeft(ticks) else { return .max }
    let count = shift < 0 ? shifted >> UInt64(-Int(shift)) : shifted
    let product = count.multipliedFullWidth(by: UInt64(multiplier))
    return product.high << 32 | product.low >> 32
  }

  /// At least the exact result, also where `multiplier` was rounded; at most one in 2^31 and two too much.
  public func convertRoundingUp(_ ticks: UInt64) -> UInt64 {
    guard let shifted = shiftedLeft(ticks) else { return .max }
    var count = shifted
    if shift < 0 {
      let places = UInt64(-Int(shift))
      count = shifted >> places &+ (shifted & ((1 << places) &- 1) == 0 ? 0 : 1)
    }
    let product = count.multipliedFullWidth(by: UInt64(multiplier) + 1)
    guard product.high >> 32 == 0 else { return .max }
    let floor = product.high << 32 | product.low >> 32
    return product.low & 0xFFFF_FFFF == 0 || floor == .max ? floor : floor + 1
  }

  private func shiftedLeft(_ ticks: UInt64) -> UInt64? {
    guard shift > 0 else { return ticks }
    return ticks.leadingZeroBitCount < Int(shift) && ticks != 0 ? nil : ticks << UInt64(shift)
  }
}

/// The guest's time-stamp counter: one rate for a VM's whole life.
public struct TimestampCounter: Sendable, Equatable {
  public let kilohertz: UInt32
  /// What kvmclock publishes.
  public let nanosecondScale: ClockScale
  private let tickScale: ClockScale

  /// - Parameter kilohertz: `nil` is returned for 0.
  public init?(kilohertz: UInt32) {
    guard kilohertz > 0 else { return nil }
    self.kilohertz = kilohertz
    let hertz = UInt64(kilohertz) * 1000
    nanosecondScale = ClockScale(from: hertz, to: 1_000_000_000)
    tickScale = ClockScale(from: 1_000_000_000, to: hertz)
  }

  /// How long `ticks` last, in nanoseconds, rounded down: what a guest computes from kvmclock.
  public func nanoseconds(inTicks ticks: UInt64) -> UInt64 { nanosecondScale.convert(ticks) }

  /// Ticks in a span of nanoseconds, rounded down: the guest's TSC where it is made from the host's clock.
  public func ticks(inNanoseconds nanoseconds: UInt64) -> UInt64 { tickScale.convert(nanoseconds) }

  /// How long to wait for a TSC deadline, in nanoseconds: never too short at the nominal rate; 0 once reached.
  ///
  /// A host timer may run a little faster than the counter; whoever waited compares the counter with the
  /// deadline again, and waits for the rest.
  public func delay(until deadline: UInt64, now: UInt64) -> UInt64 {
    deadline > now ? nanosecondScale.convertRoundingUp(deadline &- now) : 0
  }
}

/// Where time comes from. Injected, so that tests own it.
public protocol GuestTimeSource: Sendable {
  /// The guest's TSC now, on a vCPU that has not written its own.
  func guestTimestamp() -> UInt64
  /// The host's CLOCK_MONOTONIC now, in nanoseconds.
  func monotonicNanoseconds() -> UInt64
  /// The host's CLOCK_REALTIME now, in nanoseconds since 1970.
  func wallNanoseconds() -> Int64
}

extension GuestTimeSource {
  /// The wall clock and the guest's TSC at one moment, within half the returned `uncertainty` (in ticks).
  ///
  /// The shortest of a few attempts to read the wall clock between two readings of the counter.
  func pairing() -> (wallNanoseconds: Int64, timestamp: UInt64, uncertainty: UInt64) {
    var best = (wallNanoseconds: Int64(0), timestamp: UInt64(0), uncertainty: UInt64.max)
    for _ in 0..<5 {
      let before = guestTimestamp()
      let wall = wallNanoseconds()
      let span = guestTimestamp() &- before
      if span < best.uncertainty { best = (wall, before &+ span / 2, span) }
    }
    return best
  }
}

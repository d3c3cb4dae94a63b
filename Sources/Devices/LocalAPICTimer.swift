// SPDX-License-Identifier: Apache-2.0
// The local APIC's timer as arithmetic: nothing ticks, a deadline is kept and the count is computed when read.

import Saving

/// The timer of one local APIC (SDM vol. 3, 11.5.4). Its input clock is 1 GHz: one undivided tick is 1 ns.
struct LocalAPICTimer: Sendable {
  enum Mode: UInt32 {
    case oneShot = 0, periodic, deadline, reserved

    /// That of the local vector table's entry.
    init(entry: UInt32) { self = Mode(rawValue: entry >> 17 & 3) ?? .reserved }
  }

  static let divideBits: UInt32 = 0b1011

  /// A guest that asks for a shorter period would occupy a host core with its timer alone; KVM has the same limit.
  static let shortestPeriod: UInt64 = 200_000

  private(set) var mode = Mode.oneShot
  private(set) var initialCount: UInt32 = 0
  private(set) var divideConfiguration: UInt32 = 0
  /// IA32_TSC_DEADLINE; 0 is disarmed.
  private(set) var tscDeadline: UInt64 = 0
  /// When the count reaches zero, in clock nanoseconds; nil when stopped.
  private var expiry: UInt64?

  /// Divide by 2^shift: 0b000 is 2, 0b110 is 128, 0b111 is 1; bit 2 of the code is bit 3 of the register.
  private var shift: UInt64 {
    UInt64((((divideConfiguration & 3) | (divideConfiguration >> 1 & 4)) &+ 1) & 7)
  }

  /// Entering or leaving TSC-deadline mode disarms (SDM 11.5.4.1).
  mutating func setMode(_ newMode: Mode, now: UInt64) {
    guard newMode != mode else { return }
    if mode == .deadline || newMode == .deadline || newMode == .reserved {
      expiry = nil
      initialCount = 0
      tscDeadline = 0
    }
    mode = newMode
  }

  mutating func setInitialCount(_ count: UInt32, now: UInt64) {
    guard mode == .oneShot || mode == .periodic else { return }
    initialCount = count
    expiry = count == 0 ? nil : now &+ period
  }

  /// The count goes on from where it is, at the new speed.
  mutating func setDivideConfiguration(_ value: UInt32, now: UInt64) {
    let remaining = UInt64(currentCount(now: now))
    divideConfiguration = value & Self.divideBits
    if expiry != nil { expiry = now &+ (remaining << shift) }
  }

  mutating func setDeadline(_ tick: UInt64) {
    if mode == .deadline { tscDeadline = tick }
  }

  func currentCount(now: UInt64) -> UInt32 {
    guard let expiry, expiry > now else { return 0 }
    let ticks = (expiry - now &+ (1 << shift) &- 1) >> shift
    return UInt32(clamping: min(ticks, UInt64(initialCount)))
  }

  /// When `advance` may next return true, in clock nanoseconds.
  func nextExpiry(_ clock: Clock) -> UInt64? {
    switch mode {
    case .oneShot, .periodic: expiry
    case .deadline: tscDeadline == 0 ? nil : clock.nanosecondsAtTick(tscDeadline)
    case .reserved: nil
    }
  }

  /// Lets time pass, and says whether the timer has expired since the last call. Missed periods are one.
  mutating func advance(_ clock: Clock) -> Bool {
    switch mode {
    case .oneShot, .periodic:
      guard let due = expiry else { return false }
      let now = clock.nanoseconds()
      guard due <= now else { return false }
      if mode == .periodic {
        let length = max(period, Self.shortestPeriod)
        expiry = due &+ ((now - due) / length &+ 1) &* length
      } else {
        expiry = nil
      }
      return true
    case .deadline:
      // Compare ticks, not nanoseconds: the interrupt must never come before the guest can read the tick.
      guard tscDeadline != 0, clock.timestampCounter() >= tscDeadline else { return false }
      tscDeadline = 0
      return true
    case .reserved:
      return false
    }
  }

  /// Whether a moment is further in the future than a period, as which a guest that asks for less gets the shortest.
  private func isFurther(_ moment: UInt64, than now: UInt64) -> Bool {
    moment > now && moment - now > max(period, Self.shortestPeriod)
  }

  /// At most 2^39 ns.
  private var period: UInt64 { UInt64(initialCount) << shift }
}

extension LocalAPICTimer: SavedState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&mode, "mode")
    try archive.transfer(&initialCount, "initial count")
    try archive.transfer(&divideConfiguration, "divide configuration", bits: Self.divideBits)
    try archive.transfer(&tscDeadline, "deadline")
    try archive.require(mode == .deadline || tscDeadline == 0, "deadline", tscDeadline)
    try archive.transfer(instant: &expiry, "expiry")
    // It counts down from the initial count, at most once or period by period.
    let counts = mode == .oneShot || mode == .periodic
    try archive.require(expiry.map { counts && !isFurther($0, than: archive.now) } ?? true, "expiry")
  }
}

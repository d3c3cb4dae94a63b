// SPDX-License-Identifier: Apache-2.0
// The ACPI fixed hardware: just enough of PM1 for an operating system to believe ACPI is on and to switch the
// machine off, and the PM timer, which old kernels use to check other clocks.

public import Saving
import Synchronization

/// PM1a event block, PM1a control block and PM timer in 12 ports (ACPI 6.5, 4.8.3).
///
/// No event ever occurs, so the SCI is never asserted. There is no SMI command port: ACPI mode is always on.
public final class PowerManagement: Device {
  /// Where each register block lies in the 12 ports; the FADT repeats these.
  public enum Register: UInt64, Sendable, CaseIterable {
    case status = 0
    case enable = 2
    case control = 4
    case timer = 8
  }

  /// The number of ports.
  public static let portCount: UInt64 = 12
  /// The value of SLP_TYPa that means S5; the DSDT's \_S5 says the same.
  public static let softOffType: UInt8 = 5
  /// PM timer ticks per second.
  public static let timerFrequency: UInt64 = 3_579_545

  private enum Control {
    static let sciEnable: UInt16 = 1 << 0
    static let sleepType: UInt16 = 7 << 10
    static let sleepEnable: UInt16 = 1 << 13
    /// BM_RLD and SLP_TYP are kept; GBL_RLS and SLP_EN read as 0.
    static let stored: UInt16 = 1 << 1 | sleepType
  }
  /// TMR_EN, GBL_EN, PWRBTN_EN, SLPBTN_EN, RTC_EN.
  private static let enableBits: UInt16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10

  private struct State {
    var enable: UInt16 = 0
    var control: UInt16 = 0
    /// When the timer was zero, in clock nanoseconds; wraps.
    var timerStart: UInt64 = 0
  }

  private let state = Mutex(State())
  private let clock: Clock
  private let report: @Sendable (PowerEvent) -> Void

  public init(clock: Clock, report: @escaping @Sendable (PowerEvent) -> Void) {
    self.clock = clock
    self.report = report
  }

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    let (enable, control, start) = state.withLock { ($0.enable, $0.control | Control.sciEnable, $0.timerStart) }
    // The 12 bytes as they lie, so that any width reads right.
    let low = UInt64(enable) << 16 | UInt64(control) << 32
    let bytes = offset < 8 ? low >> (offset &* 8) : UInt64(timer(since: start)) >> ((offset &- 8) &* 8)
    return bytes
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    let isSoftOff = state.withLock { state in
      var isSoftOff = false
      for index in 0..<UInt64(min(size, 8)) {
        let byte = UInt16(truncatingIfNeeded: value >> (index &* 8)) & 0xFF
        switch offset &+ index {
        case 2: state.enable = (state.enable & 0xFF00 | byte) & Self.enableBits
        case 3: state.enable = (state.enable & 0x00FF | byte << 8) & Self.enableBits
        case 4: state.control = (state.control & 0xFF00 | byte) & Control.stored
        case 5:
          let written = state.control & 0x00FF | byte << 8
          state.control = written & Control.stored
          let type = UInt8(truncatingIfNeeded: (written & Control.sleepType) >> 10)
          isSoftOff = written & Control.sleepEnable != 0 && type == Self.softOffType
        default: break  // Status bits are write-one-to-clear and never set; the timer is read-only.
        }
      }
      return isSoftOff
    }
    if isSoftOff { report(.powerOff) }
  }

  /// The free-running 32-bit counter.
  private func timer(since start: UInt64) -> UInt32 {
    let product = (clock.nanoseconds() &- start).multipliedFullWidth(by: Self.timerFrequency)
    // A high word of 10^9 or more would need 2^64 ns at 10^9 Hz; the PM timer is slower, but reduce all the same.
    let second: UInt64 = 1_000_000_000
    let ticks = second.dividingFullWidth((product.high % second, product.low)).quotient
    return UInt32(truncatingIfNeeded: ticks)
  }
}

extension PowerManagement: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try state.withLock { state throws(SavedStateError) in
      try archive.transfer(&state.enable, "enable register", bits: Self.enableBits)
      try archive.transfer(&state.control, "control register", bits: Control.stored)
      // The timer goes on from where it was.
      var elapsed = archive.now &- state.timerStart
      try archive.transfer(&elapsed, "timer")
      state.timerStart = archive.now &- elapsed
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// What every device is to the machine, and the few types all of them share: guest time, deadlines, power events.
// Lock order, so that a device may call downwards while it holds its own lock: device -> PIC or IOAPIC ->
// local APIC. Nothing calls upwards with a lock held; closures given to a device must not call it back.

/// Something that answers reads and writes in a range of ports or physical addresses.
///
/// A device never knows its base address: a `Bus` maps ranges to offsets. Any vCPU thread may call at any time,
/// with any offset inside the mapped range and any value; nothing a guest does may trap.
public protocol Device: AnyObject, Sendable {
  /// Reads `size` bytes (1, 2, 4 or 8), zero-extended. Bits above `size` are ignored by the caller.
  func read(offset: UInt64, size: UInt8) -> UInt64
  /// Writes the low `size` bytes (1, 2, 4 or 8) of `value`.
  func write(offset: UInt64, size: UInt8, value: UInt64)
}

/// A device that does something by itself when guest time passes.
///
/// The timer thread sleeps until the earliest deadline of all sources and then calls `expire`. Calling early or
/// twice is harmless. Whenever a deadline may have moved closer the device calls the `rearm` closure it was given.
public protocol DeadlineSource: AnyObject, Sendable {
  /// When `expire` next has something to do, in `Clock` nanoseconds; nil if the device is idle.
  var nextDeadline: UInt64? { get }
  /// Does everything that is due at `now` (`Clock` nanoseconds).
  func expire(now: UInt64)
}

/// Guest time, injected: devices never ask the host what time it is.
///
/// The nanoseconds are those of the thread that sleeps for deadlines (the host's monotonic clock, or a paused and
/// resumed copy of it). The TSC closures belong to one vCPU, because the guest can offset each TSC by itself.
public struct Clock: Sendable {
  /// Monotonic nanoseconds now.
  public let nanoseconds: @Sendable () -> UInt64
  /// This vCPU's guest TSC now, in ticks.
  public let timestampCounter: @Sendable () -> UInt64
  /// The first nanosecond at which the guest TSC has reached the given tick: rounded up, saturating.
  public let nanosecondsAtTick: @Sendable (UInt64) -> UInt64

  public init(
    nanoseconds: @escaping @Sendable () -> UInt64,
    timestampCounter: @escaping @Sendable () -> UInt64,
    nanosecondsAtTick: @escaping @Sendable (UInt64) -> UInt64
  ) {
    self.nanoseconds = nanoseconds
    self.timestampCounter = timestampCounter
    self.nanosecondsAtTick = nanosecondsAtTick
  }
}

/// Civil time as the RTC's battery would keep it: seconds since 1970-01-01 UTC and the fraction of the second.
public struct WallTime: Sendable, Equatable {
  public let seconds: Int64
  /// 0..<1,000,000,000.
  public let nanoseconds: UInt32

  public init(seconds: Int64, nanoseconds: UInt32) {
    self.seconds = seconds
    self.nanoseconds = min(nanoseconds, 999_999_999)
  }
}

/// What a guest asked of the machine as a whole. Reported at most as often as the guest writes; the first wins.
public enum PowerEvent: Sendable, Equatable {
  /// ACPI S5.
  case powerOff
  case reset(ResetSource)
  /// The debug-exit port was written with this code.
  case debugExit(UInt8)
}

/// How a guest asked for a reset.
public enum ResetSource: Sendable, Equatable {
  /// Port 0xCF9, which is also the FADT's RESET_REG.
  case resetControl
  /// Keyboard controller command 0xFE or its output port.
  case keyboardController
  /// Bit 0 of port 0x92.
  case systemControlPortA
}

// SPDX-License-Identifier: Apache-2.0
// The host's two clocks, in nanoseconds. All deadlines in this project are instants of the monotonic one.

import CHost

/// Time on the host.
public enum HostClock {
  /// Nanoseconds of CLOCK_MONOTONIC: never steps, stands still while the host sleeps.
  public static var monotonic: UInt64 { chost_monotonic_ns() }
  /// Nanoseconds since 1970-01-01 UTC; may step.
  public static var wall: UInt64 { chost_wall_ns() }
  /// Sleeps until an instant of `monotonic`; returns at once if it has passed.
  public static func sleep(until deadline: UInt64) { chost_sleep_until(deadline) }
  /// The instant `nanoseconds` from now, saturating at `UInt64.max`, which every wait takes for "never".
  public static func after(nanoseconds: UInt64) -> UInt64 {
    let (sum, overflow) = monotonic.addingReportingOverflow(nanoseconds)
    return overflow ? .max : sum
  }
}

// SPDX-License-Identifier: Apache-2.0
// How fast the host's time-stamp counter runs: what CPUID says if a measurement agrees, else the measurement. It goes
// on while the kernel is loaded, so that it seldom costs time of its own.

import Host
import Paravirt
import SystemPackage

/// A measurement under way.
package struct TimestampCalibration {
  /// A moment on both clocks.
  private struct Sample {
    let nanoseconds: UInt64
    let ticks: UInt64

    /// The closest pair of a few.
    static func take() -> Sample {
      var best: (sample: Sample, spread: UInt64)?
      for _ in 0..<5 {
        let before = HostCPU.timestampCounter
        let nanoseconds = HostClock.monotonic
        let spread = HostCPU.timestampCounter &- before
        if best.map({ spread < $0.spread }) ?? true {
          best = (Sample(nanoseconds: nanoseconds, ticks: before &+ spread / 2), spread)
        }
      }
      return best?.sample ?? Sample(nanoseconds: HostClock.monotonic, ticks: HostCPU.timestampCounter)
    }
  }

  private let start = Sample.take()
  /// A pair is good to some tens of nanoseconds: over this span, to a few parts in a million.
  private static let shortestSpan: UInt64 = 10_000_000
  /// What CPUID says may be off by this fraction of the measurement: the clocks are slewed against each other.
  static let tolerance: UInt64 = 500

  /// Begins.
  package init() {}

  /// Ends: the rate in kHz, or nil if the counter stands still.
  package func finish() -> TimestampCounter? {
    HostClock.sleep(until: start.nanoseconds &+ TimestampCalibration.shortestSpan)
    let end = Sample.take()
    let (ticks, nanoseconds) = (end.ticks &- start.ticks, end.nanoseconds &- start.nanoseconds)
    // Ticks per nanosecond times a million; a counter that went backwards measures as absurd.
    let product = ticks.multipliedFullWidth(by: 1_000_000)
    guard nanoseconds > 0, product.high < nanoseconds else { return nil }
    let measured = nanoseconds.dividingFullWidth(product).quotient
    let told = TimestampCalibration.told().map(UInt64.init).first { told in
      (told > measured ? told - measured : measured - told) < measured / TimestampCalibration.tolerance
    }
    return UInt32(exactly: told ?? measured).flatMap(TimestampCounter.init(kilohertz:))
  }

  /// What CPUID says, in kHz: the hypervisor under us, if any, then the processor.
  private static func told() -> [UInt32] {
    var rates: [UInt32] = []
    let isVirtual = HostCPU.query(1).2 >> 31 != 0
    if isVirtual, (0x4000_0010...0x4000_00FF).contains(HostCPU.query(0x4000_0000).0) {
      rates.append(HostCPU.query(0x4000_0010).0)
    }
    if HostCPU.query(0).0 >= 0x15 {
      let (denominator, numerator, crystal, _) = HostCPU.query(0x15)
      if denominator != 0, numerator != 0, crystal != 0 {
        let hertz = UInt64(crystal) * UInt64(numerator) / UInt64(denominator)
        rates.append(UInt32(clamping: (hertz + 500) / 1000))
      }
    }
    return rates
  }

  /// Whether the counter runs at one rate whatever the processor does: it says so itself, or the host's kernel, which
  /// watches it, keeps time by it.
  static var isConstant: Bool {
    if HostCPU.query(0x8000_0000).0 >= 0x8000_0007, HostCPU.query(0x8000_0007).3 >> 8 & 1 != 0 { return true }
    let source = HostFile.text("/sys/devices/system/clocksource/clocksource0/current_clocksource") ?? ""
    return ["tsc", "kvm-clock", "hyperv"].contains { source.hasPrefix($0) }
  }
}

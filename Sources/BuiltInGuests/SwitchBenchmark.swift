// SPDX-License-Identifier: Apache-2.0
// What it costs a ring-1 guest to go on: on a page that is still its own, after another guest, after a change of its tables,
// on another thread's page, and with everything copied each time, as before Rusty Russell's "[PATCH 8/9] lguest: Optimize
// away copy in and out of per-cpu guestpages", 8 March 2007.

import Boot
import Host
import Lguest
import Paravirt
import X86

/// Measures stays of guests that leave by a hypercall each.
package struct SwitchBenchmark: Sendable {
  /// What happens between two stays.
  package enum Case: String, Sendable, CaseIterable {
    /// Nothing.
    case same
    /// Another guest runs, on the same page.
    case alternating
    /// LOAD_IDT_ENTRY.
    case gates
    /// LOAD_GDT_ENTRY.
    case descriptors
    /// The guest goes to another page, and back the next time.
    case moved
    /// Nothing, but all is copied.
    case everything
  }

  /// What was measured, on average of all stays: TSC time in ns, bytes copied, entries decoded, stacks set.
  package struct Measurement: Sendable {
    package let what: Case
    package let nanoseconds: Double, bytes: Double, entries: Double, stacks: Double
  }

  private static let stays = 4_000, warmUp = 200

  package init() {}

  /// Measures all of them.
  ///
  /// - Throws: `ConfigurationError`: what stops any run, or a guest that ended.
  package func measure() throws(ConfigurationError) -> [Measurement] {
    var measurements: [Measurement] = []
    try SteppedGuest.onThread { () throws(ConfigurationError) in
      for what in Case.allCases { measurements.append(try SwitchBenchmark.measure(what)) }
    }
    return measurements
  }

  private static func measure(_ what: Case) throws(ConfigurationError) -> Measurement {
    let guests = [try guest(what), try guest(what)]
    let first = try SteppedGuest.Place(what == .everything ? .everything : .changed)
    let second = try SteppedGuest.Place()
    func stay(_ number: Int) throws(ConfigurationError) {
      let guest = what == .alternating ? guests[number & 1] : guests[0]
      guard guest.step(on: what == .moved && number & 1 != 0 ? second : first) else {
        throw .cannotStart("the guest that measures '\(what.rawValue)' ended")
      }
    }
    for number in 0..<warmUp { try stay(number) }
    let before = guests.map(\.counts)
    let calibration = TimestampCalibration()
    let start = HostCPU.timestampCounter
    for number in 0..<stays { try stay(number) }
    let ticks = HostCPU.timestampCounter &- start
    guard let counter = calibration.finish() else { throw .cannotStart("the host's time-stamp counter stands still") }
    func mean(_ path: KeyPath<LguestResumeCounts, UInt64>) -> Double {
      var sum: UInt64 = 0
      for (old, guest) in zip(before, guests) { sum &+= guest.counts[keyPath: path] &- old[keyPath: path] }
      return Double(sum) / Double(stays)
    }
    return Measurement(
      what: what, nanoseconds: Double(ticks) / Double(counter.kilohertz) * 1e6 / Double(stays),
      bytes: mean(\.bytes), entries: mean(\.entries), stacks: mean(\.stacks))
  }

  private static func guest(_ what: Case) throws(ConfigurationError) -> SteppedGuest {
    let guest = try BuiltInGuest(code: Ring1Code.looping(call(what)), isLong: false)
    return try SteppedGuest(guest.ring1Configuration)
  }

  /// The hypercall by which the guest leaves.
  private static func call(_ what: Case) -> (LguestCall, [UInt32]) {
    switch what {
    case .same, .alternating, .moved, .everything: (.flushAsync, [])
    case .gates: (.loadIDTEntry, [0x50, 0x60_1000, 0x0010_8E00])
    case .descriptors: (.loadGDTEntry, [20, 0xFFFF, 0x00CF_F200])
    }
  }
}

extension SwitchBenchmark.Measurement {
  /// `{case, ns, bytes, entries, stacks}`.
  package var json: JSON {
    func number(_ value: Double) -> JSON { .double((value * 10).rounded() / 10) }
    return .object([
      ("case", .string(what.rawValue)), ("ns", number(nanoseconds)), ("bytes", number(bytes)),
      ("entries", number(entries)), ("stacks", number(stacks)),
    ])
  }
}

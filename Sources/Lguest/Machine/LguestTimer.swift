// SPDX-License-Identifier: Apache-2.0
// The clock event device of a ring-1 guest of lguest: a one-shot timer that a hypercall sets, and interrupt 0.

import Devices
import Host
import Paravirt
import Saving
import Synchronization

/// The timer that a ring-1 guest sets: interrupt 0, once. It also wakes the guest when an interrupt waits that could not
/// be delivered, for the guest does not say when it could.
final class LguestTimer: DeadlineSource {
  private struct State {
    var event: UInt64?
    var look: UInt64?
  }
  private let state = Mutex(State())
  private let interrupts: LguestInterrupts
  private let wake: @Sendable () -> Void
  private let rearm: @Sendable () -> Void

  init(
    _ interrupts: LguestInterrupts, wake: @escaping @Sendable () -> Void, rearm: @escaping @Sendable () -> Void
  ) {
    (self.interrupts, self.wake, self.rearm) = (interrupts, wake, rearm)
  }

  var nextDeadline: UInt64? {
    state.withLock { state in
      guard let event = state.event else { return state.look }
      return state.look.map { min($0, event) } ?? event
    }
  }

  /// Sets the event to so many nanoseconds from now, or takes it away.
  func set(_ delay: UInt32?) {
    state.withLock { $0.event = delay.map { HostClock.after(nanoseconds: UInt64($0)) } }
    if delay != nil { rearm() }
  }

  /// Makes the guest come out in a millisecond.
  func lookAgain() {
    let isNew = state.withLock { state in
      defer { if state.look == nil { state.look = HostClock.after(nanoseconds: 1_000_000) } }
      return state.look == nil
    }
    if isNew { rearm() }
  }

  /// When it goes off, and when the guest is looked at.
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var new = state.withLock { $0 }
    try archive.transfer(instant: &new.event, "clock event")
    try archive.transfer(instant: &new.look, "next look at the guest")
    state.withLock { [new] in $0 = new }
  }

  /// Forgets what was set.
  func reset() { state.withLock { $0 = State() } }

  func expire(now: UInt64) {
    let isDue = state.withLock { state in
      var isDue = false
      if let event = state.event, event <= now {
        state.event = nil
        interrupts.raise(0)
        isDue = true
      }
      if let look = state.look, look <= now {
        state.look = nil
        isDue = true
      }
      return isDue
    }
    if isDue { wake() }
  }
}

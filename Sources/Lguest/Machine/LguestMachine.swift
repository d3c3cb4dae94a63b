// SPDX-License-Identifier: Apache-2.0
// What a machine has for a ring-1 guest of lguest besides RAM and a vCPU: the host side of the interface, the guest's
// timer, and the memory behind RAM that is a device's or the host's own.

import Boot
import Devices
import Engine
import GuestMemory
import Host
import Paravirt
import Synchronization
import X86

/// The memory of such a machine: RAM that the guest is told of, devices' pages, and a page for descriptors.
enum LguestLayout {
  static let deviceBytes: UInt64 = 1 << 20
  static func limit(_ memorySize: UInt64) -> UInt64 { memorySize + deviceBytes }
  /// Where memory regions of PCI devices are, behind all RAM.
  static func region(_ memorySize: UInt64) -> UInt64 { (byteCount(memorySize) + 0x1F_FFFF) & ~0xF_FFFF }
  static func byteCount(_ memorySize: UInt64) -> UInt64 { limit(memorySize) + 4096 }
}

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

// SPDX-License-Identifier: Apache-2.0
// How anybody reaches a vCPU: in the guest it is kicked, halted it is made ready to run, and anywhere else it is left
// alone, because it looks for news itself before it goes on. The order is the whole point. A ringer changes a device
// first and then looks where the vCPU is; the vCPU says where it goes first and then looks at the devices. One of them
// sees the other.

import Host
import Saving
import Synchronization

/// Where one vCPU is, and the bell that brings it back to the run loop.
final class Doorbell: Sendable {
  private enum Place {
    /// In the run loop.
    static let loop: UInt32 = 0
    static let guest: UInt32 = 1
    static let halted: UInt32 = 2
  }

  private let place = Atomic<UInt32>(Place.loop)
  private let stopped = Atomic<Bool>(false)
  private let unhalted = Atomic<Bool>(false)
  private let preempted = Atomic<Bool>(false)
  private let kick: @Sendable () -> Void
  private let wake: @Sendable () -> Void

  /// - Parameters:
  ///   - kick: Makes the engine leave the guest soon, from any thread.
  ///   - wake: Finds a thread for the vCPU, which has slept.
  init(kick: @escaping @Sendable () -> Void, wake: @escaping @Sendable () -> Void) {
    self.kick = kick
    self.wake = wake
  }

  // MARK: Any thread

  /// Tells the vCPU that there may be something new for it; the news itself must be in place already.
  func ring() {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    switch place.load(ordering: .sequentiallyConsistent) {
    case Place.guest: kick()
    case Place.halted: if endSleep() { wake() }
    default: break
    }
  }

  /// Whoever ends a sleep, and only he, decides who runs the vCPU.
  private func endSleep() -> Bool {
    place.compareExchange(expected: Place.halted, desired: Place.loop, ordering: .sequentiallyConsistent).exchanged
  }

  /// Asks the vCPU to make room for others, if it runs.
  func preempt() {
    preempted.store(true, ordering: .sequentiallyConsistent)
    ring()
  }

  /// Asks the vCPU to leave its run loop for good.
  func stop() {
    stopped.store(true, ordering: .sequentiallyConsistent)
    ring()
  }

  /// Ends the current or next HLT, also with interrupts off.
  func endHalt() {
    unhalted.store(true, ordering: .sequentiallyConsistent)
    ring()
  }

  // MARK: The thread that runs the vCPU

  /// Whether `stop` was called.
  var isStopped: Bool { stopped.load(ordering: .acquiring) }

  /// Whether `preempt` was called since the last time.
  func takePreemption() -> Bool {
    preempted.load(ordering: .relaxed) && preempted.exchange(false, ordering: .acquiring)
  }

  /// Whether `endHalt` was called since the last HLT ended that way.
  func takeEndOfHalt() -> Bool { unhalted.exchange(false, ordering: .acquiringAndReleasing) }

  /// From here on `ring` kicks. Look at the devices afterwards.
  func enterGuest() { place.store(Place.guest, ordering: .sequentiallyConsistent) }

  /// From here on `ring` does nothing.
  func leaveGuest() { place.store(Place.loop, ordering: .releasing) }

  /// Puts the vCPU to sleep, unless there is news: `hasNews` looks at devices only.
  ///
  /// - Returns: Whether it sleeps. It may then be running on another thread already, and nothing of it be touched.
  func sleep(unless hasNews: () -> Bool) -> Bool {
    place.store(Place.halted, ordering: .sequentiallyConsistent)
    guard hasNews() || isStopped || unhalted.load(ordering: .sequentiallyConsistent) else { return true }
    return !endSleep()
  }
}

extension Doorbell: SavedState {
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var endsHalt = unhalted.load(ordering: .acquiring)
    try archive.transfer(&endsHalt, "end of halt")
    unhalted.store(endsHalt, ordering: .releasing)
  }
}

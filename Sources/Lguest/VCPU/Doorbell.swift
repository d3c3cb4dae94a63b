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
  /// Where a vCPU is. Each sleep has a number, so that a thread that is late with ending one sleep does not end the
  /// next.
  struct Place: RawRepresentable, AtomicRepresentable, Hashable {
    let rawValue: UInt32

    /// In the run loop, or without a thread.
    static let loop = Place(rawValue: 0)
    static let guest = Place(rawValue: 1)
    static func asleep(_ number: UInt32) -> Place { Place(rawValue: number << 2 | 2) }

    /// How a vCPU is reached there.
    enum Way { case none, kick, wake }

    var way: Way {
      switch rawValue & 3 {
      case 0: .none
      case 1: .kick
      default: .wake
      }
    }
  }

  private let place = Atomic<Place>(.loop)
  /// How often the vCPU has gone to sleep.
  private let sleeps = Atomic<UInt32>(0)
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
    let place = place.load(ordering: .sequentiallyConsistent)
    switch place.way {
    case .none: break
    case .kick: kick()
    case .wake: if endSleep(place) { wake() }
    }
  }

  /// Ends a sleep; true for one caller only, which then decides who runs the vCPU.
  private func endSleep(_ sleep: Place) -> Bool {
    place.compareExchange(expected: sleep, desired: .loop, ordering: .sequentiallyConsistent).exchanged
  }

  /// Asks the vCPU to make room for others, if a thread has it: one that sleeps goes on sleeping.
  func preempt() {
    preempted.store(true, ordering: .sequentiallyConsistent)
    if place.load(ordering: .sequentiallyConsistent) == .guest { kick() }
  }

  /// A thread takes the vCPU: what was asked of it before no longer counts. Nobody calls `preempt` meanwhile.
  func forgetPreemption() { preempted.store(false, ordering: .relaxed) }

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
  var isStopped: Bool { stopped.load(ordering: .sequentiallyConsistent) }

  /// Whether `preempt` was called since a thread took the vCPU.
  var isPreempted: Bool { preempted.load(ordering: .sequentiallyConsistent) }

  /// Whether `endHalt` was called since the last HLT ended that way.
  func takeEndOfHalt() -> Bool { unhalted.exchange(false, ordering: .acquiringAndReleasing) }

  /// From here on `ring` kicks. Look at the devices afterwards.
  func enterGuest() { place.store(.guest, ordering: .sequentiallyConsistent) }

  /// From here on `ring` does nothing.
  func leaveGuest() { place.store(.loop, ordering: .releasing) }

  /// Puts the vCPU to sleep, unless there is news: `hasNews` looks at devices only.
  ///
  /// - Returns: Whether it sleeps. It may then be running on another thread already, and nothing of it be touched.
  func sleep(unless hasNews: () -> Bool) -> Bool {
    let here = Place.asleep(sleeps.wrappingAdd(1, ordering: .relaxed).newValue)
    place.store(here, ordering: .sequentiallyConsistent)
    guard hasNews() || isStopped || unhalted.load(ordering: .sequentiallyConsistent) else { return true }
    return !endSleep(here)
  }
}

extension Doorbell: SavedState {
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var endsHalt = unhalted.load(ordering: .acquiring)
    try archive.transfer(&endsHalt, "end of halt")
    unhalted.store(endsHalt, ordering: .releasing)
  }
}

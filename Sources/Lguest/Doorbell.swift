// SPDX-License-Identifier: Apache-2.0
// How anybody reaches a vCPU: in the guest it is kicked, halted it is woken, and anywhere else it is left alone, because
// it looks for news itself before it goes on. The order is the whole point. A ringer changes a device first and then
// looks where the vCPU is; the vCPU says where it goes first and then looks at the devices. One of them sees the other.

import Host
import Synchronization

/// Where one vCPU is, and the bell that brings it back to the run loop.
final class Doorbell: Sendable {
  private enum Place {
    /// In the run loop.
    static let loop: UInt32 = 0
    static let guest: UInt32 = 1
    static let halted: UInt32 = 2
  }

  private let place = Futex(Place.loop)
  private let stopped = Atomic<Bool>(false)
  private let unhalted = Atomic<Bool>(false)
  private let kick: @Sendable () -> Void

  /// - Parameter kick: Makes the engine leave the guest soon, from any thread.
  init(kick: @escaping @Sendable () -> Void) { self.kick = kick }

  // MARK: Any thread

  /// Tells the vCPU that there may be something new for it; the news itself must be in place already.
  func ring() {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    switch place.word.load(ordering: .sequentiallyConsistent) {
    case Place.guest: kick()
    case Place.halted:
      if place.word.compareExchange(
        expected: Place.halted, desired: Place.loop, ordering: .sequentiallyConsistent
      ).exchanged {
        place.wake()
      }
    default: break
    }
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

  // MARK: The vCPU's thread

  /// Whether `stop` was called.
  var isStopped: Bool { stopped.load(ordering: .acquiring) }

  /// From here on `ring` kicks. Look at the devices afterwards.
  func enterGuest() { place.word.store(Place.guest, ordering: .sequentiallyConsistent) }

  /// From here on `ring` does nothing.
  func leaveGuest() { place.word.store(Place.loop, ordering: .releasing) }

  /// Sleeps until `isOver`, which is asked at the beginning and after each ring.
  func halt(until isOver: () -> Bool) {
    while true {
      place.word.store(Place.halted, ordering: .sequentiallyConsistent)
      if isOver() || isStopped || unhalted.exchange(false, ordering: .acquiringAndReleasing) { break }
      place.wait(while: Place.halted)
    }
    leaveGuest()
  }
}

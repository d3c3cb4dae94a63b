// SPDX-License-Identifier: Apache-2.0
// The one thread that sleeps until a device of some machine has something to do by itself: of the one machine that has it,
// or of all machines of a group. Machines that have no timer set cost it nothing.

import Host
import Synchronization

/// The timer thread of a machine or a group.
final class TimerThread: Sendable {
  private struct State {
    /// By place; nil: free.
    var timers: [Timers?] = []
    /// By place, when there is something to do; `.max` also while it is being done.
    var next: [UInt64] = []
    var isRung: [Bool] = []
    /// The places that are.
    var rung: [Int] = []
  }

  private let state = Mutex(State())
  private let thread = DeadlineThread()

  /// Starts the thread. Once only.
  func start(_ sandbox: Sandbox? = nil) throws(HostError) {
    sandbox?.announce()
    try thread.start(name: "lguest-timers", begin: { sandbox?.confine(.timers) }) { [weak self] in
      self?.round() ?? .max
    }
  }

  /// Ends the thread and waits for it.
  func stop() { thread.stop() }

  /// Adds a machine's timers, and says what their place is.
  func add(_ timers: Timers) -> Int {
    let place = state.withLock { state in
      let place = state.timers.firstIndex { $0 == nil } ?? state.timers.count
      if place == state.timers.count {
        state.timers.append(nil)
        state.next.append(.max)
        state.isRung.append(false)
      }
      state.timers[place] = timers
      return place
    }
    ring(place)
    return place
  }

  /// Forgets the timers that have a place.
  func remove(_ place: Int) {
    state.withLock { state in
      state.timers[place] = nil
      state.next[place] = .max
    }
  }

  /// Makes the thread look at the timers that have a place, soon.
  func ring(_ place: Int) {
    state.withLock { state in
      guard !state.isRung[place] else { return }
      state.isRung[place] = true
      state.rung.append(place)
    }
    thread.ring()
  }

  /// Does what is due and says when there is more.
  private func round() -> UInt64 {
    let due = state.withLock { state in
      let now = HostClock.monotonic
      for place in state.next.indices where state.next[place] <= now && !state.isRung[place] {
        state.rung.append(place)
      }
      defer { state.rung = [] }
      return state.rung.compactMap { place in
        state.isRung[place] = false
        state.next[place] = .max
        return state.timers[place].map { (place: place, timers: $0) }
      }
    }
    for (place, timers) in due {
      let next = timers.expire()
      // Another machine's may have the place by now, and has rung.
      state.withLock { state in if state.timers[place] === timers { state.next[place] = next } }
    }
    // Whoever has rung meanwhile is followed by another round.
    return state.withLock { $0.next.min() ?? .max }
  }
}

// SPDX-License-Identifier: Apache-2.0
// A thread that sleeps until there is something to do: until a moment it has named itself, or until somebody rings. A
// ring is never lost, and costs its caller one compare and exchange while the thread has not slept since the last.

import Synchronization

/// A thread that works in rounds, and sleeps between them.
public final class DeadlineThread: Sendable {
  private enum Bell {
    static let quiet: UInt32 = 0
    static let rung: UInt32 = 1
    static let stopped: UInt32 = 2
  }

  private let bell = Futex(Bell.quiet)
  private let thread = Mutex<HostThread?>(nil)

  /// Nothing runs before `start`.
  public init() {}

  /// Starts the thread. Once only.
  ///
  /// - Parameters:
  ///   - name: For ps and gdb; 15 bytes are kept.
  ///   - begin: Called on the thread before the first round.
  ///   - round: Does what there is to do and returns when there will be more, as an instant of `HostClock.monotonic` in
  ///     ns; `UInt64.max` is never. A ring from its beginning on is followed by another round.
  /// - Throws: `HostError`: the host gives no thread.
  public func start(
    name: String, begin: @escaping @Sendable () -> Void = {}, _ round: @escaping @Sendable () -> UInt64
  ) throws(HostError) {
    let started = try HostThread(name: name, stackBytes: 512 << 10) { [bell] in
      begin()
      while true {
        // Quiet first, so that a ring from here on ends the wait.
        _ = bell.word.compareExchange(expected: Bell.rung, desired: Bell.quiet, ordering: .sequentiallyConsistent)
        if bell.word.load(ordering: .sequentiallyConsistent) == Bell.stopped { return }
        bell.wait(while: Bell.quiet, until: round())
      }
    }
    thread.withLock { $0 = started }
  }

  /// Makes the thread begin a round soon. Any thread.
  public func ring() {
    // Not over a stop.
    let (isNew, _) = bell.word.compareExchange(
      expected: Bell.quiet, desired: Bell.rung, ordering: .sequentiallyConsistent)
    if isNew { bell.wake() }
  }

  /// Ends the thread after the round it is in, and waits for it.
  public func stop() {
    bell.set(Bell.stopped)
    let started = thread.withLock { thread in
      defer { thread = nil }
      return thread
    }
    started?.join()
  }
}

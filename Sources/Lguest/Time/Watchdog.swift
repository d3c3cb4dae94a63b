// SPDX-License-Identifier: Apache-2.0
// The thread beside the vCPUs that asks a machine to stop when one of its time limits passes.

import Host
import Synchronization

/// Enforces the time limits of one machine from its making until `stop`.
final class Watchdog: Sendable {
  private let stopped = Futex(0)
  private let thread: HostThread

  /// - Parameter machine: Must live until `stop` returns.
  init(_ machine: VirtualMachine) throws(HostError) {
    let stopped = stopped
    let sandbox = machine.configuration.sandbox
    sandbox?.announce()
    thread = try HostThread(name: "lguest-watchdog", stackBytes: 256 << 10) { [unowned machine] in
      sandbox?.confine(.watchdog)
      while stopped.word.load(ordering: .acquiring) == 0 {
        let next = machine.enforceTimeLimits()
        // The boot limit can go away, so nobody sleeps longer than a second on account of it.
        let left = next.map { max($0 - .now, .zero).inSeconds } ?? 1
        stopped.wait(while: 0, until: HostClock.after(nanoseconds: UInt64(min(left, 1) * 1e9) + 100_000))
      }
    }
  }

  /// Ends the thread and waits for it.
  func stop() {
    stopped.set(1)
    thread.join()
  }
}

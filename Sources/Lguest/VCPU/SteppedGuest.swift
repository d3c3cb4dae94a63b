// SPDX-License-Identifier: Apache-2.0
// A ring-1 guest whose stays on a thread are made one by one, by whoever measures what it costs to go on.

import Engine
import Host
import Paravirt

extension RunLoop {
  /// One stay in the guest on the calling thread, and the answer to what it left for; false if that ends the run.
  fileprivate func stay(on thread: VCPUThread) -> Bool {
    self.thread = thread
    doorbell.enterGuest()
    deliverLguest()
    let exit = engine.run()
    doorbell.leaveGuest()
    return handle(exit) == nil
  }
}

/// Such a guest. Belongs to one thread, which is prepared for engines (`SteppedGuest.onThread`).
package final class SteppedGuest {
  /// What a host thread has for the guests that run on it.
  package final class Place {
    fileprivate let thread: VCPUThread

    /// - Throws: `ConfigurationError` if the host gives no memory.
    package init(_ policy: LguestPage.Policy = .changed) throws(ConfigurationError) {
      do throws(HostError) { thread = try VCPUThread(policy: policy) } catch { throw ConfigurationError(error) }
    }
  }

  private let machine: VirtualMachine
  private let built: BuiltMachine

  /// - Throws: `ConfigurationError`: what stops any run.
  package init(_ configuration: VirtualMachine.Configuration) throws(ConfigurationError) {
    machine = VirtualMachine(configuration: configuration)
    built = try machine.build()
  }

  deinit { machine.dismantle(built) }

  /// Runs `body` on this thread, which is prepared for it.
  package static func onThread(_ body: () throws(ConfigurationError) -> Void) throws(ConfigurationError) {
    var failure: ConfigurationError?
    do throws(HostError) {
      try MachineParts.withPreparedThread {
        do throws(ConfigurationError) { try body() } catch { failure = error }
      }
    } catch { throw ConfigurationError(error) }
    if let failure { throw failure }
  }

  /// Goes on to the guest's next hypercall, which is performed; false if that ended it.
  package func step(on place: Place) -> Bool { built.loops.first?.stay(on: place.thread) ?? false }

  /// What its stays cost so far.
  package var counts: LguestResumeCounts { built.loops.first?.lguest?.resumeCounts ?? LguestResumeCounts() }
}

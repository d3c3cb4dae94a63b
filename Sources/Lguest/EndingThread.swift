// SPDX-License-Identifier: Apache-2.0
// The thread of a group that says how machines have ended: what is left of one is gathered there and not where others'
// vCPUs run, and what a program does about it may take its time.

import DequeModule
import Host
import Synchronization

/// Does what it is given, one after the other.
final class EndingThread: Sendable {
  private struct State {
    var jobs = Deque<@Sendable () -> Void>()
    var isStopped = false
  }

  /// What the thread holds: not the object that `stop`s it.
  private final class Queue: Sendable {
    let state = Mutex(State())
    /// How many jobs there were so far, and a last one for the end.
    let bell = Futex(0)

    func work() {
      while true {
        let seen = bell.word.load(ordering: .sequentiallyConsistent)
        let (job, isStopped) = state.withLock { ($0.jobs.popFirst(), $0.isStopped) }
        if let job {
          job()
        } else if isStopped {
          return
        } else {
          bell.wait(while: seen)
        }
      }
    }

    func ring() {
      bell.word.wrappingAdd(1, ordering: .sequentiallyConsistent)
      bell.wake()
    }
  }

  private let queue = Queue()

  /// Starts the thread. Once only.
  func start(_ sandbox: Sandbox?) throws(HostError) {
    sandbox?.announce()
    _ = try HostThread(name: "lguest-endings") { [queue] in
      sandbox?.confine(.machine)
      queue.work()
    }
  }

  /// The thread will do it.
  func add(_ job: @escaping @Sendable () -> Void) {
    queue.state.withLock { $0.jobs.append(job) }
    queue.ring()
  }

  /// Lets the thread end once it has nothing to do; nobody waits for that.
  func stop() {
    queue.state.withLock { $0.isStopped = true }
    queue.ring()
  }
}

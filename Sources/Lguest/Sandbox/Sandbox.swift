// SPDX-License-Identifier: Apache-2.0
// The last wall: before the first guest instruction every thread gives up what it will not need again, so that code
// which has escaped from the translator is in a process that can open, execute and connect to nothing.

import Host
import Synchronization

/// Confines the threads of one machine, and those of the program around it that take part.
///
/// Confinement is a thread's, for good, and is inherited by threads that it starts. Everything a run needs later must
/// be open before. A call that is refused raises SIGSYS, which a sandbox takes: the process dies of it, unless
/// `Refusals.handle` says otherwise.
public final class Sandbox: Sendable {
  /// Why system calls are not filtered, because the host does not offer that; nil if they are.
  public let filterProblem: String?
  /// The version of Landlock's interface, nil on a host without it.
  public var landlockVersion: Int? { landlock.map { Int($0.version) } }
  /// Whether the thread that calls `VirtualMachine.run` is confined too, for good.
  let includesCaller: Bool

  private let landlock: Landlock?
  /// Threads that are announced and not yet confined.
  private let missing = Futex(0)
  private let failure = Mutex<HostError?>(nil)

  /// Looks at what the host offers.
  ///
  /// - Parameter includingCaller: Whether the thread that calls `VirtualMachine.run` is confined as well, as
  ///   `.machine`, once the machine is built. It stays so after the run.
  public init(includingCaller: Bool = false) {
    filterProblem = HostProbe.filterProblem()
    landlock = Landlock()
    includesCaller = includingCaller
    Refusals.prepare()
  }

  /// Announces threads: the guest does not begin before as many have called `confine`. Each is to be announced before
  /// it can be missed.
  public func announce(_ count: Int = 1) {
    missing.word.wrappingAdd(UInt32(count), ordering: .sequentiallyConsistent)
  }

  /// Takes an announcement back.
  func retract(_ count: Int) {
    let before = missing.word.wrappingSubtract(UInt32(count), ordering: .sequentiallyConsistent).oldValue
    precondition(before >= UInt32(count), "a thread was confined that was not announced")
    missing.wake()
  }

  /// Confines the calling thread, which was announced. If that fails the run ends as one that cannot start.
  public func confine(_ kind: Kind) {
    do throws(HostError) {
      try landlock?.install()
      if filterProblem == nil { try Sandbox.filter(of: kind).install() }
    } catch { failure.withLock { $0 = error } }
    retract(1)
  }

  /// Waits until every thread that was announced is confined, or the run is over.
  ///
  /// - Throws: `HostError`: one could not be.
  func waitForAll(unless isOver: () -> Bool) throws(HostError) {
    while true {
      let count = missing.word.load(ordering: .sequentiallyConsistent)
      if let error = failure.withLock({ $0 }) { throw error }
      if count == 0 || isOver() { return }
      missing.wait(while: count, until: HostClock.after(nanoseconds: 50_000_000))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Where all vCPUs of a machine but one stand still: what changes the tables of other vCPUs, or reuses memory that they
// may be executing, is done there. A vCPU says that it is busy with the engine, then looks whether somebody wants to be
// alone; whoever wants to be alone says so, then looks who is busy. One of them sees the other.

import CHost
import Host
import Synchronization

/// What one vCPU tells the others.
final class Activity: Sendable {
  /// 1 while the vCPU executes guest code or uses its tables.
  fileprivate let busy = Futex(0)
}

/// The agreement among the vCPUs of a machine about who stands still.
final class SafePoint: Sendable {
  /// 1 while a vCPU is alone, or waits to be.
  private let wanted = Futex(0)
  private let turn = Mutex<Void>(())

  /// Looks at a vCPU that is about to stop, before sleeping: it polls within microseconds if it runs at all.
  private static let looks = 2000

  /// Whether somebody waits for the others to stop.
  var isWanted: Bool { wanted.word.load(ordering: .sequentiallyConsistent) != 0 }

  /// The vCPU is about to execute guest code, or to use its tables: waits while another is alone.
  func begin(_ activity: Activity) {
    while true {
      activity.busy.word.store(1, ordering: .sequentiallyConsistent)
      if !isWanted { return }
      end(activity)
      wanted.wait(while: 1)
    }
  }

  /// The vCPU does neither any longer.
  func end(_ activity: Activity) {
    activity.busy.word.store(0, ordering: .sequentiallyConsistent)
    if isWanted { activity.busy.wake() }
  }

  /// Runs `body` while no vCPU but the caller's is busy.
  ///
  /// The caller must not hold the engine's lock, and stands still itself before its turn comes: whatever it knew of
  /// the code cache or of its own tables may have changed when `body` begins, and again after it.
  func alone<Result>(_ translation: Translation, as caller: TranslatedCPU?, _ body: () -> Result) -> Result {
    if let caller { end(caller.activity) }
    defer { if let caller { begin(caller.activity) } }
    return turn.withLock { _ in
      wanted.word.store(1, ordering: .sequentiallyConsistent)
      translation.forEachCPU { if $0 !== caller { waitFor($0) } }
      defer { wanted.set(0) }
      return body()
    }
  }

  private func waitFor(_ cpu: TranslatedCPU) {
    cpu.askToLeave()
    var looks = 0
    while cpu.activity.busy.word.load(ordering: .sequentiallyConsistent) != 0 {
      looks += 1
      if looks > SafePoint.looks { cpu.activity.busy.wait(while: 1) }
    }
  }
}

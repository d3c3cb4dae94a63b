// SPDX-License-Identifier: Apache-2.0
// The thread of a disk: while the machine is paused it writes neither to the guest's memory nor to the disk.

import Foundation
import Synchronization
import Testing

@testable import Lguest

@Suite("Threads of disks") struct DiskThreadTests {
  private final class Work: Sendable {
    let count = Atomic(0)
    var done: Int { count.load(ordering: .sequentiallyConsistent) }
    func wait(beyond number: Int) -> Bool {
      for _ in 0..<10_000 {
        if done > number { return true }
        usleep(1000)
      }
      return false
    }
  }

  @Test("a pause lets one piece of work end and none begin") func pause() throws {
    let (thread, work) = (DiskThread(), Work())
    try thread.start(0, nil) {
      while thread.begins {
        usleep(200)
        work.count.add(1, ordering: .sequentiallyConsistent)
      }
    }
    defer { thread.stop() }
    for _ in 0..<20 {
      thread.ring()
      #expect(work.wait(beyond: work.done))
      thread.pause()
      let seen = work.done
      thread.ring()
      usleep(2000)
      #expect(work.done == seen)
      thread.resume()
      #expect(work.wait(beyond: seen))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Threads, the futexes they wait on, and the thread that works when a moment has come.

import Foundation
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite("Threads")
struct ThreadTests {
  @Test("A thread has its name and blocks signals")
  func thread() throws {
    let seen = Mutex<[Substring]>([])
    let thread = try HostThread(name: "lguest-test") {
      let status = HostFile.text("/proc/thread-self/status") ?? ""
      seen.withLock {
        $0 = status.split(separator: "\n").filter { $0.hasPrefix("Name:") || $0.hasPrefix("SigBlk:") }.map {
          Substring(String($0))
        }
      }
    }
    #expect(!thread.isCurrent)
    thread.join()
    thread.join()
    let lines = seen.withLock { $0 }
    #expect(lines.first == "Name:\tlguest-test")
    let blocked = UInt64(lines.last?.split(separator: "\t").last ?? "", radix: 16) ?? 0
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGALRM, SIGCHLD] { #expect(blocked >> (signal - 1) & 1 == 1) }
    for signal in [SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGTRAP] { #expect(blocked >> (signal - 1) & 1 == 0) }
  }

  @Test("A futex is woken, times out, and notices that the word has changed")
  func futex() throws {
    let futex = Futex(1)
    #expect(futex.wait(while: 0) == .changed)
    let start = HostClock.monotonic
    #expect(futex.wait(while: 1, until: HostClock.after(nanoseconds: 20_000_000)) == .timedOut)
    #expect(HostClock.monotonic - start >= 20_000_000)
    let thread = try HostThread(name: "waiter") {
      let end = HostClock.after(nanoseconds: UInt64(TestLimit.scaled(60) * 1e9))
      while futex.word.load(ordering: .acquiring) == 1, HostClock.monotonic < end { futex.wait(while: 1, until: end) }
    }
    HostClock.sleep(until: HostClock.after(nanoseconds: 5_000_000))
    futex.set(2)
    let woken = HostClock.monotonic
    thread.join()
    #expect(HostClock.monotonic - woken < UInt64(TestLimit.scaled(30) * 1e9))
  }

  @Test("A thread of deadlines works when it is rung, when its moment has come, and not after it was stopped")
  func deadlineThread() throws {
    let thread = DeadlineThread()
    // Before there is anybody to hear it.
    thread.ring()
    let work = Rounds()
    try thread.start(name: "rounds") { work.round() }
    #expect(TestLimit.wait(seconds: 60) { work.rounds.load(ordering: .acquiring) >= 1 })
    for _ in 0..<1000 {
      let before = work.rounds.load(ordering: .acquiring)
      thread.ring()
      #expect(TestLimit.wait(seconds: 60) { work.rounds.load(ordering: .acquiring) > before })
    }
    // A moment: the round that learns of it, and the one that comes by itself.
    let before = work.rounds.load(ordering: .acquiring)
    work.wanted.store(HostClock.after(nanoseconds: 5_000_000), ordering: .releasing)
    thread.ring()
    #expect(TestLimit.wait(seconds: 60) { work.rounds.load(ordering: .acquiring) >= before + 2 })
    thread.stop()
    let last = work.rounds.load(ordering: .acquiring)
    thread.ring()
    thread.stop()
    #expect(work.rounds.load(ordering: .acquiring) == last)
  }

  /// What a thread of deadlines does.
  private final class Rounds: Sendable {
    let rounds = Atomic<Int>(0)
    /// The next moment, once.
    let wanted = Atomic<UInt64>(.max)

    func round() -> UInt64 {
      rounds.wrappingAdd(1, ordering: .releasing)
      return wanted.exchange(.max, ordering: .acquiringAndReleasing)
    }
  }
}

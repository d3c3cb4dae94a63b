// SPDX-License-Identifier: Apache-2.0
// The event loop: deadlines, descriptors, signals and posted work.

import Foundation
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite("Event loop")
struct EventLoopTests {
  @Test("Deadlines run in order, never early, and cancelled ones not at all")
  func timers() throws {
    let loop = try EventLoop()
    let order = Mutex<[Int]>([])
    let early = Mutex(0)
    // From the loop's own thread, so that none runs before all are scheduled, however busy the host is.
    loop.perform {
      let now = HostClock.monotonic
      for n in [5, 1, 4, 2, 3] {
        let deadline = now + UInt64(n) * 5_000_000
        loop.schedule(at: deadline) {
          if HostClock.monotonic < deadline { early.withLock { $0 += 1 } }
          order.withLock { $0.append(n) }
        }
      }
      let cancelled = loop.schedule(at: now + 12_000_000) { order.withLock { $0.append(99) } }
      if !loop.cancel(cancelled) || loop.cancel(cancelled) { order.withLock { $0.append(98) } }
      for _ in 0..<10_000 { loop.cancel(loop.schedule(at: .max) {}) }
      loop.schedule(at: 0) { order.withLock { $0.append(0) } }
    }
    #expect(TestLimit.wait(seconds: 60) { order.withLock { $0.count == 6 } })
    #expect(order.withLock { $0 } == [0, 1, 2, 3, 4, 5])
    #expect(early.withLock { $0 } == 0)
    loop.stop()
    loop.stop()
  }

  @Test("Descriptors are watched, paused and left alone again")
  func descriptors() throws {
    let loop = try EventLoop()
    let pipe = try FileDescriptor.pipe()
    let received = Mutex<[UInt8]>([])
    let watch = try loop.watch(pipe.readEnd, for: .readable) { _ in
      var byte: UInt8 = 0
      let count = unsafe withUnsafeMutableBytes(of: &byte) { unsafe (try? pipe.readEnd.read(into: $0)) ?? 0 }
      if count == 1 { received.withLock { $0.append(byte) } }
    }
    try pipe.writeEnd.writeAll([1])
    #expect(TestLimit.wait(seconds: 60) { received.withLock { $0 == [1] } })
    loop.setInterest([], of: watch)
    try pipe.writeEnd.writeAll([2])
    HostClock.sleep(until: HostClock.after(nanoseconds: 10_000_000))
    #expect(received.withLock { $0 } == [1])
    loop.setInterest(.readable, of: watch)
    #expect(TestLimit.wait(seconds: 60) { received.withLock { $0 == [1, 2] } })
    loop.unwatch(watch)
    loop.stop()
    try pipe.readEnd.close()
    try pipe.writeEnd.close()
  }

  @Test("A regular file is always ready, as with poll(2)")
  func regularFile() throws {
    let loop = try EventLoop()
    let file = try FileDescriptor.open(FilePath("/proc/self/exe"), .readOnly)
    let calls = Mutex(0)
    let watch = try loop.watch(file, for: .readable) { _ in calls.withLock { $0 += 1 } }
    #expect(TestLimit.wait(seconds: 60) { calls.withLock { $0 > 3 } })
    loop.unwatch(watch)
    loop.stop()
    try file.close()
  }

  @Test("Posted work runs in order on the loop's thread")
  func perform() throws {
    let loop = try EventLoop()
    let order = Mutex<[Int]>([])
    for n in 0..<100 { loop.perform { order.withLock { $0.append(n) } } }
    #expect(TestLimit.wait(seconds: 60) { order.withLock { $0.count == 100 } })
    #expect(order.withLock { $0 } == Array(0..<100))
    #expect(!loop.isCurrent)
  }

  @Test("Signals that the loop watches for arrive there")
  func signals() throws {
    let loop = try EventLoop()
    let seen = Mutex<[Int32]>([])
    // On the loop's thread, where all signals are blocked already: this process's other threads block none.
    loop.perform {
      _ = try? loop.watchSignals([SIGUSR1, SIGUSR2]) { signal in seen.withLock { $0.append(signal) } }
      raise(SIGUSR2)
      raise(SIGUSR1)
    }
    #expect(TestLimit.wait(seconds: 60) { seen.withLock { $0.count == 2 } })
    #expect(seen.withLock { $0.sorted() } == [SIGUSR1, SIGUSR2])
    loop.stop()
  }
}

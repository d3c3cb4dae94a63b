// SPDX-License-Identifier: Apache-2.0
// Linux, owned: mappings, threads, futexes, the event loop and what the host offers.

import Foundation
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite("Host")
struct HostTests {
  @Test("What is written through one half of a double mapping is seen in the other")
  func dualMapping() throws {
    let dual = try DualMapping(byteCount: 5000)
    #expect(dual.byteCount == 8192)
    unsafe dual.writable.storeBytes(of: 0xC3, toByteOffset: 8191, as: UInt8.self)
    unsafe #expect(dual.executable.load(fromByteOffset: 8191, as: UInt8.self) == 0xC3)
    let maps = try #require(HostFile.text("/proc/self/maps"))
    #expect(!maps.contains("rwxs"))
    #expect(throws: HostError.self) { try DualMapping(byteCount: Int.max / 2) }
  }

  @Test("A mapping is unmapped with its owner")
  func unmaps() throws {
    // Not with Foundation, which reads only the first 4 KiB of a file that tells no size.
    func lines() throws -> [Substring] {
      try #require(HostFile.text("/proc/self/maps")).split(separator: "\n").filter { $0.contains("lguest-once") }
    }
    do {
      let file = try MemoryFile(name: "lguest-once", byteCount: 1 << 20)
      let reserved = try Mapping.reserve(byteCount: 1 << 30)
      try reserved.place(file, fileOffset: 4096, at: 8192, byteCount: 4096, [.read, .write])
      unsafe reserved.base.storeBytes(of: 7, toByteOffset: 8192, as: UInt8.self)
      let whole = try Mapping.shared(file, byteCount: 1 << 20, .read)
      unsafe #expect(whole.base.load(fromByteOffset: 4096, as: UInt8.self) == 7)
      let seen = try lines()
      #expect(seen.count == 2, "\(seen)")
    }
    #expect(try lines() == [])
  }

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
    #expect(eventually { work.rounds.load(ordering: .acquiring) >= 1 })
    for _ in 0..<1000 {
      let before = work.rounds.load(ordering: .acquiring)
      thread.ring()
      #expect(eventually { work.rounds.load(ordering: .acquiring) > before })
    }
    // A moment: the round that learns of it, and the one that comes by itself.
    let before = work.rounds.load(ordering: .acquiring)
    work.wanted.store(HostClock.after(nanoseconds: 5_000_000), ordering: .releasing)
    thread.ring()
    #expect(eventually { work.rounds.load(ordering: .acquiring) >= before + 2 })
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

  /// Waits until a condition holds, at most a minute.
  private func eventually(_ condition: () -> Bool) -> Bool {
    TestLimit.wait(seconds: 60, until: condition)
  }

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
    #expect(eventually { order.withLock { $0.count == 6 } })
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
    #expect(eventually { received.withLock { $0 == [1] } })
    loop.setInterest([], of: watch)
    try pipe.writeEnd.writeAll([2])
    HostClock.sleep(until: HostClock.after(nanoseconds: 10_000_000))
    #expect(received.withLock { $0 } == [1])
    loop.setInterest(.readable, of: watch)
    #expect(eventually { received.withLock { $0 == [1, 2] } })
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
    #expect(eventually { calls.withLock { $0 > 3 } })
    loop.unwatch(watch)
    loop.stop()
    try file.close()
  }

  @Test("Posted work runs in order on the loop's thread")
  func perform() throws {
    let loop = try EventLoop()
    let order = Mutex<[Int]>([])
    for n in 0..<100 { loop.perform { order.withLock { $0.append(n) } } }
    #expect(eventually { order.withLock { $0.count == 100 } })
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
    #expect(eventually { seen.withLock { $0.count == 2 } })
    #expect(seen.withLock { $0.sorted() } == [SIGUSR1, SIGUSR2])
    loop.stop()
  }

  @Test("Files: what cannot be a kernel or disk is refused in one line")
  func files() throws {
    for (path, word) in [("/", "directory"), ("/dev/null", "regular"), ("/nonexistent", "check the path")] {
      do throws(HostError) {
        _ = try HostFile(FilePath(path), role: "kernel image")
        Issue.record("\(path) was opened")
      } catch {
        #expect(error.description.contains(word) && error.description.contains("kernel image \(path)"))
        #expect(!error.description.contains("\n"))
      }
    }
    let file = try HostFile("/proc/self/exe", role: "program")
    #expect(throws: HostError.self) { try file.bytes(at: Int.max, count: 1) }
    #expect(throws: HostError.self) { try file.bytes(at: 0, count: Int.max) }
  }

  @Test("Memory and CPU limits of control groups of both versions")
  func capacity() throws {
    let root = FilePath(NSTemporaryDirectory()).appending("lguest-capacity-\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(atPath: root.string) }
    func write(_ path: String, _ text: String) throws {
      let full = root.appending(path)
      try FileManager.default.createDirectory(
        atPath: full.removingLastComponent().string, withIntermediateDirectories: true)
      try text.write(toFile: full.string, atomically: false, encoding: .utf8)
    }
    try write("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:  8388608 kB\n")
    #expect(HostCapacity.current(root: root).memory == 8 << 30)
    try write("proc/self/cgroup", "0::/a/b\n")
    try write("sys/fs/cgroup/a/memory.max", "2147483648\n")
    try write("sys/fs/cgroup/a/memory.current", "1073741824\n")
    try write("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 536870912\n")
    try write("sys/fs/cgroup/a/b/memory.max", "max\n")
    try write("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n")
    let limited = HostCapacity.current(root: root)
    #expect(limited.memory == 1536 << 20)
    #expect(limited.memoryLimitedBy.hasSuffix("sys/fs/cgroup/a"))
    #expect(limited.cpus == 1)
    try write("proc/self/cgroup", "4:memory:/gone/x\n5:cpu,cpuacct:/gone/x\n")
    try write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n")
    try write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    try write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    #expect(HostCapacity.current(root: root).memory == 1 << 20)
    let real = HostCapacity.current()
    #expect(real.cpus >= 1 && real.memory > 1 << 20)
  }
}

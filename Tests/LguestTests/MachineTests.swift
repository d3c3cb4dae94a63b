// SPDX-License-Identifier: Apache-2.0
// Whole machines with guests of a few instructions: every way to end, timers, input, and two machines at once.

import Foundation
import Host
import Logging
import Synchronization
import SystemPackage
import TestSupport
import Testing

@testable import Lguest

/// Collects bytes from any thread.
private final class Sink: Sendable {
  private let bytes = Mutex<[UInt8]>([])
  func put(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
  var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }
}

// The limits of these suites count the wait for a thread of the concurrency runtime too, which may be minutes long.
@Suite("Machines", .timeLimit(.minutes(10))) struct MachineTests {
  private func run(
    _ guest: TinyGuest, _ sink: Sink = Sink(), _ change: (inout VirtualMachine.Configuration) -> Void = { _ in },
    meanwhile: (@Sendable (VirtualMachine) -> Void)? = nil
  ) throws -> RunResult {
    try guest.withFile { file in
      var configuration = VirtualMachine.Configuration(kernel: file)
      configuration.memorySize = 64 << 20
      configuration.timeout = .seconds(60)
      configuration.debugExit = true
      configuration.consoleOutput = { sink.put($0) }
      change(&configuration)
      let machine = VirtualMachine(configuration: configuration)
      let beside = meanwhile.map { meanwhile in Thread { meanwhile(machine) } }
      beside?.start()
      return try machine.run()
    }
  }

  @Test("a guest prints and switches itself off") func poweroff() throws {
    let sink = Sink()
    let result = try run(.goodbye, sink)
    #expect(result.ending == .poweroff && sink.text == "hi\n" && result.consoleTail == ["hi"])
    #expect(result.statistics[.portWrite] == 4 && result.statistics.blocksTranslated > 0)
    #expect(result.processorState.isEmpty)
  }

  @Test("a reset, and the reset after a panic") func resets() throws {
    #expect(try run(.reset).ending == .reset)
    let panic = try run(.warmReset)
    #expect(panic.ending == .panic && panic.processorState.contains("RIP 0000000000100"))
  }

  @Test("a triple fault") func tripleFault() throws {
    let result = try run(.tripleFault)
    #expect(result.ending == .tripleFault && result.processorState.contains("CR3"))
  }

  @Test("what nobody has answers as hardware would, and is counted") func oddities() throws {
    let result = try run(.oddities)
    #expect(result.ending == .debugExit(0x2A))
    #expect(result.statistics.hypercalls == [77: 1])
    #expect(result.statistics.unknown["port 0x80"] == 1 && result.statistics.unknown["address 0xd0000000"] == 1)
  }

  @Test("debug exit is refused unless asked for") func noDebugExit() throws {
    // The guest goes on to HLT, and is stopped when it has been there.
    let result = try run(.oddities) {
      $0.debugExit = false
    } meanwhile: { machine in
      while machine.stopRequested == nil {
        Thread.sleep(forTimeInterval: 0.005)
        if machine.sampleStatistics()?.contains(where: { $0[.halt] > 0 }) == true {
          machine.requestStop(.interrupted(.hangUp))
        }
      }
    }
    #expect(result.ending == .interrupted(.hangUp) && result.statistics.unknown["port 0xf4"] == 2)
  }

  @Test("a machine stops when asked, halted or spinning", arguments: [TinyGuest.halt, .spin])
  func stop(_ guest: TinyGuest) throws {
    let begin = ContinuousClock.now
    let result = try run(
      guest,
      meanwhile: { machine in
        _ = TestLimit.wait { machine.times.guestStart != nil }
        Thread.sleep(forTimeInterval: 0.02)
        machine.requestStop(.interrupted(.terminate))
        machine.requestStop(.timeout)
      })
    #expect(result.ending == .interrupted(.terminate))
    #expect(ContinuousClock.now - begin < .seconds(TestLimit.scaled(30)))
  }

  @Test("the boot time limit ends a guest that never reaches user space") func bootLimit() throws {
    #expect(try run(.halt) { $0.bootTimeout = .milliseconds(200) }.ending == .bootTimeout)
  }

  @Test("a TSC deadline ends a halt, never early, and none is lost") func deadlines() throws {
    let result = try run(.deadlines)
    #expect(result.ending == .debugExit(0x42))
    #expect(result.statistics.interrupts == 300 && result.statistics[.halt] >= 300)
  }

  @Test("input reaches a guest that polls, in order and more than fits anywhere") func input() throws {
    let sink = Sink()
    let text = String((0..<1500).map { "\($0) " }.joined())
    let result = try run(
      .echo, sink,
      meanwhile: { machine in
        var rest = Array((text + "q").utf8)[...]
        while !rest.isEmpty, machine.stopRequested == nil {
          rest = rest.dropFirst(machine.consoleInput.put(rest))
          Thread.sleep(forTimeInterval: 0.001)
        }
      })
    #expect(result.ending == .poweroff && sink.text == text)
  }

  @Test("two machines in one process") func two() throws {
    let other = Mutex<Ending?>(nil)
    let result = try run(
      .deadlines,
      meanwhile: { _ in
        let ending = try? run(.deadlines).ending
        other.withLock { $0 = ending }
      })
    #expect(result.ending == .debugExit(0x42))
    #expect(TestLimit.wait(seconds: 100) { other.withLock { $0 != nil } })
    #expect(other.withLock { $0 } == .debugExit(0x42))
  }

  @Test("a machine leaves neither threads nor memory behind") func leavesNothing() throws {
    func count(_ path: String) throws -> Int { try FileManager.default.contentsOfDirectory(atPath: path).count }
    func mappings() throws -> Int {
      try String(contentsOfFile: "/proc/self/maps", encoding: .utf8).components(separatedBy: "memfd:lguest").count
    }
    for _ in 0..<3 { #expect(try run(.goodbye).ending == .poweroff) }
    // Other suites run beside this one, and their files come and go: a leak grows with every machine, each time.
    var grown = (files: 0, mappings: 0)
    for _ in 0..<10 {
      let before = (try count("/proc/self/fd"), try mappings())
      for _ in 0..<40 { #expect(try run(.goodbye).ending == .poweroff) }
      grown = (try count("/proc/self/fd") - before.0, try mappings() - before.1)
      if max(grown.files, grown.mappings) < 15 { break }
    }
    #expect(max(grown.files, grown.mappings) < 15, "\(grown)")
  }
}

@Suite("Doorbell and scheduler", .timeLimit(.minutes(10))) struct DoorbellTests {
  private final class Counters: Sendable {
    let news = Atomic<Int>(0), taken = Atomic<Int>(0), kicks = Atomic<Int>(0), wakes = Atomic<Int>(0)
  }

  /// Doorbells and their scheduler.
  private final class Team: Sendable {
    private struct Weak { weak var scheduler: Scheduler? }
    let doorbells: [Doorbell]
    let threads: VCPUThreads
    let scheduler: Scheduler

    init(
      cpus: Int, threads: Int, kick: @escaping @Sendable (Int) -> Void = { _ in },
      rearm: @escaping @Sendable () -> Void = {}
    ) {
      final class Place: Sendable { let scheduler = Mutex(Weak()) }
      let place = Place()
      doorbells = (0..<cpus).map { number in
        Doorbell(kick: { kick(number) }, wake: { place.scheduler.withLock { $0.scheduler }?.wake(number) })
      }
      self.threads = VCPUThreads(threadCount: threads, rearm: rearm)
      scheduler = Scheduler(self.threads, isAlone: true, doorbells: doorbells)
      place.scheduler.withLock { $0.scheduler = scheduler }
    }

    func start(_ run: @escaping @Sendable (Int) -> Scheduler.Pause) -> [Thread] {
      scheduler.begin { [scheduler] cpu, _ in
        let pause = run(cpu)
        if case .ended(let outcome) = pause { scheduler.end(outcome, by: cpu) }
        return pause
      }
      return (0..<threads.threadCount).map { number in
        let thread = Thread { [threads] in threads.work(number) }
        thread.start()
        return thread
      }
    }
  }

  @Test("a ring is never lost between looking and sleeping", arguments: [1, 2]) func noneLost(threads: Int) {
    let counters = Counters()
    let team = Team(cpus: 1, threads: threads)
    let rounds = 20_000
    _ = team.start { _ in
      while true {
        if team.doorbells[0].isStopped { return .ended(.stopped) }
        let taken = counters.taken.load(ordering: .relaxed)
        if team.doorbells[0].sleep(unless: { counters.news.load(ordering: .acquiring) > taken }) { return .halted }
        counters.taken.store(counters.news.load(ordering: .acquiring), ordering: .releasing)
      }
    }
    for round in 1...rounds {
      counters.news.store(round, ordering: .releasing)
      team.doorbells[0].ring()
      // The other thread may need this one's processor.
      guard TestLimit.spin(until: { counters.taken.load(ordering: .acquiring) >= round }) else {
        Issue.record("ring \(round) is lost")
        break
      }
    }
    team.scheduler.end(.stopped)
  }

  @Test("in the guest it kicks, asleep it wakes once, elsewhere it does neither, and nobody sleeps who is stopped")
  func places() {
    let counters = Counters()
    let doorbell = Doorbell(
      kick: { counters.kicks.wrappingAdd(1, ordering: .relaxed) },
      wake: { counters.wakes.wrappingAdd(1, ordering: .relaxed) })
    doorbell.ring()
    doorbell.enterGuest()
    doorbell.ring()
    doorbell.leaveGuest()
    doorbell.ring()
    #expect(counters.kicks.load(ordering: .relaxed) == 1 && !doorbell.isStopped)
    #expect(doorbell.sleep { false })
    doorbell.ring()
    doorbell.ring()
    #expect(counters.wakes.load(ordering: .relaxed) == 1)
    doorbell.endHalt()
    #expect(!doorbell.sleep { false } && doorbell.takeEndOfHalt() && !doorbell.takeEndOfHalt())
    // Who sleeps has made room already, and whoever has it next does not hear of that.
    #expect(doorbell.sleep { false })
    doorbell.preempt()
    #expect(counters.wakes.load(ordering: .relaxed) == 1 && doorbell.isPreempted)
    doorbell.ring()
    doorbell.forgetPreemption()
    #expect(counters.wakes.load(ordering: .relaxed) == 2 && !doorbell.isPreempted)
    doorbell.enterGuest()
    doorbell.preempt()
    doorbell.leaveGuest()
    #expect(counters.kicks.load(ordering: .relaxed) == 2 && doorbell.isPreempted)
    doorbell.stop()
    #expect(!doorbell.sleep { false } && doorbell.isStopped)
  }

  @Test("every vCPU runs on one thread, in turn, when its slice is over or it makes room") func turns() {
    let team = Team(cpus: 3, threads: 1)
    let order = Mutex<[Int]>([])
    let threads = team.start { cpu in
      let count = order.withLock {
        $0.append(cpu)
        return $0.count
      }
      return count == 9 ? .ended(.stopped) : .preempted
    }
    #expect(TestLimit.wait { team.scheduler.ending != nil })
    #expect(TestLimit.wait { threads.allSatisfy(\.isFinished) })
    #expect(order.withLock { $0 } == [0, 1, 2, 0, 1, 2, 0, 1, 2])
    #expect(team.scheduler.ending?.cpu == 2)
  }

  @Test("who waits is preferred on demand, asks for the end of the slice, and his time counts as stolen") func waiting()
  {
    // Nobody is preferred to who has waited for long: on a busy host this may come too late, and is tried again.
    #expect((0..<100).contains { _ in isPreferred() }, "never soon enough")
  }

  /// Whether a vCPU was preferred while no other had waited for long; then all the rest must be so.
  private func isPreferred() -> Bool {
    let counters = Counters()
    let start = HostClock.monotonic
    let team = Team(cpus: 3, threads: 1) { _ in counters.kicks.wrappingAdd(1, ordering: .relaxed) }
    let order = Mutex<[Int]>([])
    _ = team.start { cpu in
      // Before the test sees that it runs: a doorbell that rings earlier is not heard here.
      if cpu == 0 { team.doorbells[0].enterGuest() }
      order.withLock { $0.append(cpu) }
      if cpu == 0 {
        _ = TestLimit.wait { counters.kicks.load(ordering: .relaxed) > 0 }
        team.doorbells[0].leaveGuest()
        return team.doorbells[0].isPreempted ? .preempted : .ended(.stopped)
      }
      return .ended(.stopped)
    }
    #expect(TestLimit.wait { order.withLock { !$0.isEmpty } })
    #expect(team.scheduler.prefer(2) && !team.scheduler.prefer(0))
    let isSoon = HostClock.monotonic &- start < Schedule.patience
    let deadline = team.threads.nextDeadline
    #expect(deadline != nil)
    #expect(TestLimit.wait { HostClock.monotonic >= deadline ?? 0 })
    team.threads.expire(now: HostClock.monotonic)
    #expect(TestLimit.wait { team.scheduler.ending != nil })
    guard isSoon else { return false }
    #expect(team.scheduler.ending?.cpu == 2)
    let waits = (0..<3).map { team.scheduler.wait(of: $0) }
    #expect(waits[2].total >= Schedule.slice && waits[0].total < waits[1].total)
    #expect(waits[2].longest == waits[2].total)
    return true
  }

  @Test("whoever is ready from the beginning has a slice soon, and after a pause again") func slices() throws {
    let timers = Timers()
    let team = Team(cpus: 3, threads: 2, rearm: { timers.rearm(0) })
    try timers.start([team.threads])
    // The timer has looked, and found nobody who runs.
    Thread.sleep(forTimeInterval: 0.01)
    let turns = Mutex<[Int]>([0, 0, 0])
    let threads = team.start { cpu in
      turns.withLock { $0[cpu] += 1 }
      // A guest that leaves often, and would never leave for good.
      while true {
        team.doorbells[cpu].enterGuest()
        if team.doorbells[cpu].isStopped { return .ended(.stopped) }
        if team.doorbells[cpu].isPreempted {
          team.doorbells[cpu].leaveGuest()
          return .preempted
        }
        usleep(200)
        team.doorbells[cpu].leaveGuest()
      }
    }
    func expectTurns() {
      let before = turns.withLock { $0 }
      let limit = Date() + 20
      while Date() < limit, !zip(before, turns.withLock { $0 }).allSatisfy({ $1 > $0 + 2 }) { usleep(500) }
      #expect(zip(before, turns.withLock { $0 }).allSatisfy { $1 > $0 + 2 })
    }
    expectTurns()
    #expect(team.scheduler.pause(until: HostClock.after(nanoseconds: 20_000_000_000)))
    // Again it finds nobody.
    Thread.sleep(forTimeInterval: 0.01)
    team.scheduler.resume()
    expectTurns()
    team.scheduler.end(.stopped)
    while threads.contains(where: { !$0.isFinished }) { usleep(500) }
    timers.stop()
  }
}

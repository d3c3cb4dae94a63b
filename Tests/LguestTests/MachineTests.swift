// SPDX-License-Identifier: Apache-2.0
// Whole machines with guests of a few instructions: every way to end, timers, input, and two machines at once.

import Foundation
import Logging
import Synchronization
import SystemPackage
import Testing

@testable import Lguest

/// Collects bytes from any thread.
private final class Sink: Sendable {
  private let bytes = Mutex<[UInt8]>([])
  func put(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
  var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }
}

@Suite("Machines", .timeLimit(.minutes(2))) struct MachineTests {
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
    let result = try run(.oddities) {
      $0.debugExit = false
      $0.timeout = .milliseconds(300)
    }
    #expect(result.ending == .timeout && result.statistics.unknown["port 0xf4"] == 2)
  }

  @Test("a machine stops when asked, halted or spinning", arguments: [TinyGuest.halt, .spin])
  func stop(_ guest: TinyGuest) throws {
    let begin = ContinuousClock.now
    let result = try run(guest, meanwhile: { machine in
      while machine.times.guestStart == nil { Thread.sleep(forTimeInterval: 0.005) }
      Thread.sleep(forTimeInterval: 0.02)
      machine.requestStop(.interrupted(.terminate))
      machine.requestStop(.timeout)
    })
    #expect(result.ending == .interrupted(.terminate))
    #expect(ContinuousClock.now - begin < .seconds(30))
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
    let result = try run(.echo, sink, meanwhile: { machine in
      var rest = Array((text + "q").utf8)[...]
      while !rest.isEmpty {
        rest = rest.dropFirst(machine.consoleInput.put(rest))
        Thread.sleep(forTimeInterval: 0.001)
      }
    })
    #expect(result.ending == .poweroff && sink.text == text)
  }

  @Test("two machines in one process") func two() throws {
    let other = Mutex<Ending?>(nil)
    let result = try run(.deadlines, meanwhile: { _ in
      let ending = try? run(.deadlines).ending
      other.withLock { $0 = ending }
    })
    #expect(result.ending == .debugExit(0x42))
    while other.withLock({ $0 == nil }) { Thread.sleep(forTimeInterval: 0.01) }
    #expect(other.withLock { $0 } == .debugExit(0x42))
  }

  @Test("a machine leaves neither threads nor memory behind") func leavesNothing() throws {
    func count(_ path: String) throws -> Int { try FileManager.default.contentsOfDirectory(atPath: path).count }
    func mappings() throws -> Int {
      try String(contentsOfFile: "/proc/self/maps", encoding: .utf8).components(separatedBy: "memfd:lguest").count
    }
    for _ in 0..<3 { #expect(try run(.goodbye).ending == .poweroff) }
    // Other suites run beside this one: a leak grows with every machine, they do not.
    let before = (try count("/proc/self/fd"), try mappings())
    for _ in 0..<20 { #expect(try run(.goodbye).ending == .poweroff) }
    #expect(try count("/proc/self/fd") < before.0 + 15)
    #expect(try mappings() < before.1 + 15)
  }
}

@Suite("Doorbell") struct DoorbellTests {
  @Test("a ring is never lost between looking and sleeping", .timeLimit(.minutes(1))) func noneLost() {
    final class Shared: Sendable {
      let news = Atomic<Int>(0)
      let taken = Atomic<Int>(0)
    }
    let shared = Shared()
    let doorbell = Doorbell {}
    let rounds = 20_000
    let sleeper = Thread {
      while shared.taken.load(ordering: .relaxed) < rounds {
        let seen = shared.taken.load(ordering: .relaxed)
        doorbell.halt { shared.news.load(ordering: .acquiring) > seen }
        shared.taken.store(shared.news.load(ordering: .acquiring), ordering: .releasing)
      }
    }
    sleeper.start()
    for round in 1...rounds {
      shared.news.store(round, ordering: .releasing)
      doorbell.ring()
      while shared.taken.load(ordering: .acquiring) < round {}
    }
  }

  @Test("in the guest it kicks, elsewhere it does not, and stopping ends a halt") func places() {
    final class Counter: Sendable { let kicks = Atomic<Int>(0) }
    let counter = Counter()
    let doorbell = Doorbell { counter.kicks.wrappingAdd(1, ordering: .relaxed) }
    doorbell.ring()
    doorbell.enterGuest()
    doorbell.ring()
    doorbell.leaveGuest()
    doorbell.ring()
    #expect(counter.kicks.load(ordering: .relaxed) == 1 && !doorbell.isStopped)
    doorbell.endHalt()
    doorbell.halt { false }
    doorbell.stop()
    doorbell.halt { false }
    #expect(doorbell.isStopped)
  }
}

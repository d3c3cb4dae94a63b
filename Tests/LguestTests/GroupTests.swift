// SPDX-License-Identifier: Apache-2.0
// Machines that share threads: each ends as it would alone, none disturbs another, and a hundred that sleep all answer.

import Foundation
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

@testable import Lguest

@Suite("Groups of machines", .timeLimit(.minutes(10))) struct GroupTests {
  /// A machine of a group, what it wrote and how it ended.
  private final class Member: Sendable {
    private let bytes = Mutex<[UInt8]>([])
    private let outcome = Mutex<RunResult?>(nil)
    let machine: VirtualMachine

    init(_ kernel: FilePath, _ change: (inout VirtualMachine.Configuration) -> Void = { _ in }) {
      var configuration = VirtualMachine.Configuration(kernel: kernel)
      configuration.memorySize = 64 << 20
      configuration.debugExit = true
      let holder = Holder()
      configuration.consoleOutput = { holder.member.withLock { $0.value }?.put($0) }
      change(&configuration)
      machine = VirtualMachine(configuration: configuration)
      holder.member.withLock { $0.value = self }
    }

    private struct Weak { weak var value: Member? }
    private final class Holder: Sendable { let member = Mutex(Weak()) }

    private func put(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
    var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }
    var result: RunResult? { outcome.withLock { $0 } }

    func start(in group: VirtualMachineGroup) throws {
      try group.start(machine) { [self] result in outcome.withLock { $0 = result } }
    }
  }

  @Test("each ends as it would alone, on one thread or two", arguments: [1, 2]) func endings(threads: Int) throws {
    let group = try VirtualMachineGroup(hostThreadCount: threads)
    let guests: [(TinyGuest, Ending)] = [
      (.spin, .timeout), (.goodbye, .poweroff), (.reset, .reset), (.tripleFault, .tripleFault), (.halt, .bootTimeout),
      (.deadlines, .debugExit(0x42)), (.deadlines, .debugExit(0x42)), (.oddities, .debugExit(0x2A)),
      (.warmReset, .panic),
    ]
    var members: [Member] = []
    for (guest, ending) in guests {
      let member = try guest.withFile { file in
        let member = Member(file) {
          // The rest must not need longer, though one spins all the time.
          if ending == .timeout { $0.timeout = .seconds(TestLimit.scaled(3)) }
          if ending == .bootTimeout { $0.bootTimeout = .milliseconds(300) }
        }
        try member.start(in: group)
        return member
      }
      members.append(member)
    }
    group.wait()
    #expect(group.count == 0)
    for (member, (_, ending)) in zip(members, guests) { #expect(member.result?.ending == ending) }
    #expect(members[1].text == "hi\n" && members[1].result?.consoleTail == ["hi"])
    #expect(members[3].result?.processorState.contains("CR3") == true)
    #expect(members[5].result?.statistics.interrupts == 300)
  }

  @Test("those that spin leave the others their turns") func fairness() throws {
    let group = try VirtualMachineGroup(hostThreadCount: 1)
    let spinners = try TinyGuest.spin.withFile { file in
      try (0..<3).map { _ in
        let member = Member(file)
        try member.start(in: group)
        return member
      }
    }
    let timed = try TinyGuest.deadlines.withFile { file in
      let member = Member(file)
      try member.start(in: group)
      return member
    }
    let echo = try TinyGuest.echo.withFile { file in
      let member = Member(file)
      try member.start(in: group)
      return member
    }
    _ = echo.machine.consoleInput.put(Array("a turn".utf8))
    #expect(TestLimit.wait { echo.text == "a turn" })
    #expect(TestLimit.wait { timed.result != nil })
    #expect(timed.result?.ending == .debugExit(0x42))
    // What they have waited for a thread is stolen time, and no turn was far away: five slices and some.
    let longest = timed.result?.statistics.longestWaitNanoseconds ?? .max
    #expect(longest > 0 && longest < UInt64(TestLimit.scaled(2)) * 1_000_000_000)
    #expect(group.count == 4 && spinners.allSatisfy { $0.result == nil })
    group.requestStop(.interrupted(.terminate))
    group.wait()
    #expect((spinners + [echo]).allSatisfy { $0.result?.ending == .interrupted(.terminate) })
  }

  @Test("one is paused and saved while another goes on, and ends while it is paused") func pausing() throws {
    let group = try VirtualMachineGroup(hostThreadCount: 2)
    let (first, second) = try TinyGuest.echo.withFile { file in
      let pair = (Member(file), Member(file))
      try pair.0.start(in: group)
      try pair.1.start(in: group)
      return pair
    }
    _ = first.machine.consoleInput.put([0x61])
    #expect(TestLimit.wait { first.text == "a" })
    try first.machine.pause()
    _ = first.machine.consoleInput.put([0x62])
    _ = second.machine.consoleInput.put([0x63])
    #expect(TestLimit.wait { second.text == "c" })
    #expect(first.text == "a")
    try Moving.withPath { path in
      try first.machine.save(to: path, keeping: true)
      #expect(TestLimit.wait { first.text == "ab" })
      // It goes on in the group as it would alone.
      let third = Member(path)
      let restored = try VirtualMachine.restore(path) {
        $0.consoleOutput = third.machine.configuration.consoleOutput
      }
      let ending = Mutex<Ending?>(nil)
      try group.start(restored) { result in ending.withLock { $0 = result.ending } }
      _ = restored.consoleInput.put(Array("bq".utf8))
      #expect(TestLimit.wait { ending.withLock { $0 } == .poweroff })
      #expect(third.text.hasSuffix("b"))
    }
    try first.machine.pause()
    first.machine.requestStop(.interrupted(.hangUp))
    #expect(TestLimit.wait { first.result?.ending == .interrupted(.hangUp) })
    #expect(second.result == nil)
    #expect(throws: MoveError.self) { try first.machine.pause() }
    _ = second.machine.consoleInput.put(Array("q".utf8))
    group.wait()
    #expect(second.result?.ending == .poweroff)
  }

  @Test("vCPUs of one machine stop together while another's run") func processors() throws {
    let group = try VirtualMachineGroup(hostThreadCount: 2)
    let rounds: UInt32 = 40
    let members = try Moving.guest(cpus: 4, rounds: rounds).withFile { file in
      try (0..<2).map { _ in
        let member = Member(file) {
          $0.cpuCount = 4
          $0.processorStart = .mailbox
          $0.foreignHypercall = .patch
        }
        try member.start(in: group)
        return member
      }
    }
    for _ in 0..<5 {
      do throws(MoveError) { try members[0].machine.pause() } catch { break }
      do throws(MoveError) { try members[0].machine.resume() } catch { break }
    }
    group.wait()
    let sum = Moving.sum(cpus: 4, rounds: Int(rounds))
    for member in members {
      #expect(member.text.contains(sum), "\(member.text) \(String(describing: member.result?.ending))")
    }
  }

  @Test("the end of one may start another; a group that nobody holds lives on") func chain() throws {
    let left = Mutex(5)
    let texts = Mutex<[String]>([])
    try TinyGuest.goodbye.withFile { file in
      @Sendable func next(_ group: VirtualMachineGroup) {
        let member = Member(file)
        try? group.start(member.machine) { _ in
          texts.withLock { $0.append(member.text) }
          if left.withLock({ left in
            left -= 1; return left > 0
          }) {
            next(group)
          }
        }
      }
      next(try VirtualMachineGroup(hostThreadCount: 1))
      #expect(TestLimit.wait { texts.withLock { $0.count } == 5 })
    }
    #expect(texts.withLock { $0 } == Array(repeating: "hi\n", count: 5))
  }

  @Test("what a machine of a group cannot have is refused; one that was stopped before does not begin")
  func refusals() throws {
    let group = try VirtualMachineGroup(hostThreadCount: 1)
    try TinyGuest.halt.withFile { file in
      let changes: [(inout VirtualMachine.Configuration) -> Void] = [
        { $0.sandbox = Sandbox() }, { $0.hostThreadCount = 1 }, { $0.slowMemory = .milliseconds(1) },
        { $0.kernel = "/nowhere" },
      ]
      for change in changes {
        #expect(throws: ConfigurationError.self) { try Member(file, change).start(in: group) }
      }
      let stopped = Member(file)
      stopped.machine.requestStop(.interrupted(.interrupt))
      try stopped.start(in: group)
      #expect(TestLimit.wait { stopped.result?.ending == .interrupted(.interrupt) })
    }
    #expect(throws: ConfigurationError.self) { try VirtualMachineGroup(hostThreadCount: 0) }
    group.wait()
  }

  @Test(
    "a hundred that sleep answer, whatever becomes of some",
    .enabled(if: ProcessInfo.processInfo.environment["LGUEST_TEST_GUESTS"] != nil, "the guests are not built"))
  func crowd() throws {
    let group = try VirtualMachineGroup()
    let guests = try #require(ProcessInfo.processInfo.environment["LGUEST_TEST_GUESTS"])
    let members = (0..<100).map { _ in
      Member(FilePath("\(guests)/lguest/idle")) {
        $0.abi = .lguest
        $0.debugExit = false
        $0.memorySize = 32 << 20
      }
    }
    for member in members { try member.start(in: group) }
    #expect(TestLimit.wait { members.allSatisfy { $0.text == "ready\n" } })
    func type(_ text: String, _ member: Member) { _ = member.machine.consoleInput.put(Array("\(text)\n".utf8)) }
    for (number, text) in ["spin", "die", "off", "spin"].enumerated() { type(text, members[number]) }
    for (number, member) in members.enumerated().dropFirst(4) { type("number \(number)", member) }
    #expect(
      TestLimit.wait {
        members.enumerated().dropFirst(4).allSatisfy { $1.text == "ready\nnumber \($0)\n" }
      })
    #expect(TestLimit.wait { members[1].result != nil && members[2].result != nil })
    #expect(members[1].result?.ending == .killed && members[1].result?.detail?.hasPrefix("Bad hypercall 99") == true)
    #expect(members[2].result?.ending == .poweroff)
    #expect(group.count == 98)
    group.requestStop(.interrupted(.terminate))
    group.wait()
    #expect(members.allSatisfy { $0.result != nil })
  }
}

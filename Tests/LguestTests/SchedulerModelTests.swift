// SPDX-License-Identifier: Apache-2.0
// Every order in which the steps of several threads may follow each other, tried on a model that decides with the real
// scheduler's code: no vCPU that can run is ever forgotten, none is on two threads, no news is slept through, a pause
// and an end reach everybody. What could be wrong is tried too, and must be found.

import Foundation
import Testing

@testable import Lguest

@Suite("Scheduler, every order of steps", .serialized, .timeLimit(.minutes(10))) struct SchedulerModelTests {
  typealias Habits = SchedulerModel.Habits

  static let scenarios: [(name: String, habits: Habits)] = [
    ("three on two threads", Habits(isTimerReal: true)),
    ("three on one thread", Habits(threads: 1, exits: true, spins: true, isTimerReal: true)),
    ("three on one thread, half slices", Habits(threads: 1, spins: true, isTimerReal: true, tick: Schedule.slice / 2)),
    (
      "one of two halts on one thread",
      Habits(threads: 1, cpus: 2, halts: true, news: 1, onlyFirst: true, isTimerReal: true)
    ),
    ("two and a pause", Habits(threads: 1, cpus: 2, pauses: true, isTimerReal: true)),
    ("two and an end", Habits(threads: 1, cpus: 2, ends: true, isTimerReal: true)),
    ("three that yield", Habits(threads: 1, yields: true)),
    ("an instruction half done", Habits(threads: 1, exits: true, halfDone: true)),
    ("two that halt", Habits(cpus: 2, halts: true, news: 1)),
    ("one that halts", Habits(cpus: 1, halts: true, news: 3)),
    ("a pause", Habits(cpus: 2, pauses: true)),
    ("a pause among halts", Habits(cpus: 1, halts: true, news: 1, pauses: true)),
    ("an end", Habits(cpus: 2, ends: true)),
    ("an end among halts", Habits(cpus: 1, halts: true, news: 1, ends: true)),
    ("a pause and an end", Habits(threads: 1, cpus: 2, pauses: true, ends: true)),
    ("a pause of one of two", Habits(threads: 1, cpus: 2, halts: true, news: 1, pauses: true, pausesOnlyFirst: true)),
    (
      "a machine of a group ends", Habits(threads: 1, cpus: 2, exits: true, machine: 1, begins: true, isTimerReal: true)
    ),
    ("a machine ends among halts", Habits(threads: 1, cpus: 2, halts: true, news: 1, onlyFirst: true, machine: 1)),
    ("a machine ends on two threads", Habits(cpus: 2, machine: 1, begins: true)),
    ("a machine of two ends", Habits(threads: 1, cpus: 3, machine: 2)),
    ("a pause and a machine's end", Habits(threads: 1, cpus: 2, pauses: true, machine: 1, begins: true)),
  ]

  /// Those that take longer than the rest together.
  static let largeScenarios: [(name: String, habits: Habits)] = [
    ("three on two threads, with exits", Habits(exits: true, isTimerReal: true)),
    ("four on two threads", Habits(cpus: 4, isTimerReal: true)),
    ("two that halt on one thread", Habits(threads: 1, cpus: 2, halts: true, news: 1, isTimerReal: true)),
    ("three that spin on two threads", Habits(spins: true)),
    ("a pause and an end among halts", Habits(cpus: 1, halts: true, pauses: true, ends: true)),
    ("three that yield on two threads", Habits(yields: true)),
    ("two that halt twice", Habits(cpus: 2, halts: true, news: 2)),
    ("a pause among three", Habits(pauses: true)),
    ("a pause of one of three", Habits(pauses: true, pausesOnlyFirst: true)),
    ("a pause among halts", Habits(cpus: 2, halts: true, news: 1, pauses: true)),
    ("an end among three", Habits(ends: true)),
    ("an end among halts", Habits(cpus: 2, halts: true, news: 1, ends: true)),
    ("a machine of two ends on two threads", Habits(machine: 2, begins: true)),
    ("a machine ends among halts on two threads", Habits(cpus: 2, halts: true, news: 1, machine: 1, begins: true)),
    ("a pause and a machine's end on two threads", Habits(cpus: 2, pauses: true, machine: 1, begins: true)),
  ]

  private func explore(_ scenario: (name: String, habits: Habits)) {
    let exploration = Exploration(scenario.habits)
    print("\(scenario.name): \(exploration.count) states")
    if let failure = exploration.failure { Issue.record("\(scenario.name): \(failure)") }
    #expect(exploration.count > 1000)
  }

  @Test("nobody is forgotten", arguments: SchedulerModelTests.scenarios.indices) func small(number: Int) {
    explore(SchedulerModelTests.scenarios[number])
  }

  @Test(
    "nobody is forgotten, in millions of states",
    .enabled(if: ProcessInfo.processInfo.environment["LGUEST_TEST_LONG"] != nil),
    arguments: SchedulerModelTests.largeScenarios.indices)
  func large(number: Int) { explore(SchedulerModelTests.largeScenarios[number]) }

  /// Where a defect shows soon.
  static func scenario(for defect: SchedulerModel.Defect) -> Habits {
    switch defect {
    case .untoldTimer: Habits(threads: 1, cpus: 2, isTimerReal: true)
    case .lateAlarm: Habits(threads: 1, cpus: 2, halts: true, news: 1, onlyFirst: true, isTimerReal: true)
    case .softPreemption: Habits(threads: 1, cpus: 2)
    case .earlyLook: Habits(threads: 1, cpus: 1, halts: true, news: 1)
    case .equalSleeps: Habits(cpus: 1, halts: true, news: 2)
    case .calledTwice: Habits(cpus: 2, halts: true, news: 2)
    case .silentEnd: Habits(threads: 1, cpus: 1, ends: true)
    case .silentLeave: Habits(threads: 1, cpus: 2, halts: true, onlyFirst: true, machine: 1)
    case .pausedLeave, .pauseBehindEnd, .deafPause, .latePause, .pausedNumber:
      Habits(threads: 1, cpus: 2, pauses: true, machine: 1, begins: true)
    }
  }

  @Test("what could be wrong is found", arguments: SchedulerModel.Defect.allCases)
  func defects(_ defect: SchedulerModel.Defect) {
    var habits = SchedulerModelTests.scenario(for: defect)
    habits.defect = defect
    #expect(Exploration(habits).failure != nil, "\(defect)")
  }
}

@Suite("Schedule") struct ScheduleTests {
  /// Lets time pass by `step` ns for `steps` times; each time the slices that are over end, and `act` may do something.
  private func run(
    _ schedule: inout Schedule, step: UInt64, steps: Int,
    act: (inout Schedule, _ thread: Int, _ cpu: Int, _ now: UInt64) -> Bool = { _, _, _, _ in false }
  ) {
    let threads = schedule.running.indices
    for thread in threads { _ = schedule.next(thread, returning: nil, now: 0) }
    for now in (1...UInt64(steps)).map({ $0 * step }) {
      var asked = Set(schedule.expire(now: now))
      for thread in threads {
        guard let cpu = schedule.running[thread]?.cpu else { continue }
        if act(&schedule, thread, cpu, now) { asked.insert(cpu) }
        if asked.contains(cpu) { _ = schedule.next(thread, returning: cpu, now: now) }
      }
    }
  }

  @Test("however many there are, each has its turn in time", arguments: [1, 2, 3, 7], [2, 5, 8, 16, 64])
  func rounds(threads: Int, cpus: Int) {
    var schedule = Schedule(threadCount: threads, cpuCount: cpus, now: 0)
    run(&schedule, step: 50_000, steps: 4000)
    let waits = (0..<cpus).map { schedule.wait(of: $0, now: 200_000_000) }
    // Slices are rounded up to the steps.
    #expect(waits.allSatisfy { $0.longest <= Schedule.round + Schedule.round / 4 }, "\(waits.map(\.longest))")
    #expect(cpus <= threads || waits.allSatisfy { $0.total > 0 })
  }

  @Test("two that let each other go first do not keep others from running", arguments: [1, 2]) func yields(threads: Int)
  {
    var schedule = Schedule(threadCount: threads, cpuCount: 8, now: 0)
    run(&schedule, step: 50_000, steps: 4000) { schedule, _, cpu, now in
      cpu < 2 && schedule.prefer(1 - cpu, now: now)
    }
    let waits = (0..<8).map { schedule.wait(of: $0, now: 200_000_000).longest }
    #expect(waits.allSatisfy { $0 < Schedule.patience + Schedule.round + Schedule.slice }, "\(waits)")
  }

  @Test("a vCPU that does not make room when it is asked does not keep another from being asked") func deaf() {
    var schedule = Schedule(threadCount: 2, cpuCount: 3, now: 0)
    for thread in 0..<2 { _ = schedule.next(thread, returning: nil, now: UInt64(thread)) }
    #expect(schedule.deadline == Schedule.slice)
    #expect(schedule.expire(now: Schedule.slice - 1) == [])
    #expect(schedule.expire(now: Schedule.slice + 1) == [0])
    // One is enough for one that waits; a slice later it has not helped.
    #expect(schedule.deadline == 2 * Schedule.slice + 1)
    #expect(Set(schedule.expire(now: 2 * Schedule.slice + 1)) == [0, 1])
    #expect(schedule.next(1, returning: 1, now: 2 * Schedule.slice + 2) == .run(2))
  }

  @Test("time that another thread has noted later counts as none") func lateClocks() {
    var schedule = Schedule(threadCount: 1, cpuCount: 1, now: 100)
    #expect(schedule.next(0, returning: nil, now: 90) == .run(0))
    #expect(schedule.wait(of: 0, now: 80).total == 0)
  }
}

/// All states that can be reached, and the first thing found wrong.
struct Exploration {
  /// How many states there are.
  private(set) var count = 0
  private(set) var failure: String?
  private let habits: SchedulerModel.Habits
  /// By state, the state it was first reached from, and the how manieth successor of that it is.
  private var parents: [(state: Int, successor: Int)] = []
  /// Steps that must happen if nothing else does, backwards: by state, where one leads here from.
  private var origins: [[Int32]] = []
  /// By question, what the answer is for each state.
  private var facts: [SchedulerModel.Facts] = []

  /// More than any scenario should have: a model that grows without end is wrong.
  private static let mostStates = 2_000_000

  /// Stops at the first failure.
  init(_ habits: SchedulerModel.Habits) {
    self.habits = habits
    explore()
    if failure == nil { checkProgress() }
  }

  private mutating func explore() {
    // States are known by 64 bits of hash, of a key that differs in each process.
    var numbers: [Int: Int] = [:]
    let first = SchedulerModel(habits)
    numbers[first.hashValue] = 0
    var waiting: [SchedulerModel] = [first]
    parents = [(-1, 0)]
    origins = [[]]
    while !waiting.isEmpty, failure == nil {
      // Level by level, so that traces are short and only two levels are kept.
      var found: [SchedulerModel] = []
      for state in waiting {
        let number = count
        count += 1
        if let wrong = state.contradiction {
          failure = wrong + trace(to: number)
          return
        }
        facts.append(state.facts)
        var index = 0
        state.forEachSuccessor(habits) { _, next, isBound in
          let key = next.hashValue
          let known = numbers[key] ?? parents.count
          if known == parents.count {
            numbers[key] = known
            parents.append((number, index))
            origins.append([])
            found.append(next)
          }
          if isBound { origins[known].append(Int32(number)) }
          index += 1
        }
      }
      waiting = found
      if parents.count > Exploration.mostStates { failure = "there is no end of states" }
    }
  }

  /// Whatever guests do from now on: each state in which somebody waits leads to one in which he no longer does.
  private mutating func checkProgress() {
    for cpu in 0..<habits.cpus {
      check("vCPU \(cpu) could run, and never does") {
        $0.wants & 1 << cpu != 0
      } until: {
        $0.served & 1 << cpu != 0
      }
    }
    check("a pause never comes about", \.awaitsStanding, until: \.mayResume)
    check("the end does not reach every thread", \.isEnding, until: \.isOver)
    check("a machine of a group does not come to its end", \.machineEnds, until: \.machineIsOver)
  }

  private mutating func check(
    _ what: String, _ isWanted: (SchedulerModel.Facts) -> Bool, until isReached: (SchedulerModel.Facts) -> Bool
  ) {
    guard failure == nil else { return }
    var leadsThere = facts.map(isReached)
    var queue = leadsThere.indices.filter { leadsThere[$0] }
    while let state = queue.popLast() {
      for origin in origins[state] where !leadsThere[Int(origin)] {
        leadsThere[Int(origin)] = true
        queue.append(Int(origin))
      }
    }
    if let lost = facts.indices.first(where: { isWanted(facts[$0]) && !leadsThere[$0] }) {
      failure = what + trace(to: lost)
    }
  }

  /// The steps that lead to a state.
  private func trace(to number: Int) -> String {
    var path: [Int] = []
    var at = number
    while parents[at].state >= 0 {
      path.append(parents[at].successor)
      at = parents[at].state
    }
    var text = ", after"
    var state = SchedulerModel(habits)
    for wanted in path.reversed() {
      var index = 0
      var next = state
      state.forEachSuccessor(habits) { move, successor, _ in
        if index == wanted {
          let name = move.thread.map { $0 == habits.threads ? "the timer" : "thread \($0)" } ?? ""
          text += "\n  \(name) \(move.step.map { "\($0)" } ?? "")\(move.what)"
          next = successor
        }
        index += 1
      }
      state = next
    }
    return "\(text)\n\(state)"
  }
}

extension SchedulerModel {
  /// What must not be, whatever happens next; nil if all is well.
  var contradiction: String? {
    for cpu in cpus.indices {
      let keepers = keepers(of: cpu)
      if keepers.count > 1 { return "vCPU \(cpu) is in several places: \(keepers.joined(separator: ", "))" }
      if keepers.isEmpty && !isEnding && !cpus[cpu].isOver { return "vCPU \(cpu) is nowhere" }
      if !keepers.isEmpty && cpus[cpu].isOver { return "vCPU \(cpu) has ended, and is with \(keepers)" }
    }
    if machine == .replaced && schedule.waits[0].isPaused { return "a machine is paused with the one before it" }
    if machine == .replaced && schedule.pausedCount > 0 { return "nobody can be paused, and somebody is" }
    for thread in schedule.running.indices {
      if let cpu = lists[thread].lazy.compactMap(\.owned).first, schedule.running[thread]?.cpu != cpu {
        return "thread \(thread) runs vCPU \(cpu), and the schedule does not know"
      }
    }
    guard !schedule.hasEnded else { return nil }
    if !schedule.ready.isEmpty && !schedule.idle.isEmpty && onTheirWay == 0 {
      return "vCPU \(schedule.ready) waits, thread \(schedule.idle) is idle, and nobody calls it"
    }
    if lists[schedule.running.count].first != .expire, schedule.ready.count > onTheirWay,
      schedule.running.contains(where: { $0 != nil }), !isTimerAwake
    {
      return "vCPU \(schedule.ready) waits, and the timer sleeps on"
    }
    return nil
  }

  private var onTheirWay: Int { schedule.running.count - schedule.idle.count - schedule.running.count { $0 != nil } }

  /// Who has a vCPU, or what it waits in.
  private func keepers(of cpu: Int) -> [String] {
    var keepers: [String] = []
    for (thread, list) in lists.enumerated() {
      if list.contains(where: { $0.owned == cpu || $0 == .look(returning: cpu) }) {
        keepers.append("thread \(thread)")
      } else if list.contains(.ended(cpu)) {
        keepers.append("thread \(thread), ending")
      }
      if list.contains(.wake(cpu)) { keepers.append("being woken") }
    }
    keepers += (schedule.ready + schedule.paused).filter { $0 == cpu }.map { _ in "ready" }
    if cpus[cpu].place.way == .wake { keepers.append("asleep") }
    return keepers
  }

  /// Whether the timer looks when the first slice is over, at the latest.
  private var isTimerAwake: Bool {
    if isTimerRung { return true }
    let deadline = schedule.deadline
    for step in lists.joined() {
      switch step {
      case .rearm, .ringTimer, .beginRound, .forgetAlarm, .expire, .readDeadline: return true
      case .compare(let moment), .arm(let moment), .sleepUntil(let moment):
        if moment <= deadline && deadline != .max { return true }
      default: break
      }
    }
    return false
  }

  /// What the checks of progress ask of a state; vCPUs are bits.
  struct Facts {
    /// They could run or have news, and neither the end nor a thread has come for them.
    var wants: UInt8 = 0
    /// A thread has come for them, and they have been told all news.
    var served: UInt8 = 0
    var awaitsStanding = false
    var mayResume = false
    var isEnding = false
    var isOver = false
    var machineEnds = false
    var machineIsOver = false
  }

  var facts: Facts {
    var facts = Facts()
    facts.isEnding = isEnding
    facts.isOver = lists.prefix(schedule.running.count).allSatisfy(\.isEmpty)
    for cpu in cpus.indices {
      let bit: UInt8 = 1 << cpu
      let isStanding = schedule.waits[cpu].isPaused && isPausedForGood
      if !isEnding, !cpus[cpu].isOver, !isStanding,
        schedule.ready.contains(cpu) || schedule.paused.contains(cpu) || cpus[cpu].hasNews
      {
        facts.wants |= bit
      }
      let isCome = cpus[cpu].place.way == .wake || lists.contains { $0.last?.owned == cpu }
      if !cpus[cpu].hasNews && isCome || cpus[cpu].isOver || isStanding { facts.served |= bit }
    }
    facts.machineEnds = machine == .ends
    facts.machineIsOver = machine != .runs && machine != .ends
    facts.mayResume = lists.contains { $0.contains { $0 == .resume || $0 == .lookForEnd || $0 == .giveUp } }
    facts.awaitsStanding =
      !isEnding
      && lists.joined().contains { if case .awaitStanding = $0 { true } else { $0 == .readStanding } }
    return facts
  }

  /// Whether a machine is paused, and who did it has gone or chooses when it goes on.
  private var isPausedForGood: Bool {
    machine == .runs && schedule.pausedCount > 0
      && !lists.joined().contains { if case .awaitStanding = $0 { true } else { $0 == .readStanding } }
  }

  /// Whether the run ends, or is about to.
  var isEnding: Bool { schedule.hasEnded || lists.prefix(schedule.running.count).joined().contains(.end) }
}

extension SchedulerModel.Step {
  /// The vCPU that a thread has for itself while it is at this step.
  fileprivate var owned: Int? {
    switch self {
    case .run(let cpu), .fallAsleep(let cpu), .enter(let cpu), .checkStop(let cpu), .checkPreemption(let cpu),
      .deliver(let cpu), .guest(let cpu), .leave(let cpu), .makeRoom(let cpu), .spin(let cpu), .yield(let cpu, _):
      cpu
    default: nil
    }
  }
}

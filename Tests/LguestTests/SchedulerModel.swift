// SPDX-License-Identifier: Apache-2.0
// The scheduler, the doorbells and the slice timer as one value, whose steps are the atomic sections of the threads:
// what is decided is decided by the real `Schedule` and `Doorbell.Place`; the order of the sections is that of
// VCPUThreads.swift, Doorbell.swift, RunLoop.swift, Timers.swift and DeadlineThread.swift, line by line.

@testable import Lguest

/// Everything that several threads of a machine share, and where each of them stands.
struct SchedulerModel: Hashable {
  /// What the threads of one exploration may do of their own accord.
  struct Habits {
    var threads = 2
    var cpus = 3
    /// Guests leave of themselves; without it only a kick brings them back.
    var exits = false
    var halts = false
    /// A vCPU spins, and makes room if others wait.
    var spins = false
    /// A vCPU lets another go first, and makes room if that one waits.
    var yields = false
    /// One vCPU has half done an instruction when it is asked to make room.
    var halfDone = false
    /// How often a device has news for some vCPU.
    var news = 0
    /// Only the first vCPU halts and has news.
    var onlyFirst = false
    /// Whether somebody stops vCPUs, and lets them go on.
    var pauses = false
    /// Whether only the first is stopped: the others are another machine's.
    var pausesOnlyFirst = false
    /// Whether somebody, or a guest, ends the run.
    var ends = false
    /// The first so many vCPUs are those of a machine of a group: it ends, by somebody's or its guest's doing, and the
    /// threads go on with the others. A pause is of this machine, may be for good, and may lead to its end.
    var machine = 0
    /// Whether another machine of one vCPU begins then, with a number of the one that ended.
    var begins = false
    /// Whether the timer is a thread that is told of deadlines, as it really is, or knows them by itself, as that comes
    /// to: then there are far fewer states.
    var isTimerReal = false
    /// How far time goes at a time.
    var tick = Schedule.slice
    var defect: Defect?

    /// Whom a pause stops.
    var stopped: Range<Int> { 0..<(machine > 0 ? machine : pausesOnlyFirst ? 1 : cpus) }
  }

  /// What could be wrong; the exploration must find each.
  enum Defect: CaseIterable {
    /// The timer is told of new deadlines by wakers only.
    case untoldTimer
    /// The timer reads deadlines before it says that it is about to.
    case lateAlarm
    /// All sleeps of a vCPU look the same.
    case equalSleeps
    /// A vCPU looks for news before it says that it sleeps.
    case earlyLook
    /// An idle thread is called, and stays among the idle.
    case calledTwice
    /// A vCPU that is asked to make room is not kicked.
    case softPreemption
    /// The end rings nobody.
    case silentEnd
    /// The end of a machine of a group rings nobody.
    case silentLeave
    /// It leaves vCPUs alone that are paused.
    case pausedLeave
    /// A pause that comes after it is for good all the same.
    case pauseBehindEnd
    /// Whoever waits for a machine to stand does not look whether it has ended.
    case deafPause
    /// Whoever has paused a machine does not look whether its numbers are another's by now.
    case latePause
    /// A machine's numbers are another's while they are paused.
    case pausedNumber
  }

  /// An atomic section of one thread. What comes after it is on the thread's list, or is put there by it.
  enum Step: Hashable {
    // A thread that runs vCPUs.
    case look(returning: Int?), sleepUntilCalled
    case run(Int), fallAsleep(Int), lookForNews(Int, Doorbell.Place), lookForStop(Int, Doorbell.Place)
    case riseAgain(Int, Doorbell.Place)
    case enter(Int), checkStop(Int), checkPreemption(Int), deliver(Int), guest(Int), leave(Int), makeRoom(Int)
    case spin(Int), yield(Int, to: Int)
    // Any thread that changed the schedule.
    case rearm, compare(UInt64), ringTimer, call(Int), flag(Int), kickInGuest(Int), unlock
    // The timer.
    case beginRound, forgetAlarm, expire, readDeadline, arm(UInt64), sleepUntil(UInt64)
    // Whoever has something for a vCPU.
    case ring(Int), kick(Int), endSleep(Int, Doorbell.Place), wake(Int), device(Int), bringNews(Int)
    // Whoever stops all vCPUs, and whoever ends the run.
    case pause, readStanding, checkStanding(UInt8), awaitStanding(UInt8), resume
    case end, stop(Int)
    // A machine of a group: its end, which may be seen by whoever has paused it, its last vCPU's end, and what the thread
    // that says so does.
    case endMachine, resumeEnded, ended(Int), lookForEnd, giveUp
    case leaveThreads, begin
  }

  /// How far the machine is that ends while others go on.
  enum Machine: Hashable {
    case runs, ends
    /// No vCPU of it runs or will.
    case over
    /// Its numbers are free.
    case left
    /// Another has one of them.
    case replaced
  }

  /// A vCPU as its doorbell, its engine and its run loop know it.
  struct CPU: Hashable {
    var place = Doorbell.Place.loop
    var sleeps: UInt32 = 0
    var isPreempted = false
    var isStopped = false
    var isKicked = false
    var isHalted = false
    var hasNews = false
    /// It has ended, and no thread has it any more.
    var isOver = false
  }

  /// All instants are relative to this moment, which does not pass; `later` moves them instead.
  static let now: UInt64 = 1 << 40

  var schedule: Schedule
  var cpus: [CPU]
  /// The threads whose bells have rung, as bits.
  var called: UInt8
  var standing: UInt8 = 0
  /// The thread that holds the scheduler's lock for longer than one section.
  var holder: Int?
  var asleepUntil = UInt64.max
  var isTimerRung = false
  var mayBeHalfDone: Bool
  var machine = Machine.runs
  /// Whether its numbers are no longer its own.
  var hasLeft: Bool { machine == .left || machine == .replaced }
  /// By thread, what it does next, the next last: those that run vCPUs, the timer, the others.
  var lists: [[Step]]

  init(_ habits: Habits) {
    schedule = Schedule(threadCount: habits.threads, cpuCount: habits.cpus, now: SchedulerModel.now)
    cpus = Array(repeating: CPU(), count: habits.cpus)
    called = .max
    mayBeHalfDone = habits.halfDone
    lists = Array(repeating: [.look(returning: nil)], count: habits.threads)
    lists.append(habits.isTimerReal ? [.beginRound] : [.expire])
    if habits.news > 0 { lists.append([.device(habits.news)]) }
    if habits.pauses { lists.append([.pause]) }
    if habits.ends { lists.append([.end]) }
    if habits.machine > 0 {
      lists.append([.endMachine])
      lists.append((habits.begins ? [.begin] : []) + [.leaveThreads])
    }
  }

  // MARK: Steps

  /// One thing that happens, as a trace shows it.
  struct Move {
    var thread: Int?
    var step: Step?
    var what: StaticString = ""
  }

  /// Tries all that may happen next: what is done, the state after it, and whether it must happen if nothing else does.
  /// What need not happen is what guests and people choose to do.
  func forEachSuccessor(_ habits: Habits, _ visit: (Move, SchedulerModel, _ isBound: Bool) -> Void) {
    func take(
      _ thread: Int, _ step: Step, _ what: StaticString = "", isBound: Bool, _ change: (inout SchedulerModel) -> Void
    ) {
      var state = self
      state.lists[thread].removeLast()
      change(&state)
      state.finishAlone(thread, habits)
      state.forget()
      visit(Move(thread: thread, step: step, what: what), state, isBound)
    }
    for (thread, list) in lists.enumerated() {
      guard let step = list.last, isEnabled(step, thread, habits) else { continue }
      switch step {
      case .guest(let cpu):
        if cpus[cpu].isKicked {
          take(thread, step, ", kicked", isBound: true) {
            $0.cpus[cpu].isKicked = false
            $0.lists[thread] += [.run(cpu), .leave(cpu)]
          }
        }
        for (what, after) in choices(cpu, habits) {
          take(thread, step, what, isBound: false) {
            $0.cpus[cpu].isHalted = after == nil
            $0.lists[thread] += (after ?? [.run(cpu)]).reversed() + [.leave(cpu)]
          }
        }
      case .device(let times):
        for cpu in cpus.indices where !cpus[cpu].hasNews && (cpu == 0 || !habits.onlyFirst) {
          take(thread, step, isBound: false) {
            if times > 1 { $0.lists[thread].append(.device(times - 1)) }
            $0.lists[thread] += [.ring(cpu), .bringNews(cpu)]
          }
        }
      case .resume where habits.machine > 0:
        // As `resume`, `save`, or neither.
        take(thread, step, isBound: false) { $0.perform(step, thread, habits) }
        take(thread, step, ", for good", isBound: false) { _ in }
        take(thread, step, ", and then the end", isBound: false) { $0.perform(.endMachine, thread, habits) }
      case .checkPreemption(let cpu) where cpus[cpu].isPreempted && mayBeHalfDone:
        take(thread, step, ", half done", isBound: false) {
          $0.mayBeHalfDone = false
          $0.cpus[cpu].isKicked = true
          $0.lists[thread].append(.deliver(cpu))
        }
        fallthrough
      default:
        let isChosen = step == .pause || (step == .end || step == .endMachine) && thread > habits.threads
        take(thread, step, isBound: !isChosen) { $0.perform(step, thread, habits) }
      }
    }
    for (time, what) in [(habits.tick, "time passes" as StaticString), (Schedule.patience, "much time passes")] {
      if time == Schedule.patience && !habits.yields { continue }
      var state = later(by: time)
      state.forget()
      if state != self { visit(Move(what: what), state, true) }
    }
  }

  /// What a thread does for itself, unseen by others, is part of the step before it.
  private mutating func finishAlone(_ thread: Int, _ habits: Habits) {
    while let step = lists[thread].last {
      switch step {
      case .run(let cpu) where !cpus[cpu].isHalted: break
      case .checkStop where !habits.ends && habits.machine == 0, .lookForStop where !habits.ends && habits.machine == 0:
        break
      case .deliver where habits.news == 0: break
      // Whoever is asked to make room once more in between is asked in vain.
      case .makeRoom, .unlock: break
      default: return
      }
      lists[thread].removeLast()
      perform(step, thread, habits)
    }
  }

  /// What a guest may do of its own accord, and what its run loop does then, behind `leave`; nil is HLT.
  private func choices(_ cpu: Int, _ habits: Habits) -> [(what: StaticString, after: [Step]?)] {
    var choices: [(what: StaticString, after: [Step]?)] = []
    if habits.exits { choices.append((", exits", [.run(cpu)])) }
    if habits.halts && (cpu == 0 || !habits.onlyFirst) { choices.append((", halts", nil)) }
    if habits.spins { choices.append((", spins", [.spin(cpu)])) }
    if habits.yields {
      choices += cpus.indices.filter { $0 != cpu }.map { (", yields", [.yield(cpu, to: $0)]) }
    }
    if cpu < habits.machine && machine == .runs {
      choices.append((", ends its machine", [.endMachine, .look(returning: nil), .ended(cpu)]))
    }
    if habits.ends && !schedule.hasEnded { choices.append((", ends the run", [.end, .look(returning: nil)])) }
    return choices
  }

  private func isEnabled(_ step: Step, _ thread: Int, _ habits: Habits) -> Bool {
    switch step {
    case .expire where !habits.isTimerReal: holder == nil && schedule.deadline <= SchedulerModel.now
    case .leaveThreads: machine == .over && (holder == nil || holder == thread)
    case .look, .rearm, .expire, .readDeadline, .wake, .pause, .checkStanding, .resume, .end, .spin, .yield,
      .resumeEnded, .giveUp, .begin:
      // Sections under the scheduler's lock.
      holder == nil || holder == thread
    case .sleepUntilCalled: called & 1 << thread != 0
    case .sleepUntil(let moment): isTimerRung || moment <= SchedulerModel.now
    case .awaitStanding(let seen): standing != seen
    default: true
    }
  }

  // MARK: Time

  /// Some time later: what is due has been so for no particular time.
  private func later(by time: UInt64) -> SchedulerModel {
    func earlier(_ moment: UInt64) -> UInt64 { moment == .max ? .max : max(moment - time, SchedulerModel.now) }
    var state = self
    for thread in state.schedule.running.indices {
      guard var stay = state.schedule.running[thread] else { continue }
      stay.until = earlier(stay.until)
      // Earlier than whatever begins now.
      stay.since -= UInt64(schedule.running.count)
      state.schedule.running[thread] = stay
    }
    if time >= Schedule.patience {
      for cpu in state.schedule.ready + state.schedule.paused {
        state.schedule.waits[cpu].since = SchedulerModel.now - time
      }
    }
    state.asleepUntil = earlier(asleepUntil)
    for (thread, list) in lists.enumerated() {
      for (place, step) in list.enumerated() {
        switch step {
        case .compare(let moment): state.lists[thread][place] = .compare(earlier(moment))
        case .arm(let moment): state.lists[thread][place] = .arm(earlier(moment))
        case .sleepUntil(let moment): state.lists[thread][place] = .sleepUntil(earlier(moment))
        default: break
        }
      }
    }
    return state
  }

  /// Drops what no decision depends on any more.
  private mutating func forget() {
    // Of stays it counts which is longer.
    let begins = schedule.running.compactMap { $0?.since }
    for thread in schedule.running.indices {
      guard let since = schedule.running[thread]?.since else { continue }
      let shorter = UInt64(Set(begins.filter { $0 > since }).count)
      if SchedulerModel.now - shorter != since { schedule.running[thread]?.since = SchedulerModel.now - shorter }
    }
    for cpu in cpus.indices {
      var wait = schedule.waits[cpu]
      (wait.total, wait.longest) = (0, 0)
      if !schedule.ready.contains(cpu) && !schedule.paused.contains(cpu) { wait.since = SchedulerModel.now }
      // One idle thread is like another.
      if let last = wait.lastThread, schedule.running[last]?.cpu != cpu { wait.lastThread = nil }
      if schedule.waits[cpu] != wait { schedule.waits[cpu] = wait }
      // Sleeps are numbered anew when nobody remembers one.
      if cpus[cpu].sleeps > 0, !lists.contains(where: { $0.contains { $0.remembersSleep(of: cpu) } }) {
        cpus[cpu].sleeps = 0
        if cpus[cpu].place.way == .wake { cpus[cpu].place = .asleep(0) }
      }
    }
  }
}

extension SchedulerModel.Step {
  fileprivate func remembersSleep(of cpu: Int) -> Bool {
    switch self {
    case .lookForNews(cpu, _), .lookForStop(cpu, _), .riseAgain(cpu, _), .endSleep(cpu, _): true
    default: false
    }
  }
}

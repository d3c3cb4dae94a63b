// SPDX-License-Identifier: Apache-2.0
// What each step of the scheduler's model does: the section of the real thread that stands under its name, line by line.

@testable import Lguest

extension SchedulerModel {
  /// `VCPUThreads.change`.
  private mutating func change<Result>(
    _ thread: Int, _ habits: Habits, isWaker: Bool = false, _ body: (inout Schedule) -> Result
  ) -> Result {
    let (result, isEarlier) = schedule.change(body)
    let isTold = habits.isTimerReal && (isWaker || habits.defect != .untoldTimer)
    if isEarlier && isTold { lists[thread].append(.rearm) }
    return result
  }

  mutating func perform(_ step: Step, _ thread: Int, _ habits: Habits) {
    func then(_ state: inout SchedulerModel, _ steps: Step...) { state.lists[thread] += steps.reversed() }
    switch step {
    // VCPUThreads.work and next
    case .look(let returned):
      var place = lists[thread].count
      // A vCPU that has ended says so before its thread goes on with another.
      if case .ended? = lists[thread].last { place -= 1 }
      let decision = change(thread, habits) { $0.next(thread, returning: returned, now: SchedulerModel.now) }
      let next: Step?
      switch decision {
      case .run(let cpu):
        cpus[cpu].isPreempted = false
        next = .run(cpu)
      case .sleep:
        called &= ~(1 << thread)
        next = .sleepUntilCalled
      case .leave: next = nil
      }
      if let next { lists[thread].insert(next, at: place) }
      if schedule.pausedCount > 0 { standing &+= 1 }
    case .sleepUntilCalled: perform(.look(returning: nil), thread, habits)

    // RunLoop.run and Doorbell.sleep
    case .run(let cpu):
      guard cpus[cpu].isHalted && !cpus[cpu].hasNews && !cpus[cpu].isStopped else {
        cpus[cpu].isHalted = false
        return then(&self, .enter(cpu))
      }
      then(&self, .fallAsleep(cpu))
    case .fallAsleep(let cpu):
      cpus[cpu].sleeps += 1
      cpus[cpu].place = .asleep(habits.defect == .equalSleeps ? 1 : cpus[cpu].sleeps)
      if habits.defect == .earlyLook { return then(&self, .lookForStop(cpu, cpus[cpu].place)) }
      then(&self, .lookForNews(cpu, cpus[cpu].place))
    case .lookForNews(let cpu, let sleep):
      then(&self, cpus[cpu].hasNews ? .riseAgain(cpu, sleep) : .lookForStop(cpu, sleep))
    case .lookForStop(let cpu, let sleep):
      then(&self, cpus[cpu].isStopped ? .riseAgain(cpu, sleep) : .look(returning: nil))
    case .riseAgain(let cpu, let sleep):
      guard cpus[cpu].place == sleep else { return then(&self, .look(returning: nil)) }
      cpus[cpu].place = .loop
      then(&self, .run(cpu))
    case .enter(let cpu):
      cpus[cpu].place = .guest
      then(&self, .checkStop(cpu))
    case .checkStop(let cpu):
      guard cpus[cpu].isStopped else { return then(&self, .checkPreemption(cpu)) }
      then(&self, .look(returning: nil))
      if cpu < habits.machine { lists[thread].insert(.ended(cpu), at: lists[thread].count - 1) }
    case .checkPreemption(let cpu): then(&self, cpus[cpu].isPreempted ? .makeRoom(cpu) : .deliver(cpu))
    case .makeRoom(let cpu):
      cpus[cpu].place = .loop
      then(&self, .look(returning: cpu))
    case .deliver(let cpu):
      cpus[cpu].hasNews = false
      then(&self, .guest(cpu))
    case .guest: break
    case .leave(let cpu): cpus[cpu].place = .loop
    case .spin(let cpu):
      if !schedule.ready.isEmpty { cpus[cpu].isPreempted = true }
      then(&self, .run(cpu))
    case .yield(let cpu, let other):
      if change(thread, habits, { $0.prefer(other, now: SchedulerModel.now) }) { cpus[cpu].isPreempted = true }
      then(&self, .run(cpu))

    // Timers.rearm and DeadlineThread.ring
    case .rearm: if schedule.deadline != .max { then(&self, .compare(schedule.deadline)) }
    case .compare(let deadline): if deadline < asleepUntil { then(&self, .ringTimer) }
    case .ringTimer: isTimerRung = true

    // Doorbell.preempt, under the scheduler's lock
    case .flag(let cpu): cpus[cpu].isPreempted = true
    case .kickInGuest(let cpu):
      if cpus[cpu].place == .guest && habits.defect != .softPreemption { cpus[cpu].isKicked = true }
    case .unlock: holder = nil

    // DeadlineThread.start and Timers.expire
    case .beginRound:
      isTimerRung = false
      then(&self, habits.defect == .lateAlarm ? .expire : .forgetAlarm)
    case .forgetAlarm:
      asleepUntil = .max
      then(&self, .expire)
    case .expire:
      let asked = change(thread, habits) { $0.expire(now: SchedulerModel.now) }
      then(&self, habits.isTimerReal ? .readDeadline : .expire)
      preempt(asked, thread)
    case .readDeadline: then(&self, .arm(schedule.deadline))
    case .arm(let moment):
      asleepUntil = moment
      then(&self, .sleepUntil(moment))
    case .sleepUntil: then(&self, .beginRound)

    // Doorbell.ring and VCPUThreads.wake
    case .bringNews(let cpu): cpus[cpu].hasNews = true
    case .ring(let cpu):
      switch cpus[cpu].place.way {
      case .none: break
      case .kick: then(&self, .kick(cpu))
      case .wake: then(&self, .endSleep(cpu, cpus[cpu].place))
      }
    case .kick(let cpu): cpus[cpu].isKicked = true
    case .endSleep(let cpu, let sleep):
      guard cpus[cpu].place == sleep else { return }
      cpus[cpu].place = .loop
      then(&self, .wake(cpu))
    case .wake(let cpu):
      let place = lists[thread].count
      let called = change(thread, habits, isWaker: true) { $0.wake(cpu, now: SchedulerModel.now) }
      if let called {
        if habits.defect == .calledTwice { schedule.idle.append(called) }
        lists[thread].insert(.call(called), at: place)
      }
    case .call(let other): called |= 1 << other
    case .device: break

    // VCPUThreads.pause and resume
    case .pause:
      if hasLeft && habits.defect != .latePause { return }
      let asked = change(thread, habits) { $0.pause(habits.stopped) }
      then(&self, .readStanding)
      preempt(asked, thread)
    case .readStanding: then(&self, .checkStanding(standing))
    case .checkStanding(let seen):
      let isOver = machine != .runs && habits.defect != .deafPause
      guard schedule.isStanding(habits.stopped) || isOver else { return then(&self, .awaitStanding(seen)) }
      then(&self, habits.machine > 0 && habits.defect != .pauseBehindEnd ? .lookForEnd : .resume)
    case .awaitStanding: then(&self, .readStanding)
    case .lookForEnd: then(&self, machine == .runs ? .resume : .giveUp)
    case .resumeEnded where habits.defect == .pausedLeave: break
    case .resume, .resumeEnded, .giveUp:
      if hasLeft && habits.defect != .latePause { return }
      let place = lists[thread].count
      let called = change(thread, habits) { $0.resume(habits.stopped) }
      standing &+= 1
      lists[thread].insert(contentsOf: called.map { .call($0) }, at: place)

    // Scheduler.end of a machine with threads of its own
    case .end:
      guard schedule.end() else { return }
      for other in schedule.running.indices { lists[thread].append(.call(other)) }
      for cpu in cpus.indices.reversed() {
        if habits.defect != .silentEnd { lists[thread].append(.ring(cpu)) }
        lists[thread].append(.stop(cpu))
      }
    case .stop(let cpu): cpus[cpu].isStopped = true

    // Scheduler.end, begin and leave of a machine of a group
    case .endMachine:
      guard machine == .runs else { return }
      machine = .ends
      lists[thread].append(.resumeEnded)
      for cpu in (0..<habits.machine).reversed() {
        if habits.defect != .silentLeave { lists[thread].append(.ring(cpu)) }
        lists[thread].append(.stop(cpu))
      }
    case .ended(let cpu):
      cpus[cpu].isOver = true
      if cpus.prefix(habits.machine).allSatisfy(\.isOver) { machine = .over }
    case .leaveThreads:
      machine = .left
      if habits.defect != .pausedNumber { _ = schedule.resume(habits.stopped) }
    case .begin:
      // Its doorbell is another: what is under way to the old one is lost.
      for other in lists.indices { lists[other].removeAll { $0.isForDoorbell(of: 0) } }
      machine = .replaced
      schedule.add(0)
      cpus[0] = CPU()
      then(&self, .wake(0))
    }
  }

  private mutating func preempt(_ asked: [Int], _ thread: Int) {
    guard !asked.isEmpty else { return }
    holder = thread
    lists[thread].append(.unlock)
    for cpu in asked.reversed() { lists[thread] += [.kickInGuest(cpu), .flag(cpu)] }
  }
}

extension SchedulerModel.Step {
  fileprivate func isForDoorbell(of cpu: Int) -> Bool {
    switch self {
    case .ring(cpu), .kick(cpu), .endSleep(cpu, _), .bringNews(cpu), .stop(cpu): true
    default: false
    }
  }
}

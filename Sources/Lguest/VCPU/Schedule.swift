// SPDX-License-Identifier: Apache-2.0
// The scheduler's decisions as a value: which vCPUs wait for a thread, which thread takes which, and when one that runs
// must make room. No lock, no clock and no thread is here (Scheduler.swift has them), so that a test can try every
// order in which the steps of several threads may follow each other.

/// Which thread runs which vCPU. All instants and durations are in ns of one clock that does not go back.
struct Schedule: Hashable, Sendable {
  /// A thread's stay with a vCPU.
  struct Stay: Hashable, Sendable {
    let cpu: Int
    /// When it began.
    var since: UInt64
    /// When its slice is over; once it has been asked to make room, when it is asked again.
    var until: UInt64
    /// Whether it has been asked to make room.
    var isAsked = false
  }

  /// What is known of a vCPU's waiting.
  struct Waiting: Hashable, Sendable {
    /// The thread that ran it last.
    var lastThread: Int?
    /// Nobody takes it, until `resume`.
    var isPaused = false
    /// Since when it has been ready.
    var since: UInt64
    /// How long it has waited in all, and how long at most.
    var total: UInt64 = 0
    var longest: UInt64 = 0
  }

  /// What a thread does next.
  enum Decision: Hashable, Sendable {
    case run(Int)
    /// Sleep until it is called.
    case sleep
    /// End: the run is over.
    case leave
  }

  /// The longest slice while others wait.
  static let slice: UInt64 = 3_000_000
  /// The shortest, however many wait.
  static let shortestSlice: UInt64 = 250_000
  /// A vCPU that becomes ready behind all others waits about this long at most, unless there are hundreds: many of them
  /// have shorter slices.
  static let round: UInt64 = 24_000_000
  /// Nobody is preferred to a vCPU that has waited this long.
  static let patience: UInt64 = 12_000_000

  /// vCPUs that wait for a thread, the first first.
  var ready: [Int]
  /// vCPUs that would, and are paused.
  var paused: [Int] = []
  /// Threads that wait for a vCPU. One that neither does nor has a vCPU is about to look for one.
  var idle: [Int] = []
  /// By thread, what it runs. A vCPU that has fallen asleep may be here until its thread looks for another.
  var running: [Stay?]
  /// By vCPU.
  var waits: [Waiting]
  /// How many vCPUs are to be taken by nobody.
  var pausedCount = 0
  var hasEnded = false

  /// All vCPUs are ready, and all threads about to look for one.
  init(threadCount: Int, cpuCount: Int, now: UInt64) {
    ready = Array(0..<cpuCount)
    running = Array(repeating: nil, count: threadCount)
    waits = Array(repeating: Waiting(since: now), count: cpuCount)
  }

  /// Adds a vCPU with a number that no other has: of one that was here and has ended, or the next. It is not ready yet.
  mutating func add(_ cpu: Int) {
    if cpu == waits.count { waits.append(Waiting(since: 0)) } else { waits[cpu] = Waiting(since: 0) }
  }

  // MARK: When somebody must make room

  /// Makes a change, and says whether `deadline` is earlier than before: then whoever waits for it must look again.
  mutating func change<Result>(_ body: (inout Schedule) -> Result) -> (result: Result, isEarlier: Bool) {
    let before = deadline
    let result = body(&self)
    return (result, deadline < before)
  }

  /// When `expire` has something to do; `.max` while a thread is on its way to every vCPU that waits.
  var deadline: UInt64 {
    guard lacking > 0, !hasEnded else { return .max }
    var earliest = UInt64.max
    for stay in running { if let stay { earliest = min(earliest, stay.until) } }
    return earliest
  }

  /// How many vCPUs wait to which no thread is on its way.
  private var lacking: Int {
    var busy = idle.count
    for stay in running where stay != nil { busy += 1 }
    return ready.count - (running.count - busy)
  }

  /// A slice that begins now.
  private var slice: UInt64 {
    guard ready.count > running.count else { return Schedule.slice }
    let share = Schedule.round / UInt64(ready.count) * UInt64(running.count)
    return min(Schedule.slice, max(share, Schedule.shortestSlice))
  }

  /// Slices that are over come to an end, the longest stays first, as many as there are vCPUs waiting: says whom to ask
  /// to make room.
  mutating func expire(now: UInt64) -> [Int] {
    guard deadline <= now else { return [] }
    // One that was asked a slice ago and is still there cannot be relied upon.
    var wanted = lacking
    for case let stay? in running where stay.isAsked && stay.until > now { wanted -= 1 }
    let over = running.indices.compactMap { thread in
      running[thread].flatMap { $0.until <= now ? (thread: thread, stay: $0) : nil }
    }.sorted { $0.stay.since < $1.stay.since }
    var asked: [Int] = []
    for (thread, var stay) in over {
      if stay.isAsked || wanted > 0 {
        if !stay.isAsked { wanted -= 1 }
        stay.isAsked = true
        asked.append(stay.cpu)
      }
      stay.until = now &+ slice
      running[thread] = stay
    }
    return asked
  }

  // MARK: Any thread

  /// A vCPU that slept can go on. Returns a thread to be called for it, if one is idle.
  mutating func wake(_ cpu: Int, now: UInt64) -> Int? {
    line(cpu, now)
    guard !waits[cpu].isPaused, !idle.isEmpty else { return nil }
    // Where it ran last its data may still be in the cache.
    let place = idle.firstIndex { $0 == waits[cpu].lastThread } ?? idle.count - 1
    return idle.remove(at: place)
  }

  /// Lets a vCPU that waits go before the others, but for those that have waited long: two that prefer each other must
  /// not keep a third from running. False if it does not wait.
  mutating func prefer(_ cpu: Int, now: UInt64) -> Bool {
    guard let place = ready.firstIndex(of: cpu) else { return false }
    ready.remove(at: place)
    let behind = ready.lastIndex { waiting($0, now) >= Schedule.patience }.map { $0 + 1 } ?? 0
    ready.insert(cpu, at: min(place, behind))
    return true
  }

  /// Ends the run; whether this was the first reason.
  mutating func end() -> Bool {
    defer { hasEnded = true }
    return !hasEnded
  }

  /// Puts a vCPU where it belongs that could run.
  private mutating func line(_ cpu: Int, _ now: UInt64) {
    waits[cpu].since = now
    if waits[cpu].isPaused { paused.append(cpu) } else { ready.append(cpu) }
  }

  /// Nobody takes some vCPUs any more; returns those that must make room.
  mutating func pause(_ cpus: some Collection<Int>) -> [Int] {
    for cpu in cpus where !waits[cpu].isPaused {
      waits[cpu].isPaused = true
      pausedCount += 1
    }
    paused += ready.filter { waits[$0].isPaused }
    ready.removeAll { waits[$0].isPaused }
    return running.compactMap { $0?.cpu }.filter { waits[$0].isPaused }
  }

  /// Whether no thread has one of some vCPUs.
  func isStanding(_ cpus: some Collection<Int>) -> Bool {
    running.allSatisfy { stay in stay.map { !cpus.contains($0.cpu) } ?? true }
  }

  /// They are taken again; returns the threads to be called.
  mutating func resume(_ cpus: some Collection<Int>) -> [Int] {
    for cpu in cpus where waits[cpu].isPaused {
      waits[cpu].isPaused = false
      pausedCount -= 1
    }
    ready += paused.filter { !waits[$0].isPaused }
    paused.removeAll { !waits[$0].isPaused }
    let count = min(ready.count, idle.count)
    defer { idle.removeLast(count) }
    return Array(idle.suffix(count))
  }

  // MARK: A thread that looks for work

  /// What `thread` does next.
  ///
  /// - Parameter cpu: What it ran and gives back, so that others may go first.
  mutating func next(_ thread: Int, returning cpu: Int?, now: UInt64) -> Decision {
    running[thread] = nil
    if let cpu { line(cpu, now) }
    // It was not called if the run has ended.
    idle.removeAll { $0 == thread }
    if hasEnded { return .leave }
    guard !ready.isEmpty else {
      idle.append(thread)
      return .sleep
    }
    let cpu = ready.removeFirst()
    let wait = waiting(cpu, now)
    waits[cpu].total &+= wait
    waits[cpu].longest = max(waits[cpu].longest, wait)
    // It fell asleep there, was woken, and that thread has not come back yet.
    if let last = waits[cpu].lastThread, running[last]?.cpu == cpu { running[last] = nil }
    running[thread] = Stay(cpu: cpu, since: now, until: now &+ slice)
    waits[cpu].lastThread = thread
    return .run(cpu)
  }

  // MARK: Waiting

  /// How long a vCPU that is ready has been so: somebody may have noted the time later than `now`.
  private func waiting(_ cpu: Int, _ now: UInt64) -> UInt64 { now > waits[cpu].since ? now - waits[cpu].since : 0 }

  /// How long a vCPU was ready without a thread, in all and at most.
  func wait(of cpu: Int, now: UInt64) -> (total: UInt64, longest: UInt64) {
    let current = ready.contains(cpu) || paused.contains(cpu) ? waiting(cpu, now) : 0
    return (waits[cpu].total &+ current, max(waits[cpu].longest, current))
  }
}

// SPDX-License-Identifier: Apache-2.0
// One thread that waits for everything that is not a vCPU: standard input, sockets, signals and the deadlines of
// guest timers. Callbacks run on it one at a time, so device back ends need no locks among themselves; they must
// not block.

import CHost
import Glibc
import Synchronization
import SystemPackage

/// A thread running callbacks for ready file descriptors, passed deadlines and posted work.
public final class EventLoop: Sendable {
  /// What a descriptor is ready for, or is watched for. `error` and `hangup` are always watched for.
  public struct Readiness: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let readable = Readiness(rawValue: UInt32(CHOST_POLL_IN))
    public static let writable = Readiness(rawValue: UInt32(CHOST_POLL_OUT))
    public static let error = Readiness(rawValue: UInt32(CHOST_POLL_ERROR))
    public static let hangup = Readiness(rawValue: UInt32(CHOST_POLL_HANGUP))
  }

  /// A watched descriptor, for changing and ending the watch.
  public struct Watch: Hashable, Sendable { let number: UInt64 }
  /// A scheduled callback, for cancelling it.
  public struct Timer: Hashable, Sendable { let number: UInt64 }

  private let core: Core
  private let thread: HostThread

  /// Starts the thread.
  public init(name: String = "lguest-events") throws(HostError) {
    let core = try Core()
    self.core = core
    thread = try HostThread(name: name) { core.run() }
  }

  deinit { stop() }

  /// Calls `body` on the loop's thread whenever the descriptor is ready (level-triggered).
  ///
  /// The descriptor stays the caller's; it must stay open until `unwatch`. Regular files are always ready.
  public func watch(
    _ descriptor: FileDescriptor, for interest: Readiness, _ body: @escaping @Sendable (Readiness) -> Void
  ) throws(HostError) -> Watch {
    try core.watch(descriptor.rawValue, interest, owned: false, body)
  }

  /// Changes what is watched for; an empty set pauses, so that unread input stays in the kernel.
  public func setInterest(_ interest: Readiness, of watch: Watch) { core.setInterest(interest, of: watch.number) }

  /// Ends a watch. A callback already under way finishes; none starts afterwards if called on the loop's thread.
  public func unwatch(_ watch: Watch) { core.unwatch(watch.number) }

  /// Blocks signals in the calling thread and calls `body` with the number of each that arrives.
  ///
  /// Call it on the main thread before other threads start: a signal goes to any thread that does not block it.
  public func watchSignals(
    _ signals: [Int32], _ body: @escaping @Sendable (Int32) -> Void
  ) throws(HostError) -> Watch {
    var mask: UInt64 = 0
    for signal in signals {
      precondition((1...64).contains(signal))
      mask |= 1 << UInt64(signal - 1)
    }
    let fd = try checked(chost_signalfd(mask), "watch", "signals \(signals)")
    return try core.watch(fd, .readable, owned: true) { _ in
      while case let signal = chost_signalfd_read(fd), signal != 0 { body(signal) }
    }
  }

  /// Calls `body` on the loop's thread once, when an instant of `HostClock.monotonic` has passed: late by some
  /// tens of microseconds, never early.
  @discardableResult
  public func schedule(at deadline: UInt64, _ body: @escaping @Sendable () -> Void) -> Timer {
    Timer(number: core.schedule(at: deadline, body))
  }

  /// Takes a scheduled callback back. Returns false if it has run, runs now or was cancelled before.
  @discardableResult
  public func cancel(_ timer: Timer) -> Bool { core.cancel(timer.number) }

  /// Calls `body` on the loop's thread soon, in the order of posting.
  public func perform(_ body: @escaping @Sendable () -> Void) { core.perform(body) }

  /// Whether the caller is the loop's thread.
  public var isCurrent: Bool { thread.isCurrent }

  /// Ends the thread and waits for it, unless called on it. What is posted or scheduled afterwards never runs.
  public func stop() {
    core.stop()
    if !thread.isCurrent { thread.join() }
  }
}

/// The loop's state; kept alive by the thread, so that an `EventLoop` may go away on any thread.
private final class Core: Sendable {
  typealias Readiness = EventLoop.Readiness

  struct Entry {
    var fd: Int32
    var interest: Readiness
    /// Close the descriptor with the watch.
    var isOwned: Bool
    /// A regular file: epoll refuses it, poll(2) calls it ready.
    var isAlwaysReady: Bool
    var body: @Sendable (Readiness) -> Void
  }

  struct State {
    var next: UInt64 = 2
    var watches: [UInt64: Entry] = [:]
    var timers: [UInt64: @Sendable () -> Void] = [:]
    var deadlines = DeadlineHeap()
    /// The instant the timerfd is armed for; `.max` if it is not.
    var armed = UInt64.max
    var posted: [@Sendable () -> Void] = []
    var isStopping = false
  }

  // Tags of the loop's own descriptors; watches count from 2.
  private static let wakeTag: UInt64 = 0, timerTag: UInt64 = 1
  private let epoll: Int32, wake: Int32, timer: Int32
  private let state = Mutex(State())

  init() throws(HostError) {
    epoll = try checked(chost_epoll(), "make", "an event queue")
    wake = try checked(chost_eventfd(), "make", "an event descriptor")
    timer = try checked(chost_timerfd(), "make", "a timer descriptor")
    try checked(
      chost_epoll_set(epoll, wake, 1, Readiness.readable.rawValue, Core.wakeTag), "watch", "an event descriptor")
    try checked(
      chost_epoll_set(epoll, timer, 1, Readiness.readable.rawValue, Core.timerTag), "watch", "a timer descriptor")
  }

  deinit {
    for entry in state.withLock({ $0.watches }).values where entry.isOwned { _ = close(entry.fd) }
    for fd in [epoll, wake, timer] { _ = close(fd) }
  }

  func watch(
    _ fd: Int32, _ interest: Readiness, owned: Bool, _ body: @escaping @Sendable (Readiness) -> Void
  ) throws(HostError) -> EventLoop.Watch {
    var entry = Entry(fd: fd, interest: interest, isOwned: owned, isAlwaysReady: false, body: body)
    let (number, result) = state.withLock { state in
      let number = state.next
      state.next += 1
      var result = chost_epoll_set(epoll, fd, 1, interest.rawValue, number)
      if result == -EPERM {
        entry.isAlwaysReady = true
        result = 0
      }
      if result == 0 { state.watches[number] = entry }
      return (number, result)
    }
    if result < 0 && owned { _ = close(fd) }
    try checked(result, "watch", "file descriptor \(fd)")
    if entry.isAlwaysReady { ring() }
    return EventLoop.Watch(number: number)
  }

  func setInterest(_ interest: Readiness, of number: UInt64) {
    let isAlwaysReady = state.withLock { state in
      guard let entry = state.watches[number], entry.interest != interest else { return false }
      state.watches[number]!.interest = interest
      if entry.isAlwaysReady { return true }
      // Out of the set while paused: a hangup would be reported without end otherwise.
      let add: Int32 = entry.interest.isEmpty ? 1 : 0
      _ = chost_epoll_set(epoll, entry.fd, add, interest.rawValue, number)
      return false
    }
    if isAlwaysReady { ring() }
  }

  func unwatch(_ number: UInt64) {
    state.withLock { state in
      guard let entry = state.watches.removeValue(forKey: number) else { return }
      if !entry.isAlwaysReady { _ = chost_epoll_set(epoll, entry.fd, 0, 0, number) }
      if entry.isOwned { _ = close(entry.fd) }
    }
  }

  func schedule(at deadline: UInt64, _ body: @escaping @Sendable () -> Void) -> UInt64 {
    state.withLock { state in
      let number = state.next
      state.next += 1
      state.timers[number] = body
      state.deadlines.insert(deadline, number)
      if deadline < state.armed { arm(&state, deadline) }
      return number
    }
  }

  func cancel(_ number: UInt64) -> Bool {
    state.withLock { state in
      guard state.timers.removeValue(forKey: number) != nil else { return false }
      // The heap forgets cancelled deadlines when they pass, or when most of it is cancelled.
      if state.deadlines.count > 2 * state.timers.count + 64 {
        state.deadlines.keep { state.timers[$0] != nil }
      }
      return true
    }
  }

  func perform(_ body: @escaping @Sendable () -> Void) {
    state.withLock { $0.posted.append(body) }
    ring()
  }

  func stop() {
    state.withLock { $0.isStopping = true }
    ring()
  }

  private func ring() {
    var one: UInt64 = 1
    _ = unsafe write(wake, &one, 8)
  }

  private func drain(_ fd: Int32) {
    var count: UInt64 = 0
    _ = unsafe read(fd, &count, 8)
  }

  private func arm(_ state: inout State, _ deadline: UInt64) {
    state.armed = deadline
    // 0 would disarm; `.max` and what else lies 100 years ahead is never.
    let isNever = deadline > UInt64(Int64.max) / 4
    _ = chost_timerfd_set(timer, isNever ? 0 : max(deadline, 1))
  }

  func run() {
    var ready = [chost_ready](repeating: chost_ready(), count: 64)
    while true {
      let (isStopping, mayWait) = state.withLock { state in
        (state.isStopping, !state.watches.values.contains { $0.isAlwaysReady && !$0.interest.isEmpty })
      }
      if isStopping { return }
      let count = unsafe ready.withUnsafeMutableBufferPointer {
        unsafe chost_epoll_wait(epoll, $0.baseAddress, 64, mayWait ? -1 : 0)
      }
      for event in ready.prefix(Int(max(0, count))) {
        switch event.tag {
        case Core.wakeTag: drain(wake)
        case Core.timerTag: drain(timer)
        default: call(event.tag, Readiness(rawValue: event.events))
        }
      }
      if !mayWait {
        let files = state.withLock { $0.watches.filter { $0.value.isAlwaysReady } }
        for (number, entry) in files where !entry.interest.isEmpty { call(number, entry.interest) }
      }
      for body in state.withLock({ state in
        defer { state.posted = [] }
        return state.posted
      }) { body() }
      runDeadlines()
    }
  }

  private func call(_ number: UInt64, _ readiness: Readiness) {
    // Looked up again: an earlier callback of this round may have ended or paused the watch.
    guard let entry = state.withLock({ $0.watches[number] }), !entry.interest.isEmpty else { return }
    entry.body(readiness)
  }

  private func runDeadlines() {
    while true {
      let now = HostClock.monotonic
      let body: (@Sendable () -> Void)?? = state.withLock { state in
        guard let first = state.deadlines.first, first.deadline <= now else {
          let next = state.deadlines.first?.deadline ?? .max
          if state.armed != next { arm(&state, next) }
          return .none
        }
        state.deadlines.removeFirst()
        return .some(state.timers.removeValue(forKey: first.number))
      }
      guard let body else { return }
      body?()
    }
  }
}

/// A binary min-heap of deadlines; equal deadlines leave in the order they came.
struct DeadlineHeap {
  struct Element {
    var deadline: UInt64
    var number: UInt64
  }
  private var elements: [Element] = []

  var count: Int { elements.count }
  var first: Element? { elements.first }

  private static func precedes(_ a: Element, _ b: Element) -> Bool {
    (a.deadline, a.number) < (b.deadline, b.number)
  }

  mutating func insert(_ deadline: UInt64, _ number: UInt64) {
    elements.append(Element(deadline: deadline, number: number))
    var child = elements.count - 1
    while child > 0, case let parent = (child - 1) / 2, DeadlineHeap.precedes(elements[child], elements[parent]) {
      elements.swapAt(child, parent)
      child = parent
    }
  }

  mutating func removeFirst() {
    elements.swapAt(0, elements.count - 1)
    elements.removeLast()
    var parent = 0
    while true {
      var least = parent
      for child in [2 * parent + 1, 2 * parent + 2]
      where child < elements.count && DeadlineHeap.precedes(elements[child], elements[least]) {
        least = child
      }
      if least == parent { return }
      elements.swapAt(parent, least)
      parent = least
    }
  }

  /// Drops what `isWanted` refuses. A sorted array is a heap.
  mutating func keep(_ isWanted: (UInt64) -> Bool) {
    elements = elements.filter { isWanted($0.number) }.sorted(by: DeadlineHeap.precedes)
  }
}

// SPDX-License-Identifier: Apache-2.0
// kvmclock: the host writes down one moment as a pair of TSC and nanoseconds, together with the TSC's rate,
// and the guest reads the time from there with RDTSC, without an exit. Here is the VM's part: which moment,
// and the two structures in guest RAM (Linux arch/x86/include/asm/pvclock-abi.h). Which vCPU has its
// structure where is in ModelSpecificRegisters.swift.

public import Saving
import Synchronization

/// A moment in both clocks.
public struct ClockMoment: Sendable, Equatable {
  /// Guest TSC.
  public var timestamp: UInt64
  /// kvmclock, in nanoseconds since the VM's start.
  public var nanoseconds: UInt64
}

/// A kvmclock that was saved.
public struct SavedKVMClock: Sendable, Equatable, SavedState {
  /// The guest's TSC at the moment of saving, on a vCPU that has not written its own.
  public var timestamp: UInt64 = 0
  /// What the clock showed at that moment, in nanoseconds.
  public var nanoseconds: UInt64 = 0
  /// The moment the guest computes from.
  var start = ClockMoment(timestamp: 0, nanoseconds: 0)
  var wallClockRegister: UInt64 = 0
  var bootCPUUsesOldRegister = false
  var timestampsDiffer = false

  public init() {}

  public mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&timestamp, "time-stamp counter")
    try archive.transfer(&nanoseconds, "kvmclock")
    try archive.transfer(&start.timestamp, "time-stamp counter at the start")
    try archive.transfer(&start.nanoseconds, "kvmclock at the start")
    try archive.transfer(&wallClockRegister, "wall clock register")
    try archive.transfer(&bootCPUUsesOldRegister, "choice of registers")
    try archive.transfer(&timestampsDiffer, "counters' difference")
  }
}

/// A VM's kvmclock, shared by its vCPUs and callable from any of their threads.
///
/// With a constant TSC one moment, that of creation, serves all vCPUs for good, which is what lets the
/// guest read any vCPU's structure on any other. Otherwise every update takes a new moment.
public final class KVMClock: Sendable {
  public let counter: TimestampCounter
  /// Whether the guest's TSC has a constant rate and is the same on all vCPUs.
  public let isTimestampConstant: Bool
  private let source: any GuestTimeSource
  private let start: ClockMoment
  /// The host's monotonic clock when kvmclock was zero; wraps if the VM is older than the host.
  private let monotonicAtZero: UInt64
  private let state = Mutex(State())
  private let changes = Atomic<UInt32>(0)
  private let stops = Atomic<UInt32>(0)

  private struct State {
    var wallClockRegister: UInt64 = 0
    var bootCPUUsesOldRegister = false
    var timestampsDiffer = false
    var latest: UInt64 = 0
    var isSynchronous: Bool { !bootCPUUsesOldRegister && !timestampsDiffer }
  }

  /// Starts the clock.
  ///
  /// - Parameter nanoseconds: What the clock shows now.
  public init(
    counter: TimestampCounter, isTimestampConstant: Bool, source: any GuestTimeSource, nanoseconds: UInt64 = 0
  ) {
    self.counter = counter
    self.isTimestampConstant = isTimestampConstant
    self.source = source
    start = ClockMoment(timestamp: source.guestTimestamp(), nanoseconds: nanoseconds)
    monotonicAtZero = source.monotonicNanoseconds() &- nanoseconds
  }

  /// Goes on from a saved clock, of a counter with the same rate. The source's TSC must go on from the saved one.
  public init(
    counter: TimestampCounter, isTimestampConstant: Bool, source: any GuestTimeSource, restoring saved: SavedKVMClock
  ) {
    self.counter = counter
    self.isTimestampConstant = isTimestampConstant
    self.source = source
    // The same line through both clocks as before: what the guest read already and what it reads next agree.
    start =
      isTimestampConstant
      ? saved.start : ClockMoment(timestamp: source.guestTimestamp(), nanoseconds: saved.nanoseconds)
    monotonicAtZero = source.monotonicNanoseconds() &- saved.nanoseconds
    state.withLock { state in
      state.wallClockRegister = saved.wallClockRegister
      state.bootCPUUsesOldRegister = saved.bootCPUUsesOldRegister
      state.timestampsDiffer = saved.timestampsDiffer
      state.latest = saved.nanoseconds
    }
  }

  /// The clock at this moment. No vCPU may run until it is restored, or the guest sees time pass twice.
  public var saved: SavedKVMClock {
    var saved = SavedKVMClock()
    saved.timestamp = source.guestTimestamp()
    saved.nanoseconds = nanoseconds()
    saved.start = isTimestampConstant ? start : ClockMoment(timestamp: saved.timestamp, nanoseconds: saved.nanoseconds)
    state.withLock { state in
      saved.wallClockRegister = state.wallClockRegister
      saved.bootCPUUsesOldRegister = state.bootCPUUsesOldRegister
      saved.timestampsDiffer = state.timestampsDiffer
    }
    return saved
  }

  /// kvmclock now, in nanoseconds, as a guest would read it.
  public func nanoseconds() -> UInt64 {
    guard isTimestampConstant else { return moment().nanoseconds }
    let now = source.guestTimestamp()
    // A counter that is behind its own start has not been restored yet: time stands still.
    return start.nanoseconds &+ counter.nanoseconds(inTicks: now > start.timestamp ? now &- start.timestamp : 0)
  }

  /// Changes when every vCPU owes its structure an update.
  public var generation: UInt32 { changes.load(ordering: .acquiring) }
  /// Counts the calls of `guestWasStopped`.
  public var stopCount: UInt32 { stops.load(ordering: .acquiring) }

  /// Tells the guest, with its next update, that it did not run for a while, so that its watchdogs keep calm.
  public func guestWasStopped() {
    stops.wrappingAdd(1, ordering: .releasing)
    changes.wrappingAdd(1, ordering: .releasing)
  }

  /// The guest changed the TSC of one vCPU: readings of different vCPUs no longer compare.
  public func timestampsDiffer() { change { $0.timestampsDiffer = true } }

  /// Which of the two registers vCPU 0 registered with; the old one turns the stable flag off, as in KVM.
  func bootCPURegistered(withOldRegister old: Bool) { change { $0.bootCPUUsesOldRegister = old } }

  private func change(_ body: (inout State) -> Void) {
    let changed = state.withLock { state in
      let before = state.isSynchronous
      body(&state)
      return before != state.isSynchronous
    }
    if changed { changes.wrappingAdd(1, ordering: .releasing) }
  }

  /// Whether all vCPUs may use each other's structures.
  public var isStable: Bool { isTimestampConstant && state.withLock { $0.isSynchronous } }

  private func moment() -> ClockMoment {
    guard !isTimestampConstant else { return start }
    let timestamp = source.guestTimestamp()
    let now = source.monotonicNanoseconds() &- monotonicAtZero
    return state.withLock { state in
      state.latest = max(state.latest, now)
      return ClockMoment(timestamp: timestamp, nanoseconds: state.latest)
    }
  }

  // MARK: The time structure

  /// Bytes of `pvclock_vcpu_time_info`.
  static let timeSize: UInt64 = 32
  private static let stableFlag: UInt8 = 1
  private static let stoppedFlag: UInt8 = 2

  /// Writes one vCPU's time structure, as a seqlock: odd while it is being written.
  ///
  /// - Parameters:
  ///   - address: Guest-physical; must not cross a page. Where it is not RAM nothing happens.
  ///   - timestampOffset: What this vCPU's TSC is ahead of the VM's; wraps.
  ///   - stopped: Sets the flag that tells the guest it was stopped. The guest clears it.
  func writeTime<Memory: GuestPhysicalWriter>(
    to memory: Memory, at address: UInt64, timestampOffset: UInt64, stopped: Bool
  ) {
    guard address & 0xFFF <= 4096 - KVMClock.timeSize,
      memory.contains(address, byteCount: KVMClock.timeSize),
      let version = memory.loadWord(at: address), let oldFlags = memory.loadByte(at: address + 29)
    else { return }
    let moment = moment()
    var flags = oldFlags & KVMClock.stoppedFlag
    if isStable { flags |= KVMClock.stableFlag }
    if stopped { flags |= KVMClock.stoppedFlag }
    let scale = counter.nanosecondScale
    let odd = (version &+ 1) | 1
    memory.store(odd, at: address)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    memory.store(UInt32(0), at: address + 4)
    memory.store(moment.timestamp &+ timestampOffset, at: address + 8)
    memory.store(moment.nanoseconds, at: address + 16)
    memory.store(scale.multiplier, at: address + 24)
    memory.store(UInt32(UInt8(bitPattern: scale.shift)) | UInt32(flags) << 8, at: address + 28)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    memory.store(odd &+ 1, at: address)
  }

  // MARK: The wall clock

  /// What RDMSR of either wall clock register answers; one for the VM.
  public var wallClockRegister: UInt64 { state.withLock { $0.wallClockRegister } }

  /// Bytes of `pvclock_wall_clock`.
  static let wallClockSize: UInt64 = 12

  /// WRMSR of either wall clock register: stores it and writes the time of day at kvmclock zero, once.
  ///
  /// - Parameter address: Guest-physical, of any alignment, also across pages. Where it is 0 or not RAM
  ///   nothing is written.
  func setWallClock<Memory: GuestPhysicalWriter>(_ address: UInt64, in memory: Memory) {
    let elapsed = Int64(truncatingIfNeeded: nanoseconds())
    let boot = max(source.wallNanoseconds() &- elapsed, 0)
    // No lock is held while storing: a store may have to wait for other vCPUs to leave translated code.
    state.withLock { $0.wallClockRegister = address }
    guard address != 0, memory.contains(address, byteCount: KVMClock.wallClockSize),
      let version = memory.loadWord(at: address)
    else { return }
    let odd = (version &+ 1) | 1
    memory.store(odd, at: address)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    memory.store(UInt32(truncatingIfNeeded: boot / 1_000_000_000), at: address + 4)
    memory.store(UInt32(truncatingIfNeeded: boot % 1_000_000_000), at: address + 8)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    memory.store(odd &+ 1, at: address)
  }

  /// The host's wall clock and the guest's TSC at one moment; `nil` if they cannot be told within 100 µs.
  func wallClockPairing() -> (nanoseconds: Int64, timestamp: UInt64)? {
    guard isTimestampConstant else { return nil }
    let pair = source.pairing()
    guard counter.nanoseconds(inTicks: pair.uncertainty) <= 100_000, pair.wallNanoseconds >= 0 else { return nil }
    return (pair.wallNanoseconds, pair.timestamp)
  }
}

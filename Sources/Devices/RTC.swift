// SPDX-License-Identifier: Apache-2.0
// The clock on the battery and the few bytes of memory beside it. Its time is the host's, plus whatever the guest
// has set it to; without an enabled interrupt it costs the host nothing.

public import Saving
import Synchronization

/// An MC146818A with century byte and 128 bytes of CMOS RAM: port 0x70 is offset 0, port 0x71 offset 1.
public final class RTC: Device, DeadlineSource {
  /// The registers with a meaning; the rest of the 128 bytes are memory.
  private enum Register: UInt8 {
    case seconds = 0, secondsAlarm, minutes, minutesAlarm, hours, hoursAlarm, weekday, day, month, year
    case statusA, statusB, statusC, statusD
    case century = 0x32
  }
  private enum StatusA {
    static let updateInProgress: UInt8 = 1 << 7
    /// The divider chain runs at 32,768 Hz and the rate is 1,024 Hz, as firmware leaves it.
    static let initial: UInt8 = 0x26
  }
  private enum StatusB {
    static let hours24: UInt8 = 1 << 1, binary: UInt8 = 1 << 2, updateEnded: UInt8 = 1 << 4
    static let alarm: UInt8 = 1 << 5, periodic: UInt8 = 1 << 6, set: UInt8 = 1 << 7
    static let interrupts = updateEnded | alarm | periodic
  }
  /// The registers read stably until the last 244 us of each second.
  private static let updateStart: UInt32 = 1_000_000_000 - 244_000
  private static let second: UInt64 = 1_000_000_000
  private static let memoryByteCount = 128
  private static let indexBits: UInt8 = 0x7F
  /// Where the century is in the CMOS RAM, for the FADT.
  static let centuryIndex = Register.century.rawValue

  private struct State {
    var index: UInt8 = 0
    var isNMIMasked = false
    var memory = [UInt8](repeating: 0, count: memoryByteCount)
    var statusA = StatusA.initial
    var statusB = StatusB.hours24
    var statusC: UInt8 = 0
    /// Guest time minus wall time, in seconds.
    var offset: Int64 = 0
    /// The time registers while SET holds them still.
    var held: CivilTime?
    /// The last second whose update was noted in status C, and the last periodic tick.
    var notedSecond: Int64 = 0
    var notedTick: UInt64 = 0
  }

  private let state: Mutex<State>
  private let clock: Clock
  private let wallTime: @Sendable () -> WallTime
  private let line: InterruptLine
  private let rearm: @Sendable () -> Void

  /// - Parameters:
  ///   - memoryBelow4G: Bytes of RAM below 4 GiB, for the CMOS memory-size bytes.
  ///   - memoryAbove4G: Bytes of RAM above 4 GiB.
  ///   - wallTime: The host's civil time, read at each access.
  ///   - line: IRQ 8; a level until status C is read.
  ///   - rearm: Called when an interrupt was enabled or disabled.
  public init(
    memoryBelow4G: UInt64, memoryAbove4G: UInt64, clock: Clock, wallTime: @escaping @Sendable () -> WallTime,
    line: InterruptLine, rearm: @escaping @Sendable () -> Void = {}
  ) {
    self.clock = clock
    self.wallTime = wallTime
    self.line = line
    self.rearm = rearm
    var initial = State()
    initial.memory = Self.sizes(below: memoryBelow4G, above: memoryAbove4G)
    initial.notedSecond = wallTime().seconds
    state = Mutex(initial)
  }

  /// The memory-size bytes as SeaBIOS and old kernels read them: KiB below 640K, KiB above 1 MiB, 64 KiB units
  /// above 16 MiB and above 4 GiB; each saturates.
  private static func sizes(below: UInt64, above: UInt64) -> [UInt8] {
    var memory = [UInt8](repeating: 0, count: memoryByteCount)
    let extended = UInt16(clamping: below > 1 << 20 ? (below - 1 << 20) >> 10 : 0)
    let large = UInt16(clamping: below > 16 << 20 ? (below - 16 << 20) >> 16 : 0)
    let huge = min(above >> 16, 0xFF_FFFF)
    for (index, value) in [
      (0x15, UInt64(640)), (0x17, UInt64(extended)), (0x30, UInt64(extended)), (0x34, UInt64(large)),
    ] {
      memory[index] = UInt8(truncatingIfNeeded: value)
      memory[index + 1] = UInt8(truncatingIfNeeded: value >> 8)
    }
    for byte in 0..<3 { memory[0x5B + byte] = UInt8(truncatingIfNeeded: huge >> UInt64(8 * byte)) }
    return memory
  }

  /// Bit 7 of port 0x70.
  public var isNMIMasked: Bool { state.withLock { $0.isNMIMasked } }

  // MARK: Interrupts

  /// When an enabled interrupt next comes, in clock nanoseconds; nil if none is enabled.
  public var nextDeadline: UInt64? {
    state.withLock { state in
      let enabled = state.statusB & StatusB.interrupts
      guard enabled != 0 else { return nil }
      let now = clock.nanoseconds()
      var next = UInt64.max
      if enabled & StatusB.periodic != 0, let period = Self.period(state) {
        next = min(next, (now / period &+ 1) &* period)
      }
      if enabled & (StatusB.alarm | StatusB.updateEnded) != 0, state.held == nil {
        next = min(next, now &+ Self.second &- UInt64(wallTime().nanoseconds))
      }
      return next == .max ? nil : next
    }
  }

  public func expire(now: UInt64) { state.withLock { update(&$0) } }

  /// Nanoseconds between periodic ticks: rates 3...15 are 8,192 Hz to 2 Hz, 1 and 2 repeat 256 and 128 Hz.
  private static func period(_ state: State) -> UInt64? {
    let rate = UInt64(state.statusA & 0xF)
    guard rate != 0 else { return nil }
    return second << ((rate < 3 ? rate + 7 : rate) - 1) / 32_768
  }

  /// Notes in status C what time has done since the last look, and drives the line.
  private func update(_ state: inout State) {
    let seconds = wallTime().seconds &+ state.offset
    if state.held == nil, seconds != state.notedSecond {
      state.statusC |= StatusB.updateEnded
      // Look at every second that passed, but not for more than a day: then each alarm has come by.
      let passed = seconds &- state.notedSecond
      let first = passed > 0 && passed <= 86_400 ? state.notedSecond &+ 1 : seconds
      if state.statusB & StatusB.alarm != 0, (first...seconds).contains(where: { matchesAlarm($0, state) }) {
        state.statusC |= StatusB.alarm
      }
      state.notedSecond = seconds
    }
    if let period = Self.period(state) {
      let tick = clock.nanoseconds() / period
      if tick != state.notedTick { state.statusC |= StatusB.periodic }
      state.notedTick = tick
    }
    line.set(state.statusC & state.statusB & StatusB.interrupts != 0)
  }

  /// Alarm bytes of 0xC0 and above match anything.
  private func matchesAlarm(_ seconds: Int64, _ state: State) -> Bool {
    let time = CivilTime(secondsSince1970: seconds)
    let pairs: [(Register, UInt8)] = [
      (.secondsAlarm, Self.encode(time.second, state)), (.minutesAlarm, Self.encode(time.minute, state)),
      (.hoursAlarm, Self.encodeHour(time.hour, state)),
    ]
    return pairs.allSatisfy { register, now in
      let wanted = state.memory[Int(register.rawValue)]
      return wanted >= 0xC0 || wanted == now
    }
  }

  // MARK: Registers

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    guard offset == 1 else { return .max }
    return UInt64(
      state.withLock { state in
        guard let register = Register(rawValue: state.index) else { return state.memory[Int(state.index)] }
        return read(register, &state)
      })
  }

  private func read(_ register: Register, _ state: inout State) -> UInt8 {
    let wall = wallTime()
    let time = state.held ?? CivilTime(secondsSince1970: wall.seconds &+ state.offset)
    switch register {
    case .seconds: return Self.encode(time.second, state)
    case .minutes: return Self.encode(time.minute, state)
    case .hours: return Self.encodeHour(time.hour, state)
    case .weekday: return Self.encode(time.weekday, state)
    case .day: return Self.encode(time.day, state)
    case .month: return Self.encode(time.month, state)
    case .year: return Self.encode(time.year % 100, state)
    case .century: return Self.encode(time.year / 100, state)
    case .secondsAlarm, .minutesAlarm, .hoursAlarm: return state.memory[Int(register.rawValue)]
    case .statusA:
      let isUpdating = state.held == nil && wall.nanoseconds >= Self.updateStart
      return state.statusA | (isUpdating ? StatusA.updateInProgress : 0)
    case .statusB: return state.statusB
    case .statusC:
      update(&state)
      let flags = state.statusC
      state.statusC = 0
      line.set(false)
      return flags | (flags & state.statusB & StatusB.interrupts != 0 ? 0x80 : 0)
    case .statusD: return 0x80
    }
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    let byte = UInt8(truncatingIfNeeded: value)
    let isRearmed = state.withLock { state in
      guard offset == 1 else {
        if offset == 0 {
          state.index = byte & Self.indexBits
          state.isNMIMasked = byte & 0x80 != 0
        }
        return false
      }
      guard let register = Register(rawValue: state.index) else {
        state.memory[Int(state.index)] = byte
        return false
      }
      return write(register, byte, &state)
    }
    if isRearmed { rearm() }
  }

  /// Returns whether deadlines may have changed.
  private func write(_ register: Register, _ byte: UInt8, _ state: inout State) -> Bool {
    switch register {
    case .seconds, .minutes, .hours, .day, .month, .year, .century:
      setTime(register, byte, &state)
      return true
    case .secondsAlarm, .minutesAlarm, .hoursAlarm:
      state.memory[Int(register.rawValue)] = byte
      return false
    case .statusA:
      state.statusA = byte & ~StatusA.updateInProgress
      return true
    case .statusB:
      update(&state)
      let old = state.statusB
      state.statusB = byte
      let wall = wallTime().seconds
      if byte & StatusB.set != 0, old & StatusB.set == 0 {
        state.held = CivilTime(secondsSince1970: wall &+ state.offset)
        // On the chip, setting SET clears UIE.
        state.statusB &= ~StatusB.updateEnded
      } else if byte & StatusB.set == 0, let held = state.held {
        state.held = nil
        state.offset = held.secondsSince1970 &- wall
        state.notedSecond = held.secondsSince1970
      }
      line.set(state.statusC & state.statusB & StatusB.interrupts != 0)
      return true
    case .weekday, .statusC, .statusD: return false
    }
  }

  private func setTime(_ register: Register, _ byte: UInt8, _ state: inout State) {
    let wall = wallTime().seconds
    var time = state.held ?? CivilTime(secondsSince1970: wall &+ state.offset)
    let value = Self.decode(byte, state)
    switch register {
    case .seconds: time.second = value
    case .minutes: time.minute = value
    case .hours: time.hour = Self.decodeHour(byte, state)
    case .day: time.day = value
    case .month: time.month = min(max(value, 1), 12)
    case .year: time.year = time.year / 100 * 100 + value
    case .century: time.year = value * 100 + time.year % 100
    case .secondsAlarm, .minutesAlarm, .hoursAlarm, .weekday, .statusA, .statusB, .statusC, .statusD: break
    }
    if state.held != nil {
      state.held = time
    } else {
      state.offset = time.secondsSince1970 &- wall
      state.notedSecond = time.secondsSince1970
    }
  }

  // MARK: Number formats

  private static func encode(_ value: Int64, _ state: State) -> UInt8 {
    let byte = UInt8(truncatingIfNeeded: value)
    return state.statusB & StatusB.binary != 0 ? byte : (byte / 10) << 4 | byte % 10
  }

  private static func decode(_ byte: UInt8, _ state: State) -> Int64 {
    Int64(state.statusB & StatusB.binary != 0 ? byte : (byte >> 4) &* 10 &+ byte & 0xF)
  }

  /// In 12-hour form bit 7 is PM and midnight is 12.
  private static func encodeHour(_ hour: Int64, _ state: State) -> UInt8 {
    guard state.statusB & StatusB.hours24 == 0 else { return encode(hour, state) }
    return encode((hour + 11) % 12 + 1, state) | (hour >= 12 ? 0x80 : 0)
  }

  private static func decodeHour(_ byte: UInt8, _ state: State) -> Int64 {
    guard state.statusB & StatusB.hours24 == 0 else { return decode(byte, state) }
    return decode(byte & 0x7F, state) % 12 + (byte & 0x80 != 0 ? 12 : 0)
  }
}

extension RTC: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try state.withLock { state throws(SavedStateError) in
      try archive.transfer(&state.index, "register number", bits: Self.indexBits)
      try archive.transfer(&state.isNMIMasked, "NMI mask")
      try archive.transfer(&state.memory, "memory", limit: Self.memoryByteCount)
      try archive.require(state.memory.count == Self.memoryByteCount, "memory's length", state.memory.count)
      try archive.transfer(&state.statusA, "status A", bits: ~StatusA.updateInProgress)
      try archive.transfer(&state.statusB, "status B")
      try archive.transfer(&state.statusC, "status C", bits: StatusB.interrupts)
      // A guest cannot set the clock by more than that.
      let reasonable = -(Int64(1) << 40)...(Int64(1) << 40)
      try archive.transfer(&state.offset, "offset", in: reasonable)
      try archive.transfer(&state.notedSecond, "last second", in: reasonable)
      var isHeld = state.held != nil
      try archive.transfer(&isHeld, "held time's presence")
      try archive.require(isHeld == (state.statusB & StatusB.set != 0), "held time's presence")
      if isHeld {
        var held = state.held ?? CivilTime(secondsSince1970: 0)
        try archive.part("held time's") { archive throws(SavedStateError) in try held.transfer(&archive) }
        state.held = held
      } else {
        state.held = nil
      }
      // Ticks are counted on the host's clock, which is another one now.
      if archive.isRestoring, let period = Self.period(state) { state.notedTick = clock.nanoseconds() / period }
    }
  }
}

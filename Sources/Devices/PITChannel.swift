// SPDX-License-Identifier: Apache-2.0
// One counter of the 8254 as arithmetic over guest time: what it would show, and when its output rises.

import Saving

/// A counter of the 8254 (Intel 231164-005). Times are clock nanoseconds.
struct PITChannel: Sendable {
  /// The rate of the PC's timer crystal divided by 12, in Hz.
  static let frequency: UInt64 = 1_193_182
  /// A guest that asks for faster ticks gets these: at most 5,000 host wake-ups a second.
  static let shortestPeriod: UInt64 = 200_000

  enum Mode: UInt8 {
    case interruptOnTerminalCount = 0, oneShot, rateGenerator, squareWave, softwareStrobe, hardwareStrobe
  }
  /// Which bytes of the count a port access moves.
  enum Access: UInt8 { case latch = 0, low, high, lowThenHigh }

  private(set) var mode = Mode.interruptOnTerminalCount
  private var access = Access.lowThenHigh
  private var isBCD = false
  /// 1...65536 (10000 in BCD); nil until the guest writes one.
  private var count: UInt64?
  /// When the running count was loaded; nil while it waits for its gate.
  private var start: UInt64?
  private(set) var gate: Bool
  private var pendingLow: UInt8?
  private var readsHigh = false
  private var latchedCount: [UInt8] = []
  private var latchedStatus: UInt8?
  /// When the output next rises, for channel 0.
  private(set) var deadline: UInt64?

  init(gate: Bool) { self.gate = gate }

  /// What a count is counted down modulo, and what 0 means.
  private var limit: UInt64 { isBCD ? 10_000 : 65_536 }
  /// In BCD a guest may write digits above 9.
  private var largestCount: UInt64 { isBCD ? PITChannel.fromBCD(.max) : limit }

  // MARK: Programming

  mutating func control(_ value: UInt8, now: UInt64) {
    guard let access = Access(rawValue: value >> 4 & 3), access != .latch else { return latchCount(now: now) }
    let code = value >> 1 & 7
    mode = Mode(rawValue: code > 5 ? code & 3 : code) ?? .interruptOnTerminalCount
    self.access = access
    isBCD = value & 1 != 0
    count = nil
    start = nil
    deadline = nil
    pendingLow = nil
    readsHigh = false
    latchedCount = []
    latchedStatus = nil
  }

  mutating func write(_ byte: UInt8, now: UInt64) {
    switch access {
    case .low, .latch: load(UInt16(byte), now: now)
    case .high: load(UInt16(byte) << 8, now: now)
    case .lowThenHigh:
      if let low = pendingLow {
        pendingLow = nil
        load(UInt16(byte) << 8 | UInt16(low), now: now)
      } else {
        pendingLow = byte
      }
    }
  }

  private mutating func load(_ value: UInt16, now: UInt64) {
    let decoded = isBCD ? Self.fromBCD(value) : UInt64(value)
    count = decoded == 0 ? limit : decoded
    // Modes 1 and 5 wait for the gate to rise.
    start = mode == .oneShot || mode == .hardwareStrobe ? nil : gate ? now : nil
    schedule(now: now)
  }

  mutating func setGate(_ level: Bool, now: UInt64) {
    guard level != gate else { return }
    gate = level
    guard count != nil else { return }
    if level {
      start = now
    } else if mode != .oneShot, mode != .hardwareStrobe {
      // Modes 0 and 4 pause and modes 2 and 3 stop; a paused count restarts here, which no known guest can tell.
      start = nil
    }
    schedule(now: now)
  }

  // MARK: Time

  private func ticks(now: UInt64) -> UInt64 {
    guard let start, now > start else { return 0 }
    let product = (now - start).multipliedFullWidth(by: Self.frequency)
    return UInt64(1_000_000_000).dividingFullWidth((product.high % 1_000_000_000, product.low)).quotient
  }

  /// Nanoseconds after which `ticks` have passed, rounded up. At most 65,536 ticks.
  private static func nanoseconds(_ ticks: UInt64) -> UInt64 {
    (ticks &* 1_000_000_000 &+ frequency &- 1) / frequency
  }

  private mutating func schedule(now: UInt64) {
    guard let count, let start else { return deadline = nil }
    deadline = start &+ Self.nanoseconds(count)
  }

  /// Whether the output has risen since the last call; missed rises are one.
  mutating func advance(now: UInt64) -> Bool {
    guard let due = deadline, due <= now, let count else { return false }
    switch mode {
    case .rateGenerator, .squareWave:
      let length = max(Self.nanoseconds(count), Self.shortestPeriod)
      deadline = due &+ ((now - due) / length &+ 1) &* length
    case .interruptOnTerminalCount, .oneShot, .softwareStrobe, .hardwareStrobe:
      deadline = nil
    }
    return true
  }

  /// The OUT pin.
  func output(now: UInt64) -> Bool {
    guard let count, start != nil else { return mode != .interruptOnTerminalCount }
    let elapsed = ticks(now: now)
    return switch mode {
    case .interruptOnTerminalCount, .oneShot: elapsed >= count
    case .rateGenerator: elapsed % count != count - 1
    case .squareWave: elapsed % count < (count + 1) / 2
    case .softwareStrobe, .hardwareStrobe: elapsed != count
    }
  }

  private func currentCount(now: UInt64) -> UInt16 {
    guard let count else { return 0 }
    let elapsed = ticks(now: now)
    let value: UInt64 =
      switch mode {
      case .rateGenerator: count - elapsed % count
      case .squareWave: count - (elapsed &* 2) % count
      case .interruptOnTerminalCount, .oneShot, .softwareStrobe, .hardwareStrobe:
        (count + limit - elapsed % limit) % limit
      }
    let shown = value % limit
    return isBCD ? Self.toBCD(shown) : UInt16(truncatingIfNeeded: shown)
  }

  // MARK: Reading

  mutating func read(now: UInt64) -> UInt8 {
    if let status = latchedStatus {
      latchedStatus = nil
      return status
    }
    if !latchedCount.isEmpty { return latchedCount.removeFirst() }
    let value = currentCount(now: now)
    let isHigh = access == .high || (access == .lowThenHigh && readsHigh)
    if access == .lowThenHigh { readsHigh.toggle() }
    return UInt8(truncatingIfNeeded: isHigh ? value >> 8 : value)
  }

  /// A second latch before the first is read changes nothing.
  mutating func latchCount(now: UInt64) {
    guard latchedCount.isEmpty else { return }
    let value = currentCount(now: now)
    let low = UInt8(truncatingIfNeeded: value)
    let high = UInt8(truncatingIfNeeded: value >> 8)
    latchedCount =
      switch access {
      case .low, .latch: [low]
      case .high: [high]
      case .lowThenHigh: [low, high]
      }
  }

  mutating func latchStatus(now: UInt64) {
    guard latchedStatus == nil else { return }
    latchedStatus =
      (output(now: now) ? 0x80 : 0) | (count == nil ? 0x40 : 0) | access.rawValue << 4 | mode.rawValue << 1
      | (isBCD ? 1 : 0)
  }

  private static func fromBCD(_ value: UInt16) -> UInt64 {
    let digits = (0..<4).map { UInt64(value >> (UInt16($0) &* 4) & 0xF) }
    return digits[0] + digits[1] * 10 + digits[2] * 100 + digits[3] * 1000
  }

  private static func toBCD(_ value: UInt64) -> UInt16 {
    UInt16(
      truncatingIfNeeded: value % 10 | (value / 10 % 10) << 4 | (value / 100 % 10) << 8 | (value / 1000 % 10) << 12)
  }
}

extension PITChannel: SavedState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&mode, "mode")
    try archive.transfer(&access, "access")
    // Latching is a command and no way of access.
    try archive.require(access != .latch, "access")
    try archive.transfer(&isBCD, "number format")
    try archive.transfer(&count, "count")
    try archive.require(count.map { (1...largestCount).contains($0) } ?? true, "count", count ?? 0)
    try archive.transfer(instant: &start, "start")
    try archive.require(start.map { count != nil && $0 <= archive.now } ?? true, "start")
    try archive.transfer(&gate, "gate")
    try archive.transfer(&pendingLow, "low byte")
    try archive.transfer(&readsHigh, "byte choice")
    try archive.transfer(&latchedCount, "latched count", limit: access == .lowThenHigh ? 2 : 1)
    try archive.transfer(&latchedStatus, "latched status")
    try archive.transfer(instant: &deadline, "deadline")
    try archive.require(deadline.map { isPossible(deadline: $0, now: archive.now) } ?? true, "deadline")
  }

  /// A deadline is at most one count away, as which a guest that asks for less gets the shortest.
  private func isPossible(deadline: UInt64, now: UInt64) -> Bool {
    guard let count else { return false }
    return deadline <= now || deadline - now <= max(Self.nanoseconds(count), Self.shortestPeriod)
  }
}

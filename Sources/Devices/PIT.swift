// SPDX-License-Identifier: Apache-2.0
// The 8254 timer: IRQ 0 for kernels that have nothing better, and channel 2, against which everything else was
// once calibrated.

public import Saving
import Synchronization

/// An 8254 and the part of port 0x61 that belongs to it.
///
/// Offsets 0-3 are ports 0x40-0x43; offset 4 is port 0x61. While no channel 0 count runs out there is no deadline
/// and no host work.
public final class PIT: Device, DeadlineSource {
  private enum Port: UInt64 { case channel0 = 0, channel1, channel2, control, systemControlB }

  private struct State {
    // Gates 0 and 1 are tied high; gate 2 is bit 0 of port 0x61.
    var channels = [3 of PITChannel](repeating: PITChannel(gate: true))
    var speaker = false
  }

  private let state: Mutex<State>
  private let clock: Clock
  private let line: InterruptLine
  private let rearm: @Sendable () -> Void

  /// - Parameters:
  ///   - line: IRQ 0, driven by channel 0.
  ///   - rearm: Called when the deadline changed.
  public init(clock: Clock, line: InterruptLine, rearm: @escaping @Sendable () -> Void = {}) {
    self.clock = clock
    self.line = line
    self.rearm = rearm
    var initial = State()
    initial.channels[2] = PITChannel(gate: false)
    state = Mutex(initial)
  }

  /// When channel 0's output next rises, in clock nanoseconds.
  public var nextDeadline: UInt64? { state.withLock { $0.channels[0].deadline } }

  /// Pulses IRQ 0 if channel 0's output rose by `now`. Ticks missed meanwhile are not made up for.
  public func expire(now: UInt64) {
    state.withLock { if $0.channels[0].advance(now: now) { line.pulse() } }
  }

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    guard let port = Port(rawValue: offset) else { return .max }
    let now = clock.nanoseconds()
    let byte: UInt8 = state.withLock { state in
      switch port {
      case .channel0: state.channels[0].read(now: now)
      case .channel1: state.channels[1].read(now: now)
      case .channel2: state.channels[2].read(now: now)
      case .control: 0xFF
      case .systemControlB: Self.systemControl(state, now: now)
      }
    }
    return UInt64(byte)
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    guard let port = Port(rawValue: offset) else { return }
    let byte = UInt8(truncatingIfNeeded: value)
    let now = clock.nanoseconds()
    let isRearmed = state.withLock { state in
      let old = state.channels[0].deadline
      switch port {
      case .channel0: state.channels[0].write(byte, now: now)
      case .channel1: state.channels[1].write(byte, now: now)
      case .channel2: state.channels[2].write(byte, now: now)
      case .control: Self.control(&state, byte, now: now)
      case .systemControlB:
        state.channels[2].setGate(byte & 1 != 0, now: now)
        state.speaker = byte & 2 != 0
      }
      return state.channels[0].deadline != old
    }
    if isRearmed { rearm() }
  }

  private static func control(_ state: inout State, _ value: UInt8, now: UInt64) {
    let selected = Int(value >> 6)
    guard selected == 3 else { return state.channels[selected].control(value, now: now) }
    // Read-back: active-low "latch count" and "latch status" for the channels in bits 1...3.
    for channel in 0..<3 where value >> UInt8(channel + 1) & 1 != 0 {
      if value & 0x20 == 0 { state.channels[channel].latchCount(now: now) }
      if value & 0x10 == 0 { state.channels[channel].latchStatus(now: now) }
    }
  }

  /// Port 0x61: gate 2, speaker, the refresh toggle (every 15 us) and OUT2.
  private static func systemControl(_ state: State, now: UInt64) -> UInt8 {
    (state.channels[2].gate ? 1 : 0) | (state.speaker ? 2 : 0) | (now / 15_085 & 1 != 0 ? 0x10 : 0)
      | (state.channels[2].output(now: now) ? 0x20 : 0)
  }
}

extension PIT: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try state.withLock { state throws(SavedStateError) in
      for channel in 0..<3 {
        try archive.part("channel \(channel)") { archive throws(SavedStateError) in
          try state.channels[channel].transfer(&archive)
          // Only that of channel 2 is a wire that anybody drives.
          try archive.require(channel == 2 || state.channels[channel].gate, "gate")
        }
      }
      try archive.transfer(&state.speaker, "speaker")
    }
  }
}

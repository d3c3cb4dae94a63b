// SPDX-License-Identifier: Apache-2.0
// There is no keyboard; there are the two lines every PC routed through its keyboard controller, the processor's reset
// and the A20 gate, and the "fast" copies of them in port 0x92.

public import Saving
import Synchronization

/// The output port of an 8042 (offset 0 is port 0x60, offset 4 is port 0x64). Nothing else ever fills its output
/// buffer.
public final class KeyboardController: Device {
  /// Commands that do something here; the rest are accepted and forgotten.
  private enum Command: UInt8 {
    /// The output port is to be read at port 0x60.
    case readOutputPort = 0xD0
    /// The next data byte goes to the output port.
    case writeOutputPort = 0xD1
    case closeA20 = 0xDD
    case openA20 = 0xDF
  }

  /// The output port: the (active-low) reset line, the A20 gate, and lines to a keyboard, which idle high.
  private enum Output {
    static let reset: UInt8 = 1 << 0
    static let a20: UInt8 = 1 << 1
    static let idle: UInt8 = 0xCC
  }

  /// Status bit 0: there is a byte to read.
  private static let outputBufferFull: UInt64 = 1 << 0

  private struct State {
    var expectsOutputPort = false
    var output: UInt8?
  }

  private let state = Mutex(State())
  private let a20: A20Gate
  private let report: @Sendable (PowerEvent) -> Void

  public init(a20: A20Gate, report: @escaping @Sendable (PowerEvent) -> Void) {
    self.a20 = a20
    self.report = report
  }

  /// The status is always ready for input. Linux polls bit 1 before it sends the reset.
  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    state.withLock { state in
      if offset == 4 { return state.output == nil ? 0 : KeyboardController.outputBufferFull }
      defer { state.output = nil }
      return UInt64(state.output ?? 0)
    }
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    let byte = UInt8(truncatingIfNeeded: value)
    let isReset = state.withLock { state in offset == 4 ? command(byte, &state) : data(byte, &state) }
    if isReset { report(.reset(.keyboardController)) }
  }

  /// Whether the machine is to be reset.
  private func command(_ byte: UInt8, _ state: inout State) -> Bool {
    state.expectsOutputPort = false
    switch Command(rawValue: byte) {
    case .readOutputPort: state.output = Output.idle | Output.reset | (a20.isOpen ? Output.a20 : 0)
    case .writeOutputPort: state.expectsOutputPort = true
    case .closeA20: a20.isOpen = false
    case .openA20: a20.isOpen = true
    case nil: break
    }
    // 0xF0...0xFF pulse the lines whose bit is 0.
    return byte >= 0xF0 && byte & Output.reset == 0
  }

  private func data(_ byte: UInt8, _ state: inout State) -> Bool {
    guard state.expectsOutputPort else { return false }
    state.expectsOutputPort = false
    a20.isOpen = byte & Output.a20 != 0
    return byte & Output.reset == 0
  }
}

/// Port 0x92: bit 0 resets on a change from 0 to 1, bit 1 is the A20 gate.
public final class SystemControlPortA: Device {
  private static let fastReset: UInt8 = 1 << 0
  private static let gateA20: UInt8 = 1 << 1

  private let value = Mutex<UInt8>(0)
  private let a20: A20Gate
  private let report: @Sendable (PowerEvent) -> Void

  public init(a20: A20Gate, report: @escaping @Sendable (PowerEvent) -> Void) {
    self.a20 = a20
    self.report = report
  }

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    UInt64(value.withLock { $0 } | (a20.isOpen ? Self.gateA20 : 0))
  }

  public func write(offset: UInt64, size: UInt8, value newValue: UInt64) {
    let byte = UInt8(truncatingIfNeeded: newValue)
    a20.isOpen = byte & Self.gateA20 != 0
    let isReset = value.withLock { value in
      let old = value
      value = byte & Self.fastReset
      return old & Self.fastReset == 0 && value & Self.fastReset != 0
    }
    if isReset { report(.reset(.systemControlPortA)) }
  }
}

extension KeyboardController: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try state.withLock { state throws(SavedStateError) in
      try archive.transfer(&state.expectsOutputPort, "expected byte")
      try archive.transfer(&state.output, "output buffer")
    }
  }
}

extension SystemControlPortA: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try value.withLock { value throws(SavedStateError) in
      try archive.transfer(&value, "reset bit", bits: Self.fastReset)
    }
  }
}

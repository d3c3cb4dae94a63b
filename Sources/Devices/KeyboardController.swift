// SPDX-License-Identifier: Apache-2.0
// There is no keyboard; there is the line every PC routed through its keyboard controller, which resets the
// processor, and the "fast" copy of it in port 0x92.

public import Saving
import Synchronization

/// The reset half of an 8042 (offset 0 is port 0x60, offset 4 is port 0x64). Its buffers are always empty.
public final class KeyboardController: Device {
  /// Commands that do something here; the rest are accepted and forgotten.
  private enum Command: UInt8 {
    /// The next data byte goes to the output port, whose bit 0 is the (active-low) reset line.
    case writeOutputPort = 0xD1
  }

  private let expectsOutputPort = Mutex<Bool>(false)
  private let report: @Sendable (PowerEvent) -> Void

  public init(report: @escaping @Sendable (PowerEvent) -> Void) { self.report = report }

  /// Status 0: nothing to read, ready for input. Linux polls bit 1 before it sends the reset.
  public func read(offset: UInt64, size: UInt8) -> UInt64 { 0 }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    let byte = UInt8(truncatingIfNeeded: value)
    let isReset = expectsOutputPort.withLock { expected in
      guard offset == 4 else {
        defer { expected = false }
        return expected && byte & 1 == 0
      }
      expected = Command(rawValue: byte) == .writeOutputPort
      // 0xF0...0xFF pulse the lines whose bit is 0; line 0 is reset.
      return byte >= 0xF0 && byte & 1 == 0
    }
    if isReset { report(.reset(.keyboardController)) }
  }
}

/// Port 0x92: bit 0 resets on a change from 0 to 1, bit 1 is the A20 gate, which is open and stays so.
public final class SystemControlPortA: Device {
  private static let fastReset: UInt8 = 1 << 0
  private static let gateA20: UInt8 = 1 << 1

  private let value = Mutex<UInt8>(0)
  private let report: @Sendable (PowerEvent) -> Void

  public init(report: @escaping @Sendable (PowerEvent) -> Void) { self.report = report }

  public func read(offset: UInt64, size: UInt8) -> UInt64 { UInt64(value.withLock { $0 } | Self.gateA20) }

  public func write(offset: UInt64, size: UInt8, value newValue: UInt64) {
    let isReset = value.withLock { value in
      let old = value
      value = UInt8(truncatingIfNeeded: newValue) & Self.fastReset
      return old & Self.fastReset == 0 && value & Self.fastReset != 0
    }
    if isReset { report(.reset(.systemControlPortA)) }
  }
}

extension KeyboardController: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try expectsOutputPort.withLock { expected throws(SavedStateError) in try archive.transfer(&expected) }
  }
}

extension SystemControlPortA: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try value.withLock { value throws(SavedStateError) in try archive.transfer(&value) }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Ports 0x2000 and up of the test machine: a guest pulls its own interrupt wires, by writing to port 0x2000 + n.

/// A byte port per interrupt wire: anything but 0 asserts it, 0 lets it go.
public final class InterruptLinePorts: StatelessDevice {
  private let lines: [InterruptLine]

  public init(_ lines: [InterruptLine]) { self.lines = lines }

  /// How many ports there are.
  public var count: UInt64 { UInt64(lines.count) }

  public func read(offset: UInt64, size: UInt8) -> UInt64 { .max }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    guard offset < count else { return }
    lines[Int(offset)].set(value & 0xFF != 0)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Port 0xF4, only mapped under `--debug-exit`: the way test guests end with a code, as QEMU's isa-debug-exit.

/// Reports the low byte of whatever is written.
public final class DebugExit: StatelessDevice {
  private let report: @Sendable (PowerEvent) -> Void

  public init(report: @escaping @Sendable (PowerEvent) -> Void) { self.report = report }

  public func read(offset: UInt64, size: UInt8) -> UInt64 { .max }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    if offset == 0 { report(.debugExit(UInt8(truncatingIfNeeded: value))) }
  }
}

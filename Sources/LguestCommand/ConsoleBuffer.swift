// SPDX-License-Identifier: Apache-2.0
// What the guest wrote, on its way to stdout: the vCPU never waits for a terminal, only for a reader that has fallen
// 64 KiB behind, and the writing thread is woken once for a burst, not once for a byte.

import Lguest
import Synchronization

/// Bytes between a vCPU that writes them and the thread that owns stdout.
final class ConsoleBuffer: Sendable {
  static let capacity = 64 << 10

  private struct State {
    var bytes: [UInt8] = []
    /// The writing thread looks again by itself soon: no need to wake it.
    var writerIsAwake = false
    var isClosed = false
  }
  private let state = Mutex(State())
  private let wake: @Sendable () -> Void

  /// - Parameter wake: Makes the writing thread call `take`; called on the vCPU's thread.
  init(wake: @escaping @Sendable () -> Void) {
    self.wake = wake
    state.withLock { $0.bytes.reserveCapacity(ConsoleBuffer.capacity) }
  }

  /// Takes a byte from the guest; waits while the buffer is full.
  func put(_ byte: UInt8) {
    while true {
      let (isDone, mustWake) = state.withLock { state in
        if state.isClosed { return (true, false) }
        guard state.bytes.count < ConsoleBuffer.capacity else { return (false, false) }
        state.bytes.append(byte)
        defer { state.writerIsAwake = true }
        return (true, !state.writerIsAwake)
      }
      if mustWake { wake() }
      if isDone { return }
      System.sleep(.milliseconds(1))
    }
  }

  /// Everything waiting. Nothing waiting lets the writer sleep until it is woken.
  func take() -> [UInt8] {
    state.withLock { state in
      guard !state.bytes.isEmpty else {
        state.writerIsAwake = false
        return []
      }
      let bytes = state.bytes
      state.bytes.removeAll(keepingCapacity: true)
      return bytes
    }
  }

  /// Nobody will read any more: bytes are dropped and no one waits.
  func close() { state.withLock { $0.isClosed = true } }
}

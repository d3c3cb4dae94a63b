// SPDX-License-Identifier: Apache-2.0
// What lies behind the serial port: the host's reader with the last lines kept for a post-mortem, and the host's
// typist, whose bytes wait here until the port has room.

import Devices
import Synchronization

/// The host's end of COM1.
final class SerialConsole: Sendable {
  private struct Port { weak var uart: UART? }

  private let recent = Mutex(ConsoleTail())
  private let port = Mutex(Port())
  private let output: (@Sendable (UInt8) -> Void)?
  private let input: ConsoleInput
  private let panicked: @Sendable () -> Void

  /// - Parameter panicked: Called when the guest's kernel has panicked and said so to the end.
  init(output: (@Sendable (UInt8) -> Void)?, input: ConsoleInput, panicked: @escaping @Sendable () -> Void) {
    self.output = output
    self.input = input
    self.panicked = panicked
  }

  /// Names the port that input goes to, and lets it flow.
  func connect(_ uart: UART) {
    port.withLock { $0.uart = uart }
    input.onArrival { [weak self] in self?.fill() }
    fill()
  }

  /// Input stays where it is from now on.
  func disconnect() {
    input.onArrival(nil)
    port.withLock { $0.uart = nil }
  }

  /// Moves input to the port while the guest wants it and there is room. Any thread; the lock keeps bytes in order.
  func fill() {
    port.withLock { port in
      guard let uart = port.uart else { return }
      while uart.isListening, uart.receiveCapacity > 0, let byte = input.take() { uart.receive(CollectionOfOne(byte)) }
    }
  }

  /// Runs `body` while no input reaches the port.
  func standStill<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try port.withLock { _ throws(Failure) in try body() }
  }

  /// Takes what the guest wrote.
  func write(_ byte: UInt8) {
    let sawPanicEnd = recent.withLock { recent in
      recent.append(byte)
      return recent.sawPanicEnd
    }
    output?(byte)
    if sawPanicEnd { panicked() }
  }

  /// The last lines and the phrases seen.
  var tail: ConsoleTail { recent.withLock { $0 } }
}

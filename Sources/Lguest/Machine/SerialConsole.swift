// SPDX-License-Identifier: Apache-2.0
// What lies behind the serial port: the host's reader with the last lines kept for a post-mortem, and the host's
// typist, whose bytes wait here until the port has room.

import Devices
import Synchronization

/// Where input arrives in the guest: a device with room for it or without.
protocol ConsolePort: AnyObject, Sendable {
  /// Whether the guest wants input and has room.
  var takesInput: Bool { get }
  /// Hands over a byte.
  func take(_ byte: UInt8)
}

extension UART: ConsolePort {
  var takesInput: Bool { isListening && receiveCapacity > 0 }
  func take(_ byte: UInt8) { receive(CollectionOfOne(byte)) }
}

/// The console of a guest that finds it on one of several buses: where it has made room.
final class LguestConsolePort: ConsolePort {
  private let ports: [any ConsolePort]
  init(ports: [any ConsolePort]) { self.ports = ports }
  var takesInput: Bool { ports.contains { $0.takesInput } }
  func take(_ byte: UInt8) { ports.first { $0.takesInput }?.take(byte) }
}

extension VirtioConsole: ConsolePort {
  var takesInput: Bool { hasRoom }
  func take(_ byte: UInt8) { _ = receive(byte) }
}

/// The host's end of the guest's console.
final class SerialConsole: Sendable {
  private struct Port { weak var device: (any ConsolePort)? }

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
  func connect(_ device: any ConsolePort) {
    port.withLock { $0.device = device }
    input.onArrival { [weak self] in self?.fill() }
    fill()
  }

  /// Input stays where it is from now on.
  func disconnect() {
    input.onArrival(nil)
    port.withLock { $0.device = nil }
  }

  /// Moves input to the port while the guest wants it and there is room. Any thread; the lock keeps bytes in order.
  ///
  /// - Returns: Whether some is left.
  @discardableResult
  func fill() -> Bool {
    port.withLock { port in
      guard let device = port.device else { return false }
      // Looking for room may cost more than looking for input.
      while !input.isEmpty, device.takesInput, let byte = input.take() { device.take(byte) }
      return !input.isEmpty
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

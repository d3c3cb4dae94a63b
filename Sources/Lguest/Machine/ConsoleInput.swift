// SPDX-License-Identifier: Apache-2.0
// What a person types, on its way to the guest's serial port: a bounded queue between the thread that reads and the
// vCPU that takes.

import DequeModule
import Synchronization

/// Bytes for the guest's console. Any thread may put; the machine takes.
public final class ConsoleInput: Sendable {
  /// Bytes held; whoever puts keeps what does not fit.
  public static let capacity = 4096

  private struct State {
    var bytes = Deque<UInt8>()
    var wake: (@Sendable () -> Void)?
  }
  private let state = Mutex(State())

  package init() {}

  /// Queues as many of the bytes as fit and says how many.
  @discardableResult
  public func put(_ bytes: some Collection<UInt8>) -> Int {
    let (accepted, wake) = state.withLock { state in
      let accepted = min(bytes.count, ConsoleInput.capacity - state.bytes.count)
      state.bytes.append(contentsOf: bytes.prefix(accepted))
      return (accepted, state.wake)
    }
    if accepted > 0 { wake?() }
    return accepted
  }

  /// Room left, in bytes.
  public var room: Int { state.withLock { ConsoleInput.capacity - $0.bytes.count } }

  /// Whether the guest has taken everything.
  public var isEmpty: Bool { state.withLock { $0.bytes.isEmpty } }

  /// The next byte, if there is one. For the machine.
  func take() -> UInt8? { state.withLock { $0.bytes.popFirst() } }

  /// Calls `wake` whenever bytes arrive, on the thread that put them. For the machine.
  func onArrival(_ wake: (@Sendable () -> Void)?) { state.withLock { $0.wake = wake } }
}

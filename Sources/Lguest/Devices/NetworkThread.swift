// SPDX-License-Identifier: Apache-2.0
// The thread of a network card: it carries frames between the guest and a socket, and sleeps while there are none.

import Devices
import Host
import Synchronization

/// Carries frames until it is stopped.
final class NetworkThread: Sendable {
  /// Frames that are carried one way before the other has its turn.
  private static let turn = 64

  private let socket: FrameSocket
  private let isStopping = Atomic(false)
  private let thread = Mutex<HostThread?>(nil)

  init(_ socket: FrameSocket) { self.socket = socket }

  /// The guest has frames to send, or room for more. Any thread.
  func ring() { socket.ring() }

  /// - Parameter number: The card's, for the thread's name.
  func start(_ number: Int, _ port: any FramePort, _ sandbox: Sandbox?) throws(HostError) {
    sandbox?.announce()
    do throws(HostError) {
      let started = try HostThread(name: "lguest-net\(number)", stackBytes: 512 << 10) { [self] in
        sandbox?.confine(.network)
        while !isStopping.load(ordering: .relaxed) {
          let isIdle = carry(port)
          socket.wait(wantsFrames: !isFull(port), milliseconds: isIdle ? -1 : 0)
        }
      }
      thread.withLock { $0 = started }
    } catch {
      sandbox?.retract(1)
      throw error
    }
  }

  private func isFull(_ port: any FramePort) -> Bool {
    if case .full = port.reception { true } else { false }
  }

  /// Carries what there is, for a turn; whether that was all.
  private func carry(_ port: any FramePort) -> Bool {
    var (sent, received) = (0, 0)
    while sent < NetworkThread.turn, let frame = port.takeFrame() {
      // Without a peer it is lost, as without a cable.
      socket.send(frame)
      sent += 1
    }
    // A frame that the guest has no room for stays where it is; without a driver it is lost.
    while received < NetworkThread.turn, !isFull(port), let frame = socket.receive() {
      port.deliver(frame)
      received += 1
    }
    return sent < NetworkThread.turn && received < NetworkThread.turn
  }

  /// Ends the thread, waits for it, and ends the link.
  ///
  /// - Parameter removing: Whether the file of a socket that waits for peers is removed here.
  func stop(removing: Bool) {
    isStopping.store(true, ordering: .relaxed)
    socket.ring()
    thread.withLock { thread in
      defer { thread = nil }
      return thread
    }?.join()
    socket.close(removing: removing)
  }
}

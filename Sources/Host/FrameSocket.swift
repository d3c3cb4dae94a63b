// SPDX-License-Identifier: Apache-2.0
// A network link over a Unix stream socket: Ethernet frames, each behind its length in 4 bytes, big-endian, as passt and
// QEMU's `-netdev stream` have it. Nobody waits for the peer: what it does not take is lost, as on a wire.

import CHost
import Glibc
import Synchronization
import SystemPackage

/// Frames out of a stream of bytes.
public struct FrameAssembler: Sendable {
  private var bytes: [UInt8] = []
  private var start = 0
  private let longest: Int

  /// - Parameter longest: Bytes of a frame, at most.
  public init(longest: Int) { self.longest = longest }

  /// Adds what has arrived.
  public mutating func put(_ more: some Sequence<UInt8>) {
    if start > 0 {
      bytes.removeSubrange(..<start)
      start = 0
    }
    bytes += more
  }

  /// What `next` found.
  public enum Next: Sendable, Equatable {
    case frame([UInt8])
    /// More bytes are needed.
    case nothing
    /// A length that no frame has: whatever follows has no beginning.
    case nonsense
  }

  /// The next frame.
  public mutating func next() -> Next {
    guard bytes.count - start >= 4 else { return .nothing }
    let length = bytes[start..<start + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    guard length <= longest else { return .nonsense }
    let end = start + 4 + Int(length)
    guard bytes.count >= end else { return .nothing }
    defer { start = end }
    return .frame(Array(bytes[start + 4..<end]))
  }

  /// A frame as it goes over the stream.
  public static func packed(_ frame: [UInt8]) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: frame.count >> (24 - $0 * 8)) } + frame
  }
}

/// One end of a link. One thread waits, sends and receives; any may ring.
@safe public final class FrameSocket: Sendable {
  private struct State {
    /// The peer, if there is one.
    var connection: LocalConnection?
    var arriving: FrameAssembler
    /// What the peer has not taken yet, the rest of a frame first.
    var leaving: [UInt8] = []
  }

  /// Bytes kept for a peer that is behind; further frames are lost.
  private static let mostLeaving = 256 << 10
  private let longest: Int
  private let listener: LocalListener?
  private let bell: Int32
  private let state: Mutex<State>

  /// Connects to a peer. Once it has gone, the link is down for good.
  ///
  /// - Parameter longest: Bytes of a frame, at most.
  public convenience init(connectingTo path: FilePath, longest: Int) throws(HostError) {
    do throws(HostError) { try self.init(LocalConnection(to: path, milliseconds: 2000), nil, longest) } catch {
      throw FrameSocket.unreachable(path, error)
    }
  }

  /// Waits for peers, one at a time: the next may come when one has gone. A socket that nobody answers at any more is
  /// replaced; nothing else is.
  public convenience init(listeningAt path: FilePath, longest: Int) throws(HostError) {
    do throws(HostError) { try self.init(nil, LocalListener(at: path), longest) } catch {
      guard error.errno == .addressInUse, FrameSocket.isStale(path) else { throw FrameSocket.occupied(path, error) }
      LocalSocket.remove(path)
      try self.init(nil, LocalListener(at: path), longest)
    }
  }

  private init(_ connection: LocalConnection?, _ listener: LocalListener?, _ longest: Int) throws(HostError) {
    (self.listener, self.longest) = (listener, longest)
    state = Mutex(State(connection: connection, arriving: FrameAssembler(longest: longest)))
    bell = try checked(chost_eventfd(), "make", "an event descriptor")
  }

  deinit { Glibc.close(bell) }

  /// Whether a socket is there that nobody answers at. What is no socket refuses connections too.
  private static func isStale(_ path: FilePath) -> Bool {
    guard LocalSocket.occupant(path) == .socket else { return false }
    do throws(HostError) { _ = try LocalConnection(to: path) } catch { return error.errno == .connectionRefused }
    return false
  }

  /// Why there is no connection, and what to do about it.
  private static func unreachable(_ path: FilePath, _ error: HostError) -> HostError {
    var error = error
    switch (error.errno, LocalSocket.occupant(path)) {
    case (.connectionRefused?, .directory): (error.reason, error.remedy) = ("it is a directory", "check the path")
    case (.connectionRefused?, .other): (error.reason, error.remedy) = ("it is no socket", "check the path")
    case (.connectionRefused?, _):
      (error.reason, error.remedy) = ("nobody waits there", "start what is to wait there first")
    case (.noSuchFileOrDirectory?, _): error.remedy = "start what is to wait there first, or check the path"
    case (.permissionDenied?, _): error.remedy = "run as a user who may write to it"
    case (.resourceTemporarilyUnavailable?, _):
      (error.reason, error.remedy) = ("as many wait for an answer there as may", "end one of them")
    case (.protocolWrongTypeForSocket?, _):
      (error.reason, error.remedy) = ("it is no stream socket", "give the path of one")
    default: break
    }
    return error
  }

  /// Why no socket could be made, and what to do about it.
  private static func occupied(_ path: FilePath, _ error: HostError) -> HostError {
    var error = error
    switch (error.errno, LocalSocket.occupant(path)) {
    case (.addressInUse?, .directory):
      (error.reason, error.remedy) = ("it is a directory", "give the path of a socket to make in it")
    case (.addressInUse?, .other):
      (error.reason, error.remedy) = ("a file is there that is no socket", "remove it or give another path")
    case (.addressInUse?, _):
      (error.reason, error.remedy) = ("somebody waits there already", "end that, connect to it or give another path")
    case (.noSuchFileOrDirectory?, _): error.remedy = "make its directory first, or check the path"
    case (.permissionDenied?, _), (.notPermitted?, _), (.readOnlyFileSystem?, _):
      error.remedy = "give a path in a directory where you may make files"
    default: break
    }
    return error
  }

  /// Whether there is a peer.
  public var isConnected: Bool { state.withLock { $0.connection != nil } }

  /// Makes the thread that waits come back. Any thread.
  public func ring() {
    var one: UInt64 = 1
    _ = unsafe Glibc.write(bell, &one, 8)
  }

  /// Waits until somebody rings, a frame has come that is wanted, a peer that was behind takes more, or one connects.
  ///
  /// - Parameter milliseconds: At most; -1 is for ever.
  public func wait(wantsFrames: Bool, milliseconds: Int32 = -1) {
    var requests = [pollfd(fd: bell, events: Int16(POLLIN), revents: 0)]
    let (connection, isBehind) = state.withLock { ($0.connection, !$0.leaving.isEmpty) }
    if let connection {
      let events = (wantsFrames ? POLLIN : 0) | (isBehind ? POLLOUT : 0)
      // Whoever is not asked about is left out: that it has gone would be told without end.
      if events != 0 { requests.append(pollfd(fd: connection.descriptor, events: Int16(events), revents: 0)) }
    } else if let listener {
      requests.append(pollfd(fd: listener.descriptor, events: Int16(POLLIN), revents: 0))
    }
    _ = unsafe poll(&requests, UInt(requests.count), milliseconds)
    if requests[0].revents != 0 {
      var count: UInt64 = 0
      _ = unsafe Glibc.read(bell, &count, 8)
    }
    if connection == nil, let listener, requests[1].revents != 0 {
      state.withLock { $0.connection = listener.accept(milliseconds: 0) }
    }
    if isBehind { state.withLock { push(&$0) } }
  }

  /// Sends a frame; false if it is lost.
  @discardableResult
  public func send(_ frame: [UInt8]) -> Bool {
    guard !frame.isEmpty, frame.count <= longest else { return false }
    return state.withLock { state in
      guard state.connection != nil, state.leaving.count <= FrameSocket.mostLeaving else { return false }
      state.leaving += FrameAssembler.packed(frame)
      push(&state)
      return true
    }
  }

  /// The next frame that has come.
  public func receive() -> [UInt8]? {
    state.withLock { state in
      while let connection = state.connection {
        switch state.arriving.next() {
        case .frame(let frame): return frame
        case .nonsense: hangUp(&state)
        case .nothing:
          switch connection.receiveSome() {
          case .bytes(let bytes): state.arriving.put(bytes)
          case .none: return nil
          case .end: hangUp(&state)
          }
        }
      }
      return nil
    }
  }

  /// Sends what the peer takes now.
  private func push(_ state: inout State) {
    guard let connection = state.connection, !state.leaving.isEmpty else { return }
    guard let count = connection.sendSome(state.leaving) else { return hangUp(&state) }
    state.leaving.removeFirst(count)
  }

  private func hangUp(_ state: inout State) {
    state = State(connection: nil, arriving: FrameAssembler(longest: longest))
  }

  /// Ends the link.
  ///
  /// - Parameter removing: Whether the file of a socket that waits for peers is removed here.
  public func close(removing: Bool) {
    state.withLock { hangUp(&$0) }
    if removing, let listener { LocalSocket.remove(listener.path) }
  }
}

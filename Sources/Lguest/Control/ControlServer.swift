// SPDX-License-Identifier: Apache-2.0
// The thread of a run that answers at its control socket: one connection at a time, a few lines each, and only this
// user's. It holds nothing up: a run without it is a run that cannot be asked.

import Host
import Synchronization
import SystemPackage

/// Answers for one machine. One process has one.
package final class ControlServer: Sendable {
  /// A connection that says nothing for this long is closed.
  private static let patience: Int32 = 2000
  /// How long a machine that was saved stands still for its file to get its name.
  private static let namingPatience: Int32 = 10_000

  private let machine: VirtualMachine
  private let listener: LocalListener
  private let removeSocket: @Sendable () -> Void
  private let isStopped = Atomic<Bool>(false)

  /// What a connection has brought about so far.
  struct Conversation {
    /// A descriptor that has come and has not been used.
    var file: FileDescriptor?
    /// The machine has been saved, and stands still.
    var isSaved = false
    /// It stood still before.
    var stoodStill = false
    /// It is to end.
    var isFinished = false
  }

  /// Makes this process's control socket.
  ///
  /// - Throws: `HostError`: there is no place for it.
  package static func listen() throws(HostError) -> LocalListener { try ControlSocket.listen() }

  /// Starts answering.
  ///
  /// - Parameter removeSocket: Removes the socket's file, at the end.
  /// - Throws: `HostError`: there is no thread.
  package static func start(
    for machine: VirtualMachine, at listener: LocalListener, removeSocket: @escaping @Sendable () -> Void
  ) throws(HostError) -> ControlServer {
    let server = ControlServer(machine, listener, removeSocket)
    let sandbox = machine.configuration.sandbox
    sandbox?.announce()
    do throws(HostError) {
      _ = try HostThread(name: "lguest-control") {
        sandbox?.confine(.control)
        server.run()
      }
    } catch {
      sandbox?.retract(1)
      server.stop()
      throw error
    }
    return server
  }

  init(_ machine: VirtualMachine, _ listener: LocalListener, _ removeSocket: @escaping @Sendable () -> Void) {
    self.machine = machine
    self.listener = listener
    self.removeSocket = removeSocket
  }

  /// Stops answering and removes the socket.
  package func stop() {
    isStopped.store(true, ordering: .releasing)
    listener.close(removing: removeSocket)
  }

  private func run() {
    while !isStopped.load(ordering: .acquiring) {
      guard let connection = listener.accept(milliseconds: -1) else {
        // Stopped, or out of descriptors for a moment.
        HostClock.sleep(until: HostClock.monotonic + 10_000_000)
        continue
      }
      guard let peer = connection.peer, peer.user == LocalSocket.user || peer.user == 0 else { continue }
      converse(over: connection)
    }
  }

  /// Answers the lines of one connection.
  func converse(over connection: LocalConnection) {
    var line = ControlLine(connection)
    var conversation = Conversation()
    while let text = line.next(
      milliseconds: conversation.isSaved ? ControlServer.namingPatience : ControlServer.patience)
    {
      // Asked while this process was stopped, perhaps, by somebody who has given up: it is not wanted any more.
      guard !connection.isAbandoned else { break }
      conversation.file = line.takeDescriptor()
      let isSent = line.send(reply(to: text, &conversation))
      try? conversation.file?.close()
      conversation.file = nil
      // Not before the answer, which would not leave a process that ends.
      if conversation.isFinished { machine.requestStop(.saved) }
      guard isSent else { break }
    }
    // Whoever had it saved has gone without a word about the file: it may have no name.
    if conversation.isSaved, !conversation.isFinished, !conversation.stoodStill { try? machine.resume() }
  }

  /// The answer to a line, whatever it holds.
  func reply(to text: String, _ conversation: inout Conversation) -> JSON {
    do throws(ControlFailure) {
      guard let request = JSONParser.value(text), let name = request["verb"]?.stringValue else {
        throw ControlFailure("a line must be a JSON object with a verb")
      }
      guard let verb = ControlVerb(rawValue: name) else {
        throw ControlFailure(
          "unknown verb '\(PlainText.of(String(name.unicodeScalars.prefix(40))))'; known: \(ControlVerb.allCases.map(\.rawValue).joined(separator: ", "))"
        )
      }
      return .object([("ok", true)] + (try answer(verb, request, &conversation)))
    } catch {
      return .object([("ok", false), ("error", .string(error.description))])
    }
  }

  /// Does what a verb asks.
  private func answer(
    _ verb: ControlVerb, _ request: JSON, _ conversation: inout Conversation
  ) throws(ControlFailure) -> [(key: String, value: JSON)] {
    switch verb {
    case .status: return machine.status
    case .stat: return try machine.liveStatistics()
    case .pause: try move { () throws(MoveError) in try machine.pause() }
    case .resume: try move { () throws(MoveError) in try machine.resume() }
    case .save: try save(request, &conversation)
    case .finish:
      guard conversation.isSaved else { throw ControlFailure("this connection has not had the machine saved") }
      conversation.isFinished = true
    }
    return []
  }

  private func save(_ request: JSON, _ conversation: inout Conversation) throws(ControlFailure) {
    // It cannot open a file itself once it is confined.
    guard let descriptor = conversation.file else {
      throw ControlFailure("save needs the descriptor of an empty file, sent with the request")
    }
    conversation.file = nil
    let file = PositionedOutput(owning: descriptor, description: "the saved machine")
    guard file.byteCount == 0 else {
      throw ControlFailure("save needs the descriptor of an empty file, and this one has content or is none")
    }
    var wasPaused = false
    try move { () throws(MoveError) in wasPaused = try machine.saveAndPause(to: file) }
    if case .bool(true)? = request["keep"] {
      try move { () throws(MoveError) in try machine.resume() }
    } else {
      if !conversation.isSaved { conversation.stoodStill = wasPaused }
      conversation.isSaved = true
    }
  }

  private func move(_ body: () throws(MoveError) -> Void) throws(ControlFailure) {
    do throws(MoveError) { try body() } catch { throw ControlFailure(error.description) }
  }
}

extension VirtualMachine {
  /// What `lguest ps` shows of a run.
  var status: [(key: String, value: JSON)] {
    let times = times
    return [
      ("pid", .integer(Int64(LocalSocket.process))),
      ("version", .string(VirtualMachine.version)),
      ("commit", .string(VirtualMachine.commit)),
      ("kernel", .string(configuration.kernel.string)),
      ("memoryBytes", .unsigned(configuration.memorySize)),
      ("vcpus", .integer(Int64(configuration.cpuCount))),
      ("uptimeSeconds", .seconds(times.end)),
      ("hasStarted", .bool(times.guestStart != nil)),
      ("isInUserSpace", .bool(times.userSpace != nil)),
    ]
  }

  /// What the vCPUs have counted so far.
  fileprivate func liveStatistics() throws(ControlFailure) -> [(key: String, value: JSON)] {
    guard let samples = sampleStatistics() else { throw ControlFailure("the guest has not started yet, or has ended") }
    return [
      ("pid", .integer(Int64(LocalSocket.process))), ("uptimeSeconds", .seconds(times.end)),
      ("vcpus", .array(samples.map { .object($0.vcpuMembers) })),
    ]
  }
}

// SPDX-License-Identifier: Apache-2.0
// The thread of a run that answers at its control socket: one connection at a time, a few lines each, and only this
// user's. It holds nothing up: a run without it is a run that cannot be asked.

import Host
import Synchronization
import SystemPackage

/// Answers for one machine. One process has one.
public final class ControlServer: Sendable {
  /// A connection that says nothing for this long is closed.
  private static let patience: Int32 = 2000

  private let machine: VirtualMachine
  private let listener: LocalListener
  private let isStopped = Atomic<Bool>(false)
  /// The machine has been saved, stands still, and is to end.
  private let isMoving = Atomic<Bool>(false)

  /// Starts answering.
  ///
  /// - Throws: `HostError`: there is no place for a socket, or no thread.
  public static func start(for machine: VirtualMachine) throws(HostError) -> ControlServer {
    let server = ControlServer(machine, try ControlSocket.listen())
    do throws(HostError) { _ = try HostThread(name: "lguest-control") { server.run() } } catch {
      server.stop()
      throw error
    }
    return server
  }

  private init(_ machine: VirtualMachine, _ listener: LocalListener) {
    self.machine = machine
    self.listener = listener
  }

  /// Stops answering and removes the socket.
  public func stop() {
    isStopped.store(true, ordering: .releasing)
    listener.close()
  }

  private func run() {
    while !isStopped.load(ordering: .acquiring) {
      guard let connection = listener.accept(milliseconds: -1) else {
        // Stopped, or out of descriptors for a moment.
        HostClock.sleep(until: HostClock.monotonic + 10_000_000)
        continue
      }
      guard let peer = connection.peer, peer.user == LocalSocket.user || peer.user == 0 else { continue }
      var line = ControlLine(connection)
      while let text = line.next(milliseconds: ControlServer.patience) {
        let isSent = line.send(reply(to: text))
        // Not before the answer, which would not leave a process that ends.
        if isMoving.exchange(false, ordering: .acquiringAndReleasing) { machine.requestStop(.saved) }
        guard isSent else { break }
      }
    }
  }

  /// The answer to a line, whatever it holds.
  func reply(to text: String) -> JSON {
    do throws(ControlFailure) {
      guard let request = JSONParser.value(text), let name = request["verb"]?.stringValue else {
        throw ControlFailure("a line must be a JSON object with a verb")
      }
      guard let verb = ControlVerb(rawValue: name) else {
        throw ControlFailure(
          "unknown verb '\(name.prefix(40))'; known: \(ControlVerb.allCases.map(\.rawValue).joined(separator: ", "))")
      }
      return .object([("ok", true)] + (try answer(verb, request)))
    } catch {
      return .object([("ok", false), ("error", .string(error.description))])
    }
  }

  /// Does what a verb asks.
  private func answer(_ verb: ControlVerb, _ request: JSON) throws(ControlFailure) -> [(key: String, value: JSON)] {
    switch verb {
    case .status: return machine.status
    case .stat: return try machine.liveStatistics()
    case .pause: try move { () throws(MoveError) in try machine.pause() }
    case .resume: try move { () throws(MoveError) in try machine.resume() }
    case .save: try save(request)
    }
    return []
  }

  private func save(_ request: JSON) throws(ControlFailure) {
    // A path ends at the first zero, and another file would be written.
    guard let name = request["file"]?.stringValue, !name.utf8.contains(0), FilePath(name).isAbsolute else {
      throw ControlFailure("save needs a file, by its absolute path")
    }
    let file = FilePath(name)
    if case .bool(true)? = request["keep"] {
      try move { () throws(MoveError) in try machine.save(to: file, keeping: true) }
    } else {
      try move { () throws(MoveError) in try machine.saveAndPause(to: file) }
      isMoving.store(true, ordering: .releasing)
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

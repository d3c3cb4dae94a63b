// SPDX-License-Identifier: Apache-2.0
// The asking side of a run's control socket. A run may be stopped, or busy with somebody else: nothing here waits
// without a limit.

import Host
package import SystemPackage

/// Asks a run, one thing after the other.
package struct ControlClient {
  /// How long a run may take to take a connection, in milliseconds.
  package static let patience: Int32 = 3000
  /// How long the answer to what takes no time may take.
  package static let answerPatience: Int32 = 5000
  /// Between looks at whether the run is stopped, and how many times in a row it may be.
  private static let look: Int32 = 500, looks = 4

  private let process: Int32
  private var line: ControlLine

  /// - Parameter milliseconds: How long to try while too many others wait for it.
  /// - Throws: `ControlFailure`: nobody is there, or too many wait.
  package init(_ process: Int32, milliseconds: Int32 = patience) throws(ControlFailure) {
    self.process = process
    do throws(HostError) {
      line = ControlLine(try ControlSocket.connect(to: process, milliseconds: milliseconds))
    } catch {
      throw error.errno == .resourceTemporarilyUnavailable
        ? ControlClient.silence(of: process) : ControlFailure(error.description)
    }
  }

  /// Asks one thing, with nothing before or after it.
  package static func ask(
    _ process: Int32, _ verb: ControlVerb, _ arguments: [(key: String, value: JSON)] = [],
    milliseconds: Int32 = answerPatience
  ) throws(ControlFailure) -> JSON {
    var client = try ControlClient(process)
    return try client.ask(verb, arguments, milliseconds: milliseconds)
  }

  /// Asks all runs of this user at once, so that those that do not answer cost one wait together.
  ///
  /// - Returns: The answers by process, in ascending order; nil is that of a run that is there and says nothing.
  package static func askAll(
    _ verb: ControlVerb, milliseconds: Int32 = patience
  ) -> [(process: Int32, answer: JSON?)] {
    let deadline = HostClock.after(nanoseconds: UInt64(milliseconds) * 1_000_000)
    let processes = ControlSocket.processes()
    var answers: [Int32: JSON?] = [:]
    var asked: [ControlClient] = []
    var waiting = processes
    while true {
      waiting = waiting.filter { process in
        do throws(ControlFailure) {
          let client = try ControlClient(process, milliseconds: 0)
          try client.send(verb, [], nil)
          asked.append(client)
          return false
        } catch { return error.isSilence }
      }
      if waiting.isEmpty || HostClock.monotonic >= deadline { break }
      HostClock.sleep(until: min(deadline, HostClock.after(nanoseconds: 20_000_000)))
    }
    for process in waiting { answers[process] = .some(nil) }
    for var client in asked {
      // A run that has ended since, or refuses, cannot be listed.
      do throws(ControlFailure) { answers[client.process] = try client.answer(until: deadline) } catch {
        if error.isSilence { answers[client.process] = .some(nil) }
      }
    }
    return processes.compactMap { process in answers[process].map { (process, $0) } }
  }

  /// Asks and waits for the answer.
  ///
  /// - Parameters:
  ///   - arguments: Members beside `verb`.
  ///   - file: Goes with the request, and stays the caller's.
  ///   - milliseconds: How long the answer may take. It is waited for less long if the run is stopped.
  /// - Returns: The members of the answer.
  /// - Throws: `ControlFailure`: the run has gone, it refused, or it says nothing.
  package mutating func ask(
    _ verb: ControlVerb, _ arguments: [(key: String, value: JSON)] = [], with file: FileDescriptor? = nil,
    milliseconds: Int32 = answerPatience
  ) throws(ControlFailure) -> JSON {
    try send(verb, arguments, file)
    return try answer(until: HostClock.after(nanoseconds: UInt64(max(milliseconds, 0)) * 1_000_000))
  }

  private func send(
    _ verb: ControlVerb, _ arguments: [(key: String, value: JSON)], _ file: FileDescriptor?
  ) throws(ControlFailure) {
    guard line.send(.object([("verb", .string(verb.rawValue))] + arguments), with: file) else { throw gone }
  }

  private mutating func answer(until deadline: UInt64) throws(ControlFailure) -> JSON {
    var text: String?
    var stopped = 0
    while text == nil {
      let now = HostClock.monotonic
      let left = now < deadline ? Int32(clamping: (deadline - now) / 1_000_000) : 0
      // What has come already is read even when there is no time left.
      text = line.next(milliseconds: min(max(left, 20), ControlClient.look))
      guard text == nil else { break }
      if line.isEnded { throw gone }
      stopped = isStopped ? stopped + 1 : 0
      if left <= ControlClient.look || stopped >= ControlClient.looks { throw ControlClient.silence(of: process) }
    }
    guard let text, let answer = JSONParser.value(text) else { throw gone }
    guard case .bool(true)? = answer["ok"] else {
      throw ControlFailure(answer["error"]?.stringValue ?? "process \(process) refused without a reason")
    }
    return answer
  }

  /// Waits until a run that has been told to end has ended, and has let go of its disks; for a while, since its console
  /// may have no reader.
  package func waitForEnd(milliseconds: Int32) {
    let deadline = HostClock.after(nanoseconds: UInt64(max(milliseconds, 0)) * 1_000_000)
    while let state, state != "Z", state != "X", HostClock.monotonic < deadline {
      HostClock.sleep(until: min(deadline, HostClock.after(nanoseconds: 2_000_000)))
    }
  }

  private var gone: ControlFailure {
    ControlFailure("process \(process) does not answer; it may just have ended")
  }

  private static func silence(of process: Int32) -> ControlFailure {
    ControlFailure(
      "process \(process) does not answer; it is stopped (kill -CONT \(process) lets it go on) or busy with others",
      isSilence: true)
  }

  /// Whether the run is stopped, by SIGSTOP or a debugger.
  private var isStopped: Bool { state == "T" || state == "t" }

  /// The letter of the state of the run's process (proc_pid_stat(5)); nil if it has gone.
  private var state: Substring? {
    guard let number = line.process, let text = HostFile.text(FilePath("/proc/\(number)/stat")) else { return nil }
    return text.split(separator: ")").last?.split(separator: " ").first
  }
}

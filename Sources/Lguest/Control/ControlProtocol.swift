// SPDX-License-Identifier: Apache-2.0
// What is said over the control socket: a line holding a JSON object with a `verb` asks, and a line holding a JSON
// object with `ok` answers. docs/control.md describes the verbs.

import Host

/// What may be asked of a run. A new verb is a case here, an arm of `ControlServer.answer` and a row of
/// docs/control.md.
public enum ControlVerb: String, Sendable, CaseIterable {
  /// What machine this is, and since when it runs.
  case status
  /// What its vCPUs have counted so far.
  case stat
  /// Its vCPUs stop between two instructions, until `resume`.
  case pause
  case resume
  /// The machine is written to the file `file`, an absolute path; unless `keep` is true the run then ends.
  case save
}

/// Why a verb was not obeyed, in a line.
public struct ControlFailure: Error, Sendable, Equatable, CustomStringConvertible {
  public let description: String

  public init(_ description: String) { self.description = description }
}

/// Lines over a connection.
struct ControlLine {
  /// Longer ones are not taken.
  static let longest = 1 << 20

  private let connection: LocalConnection
  private var pending: [UInt8] = []

  init(_ connection: LocalConnection) { self.connection = connection }

  /// The next line without its end, or nil: the other side has gone, takes too long or says too much.
  ///
  /// - Parameter milliseconds: How long the whole line may take, however it is cut into pieces; -1 is for ever.
  mutating func next(milliseconds: Int32) -> String? {
    let deadline = milliseconds < 0 ? nil : HostClock.after(nanoseconds: UInt64(milliseconds) * 1_000_000)
    var searched = 0
    while true {
      if let end = pending[searched...].firstIndex(of: UInt8(ascii: "\n")) {
        defer { pending.removeSubrange(...end) }
        return String(decoding: pending[..<end], as: UTF8.self)
      }
      searched = pending.count
      guard searched < ControlLine.longest, let left = ControlLine.milliseconds(until: deadline),
        let more = connection.receive(milliseconds: left), !more.isEmpty
      else { return nil }
      pending += more
    }
  }

  /// What is left until a moment, rounded up; nil once it has passed, -1 if it never comes.
  private static func milliseconds(until deadline: UInt64?) -> Int32? {
    guard let deadline else { return -1 }
    let now = HostClock.monotonic
    return deadline > now ? Int32(clamping: (deadline - now + 999_999) / 1_000_000) : nil
  }

  func send(_ value: JSON) -> Bool { connection.send(Array((value.text(indented: false) + "\n").utf8)) }
}

/// Asks a run.
public enum ControlClient {
  /// Asks one thing and waits for the answer.
  ///
  /// - Parameters:
  ///   - arguments: Members beside `verb`.
  ///   - milliseconds: How long the answer may take; -1 is for ever.
  /// - Returns: The members of the answer.
  /// - Throws: `ControlFailure`: nobody is there, or the run refused.
  public static func ask(
    _ process: Int32, _ verb: ControlVerb, _ arguments: [(key: String, value: JSON)] = [], milliseconds: Int32 = 5000
  ) throws(ControlFailure) -> JSON {
    let connection: LocalConnection
    do throws(HostError) { connection = try ControlSocket.connect(to: process) } catch {
      throw ControlFailure(error.description)
    }
    var line = ControlLine(connection)
    guard line.send(.object([("verb", .string(verb.rawValue))] + arguments)),
      let text = line.next(milliseconds: milliseconds), let answer = JSONParser.value(text)
    else { throw ControlFailure("process \(process) does not answer; it may just have ended") }
    guard case .bool(true)? = answer["ok"] else {
      throw ControlFailure(answer["error"]?.stringValue ?? "process \(process) refused without a reason")
    }
    return answer
  }
}

// SPDX-License-Identifier: Apache-2.0
// What is said over the control socket: a line holding a JSON object with a `verb` asks, and a line holding a JSON
// object with `ok` answers. docs/control.md describes the verbs.

import Host
public import SystemPackage

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
  /// The machine is written to the empty file whose descriptor comes with the request (SCM_RIGHTS in unix(7)). Unless
  /// `keep` is true it stands still then, until `finish` comes over the same connection or the connection ends.
  case save
  /// The file has its name: the run ends as saved.
  case finish
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

  func send(_ value: JSON, with file: FileDescriptor? = nil) -> Bool {
    connection.send(Array((value.text(indented: false) + "\n").utf8), with: file)
  }

  /// The last descriptor that came, once; whoever takes it closes it.
  func takeDescriptor() -> FileDescriptor? { connection.takeDescriptor() }

  /// What is left until a moment, rounded up; nil once it has passed, -1 if it never comes.
  private static func milliseconds(until deadline: UInt64?) -> Int32? {
    guard let deadline else { return -1 }
    let now = HostClock.monotonic
    return deadline > now ? Int32(clamping: (deadline - now + 999_999) / 1_000_000) : nil
  }
}

/// Asks a run, one thing after the other.
public struct ControlClient {
  private let process: Int32
  private var line: ControlLine

  /// - Throws: `ControlFailure`: nobody is there.
  public init(_ process: Int32) throws(ControlFailure) {
    self.process = process
    do throws(HostError) { line = ControlLine(try ControlSocket.connect(to: process)) } catch {
      throw ControlFailure(error.description)
    }
  }

  /// Asks one thing, with nothing before or after it.
  public static func ask(
    _ process: Int32, _ verb: ControlVerb, _ arguments: [(key: String, value: JSON)] = [], milliseconds: Int32 = 5000
  ) throws(ControlFailure) -> JSON {
    var client = try ControlClient(process)
    return try client.ask(verb, arguments, milliseconds: milliseconds)
  }

  /// Asks and waits for the answer.
  ///
  /// - Parameters:
  ///   - arguments: Members beside `verb`.
  ///   - file: Goes with the request, and stays the caller's.
  ///   - milliseconds: How long the answer may take; -1 is for ever.
  /// - Returns: The members of the answer.
  /// - Throws: `ControlFailure`: the run has gone, or it refused.
  public mutating func ask(
    _ verb: ControlVerb, _ arguments: [(key: String, value: JSON)] = [], with file: FileDescriptor? = nil,
    milliseconds: Int32 = 5000
  ) throws(ControlFailure) -> JSON {
    guard line.send(.object([("verb", .string(verb.rawValue))] + arguments), with: file),
      let text = line.next(milliseconds: milliseconds), let answer = JSONParser.value(text)
    else { throw ControlFailure("process \(process) does not answer; it may just have ended") }
    guard case .bool(true)? = answer["ok"] else {
      throw ControlFailure(answer["error"]?.stringValue ?? "process \(process) refused without a reason")
    }
    return answer
  }
}

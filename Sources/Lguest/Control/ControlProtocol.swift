// SPDX-License-Identifier: Apache-2.0
// What is said over the control socket: a line holding a JSON object with a `verb` asks, and a line holding a JSON
// object with `ok` answers. docs/control.md describes the verbs.

import Host
import SystemPackage

/// What may be asked of a run. A new verb is a case here, an arm of `ControlServer.answer` and a row of
/// docs/control.md.
package enum ControlVerb: String, Sendable, CaseIterable {
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
package struct ControlFailure: Error, Sendable, Equatable, CustomStringConvertible {
  package let description: String
  /// Somebody is there and says nothing.
  package let isSilence: Bool

  package init(_ description: String, isSilence: Bool = false) {
    self.description = description
    self.isSilence = isSilence
  }
}

/// Lines over a connection.
struct ControlLine {
  /// Longer ones are not taken.
  static let longest = 1 << 20

  private let connection: LocalConnection
  private var pending: [UInt8] = []
  /// The other side has said all, or has gone.
  private(set) var isEnded = false

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
        let more = connection.receive(milliseconds: left)
      else { return nil }
      isEnded = more.isEmpty
      if isEnded { return nil }
      pending += more
    }
  }

  func send(_ value: JSON, with file: FileDescriptor? = nil) -> Bool {
    connection.send(Array((value.text(indented: false) + "\n").utf8), with: file)
  }

  /// The process at the other end; nil if this one has no number for it.
  var process: Int32? { connection.peer.flatMap { $0.process > 0 ? $0.process : nil } }

  /// The last descriptor that came, once; whoever takes it closes it.
  func takeDescriptor() -> FileDescriptor? { connection.takeDescriptor() }

  /// What is left until a moment, rounded up; nil once it has passed, -1 if it never comes.
  private static func milliseconds(until deadline: UInt64?) -> Int32? {
    guard let deadline else { return -1 }
    let now = HostClock.monotonic
    return deadline > now ? Int32(clamping: (deadline - now + 999_999) / 1_000_000) : nil
  }
}

// SPDX-License-Identifier: Apache-2.0
// What a run leaves behind: how it ended, when things happened, what was counted, and the machine's last words.

/// The outcome of a run.
public struct RunResult: Sendable {
  /// Moments of a run, measured from `VirtualMachine.Configuration.start`.
  public struct Times: Sendable {
    /// The first guest instruction.
    public package(set) var guestStart: Duration?
    /// User space began.
    public package(set) var userSpace: Duration?
    /// The end.
    public package(set) var end: Duration = .zero

    package init() {}
  }

  /// How the run ended.
  public package(set) var ending: Ending
  /// One line: what went wrong, beyond what the ending says.
  public package(set) var detail: String?
  /// One line: what the run was to write and could not. The status is not that of success then.
  package private(set) var lostOutput: String?
  /// When it began and ended.
  public package(set) var times = Times()
  /// What was counted on the way, of all vCPUs.
  public package(set) var statistics = Statistics()
  /// What each vCPU counted: the part of `statistics` that is a vCPU's. Empty if the guest never began.
  package var vcpuStatistics: [Statistics] = []
  /// The engine that ran the guest.
  package var engine: VirtualMachine.Configuration.Engine
  /// The first unexpected host fault in translated code (`Statistics.softFaults`), in words.
  public package(set) var softFault: String?
  /// Registers of every vCPU, as text; empty unless the ending calls for it (panic, triple fault, internal error, a
  /// time limit).
  public package(set) var processorState = ""
  /// The last lines of the console, oldest first.
  public package(set) var consoleTail: [String] = []

  package init(ending: Ending, engine: VirtualMachine.Configuration.Engine, detail: String? = nil) {
    self.ending = ending
    self.engine = engine
    self.detail = detail
  }

  /// The ending's kind.
  public var cause: Cause { ending.cause }
  /// What a process that stands for this run should exit with: the ending's status, or 69 if output was lost.
  public var exitStatus: Int32 {
    lostOutput != nil && ending.exitStatus == 0 ? Ending.cannotStart.exitStatus : ending.exitStatus
  }

  /// Notes that something could not be written; the first time counts.
  package mutating func lose(_ output: String) { lostOutput = lostOutput ?? output }

  /// Changes when a field is renamed, removed or changes its meaning; new fields do not change it.
  package static let schemaVersion: Int64 = 1

  /// The object `--json` writes; docs/json.md describes the fields.
  package var json: JSON {
    .object([
      ("schemaVersion", .integer(RunResult.schemaVersion)),
      ("version", .string(VirtualMachine.version)),
      ("commit", .string(VirtualMachine.commit)),
      ("cause", .string(cause.rawValue)),
      ("status", .integer(Int64(exitStatus))),
      ("detail", (detail ?? lostOutput).map(JSON.string) ?? .null),
      ("engine", .string(engine.rawValue)),
      (
        "times",
        .object([
          ("guestStartSeconds", .seconds(times.guestStart)),
          ("userSpaceSeconds", .seconds(times.userSpace)),
          ("endSeconds", .seconds(times.end)),
        ])
      ),
      ("counters", statistics.json),
      ("vcpuCounters", .array(vcpuStatistics.map { .object($0.vcpuMembers) })),
      ("consoleTail", .array(consoleTail.map(JSON.string))),
      ("processorState", processorState.isEmpty ? .null : .string(processorState)),
    ])
  }
}

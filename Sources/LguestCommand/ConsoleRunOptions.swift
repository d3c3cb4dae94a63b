// SPDX-License-Identifier: Apache-2.0
// What every console run is told, whether its machine begins with a kernel or goes on from a file: time limits, the
// terminal, and what is said about the run and where.

import ArgumentParser
import Lguest
import SystemPackage

/// The options that `lguest run` and `lguest restore` share.
struct ConsoleRunOptions: ParsableArguments {
  /// When the console borrows the terminal.
  enum TTY: String, CaseIterable, ExpressibleByArgument { case auto, always, never }

  /// A time limit as an option value; nil inside is none.
  struct Limit: Sendable {
    let duration: Duration?
    init(_ duration: Duration?) { self.duration = duration }
    init(_ text: String) throws { duration = try TimeLimit.parse(text) }
  }

  @Option(help: ArgumentHelp("Host threads that run the vCPUs, at most.", visibility: .hidden))
  var hostThreads: Int?

  @Option(
    help: ArgumentHelp(
      "End the run after this long, with ms, s, m or h; 0 is no limit. (default: 0)", valueName: "time"),
    transform: Limit.init)
  var timeout = Limit(nil)

  @Option(
    help: ArgumentHelp(
      "End the run if user space has not begun after this long; 0 is no limit. (default: 120s)", valueName: "time"),
    transform: Limit.init)
  var bootTimeout = Limit(.seconds(120))

  @Option(
    help: ArgumentHelp(
      "Let pages that programs use go away now and then and take this long to come back, to see asynchronous page faults.",
      valueName: "time"),
    transform: ConsoleRunOptions.delay)
  var slowMemory: Duration?

  @Flag(help: "Print counters to stderr at the end.")
  var stats = false

  @Option(
    help: ArgumentHelp("Write how the run ended, as one JSON object, on every path.", valueName: "file"),
    completion: .file())
  var json: String?

  @Flag(name: [.short, .long], help: "Say more on stderr.")
  var verbose = false

  @Flag(help: "Leave the run's threads every right of this process: no filter of system calls, no Landlock.")
  var noSandbox = false

  @Option(help: "Borrow the terminal: auto does when stdin and stdout are both terminals.")
  var tty = TTY.auto

  /// A limit may be 0; the time that a page takes to come back may not.
  private static func delay(_ text: String) throws -> Duration {
    let delay = try TimeLimit.parse(text) ?? .zero
    try VirtualMachine.Configuration.checkSlowMemory(delay)
    return delay
  }

  func validate() throws {
    if json?.isEmpty == true { throw ValidationError("--json needs a file name") }
    if let hostThreads, hostThreads < 1 { throw ValidationError("--host-threads must be at least 1") }
  }

  /// What the session needs to know.
  var session: RunSession.Options {
    RunSession.Options(json: json.map { FilePath($0) }, printsStatistics: stats, isConfined: !noSandbox, tty: tty)
  }

  /// Puts into a configuration what the machine needs to know.
  func apply(to configuration: inout VirtualMachine.Configuration) {
    configuration.hostThreadCount = hostThreads
    configuration.bootTimeout = bootTimeout.duration
    configuration.timeout = timeout.duration
    configuration.slowMemory = slowMemory
    configuration.start = processStart
    configuration.collectStatistics = stats || json != nil
    configuration.logger = StandardErrorLog.logger(verbose: verbose)
  }
}

// SPDX-License-Identifier: Apache-2.0
// `lguest save PID FILE`: a run is written to a file, and ends unless it is to be kept; `lguest restore` goes on with
// it.

import ArgumentParser
import Host
import Lguest
import SystemPackage

struct SaveCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "save", abstract: "Save a running machine to a file, and end the run.",
    discussion: """
      The file appears when it is complete, readable by you only: it holds the guest's memory. 'lguest restore' goes on \
      with it, here or on another host with the CPU features that the guest has seen.
      """)

  @Argument(help: ArgumentHelp("The run, as 'lguest ps' shows it.", valueName: "pid")) var process: Int32

  @Argument(help: ArgumentHelp("The file; an old one is replaced.", valueName: "file"), completion: .file())
  var file: String

  @Flag(help: "Let the run go on.") var keep = false

  /// How long a run with so much memory may take: ten minutes, and a second for each 10 MB.
  static func limit(memoryBytes: UInt64) -> Int32 { Int32(clamping: 600_000 + memoryBytes / 10_000) }

  /// How long a run may take to end, in milliseconds, before whoever has saved it goes on.
  private static let endPatience: Int32 = 10_000

  func validate() throws {
    if process < 1 { throw ValidationError("a process's number is above 0") }
    if file.isEmpty { throw ValidationError("the saved machine needs a file name") }
  }

  func run() throws {
    do {
      // The file is ours: the run can neither open nor name one.
      var client = try ControlClient(process)
      let memory = try client.ask(.status)["memoryBytes"]?.unsignedValue ?? 0
      let output = try ReplacementFile(FilePath(file))
      _ = try client.ask(
        .save, [("keep", .bool(keep))], with: output.output.descriptor,
        milliseconds: SaveCommand.limit(memoryBytes: memory))
      // A run that is not told to finish goes on.
      try output.commit()
      if keep { return }
      _ = try client.ask(.finish)
      // Whoever goes on with it wants its disks.
      client.waitForEnd(milliseconds: SaveCommand.endPatience)
    } catch {
      Messages.say("\(error)")
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
  }
}

struct PauseCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pause", abstract: "Stop a running machine's processors until 'lguest resume'.",
    discussion: "Its clocks and time limits go on, and the guest learns from kvmclock that it was stopped.")

  @Argument(help: ArgumentHelp("The run, as 'lguest ps' shows it.", valueName: "pid")) var process: Int32

  func run() throws { try ControlClient.obey(process, .pause) }
}

struct ResumeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "resume", abstract: "Let a paused machine's processors go on.")

  @Argument(help: ArgumentHelp("The run, as 'lguest ps' shows it.", valueName: "pid")) var process: Int32

  func run() throws { try ControlClient.obey(process, .resume) }
}

extension ControlClient {
  /// Asks for something that has no answer but that it is done, which a run may take ten seconds for.
  fileprivate static func obey(_ process: Int32, _ verb: ControlVerb) throws {
    do { _ = try ask(process, verb, milliseconds: 13_000) } catch {
      Messages.say("\(error)")
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
  }
}

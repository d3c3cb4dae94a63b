// SPDX-License-Identifier: Apache-2.0
// What happens when the command line cannot be obeyed: help and version on stdout with status 0, anything wrong as
// one line on stderr with status 125, and the `--json` object even then.

import ArgumentParser
import Lguest
import SystemPackage

enum CommandLineFailure {
  /// Ends the process as the error asks.
  static func report(_ error: any Error, arguments: [String]) -> Never {
    guard LguestCommand.exitCode(for: error) != .success else {
      do { try CommandOutput.write(LguestCommand.fullMessage(for: error)) } catch { System.exit(error.status) }
      System.exit(0)
    }
    // The parser may list several things below each other; the first line is what is wrong.
    let message =
      LguestCommand.message(for: error).split(separator: "\n").first.map(String.init) ?? "wrong command line"
    let ended = message.hasSuffix(".") ? String(message.dropLast()) : message
    let subcommand = arguments.first { !$0.hasPrefix("-") && subcommands.contains($0) }
    let line = "\(ended); see 'lguest \(subcommand.map { $0 + " " } ?? "")--help'"
    Messages.say(line)
    if subcommand == RunCommand._commandName || subcommand == RestoreCommand._commandName,
      let file = jsonFile(arguments)
    {
      var result = RunResult(ending: .usage, engine: .translator, detail: line)
      result.times.end = ContinuousClock.now - processStart
      OutputFile.write(result.json, to: file)
    }
    System.exit(Ending.usage.exitStatus)
  }

  private static let subcommands = LguestCommand.configuration.subcommands.map { $0._commandName }

  /// The file of a `--json FILE` that the parser never got to; a name without letters is none.
  private static func jsonFile(_ arguments: [String]) -> FilePath? {
    for (index, argument) in arguments.enumerated() {
      var name: String?
      if argument.hasPrefix("--json=") { name = String(argument.dropFirst("--json=".count)) }
      if argument == "--json", index + 1 < arguments.count, !arguments[index + 1].hasPrefix("-") {
        name = arguments[index + 1]
      }
      if let name { return name.isEmpty ? nil : FilePath(name) }
    }
    return nil
  }
}

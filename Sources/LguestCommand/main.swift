// SPDX-License-Identifier: Apache-2.0
// The command `lguest` from its first instruction: take signals, note the time, parse, run a subcommand, end with a
// documented status.

import ArgumentParser
import Lguest

// Held back from here on, so that also a signal that comes while the command line is read ends the run cleanly.
let arguments = Array(CommandLine.arguments.dropFirst())
if [RunCommand._commandName, RestoreCommand._commandName].contains(arguments.first) {
  System.block(RunSession.signals)
}
// Time limits count from here: what came before is the dynamic linker.
let processStart = ContinuousClock.now

System.reserveStandardDescriptors()
do {
  var command = try LguestCommand.parseAsRoot(arguments)
  try command.run()
} catch let ending as CommandEnding {
  System.exit(ending.status)
} catch {
  CommandLineFailure.report(error, arguments: arguments)
}

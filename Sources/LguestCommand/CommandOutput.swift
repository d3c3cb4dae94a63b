// SPDX-License-Identifier: Apache-2.0
// What a command was asked for, on stdout: if it cannot be written, the command has failed.

import Lguest
import SystemPackage

enum CommandOutput {
  /// Writes a text and a line end. A reader that has gone wants no more: that is no failure.
  ///
  /// - Throws: `CommandEnding`, after a line on stderr.
  static func write(_ text: String) throws(CommandEnding) {
    let error = System.isOutputOpen ? System.write(text + "\n", to: .standardOutput) : .badFileDescriptor
    guard let error, error != .brokenPipe else { return }
    Messages.say("cannot write to stdout: \(error); what it lacks is lost")
    throw CommandEnding(status: Ending.cannotStart.exitStatus)
  }
}

// SPDX-License-Identifier: Apache-2.0
// `lguest doctor`: what this host offers, which engine would run and why.

import ArgumentParser
import Lguest
import SystemPackage

struct DoctorCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor", abstract: "Say what this host offers, which engine would run and why.")

  @Flag(help: "Print one JSON object.") var json = false

  func run() throws {
    let report = HostReport()
    let text = json ? report.json.text() : report.lines.joined(separator: "\n")
    try CommandOutput.write(text)
    // A host that cannot run a guest is what a run would report as `cannot-start`.
    throw CommandEnding(status: report.problems.isEmpty ? 0 : Ending.cannotStart.exitStatus)
  }
}

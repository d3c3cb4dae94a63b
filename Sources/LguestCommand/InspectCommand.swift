// SPDX-License-Identifier: Apache-2.0
// `lguest inspect FILE`: what kernel this is, how it can be entered, and whether this build can boot it.

import ArgumentParser
import Boot
import Lguest
import SystemPackage

struct InspectCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "inspect", abstract: "Say what a kernel file is and whether this build can boot it.")

  @Argument(
    help: ArgumentHelp("A bzImage, an ELF vmlinux or a multiboot kernel.", valueName: "file"), completion: .file())
  var file: String

  @Flag(help: "Print one JSON object.") var json = false

  func validate() throws {
    if file.isEmpty { throw ValidationError("the kernel needs a file name") }
  }

  func run() throws {
    let report: KernelReport
    do {
      report = try KernelReport(of: FilePath(file))
    } catch {
      Messages.say(error.description)
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
    let text = json ? report.json.text() : report.lines.map { PlainText.of($0) }.joined(separator: "\n")
    try CommandOutput.write(text)
    throw CommandEnding(status: report.isBootable ? 0 : Ending.cannotStart.exitStatus)
  }
}

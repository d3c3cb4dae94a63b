// SPDX-License-Identifier: Apache-2.0
// `lguest restore FILE`: a machine goes on where `lguest save` stopped it, with this process's console.

import ArgumentParser
import Lguest
import SystemPackage

struct RestoreCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restore", abstract: "Go on with a machine that was saved; its console is stdin and stdout.",
    discussion: """
      Memory, processors, CPU model, devices and KVM's interface are those of the file. The guest's pages are the \
      file's until the guest writes to them: leave the file alone while it runs. It may be restored again and again.
      """)

  @Argument(help: ArgumentHelp("What 'lguest save' wrote.", valueName: "file"), completion: .file())
  var file: String

  @Option(help: "The vendor that the guest's CPUID names from now on. (default: as saved)")
  var cpuVendor: VirtualMachine.Configuration.CPUVendor?

  @Option(
    help: ArgumentHelp(
      "What becomes of the other vendor's hypercall instruction, as in run. (default: as saved)", valueName: "policy"))
  var hypercallInsn: VirtualMachine.Configuration.ForeignHypercall?

  @Option(
    help: ArgumentHelp(
      "Where a disk of the machine is: as many as it has, in their order, as they were when it was saved.",
      valueName: "file[:ro]"),
    completion: .file(), transform: DeviceOptions.disk)
  var disk: [VirtualMachine.Configuration.Disk] = []

  @OptionGroup var console: ConsoleRunOptions

  func validate() throws {
    if file.isEmpty { throw ValidationError("the saved machine needs a file name") }
  }

  func run() throws {
    var configuration: VirtualMachine.Configuration
    do {
      configuration = try VirtualMachine.Configuration(restoring: FilePath(file))
      configuration.disks = disk
    } catch {
      var result = RunResult(ending: .cannotStart, engine: .translator, detail: error.description)
      result.times.end = ContinuousClock.now - processStart
      if let json = console.session.json { OutputFile.write(result.json, to: json) }
      Messages.say(error.description)
      throw CommandEnding(status: result.exitStatus)
    }
    console.apply(to: &configuration)
    if let cpuVendor { configuration.cpuVendor = cpuVendor }
    if let hypercallInsn { configuration.foreignHypercall = hypercallInsn }
    RunSession(configuration, console.session).run()
  }
}

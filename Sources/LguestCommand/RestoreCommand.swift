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

  @Option(help: ArgumentHelp("Host threads that run the vCPUs, at most.", visibility: .hidden))
  var hostThreads: Int?

  @Option(
    help: ArgumentHelp(
      "End the run after this long, with ms, s, m or h; 0 is no limit. (default: 0)", valueName: "time"),
    transform: RunCommand.Limit.init)
  var timeout = RunCommand.Limit(nil)

  @Option(
    help: ArgumentHelp(
      "End the run if user space has not begun after this long; 0 is no limit. (default: 120s)", valueName: "time"),
    transform: RunCommand.Limit.init)
  var bootTimeout = RunCommand.Limit(.seconds(120))

  @Flag(help: "Print counters to stderr at the end.")
  var stats = false

  @Option(
    help: ArgumentHelp("Write how the run ended, as one JSON object, on every path.", valueName: "file"),
    completion: .file())
  var json: String?

  @Flag(name: [.short, .long], help: "Say more on stderr.")
  var verbose = false

  @Option(help: "Borrow the terminal: auto does when stdin and stdout are both terminals.")
  var tty = RunCommand.TTY.auto

  func validate() throws {
    for (name, value) in [("the saved machine", file), ("--json", json)] where value?.isEmpty == true {
      throw ValidationError("\(name) needs a file name")
    }
  }

  func run() throws {
    let options = RunSession.Options(json: json.map { FilePath($0) }, printsStatistics: stats, tty: tty)
    var configuration: VirtualMachine.Configuration
    do {
      configuration = try VirtualMachine.Configuration(restoring: FilePath(file))
    } catch {
      var result = RunResult(ending: .cannotStart, engine: .translator, detail: error.description)
      result.times.end = ContinuousClock.now - processStart
      RunEnd(json: options.json, printsStatistics: false).end(result)
    }
    configuration.hostThreadCount = hostThreads
    configuration.timeout = timeout.duration
    configuration.bootTimeout = bootTimeout.duration
    configuration.start = processStart
    configuration.collectStatistics = stats || json != nil
    configuration.logger = StandardErrorLog.logger(verbose: verbose)
    if let cpuVendor { configuration.cpuVendor = cpuVendor }
    if let hypercallInsn { configuration.foreignHypercall = hypercallInsn }
    RunSession(configuration, options).run()
  }
}

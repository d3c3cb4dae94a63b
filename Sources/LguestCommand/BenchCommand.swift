// SPDX-License-Identifier: Apache-2.0
// `lguest bench hypercall`: what a hypercall costs by each technique, with a guest that the command carries within
// itself.

import ArgumentParser
import BuiltInGuests
import Lguest
import SystemPackage

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench", abstract: "Measure this machine; needs no kernel.",
    subcommands: [HypercallBenchCommand.self, SwitchBenchCommand.self])
}

struct HypercallBenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hypercall", abstract: "What a hypercall costs, by technique: five runs each, in TSC cycles and ns.",
    discussion: """
      native: the vendor's own instruction, answered in translated code. program: the same, answered by the host \
      program. emulated: the other vendor's instruction, performed each time. patchedFirst and patched: the other \
      vendor's instruction, replaced in guest memory, the first time and later. stub2007: the stub that hosts of \
      February 2007 patched. port and mmio: reads of a device register, for comparison. The figures of 2009 are \
      those of "lguest: use KVM hypercalls" by Matias Zabaljauregui: a direct software interrupt, emulation and \
      rewriting. With --abi lguest a ring-1 guest makes FLUSH_ASYNC by these three techniques.
      """)

  @Option(help: "The interface of the guest that makes the calls, kvm or lguest.")
  var abi = VirtualMachine.Configuration.ABI.kvm

  @Flag(help: "Print a JSON list, one object for a technique.") var json = false

  @Option(help: ArgumentHelp("Draw a chart as well.", valueName: "file"), completion: .file())
  var svg: String?

  @Option(
    help: ArgumentHelp(
      "How many vCPUs do it at once; may be given several times. (default: 1, and as many as the host has CPUs)",
      valueName: "n"))
  var cpus: [Int] = []

  func validate() throws {
    if cpus.contains(where: { !(1...VirtualMachine.Configuration.maximumCPUCount).contains($0) }) {
      throw ValidationError("--cpus must be 1 to \(VirtualMachine.Configuration.maximumCPUCount)")
    }
    if svg?.isEmpty == true { throw ValidationError("--svg needs a file name") }
    if abi == .lguest, svg != nil || !cpus.isEmpty { throw ValidationError("--abi lguest has no --svg and no --cpus") }
  }

  func run() throws {
    if abi == .lguest { return try runLguest() }
    if let svg, let problem = OutputFile.problem(FilePath(svg)) {
      Messages.say("--svg: \(problem); name a file in a directory you can write")
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
    var measurements: [HypercallBenchmark.Measurement] = []
    do {
      let counts = cpus.isEmpty ? HypercallBenchmark.usualCPUCounts : cpus
      for count in counts {
        for technique in HypercallBenchmark.Technique.allCases {
          measurements.append(try HypercallBenchmark(technique, cpuCount: count).measure())
        }
      }
    } catch {
      Messages.say("\(error)")
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
    let report = HypercallReport(measurements)
    try CommandOutput.write(json ? report.json.text() : report.table.joined(separator: "\n"))
    if let svg, !OutputFile.write(report.chart, to: FilePath(svg)) {
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
  }

  private func runLguest() throws {
    let measurements: [LguestHypercallBenchmark.Measurement]
    do { measurements = try LguestHypercallBenchmark.measureAll() } catch {
      Messages.say("\(error)")
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
    let report = LguestHypercallReport(measurements: measurements)
    try CommandOutput.write(json ? report.json.text() : report.table.joined(separator: "\n"))
  }
}

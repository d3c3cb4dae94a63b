// SPDX-License-Identifier: Apache-2.0
// The end of a run: terminal back, last words, statistics, the JSON file, the exit status. Once, whoever gets here.

import Host
import Lguest
import Logging
import Synchronization
import SystemPackage

final class RunEnd: Sendable {
  private let files: RunFiles
  private let printsStatistics: Bool
  private let begun = Atomic(false)
  /// What answers at the control socket, whose file goes with the run.
  private let control = Mutex<ControlServer?>(nil)

  init(_ files: RunFiles, printsStatistics: Bool) {
    self.files = files
    self.printsStatistics = printsStatistics
  }

  /// Starts answering at the control socket.
  func answer(for machine: VirtualMachine, at listener: LocalListener) {
    do throws(HostError) {
      let server = try ControlServer.start(for: machine, at: listener) { [files] in files.removeSocket() }
      control.withLock { $0 = server }
    } catch { machine.configuration.logger?.debug("no control socket: \(error)") }
  }

  /// Ends the process with a result. `isStuck` means that a thread may hold anything: nothing of its is waited for.
  func end(_ result: RunResult, isStuck: Bool = false) -> Never {
    guard !begun.exchange(true, ordering: .acquiringAndReleasing) else {
      while true { System.sleep(.seconds(1)) }
    }
    Terminal.restore()
    control.withLock { $0 }?.stop()
    var result = result
    if result.times.end == .zero { result.times.end = ContinuousClock.now - processStart }
    let isWritten = files.leave(result.json)
    files.end()
    sayLastWords(result)
    let status = isWritten || result.exitStatus != 0 ? result.exitStatus : Ending.cannotStart.exitStatus
    if isStuck { System.exitNow(status) }
    System.exit(status)
  }

  private func sayLastWords(_ result: RunResult) {
    switch result.ending {
    case .cannotStart: Messages.say(result.detail ?? "the machine could not be started")
    default:
      if let summary = result.ending.summary {
        Messages.say(result.detail.map { "\(summary): \($0)" } ?? summary)
      }
    }
    if let lost = result.lostOutput { Messages.say(lost) }
    for line in result.processorState.split(separator: "\n") { Messages.say(String(line)) }
    switch result.ending {
    case .panic, .tripleFault, .internal:
      if !result.consoleTail.isEmpty { Messages.say("the last \(result.consoleTail.count) lines of the console:") }
      for line in result.consoleTail { Messages.say("| " + line) }
    default: break
    }
    if let fault = result.softFault, result.ending != .internal {
      Messages.say(
        "\(result.statistics.softFaults) mistakes of the translator were survived, the first: \(fault); please report "
          + "this line, the command line and the kernel's version")
    }
    if result.ending == .internal {
      Messages.say(
        "this is a bug in lguest \(VirtualMachine.version) (\(VirtualMachine.commit)); please report these lines, the "
          + "command line and the kernel's version")
    }
    guard printsStatistics else { return }
    if let userSpace = result.times.userSpace { Messages.say("time to user space: \(seconds(userSpace))") }
    Messages.say("time: \(seconds(result.times.end))")
    for line in result.statistics.lines { Messages.say(line) }
    guard result.vcpuStatistics.count > 1 else { return }
    for (number, statistics) in result.vcpuStatistics.enumerated() {
      for line in statistics.vcpuLines { Messages.say("vCPU \(number): \(line)") }
    }
  }

  private func seconds(_ duration: Duration) -> String {
    let milliseconds = Int64((duration.inSeconds * 1_000).rounded())
    let fraction = String(milliseconds % 1_000)
    return "\(milliseconds / 1_000).\(String(repeating: "0", count: 3 - fraction.count))\(fraction) s"
  }
}

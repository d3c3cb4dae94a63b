// SPDX-License-Identifier: Apache-2.0
// `lguest ps`: this user's runs, by their control sockets.

import ArgumentParser
import Lguest
import SystemPackage

struct PsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "ps", abstract: "List your runs.")

  @Flag(help: "Print a JSON list.") var json = false

  func run() throws {
    let runs = ControlClient.askAll(.status)
    guard !json else {
      let list = runs.map { run in
        run.answer.map { JSON.object(($0.members ?? []).filter { $0.key != "ok" }) }
          ?? .object([("pid", .integer(Int64(run.process))), ("answers", false)])
      }
      return try CommandOutput.write(JSON.array(list).text())
    }
    func number(_ run: JSON, _ key: String) -> String { run[key]?.unsignedValue.map { String($0) } ?? "?" }
    let rows = runs.map { (process: Int32, answer: JSON?) -> [String] in
      guard let run = answer else { return ["\(process)", "-", "-", "-", "does not answer"] }
      let uptime = Table.duration(run["uptimeSeconds"]?.numberValue ?? 0)
      let memory = ByteSize.text(run["memoryBytes"]?.unsignedValue ?? 0)
      return [number(run, "pid"), uptime, number(run, "vcpus"), memory, run["kernel"]?.stringValue ?? "?"]
    }
    let table = Table(["PID", "UPTIME", "VCPUS", "MEMORY", "KERNEL"], rows, leftColumns: [4])
    try CommandOutput.write(table.lines.joined(separator: "\n"))
  }
}

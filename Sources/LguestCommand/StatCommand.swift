// SPDX-License-Identifier: Apache-2.0
// `lguest stat [PID]`: what the vCPUs of a run leave the guest for, while it runs: counts, rates and cycles per exit
// reason, hypercall and model-specific register, in the spirit of kvm_stat.

import ArgumentParser
import Lguest
import SystemPackage

struct StatCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "stat", abstract: "Show live what a run's vCPUs leave the guest for.",
    discussion: """
      Counts are since the run began. Cycles are those from the exit until the guest runs again; they are kept from \
      the first stat on, or from the beginning under --stats or --json. Steal time is how long a vCPU could have run \
      and waited for the host.
      """)

  @Argument(help: ArgumentHelp("The run; may be left out if there is one.", valueName: "pid")) var process: Int32?

  @Option(
    help: ArgumentHelp("Seconds between looks, with ms, s, m or h. (default: 1s)", valueName: "time"),
    transform: ConsoleRunOptions.Limit.init)
  var interval = ConsoleRunOptions.Limit(.seconds(1))

  @Option(help: ArgumentHelp("Look this often. (default: for ever on a terminal, else once)", valueName: "n"))
  var count: Int?

  @Flag(help: "Print JSON objects, one for a look.") var json = false

  func validate() throws {
    if let count, count < 1 { throw ValidationError("--count must be at least 1") }
    if let process, process < 1 { throw ValidationError("a process's number is above 0") }
  }

  func run() throws {
    let process = try chooseProcess()
    let looks = count ?? (System.isTerminal(.standardOutput) && !json ? Int.max : 1)
    var before: JSON?
    for look in 0..<looks {
      if look > 0 { System.sleep(interval.duration ?? .seconds(1)) }
      let answer: JSON
      do { answer = try ControlClient.ask(process, .stat) } catch {
        // The run that was watched has ended: that is how watching ends.
        if before != nil, !error.isSilence { return }
        throw refused("\(error)")
      }
      if json {
        try CommandOutput.write(JSON.object((answer.members ?? []).filter { $0.key != "ok" }).text())
      } else {
        let home = looks > 1 && System.isTerminal(.standardOutput) ? "\u{1B}[H\u{1B}[2J" : ""
        let lines = ExitTable(answer, since: before).lines
        try CommandOutput.write(home + lines.joined(separator: "\n"))
      }
      before = answer
    }
  }

  private func refused(_ text: String) -> CommandEnding {
    Messages.say(text)
    return CommandEnding(status: Ending.cannotStart.exitStatus)
  }

  private func chooseProcess() throws -> Int32 {
    if let process { return process }
    let processes = ControlSocket.processes()
    guard let only = processes.first else { throw refused("you have no run of lguest; start one with lguest run") }
    guard processes.count == 1 else {
      throw refused("you have \(processes.count) runs; name one: \(processes.map(String.init).joined(separator: ", "))")
    }
    return only
  }
}

/// One look at a run's counters, with what changed since another.
struct ExitTable {
  private let vcpus: [JSON]
  private let before: [JSON]
  private let seconds: Double
  private let title: String

  init(_ answer: JSON, since before: JSON?) {
    vcpus = answer["vcpus"]?.elements ?? []
    self.before = before?["vcpus"]?.elements ?? []
    let now = answer["uptimeSeconds"]?.numberValue ?? 0
    seconds = now - (before?["uptimeSeconds"]?.numberValue ?? 0)
    title = "run \(answer["pid"]?.unsignedValue.map { "\($0)" } ?? "?"), \(Table.duration(now))"
  }

  var lines: [String] {
    let names = vcpus.count > 1 ? vcpus.indices.map { "vCPU \($0)" } : []
    let head = ["", "count", "per s", "cycles each"] + names
    return [title] + Table(head, rows, leftColumns: [0]).lines
  }

  private var rows: [[String]] {
    var rows: [[String]] = [row("exits", ["exits"], [])]
    rows += keys("exitsByReason").map { row("  \($0)", ["exitsByReason", $0], ["cyclesByReason", $0]) }
    rows.append(row("hypercalls", ["hypercalls"], []))
    rows += keys("hypercallsByNumber").map { number in
      let name = vcpus.lazy.compactMap { $0["hypercallNames"]?[number]?.stringValue }.first
      return row(
        Statistics.hypercallTitle(number, name: name), ["hypercallsByNumber", number], ["cyclesByHypercall", number])
    }
    rows.append(row("interrupts", ["interrupts"], []))
    rows.append(row("TLB flushes skipped", ["tlbFlushesSkipped"], []))
    rows.append(row("steal time, us", ["stealNanoseconds"], [], unit: 1000))
    // The most frequent first; reads and writes of one register share their cycles.
    let registers = keys("registers").sorted { uses(of: $0) > uses(of: $1) }
    rows += registers.map { register in
      let reads = sum(vcpus, ["registers", register, "reads"]), writes = sum(vcpus, ["registers", register, "writes"])
      let kind = reads == 0 ? "WRMSR" : writes == 0 ? "RDMSR" : "RDMSR and WRMSR"
      return row("\(kind) \(register)", ["registers", register], ["registers", register, "cycles"])
    }
    return rows.filter { $0[1] != "0" || !$0[0].hasPrefix(" ") }
  }

  private func uses(of register: String) -> UInt64 { sum(vcpus, ["registers", register]) }

  /// The keys of a member of any vCPU, in the order they come in.
  private func keys(_ member: String) -> [String] {
    var keys: [String] = []
    for vcpu in vcpus { for (key, _) in vcpu[member]?.members ?? [] where !keys.contains(key) { keys.append(key) } }
    return keys
  }

  /// The number at a path; of a register's uses, how many there were.
  private func value(_ vcpu: JSON, _ path: [String]) -> UInt64 {
    let member = path.reduce(vcpu as JSON?) { $0?[$1] }
    return member?.unsignedValue ?? (member?["reads"]?.unsignedValue ?? 0) &+ (member?["writes"]?.unsignedValue ?? 0)
  }

  private func sum(_ vcpus: [JSON], _ path: [String]) -> UInt64 { vcpus.reduce(0) { $0 &+ value($1, path) } }

  /// - Parameter unit: What one in the table stands for.
  private func row(_ name: String, _ path: [String], _ cycles: [String], unit: UInt64 = 1) -> [String] {
    let total = sum(vcpus, path)
    // Cycles are counted from a moment on; what changed between two looks is counted throughout.
    let change = before.isEmpty ? total : total &- sum(before, path)
    let spent = cycles.isEmpty ? 0 : sum(vcpus, cycles) &- (before.isEmpty ? 0 : sum(before, cycles))
    return [
      name, "\(total / unit)", seconds > 0 ? Table.number(Double(change) / Double(unit) / seconds) : "-",
      spent > 0 && change > 0 ? Table.number(Double(spent) / Double(change)) : "-",
    ] + (vcpus.count > 1 ? vcpus.map { "\(value($0, path) / unit)" } : [])
  }
}

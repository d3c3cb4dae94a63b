// SPDX-License-Identifier: Apache-2.0
// `lguest bench switch`: what it costs a ring-1 guest to go on, with guests that the command carries within itself.

import ArgumentParser
import BuiltInGuests
import Lguest

struct SwitchBenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "switch", abstract: "What it costs a guest of lguest's interface to go on.",
    discussion: """
      A stay in the guest, from one hypercall to the next, on a per-CPU page: the same guest again; two guests in turn; \
      a guest that changes a gate, or a descriptor, each time; one that moves between two threads' pages; and, for \
      comparison, one with registers, gates and descriptors copied each time, as hosts did before March 2007. ns, bytes \
      copied to the page, entries decoded and stacks set, for a stay.
      """)

  @Flag(help: "Print a JSON list, one object for a case.") var json = false

  func run() throws {
    let measurements: [SwitchBenchmark.Measurement]
    do { measurements = try SwitchBenchmark().measure() } catch {
      Messages.say("\(error)")
      throw CommandEnding(status: Ending.cannotStart.exitStatus)
    }
    let list = JSON.array(measurements.map(\.json))
    try CommandOutput.write(json ? list.text() : SwitchBenchCommand.table(measurements).joined(separator: "\n"))
  }

  private static func table(_ measurements: [SwitchBenchmark.Measurement]) -> [String] {
    let rows = measurements.map {
      [$0.what.title] + [$0.nanoseconds, $0.bytes, $0.entries, $0.stacks].map(Table.number)
    }
    return Table(["going on", "ns", "bytes", "entries", "stacks"], rows, leftColumns: [0]).lines
  }
}

extension SwitchBenchmark.Case {
  fileprivate var title: String {
    switch self {
    case .same: "same guest"
    case .alternating: "two guests in turn"
    case .gates: "IDT changed"
    case .descriptors: "GDT changed"
    case .moved: "guest moved"
    case .everything: "everything copied"
    }
  }
}

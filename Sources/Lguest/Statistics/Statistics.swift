// SPDX-License-Identifier: Apache-2.0
// Counters of a run: plain numbers that whoever does the work adds to, and their two renderings.

/// What a run counted. One value belongs to one thread; sums are made with `add`.
public struct Statistics: Sendable {
  /// Why vCPUs came back to the run loop. The order is the order of `exits`.
  public enum ExitReason: String, Sendable, CaseIterable {
    case portRead, portWrite, mmioRead, mmioWrite, msrRead, msrWrite
    case hypercall, foreignHypercall, pageAbsent, halt, spinning, interruptWindow, kicked, debug, trap, shutdown, failed
  }

  private var exits = [UInt64](repeating: 0, count: ExitReason.allCases.count)
  /// Hypercalls by number, whether they left translated code or not.
  public private(set) var hypercalls: [UInt64: UInt64] = [:]
  /// What hypercalls of lguest's interface are called in the guest's era, by number.
  private var hypercallNames: [UInt64: String] = [:]
  /// What was answered as hardware answers the unknown, by description ("MSR 0x123", "port 0x80").
  public private(set) var unknown: [String: UInt64] = [:]
  /// Interrupts that vCPUs took.
  public package(set) var interrupts: UInt64 = 0
  /// Interrupts whose end the guest said in memory, without an exit.
  package var interruptsEndedInMemory: UInt64 = 0
  /// Asynchronous page faults: told "not present", told "ready".
  package var pagesNotPresent: UInt64 = 0
  package var pagesReady: UInt64 = 0
  /// Pages of RAM that went away, and waits for one of them to come.
  package var pagesEvicted: UInt64 = 0
  package var pagesAwaited: UInt64 = 0
  /// TLB flushes that another vCPU left for one that did not run, instead of interrupting it.
  package var tlbFlushesSkipped: UInt64 = 0
  /// How long vCPUs could have run and waited: for a thread and, where the guest has registered steal time, for a host
  /// processor.
  package var stealNanoseconds: UInt64 = 0
  /// The longest time that a vCPU could have run and waited for a thread. Sums hold the longest of all.
  package var longestWaitNanoseconds: UInt64 = 0
  /// How often a guest of lguest's interface was booted again.
  package var restarts: UInt64 = 0
  /// Hypercalls that end the HLT of another vCPU, and that let another vCPU go first.
  package var kicks: UInt64 = 0
  package var yields: UInt64 = 0

  package var blocksTranslated: UInt64 = 0
  package var blocksDiscarded: UInt64 = 0
  /// Of the blocks translated: judged by the checker; refused, and translated again with a check for each access; refused
  /// in this form too, and executed by helpers.
  package var blocksChecked: UInt64 = 0
  package var blocksRefused: UInt64 = 0
  package var blocksRefusedTwice: UInt64 = 0
  /// Instructions executed with a check for each access because their block was refused.
  package var simpleInstructions: UInt64 = 0
  package var guestBytesTranslated: UInt64 = 0
  package var hostBytesEmitted: UInt64 = 0
  package var translationNanoseconds: UInt64 = 0
  package var tlbFills: UInt64 = 0
  package var tlbFlushes: UInt64 = 0
  package var lookups: UInt64 = 0
  package var lookupMisses: UInt64 = 0
  /// Returns from translated code to Swift, for any reason.
  package var fullExits: UInt64 = 0
  /// Host faults at unexpected places in translated code: mistakes of the translator's that cost a block its
  /// optimizations, and not the run its life.
  package var softFaults: UInt64 = 0
  /// Instructions executed by a Swift helper instead of translated code.
  package var helperInstructions: UInt64 = 0
  package var exceptions: UInt64 = 0
  /// #UD that a machine with lguest's interface has taken.
  package var invalidOpcodes: UInt64 = 0
  /// Hypercall instructions of the other vendor: performed for the guest, replaced in its memory, refused.
  package var hypercallsEmulated: UInt64 = 0
  package var hypercallsPatched: UInt64 = 0
  package var hypercallsRefused: UInt64 = 0

  /// What exits cost, while that is counted.
  package internal(set) var costs = ExitCosts()

  package init() {}

  /// At most this many kinds of unknown access are kept apart: a guest chooses them, so their number is bounded.
  package static let unknownKinds = 256

  package mutating func count(_ reason: ExitReason) { exits[reason.index] &+= 1 }

  /// Counts a hypercall. Numbers a guest makes up share one row once there are many.
  package mutating func count(hypercall number: UInt64) {
    let key = hypercalls.count < Statistics.unknownKinds || hypercalls[number] != nil ? number : .max
    hypercalls[key, default: 0] &+= 1
  }

  /// Counts hypercalls that the engine answered, or that lguest's host performed.
  mutating func count(hypercall number: UInt64, times: UInt64, name: String? = nil) {
    hypercalls[number, default: 0] &+= times
    if let name { hypercallNames[number] = name }
  }

  /// Counts unknown accesses of one kind and says whether they were the first.
  @discardableResult
  package mutating func count(unknown kind: String, times: UInt64 = 1) -> Bool {
    if let old = unknown[kind] {
      unknown[kind] = old &+ times
      return false
    }
    guard unknown.count < Statistics.unknownKinds else {
      unknown["others", default: 0] &+= times
      return false
    }
    unknown[kind] = times
    return true
  }

  /// Exits for this reason.
  public subscript(reason: ExitReason) -> UInt64 { exits[reason.index] }
  /// Exits for any reason.
  public var exitTotal: UInt64 { exits.reduce(0, &+) }
  /// Hypercalls of any number.
  public var hypercallTotal: UInt64 { hypercalls.values.reduce(0, &+) }

  private static let scalars: [(name: String, path: any WritableKeyPath<Statistics, UInt64> & Sendable)] = [
    ("interrupts", \.interrupts),
    ("interruptsEndedInMemory", \.interruptsEndedInMemory),
    ("pagesNotPresent", \.pagesNotPresent),
    ("pagesReady", \.pagesReady),
    ("pagesEvicted", \.pagesEvicted),
    ("pagesAwaited", \.pagesAwaited),
    ("tlbFlushesSkipped", \.tlbFlushesSkipped),
    ("stealNanoseconds", \.stealNanoseconds),
    ("longestWaitNanoseconds", \.longestWaitNanoseconds),
    ("restarts", \.restarts),
    ("kicks", \.kicks),
    ("yields", \.yields),
    ("exceptions", \.exceptions),
    ("blocksTranslated", \.blocksTranslated),
    ("blocksDiscarded", \.blocksDiscarded),
    ("blocksChecked", \.blocksChecked),
    ("blocksRefused", \.blocksRefused),
    ("blocksRefusedTwice", \.blocksRefusedTwice),
    ("simpleInstructions", \.simpleInstructions),
    ("guestBytesTranslated", \.guestBytesTranslated),
    ("hostBytesEmitted", \.hostBytesEmitted),
    ("translationNanoseconds", \.translationNanoseconds),
    ("tlbFills", \.tlbFills),
    ("tlbFlushes", \.tlbFlushes),
    ("lookups", \.lookups),
    ("lookupMisses", \.lookupMisses),
    ("fullExits", \.fullExits),
    ("softFaults", \.softFaults),
    ("helperInstructions", \.helperInstructions),
    ("invalidOpcodes", \.invalidOpcodes),
    ("hypercallsEmulated", \.hypercallsEmulated),
    ("hypercallsPatched", \.hypercallsPatched),
    ("hypercallsRefused", \.hypercallsRefused),
  ]

  /// Adds another thread's counters.
  package mutating func add(_ other: Statistics) {
    for index in exits.indices { exits[index] &+= other.exits[index] }
    hypercalls.merge(other.hypercalls, uniquingKeysWith: &+)
    hypercallNames.merge(other.hypercallNames) { $1 }
    unknown.merge(other.unknown, uniquingKeysWith: &+)
    let longest = max(longestWaitNanoseconds, other.longestWaitNanoseconds)
    for scalar in Statistics.scalars { self[keyPath: scalar.path] &+= other[keyPath: scalar.path] }
    longestWaitNanoseconds = longest
    costs.add(other.costs)
  }

  /// What is a vCPU's own, not the engine's or the machine's.
  var vcpuMembers: [(key: String, value: JSON)] {
    exitMembers + [
      ("interrupts", .unsigned(interrupts)), ("tlbFlushesSkipped", .unsigned(tlbFlushesSkipped)),
      ("stealNanoseconds", .unsigned(stealNanoseconds)),
      ("longestWaitNanoseconds", .unsigned(longestWaitNanoseconds)),
    ] + costs.members
  }

  private var exitMembers: [(key: String, value: JSON)] {
    [
      ("exits", .unsigned(exitTotal)),
      ("exitsByReason", .object(ExitReason.allCases.map { ($0.rawValue, .unsigned(self[$0])) })),
      ("hypercalls", .unsigned(hypercallTotal)),
      ("hypercallsByNumber", .object(sortedHypercalls.map { ("\($0.key)", .unsigned($0.value)) })),
      ("hypercallNames", .object(hypercallNames.sorted { $0.key < $1.key }.map { ("\($0.key)", .string($0.value)) })),
    ]
  }

  package var json: JSON {
    var members = exitMembers + costs.members
    members += Statistics.scalars.map { ($0.name, .unsigned(self[keyPath: $0.path])) }
    members.append(("unknown", .object(sortedUnknown.map { ($0.key, .unsigned($0.value)) })))
    return .object(members)
  }

  /// A row of text: what was counted, how often, and what it cost in all, if that was counted.
  typealias Row = (name: String, count: UInt64, cycles: UInt64)

  /// The rows of a vCPU's own counters.
  private var vcpuRows: [Row] {
    var rows: [Row] = [("exits", exitTotal, 0)]
    rows += ExitReason.allCases.map { ("  \($0.rawValue)", self[$0], costs[$0]) }.filter { $0.count != 0 }
    rows.append(("hypercalls", hypercallTotal, 0))
    rows += sortedHypercalls.map { number, count in
      (
        Statistics.hypercallTitle("\(number)", name: hypercallNames[number]), count,
        costs.hypercalls[number] ?? 0
      )
    }
    return rows + costs.registerRows
  }

  /// How a hypercall stands in a table.
  package static func hypercallTitle(_ number: String, name: String?) -> String {
    "  number \(number)" + (name.map { " (\($0))" } ?? "")
  }

  /// The lines `--stats` prints for one vCPU of several.
  package var vcpuLines: [String] { Statistics.lines(vcpuRows) }

  /// The lines `--stats` prints: one counter each, zeroes left out.
  public var lines: [String] {
    var rows = vcpuRows
    rows += Statistics.scalars.map { ($0.name, self[keyPath: $0.path], 0) }.filter { $0.1 != 0 }
    if !unknown.isEmpty { rows.append(("unknown", unknown.values.reduce(0, &+), 0)) }
    rows += sortedUnknown.map { ("  \($0.key)", $0.value, 0) }
    return Statistics.lines(rows) + averages
  }

  private static func lines(_ rows: [Row]) -> [String] {
    let width = rows.map(\.name.count).max() ?? 0
    return rows.map { row in
      let text = row.name + String(repeating: " ", count: width - row.name.count + 2) + String(row.count)
      return row.cycles > 0 && row.count > 0 ? text + ", \(row.cycles / row.count) cycles each" : text
    }
  }

  private var averages: [String] {
    guard blocksTranslated > 0 else { return [] }
    return [
      "checker: \(blocksChecked) of \(blocksTranslated) blocks checked, \(blocksRefused) refused",
      "per block: \(translationNanoseconds / blocksTranslated) ns to translate, "
        + "\(guestBytesTranslated / blocksTranslated) guest bytes, \(hostBytesEmitted / blocksTranslated) host bytes",
    ]
  }

  private var sortedHypercalls: [(key: UInt64, value: UInt64)] { hypercalls.sorted { $0.key < $1.key } }
  private var sortedUnknown: [(key: String, value: UInt64)] { unknown.sorted { $0.key < $1.key } }
}

extension Statistics.ExitReason {
  /// Position in `allCases`.
  fileprivate var index: Int {
    switch self {
    case .portRead: 0
    case .portWrite: 1
    case .mmioRead: 2
    case .mmioWrite: 3
    case .msrRead: 4
    case .msrWrite: 5
    case .hypercall: 6
    case .foreignHypercall: 7
    case .pageAbsent: 8
    case .halt: 9
    case .spinning: 10
    case .interruptWindow: 11
    case .kicked: 12
    case .debug: 13
    case .trap: 14
    case .shutdown: 15
    case .failed: 16
    }
  }
}

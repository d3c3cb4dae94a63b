// SPDX-License-Identifier: Apache-2.0
// The engine of a whole machine, apart from its vCPUs: the threads they run on, what it counts, and what it does while
// all of them stand still.

public import Host

/// What the vCPUs of one machine share.
public protocol MachineEngine: AnyObject, Sendable {
  /// Runs `body` on the calling thread, made fit to run the vCPUs of any machine until `body` returns.
  ///
  /// - Throws: `HostError` if the host refuses what the thread needs, and `body` has not been called then; or what
  ///   `body` throws.
  static func withPreparedThread(_ body: () throws(HostError) -> Void) throws(HostError)
  /// Takes pages of RAM away that user code has accessed since the last time, while every vCPU stands still. Any thread
  /// but a vCPU's.
  ///
  /// - Parameter limit: Pages at most.
  /// - Returns: How many.
  func evictUsedPages(limit: Int) -> Int
  /// What the engine has done so far.
  var counters: EngineCounters { get }
  /// What is translated now, as lines of a perf map file (tools/perf/Documentation/jit-interface.txt); empty if the
  /// engine translates nothing.
  var perfMap: String { get }
  /// The blocks of code that were entered, the heaviest first, if they were counted. Not while a vCPU runs.
  var blockCounts: [BlockCount] { get }
}

/// How often a block of guest code was entered.
public struct BlockCount: Sendable {
  /// Guest-physical address, in bytes, and the mode word it was translated for.
  public let physical: UInt64
  public let mode: UInt32
  /// Instructions in the block, and how often it was entered.
  public let instructions: UInt64
  public let executions: UInt64
  /// Instructions executed in it, give or take what faults cut short.
  public var weight: UInt64 { instructions &* executions }

  /// A block's numbers, as they stand above.
  public init(physical: UInt64, mode: UInt32, instructions: UInt64, executions: UInt64) {
    self.physical = physical
    self.mode = mode
    self.instructions = instructions
    self.executions = executions
  }
}

/// Counters of a machine's engine; what an engine does not have stays 0.
public struct EngineCounters: Sendable {
  /// Blocks translated, the guest bytes they cover and the host bytes they take.
  public var blocks: UInt64 = 0, guestBytes: UInt64 = 0, hostBytes: UInt64 = 0
  /// Direct edges linked, blocks discarded, times everything was forgotten.
  public var links: UInt64 = 0, discards: UInt64 = 0, flushes: UInt64 = 0
  /// Time spent translating, in host TSC ticks.
  public var ticks: UInt64 = 0
  /// Blocks that the checker judged, and those that it refused: translated again with a check for each access, or then,
  /// a refusal later, executed by Swift. Instructions that were begun in blocks with a check for each access.
  public var checked: UInt64 = 0, refused: UInt64 = 0, refusedTwice: UInt64 = 0, simpleInstructions: UInt64 = 0
  /// By the light helpers, over all vCPUs.
  public var tlbFills: UInt64 = 0, tlbFlushes: UInt64 = 0, lookups: UInt64 = 0, lookupMisses: UInt64 = 0
  /// Hypercalls that the engine answered, by number.
  public var hypercalls: [UInt64: UInt64] = [:]
  /// Host faults at unexpected places in translated code, each a bug that cost a block its optimizations, and the first
  /// of them in words.
  public var softFaults: UInt64 = 0, firstSoftFault: String?
  /// Full exits by reason: name and count.
  public var exits: [(name: String, count: UInt64)] = []

  /// All 0.
  public init() {}
}

// SPDX-License-Identifier: Apache-2.0
// The per-CPU page: the descriptor tables and the task-state segment that the processor reads while a ring-1 guest runs. It
// belongs to a host thread, and its guests come and go; it is filled from a guest's tables where these have changed, or as a
// whole if another guest was here in between or this one was elsewhere, and not otherwise (Rusty Russell, "[PATCH 8/9]
// lguest: Optimize away copy in and out of per-cpu guestpages", 8 March 2007).

public import Engine
import X86

/// What a resumed guest's tables cost.
public struct LguestResumeCounts: Sendable, Equatable {
  /// How often a guest went on.
  public internal(set) var resumes: UInt64 = 0
  /// Of these: on another thread's page than before; on one where another guest was in between.
  public internal(set) var moves: UInt64 = 0, exchanges: UInt64 = 0
  /// Bytes stored to pages, and entries of guests' tables that were decoded for that.
  public internal(set) var bytes: UInt64 = 0, entries: UInt64 = 0
  /// Stacks of level 1 set, which is done each time, and not among the bytes.
  public internal(set) var stacks: UInt64 = 0

  public init() {}
}

/// A host thread's page. Belongs to that thread.
public final class LguestPage {
  /// When a page is filled.
  public enum Policy: String, Sendable, CaseIterable {
    /// Where something has changed.
    case changed
    /// Always, and registers are copied in and out, as before March 2007: for comparison.
    case everything
  }

  public let policy: Policy
  let page: MachinePage
  /// The guest that was here last.
  private var guest: ObjectIdentifier?
  /// For a test: what is never filled.
  var suppressed: LguestTables.Changes = []

  // Places in the page, behind the global descriptor table.
  static let taskState = 0x200, registers = 0x300, gates = 0x800
  static let taskStateLimit: UInt32 = 0x67

  public init(_ page: MachinePage, policy: Policy = .changed) {
    (self.page, self.policy) = (page, policy)
    // The I/O bitmap is beyond the limit: no port is the guest's.
    page.store((LguestPage.taskStateLimit + 1) << 16, at: LguestPage.taskState + 100)
  }

  /// Makes it a guest's, with whatever that takes.
  func admit(
    _ newGuest: ObjectIdentifier, hasMoved: Bool, _ tables: inout LguestTables, _ counts: inout LguestResumeCounts
  ) {
    counts.resumes &+= 1
    if hasMoved {
      counts.moves &+= 1
    } else if guest != newGuest {
      counts.exchanges &+= 1
    }
    if hasMoved || guest != newGuest || policy == .everything { tables.changes = .all }
    guest = newGuest
    if !tables.changes.isEmpty { fill(tables, &counts) }
    tables.changes = []
    page.store(tables.stack.pointer, at: LguestPage.taskState + 12)
    page.store(UInt32(tables.stack.selector), at: LguestPage.taskState + 16)
    counts.stacks &+= 1
  }

  private func fill(_ tables: LguestTables, _ counts: inout LguestResumeCounts) {
    let changes = tables.changes.subtracting(suppressed)
    func put(_ value: UInt64, at place: Int) {
      page.store(value, at: place)
      counts.bytes &+= 8
      counts.entries &+= 1
    }
    if changes.contains(.gates) {
      for (vector, gate) in tables.gates.enumerated() {
        put(LguestPage.live(gate: gate), at: LguestPage.gates + vector * 8)
      }
    }
    let which =
      changes.contains(.descriptors)
      ? 0..<tables.descriptors.count : changes.contains(.threadDescriptors) ? LguestTables.threadDescriptors : 0..<0
    for index in which { put(LguestPage.live(descriptor: tables.descriptors[index], index), at: index * 8) }
  }

  /// A gate leads to level 1, whatever it says.
  private static func live(gate: UInt64) -> UInt64 {
    gate == 0 ? 0 : gate & 0xFFFF_EF00_0000_FFFF | 0x61_0000
  }

  /// A descriptor is of level 1 if it says 0, and marked as accessed, for the processor must not store to the table. The
  /// host's own (its segments, the task state's, the double fault's) are never the guest's, nor is anything but code and
  /// data believed.
  private static func live(descriptor: UInt64, _ index: Int) -> UInt64 {
    if descriptor == 0 || [10, 11, 16, 31].contains(index) { return 0 }
    let isPresent = descriptor >> 47 & 1 != 0, isSegment = descriptor >> 44 & 1 != 0
    if isPresent && !isSegment { return 0 }
    let level: UInt64 = descriptor >> 45 & 3 == 0 ? 1 << 45 : 0
    return descriptor | level | 1 << 40
  }

  /// Copies the registers out and in again, as a host does that does not let a guest's registers lie where they are.
  func copyRegisters(_ engine: some CPUEngine, _ counts: inout LguestResumeCounts) {
    for number in UInt8(0)..<8 {
      page.store(engine[register: number], at: LguestPage.registers + Int(number) * 8)
      engine[register: number] = page.load(UInt64.self, at: LguestPage.registers + Int(number) * 8)
    }
    counts.bytes &+= 128
  }
}

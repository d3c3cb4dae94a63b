// SPDX-License-Identifier: Apache-2.0
// The descriptor tables of a ring-1 guest as it asked for them by hypercall, and what of them has changed since a host
// thread's page was last filled from them (LguestPage.swift), which is what the processor reads.

import Saving

/// A guest's descriptors, gates and ring-1 stack.
struct LguestTables {
  /// What differs from the page.
  struct Changes: OptionSet {
    let rawValue: UInt8
    static let gates = Changes(rawValue: 1), descriptors = Changes(rawValue: 2)
    /// The three descriptors of threads alone.
    static let threadDescriptors = Changes(rawValue: 4)
    static let all: Changes = [.gates, .descriptors, .threadDescriptors]
  }

  static let descriptorCount: UInt32 = 32
  static let threadDescriptors = 6..<9

  private(set) var descriptors = [UInt64](repeating: 0, count: Int(descriptorCount))
  private(set) var gates = [UInt64](repeating: 0, count: 256)
  /// The stack of traps that come from level 3.
  private(set) var stack: (selector: UInt16, pointer: UInt32) = (0, 0)
  var changes = Changes.all

  /// Those of the kernel are there from the start: entries 12 and 13, flat.
  init() {
    descriptors[12] = 0x00CF_9B00_0000_FFFF
    descriptors[13] = 0x00CF_9300_0000_FFFF
  }

  /// Vectors whose gates are never the guest's: NMI, double fault, one that is reserved, and hypercalls.
  private static let reserved: [UInt32] = [2, 8, 15, UInt32(LguestCall.vector)]

  /// Why an entry is refused, which ends the guest.
  struct Refusal: Error { let reason: String }

  /// LOAD_IDT_ENTRY; vectors that are the host's are ignored.
  mutating func setGate(_ vector: UInt32, low: UInt32, high: UInt32) throws(Refusal) {
    if LguestTables.reserved.contains(vector) { return }
    guard vector < 256 else { throw Refusal(reason: "Setting idt entry \(vector)") }
    let gate = high & 0x8000 != 0 ? UInt64(high) << 32 | UInt64(low) : 0
    guard LguestTables.accepts(vector, gate) else { throw Refusal(reason: "bad IDT type \(high >> 8 & 0xF)") }
    gates[Int(vector)] = gate
    changes.insert(.gates)
  }

  /// Whether a gate can be a vector's: none, or one to a 32-bit handler where the guest may have one.
  static func accepts(_ vector: UInt32, _ gate: UInt64) -> Bool {
    let type = gate >> 40 & 0xF
    return gate == 0 || gate >> 47 & 1 != 0 && (type == 0xE || type == 0xF) && !reserved.contains(vector)
  }

  /// Whether a selector can be that of the stack: it is of level 1.
  static func acceptsStack(_ selector: UInt32) -> Bool { selector & 3 == 1 }

  /// LOAD_GDT_ENTRY and LOAD_GDT: an index below `descriptorCount`.
  mutating func setDescriptor(_ index: UInt32, low: UInt32, high: UInt32) {
    guard index < LguestTables.descriptorCount else { return }
    descriptors[Int(index)] = UInt64(high) << 32 | UInt64(low)
    changes.insert(.descriptors)
  }

  /// LOAD_TLS: the three descriptors of threads.
  mutating func setThreadDescriptors(_ values: (UInt64, UInt64, UInt64)) {
    (descriptors[6], descriptors[7], descriptors[8]) = values
    changes.insert(.threadDescriptors)
  }

  mutating func setStack(_ selector: UInt16, _ pointer: UInt32) { stack = (selector, pointer) }

  /// Where a vector's handler is, whether it is entered with interrupts off, and the level that software may raise it
  /// from; nil if there is none.
  func gate(_ vector: UInt8) -> (handler: UInt32, isInterruptGate: Bool, level: UInt8)? {
    let gate = gates[Int(vector)]
    guard gate != 0 else { return nil }
    let handler = UInt32(truncatingIfNeeded: gate >> 32) & 0xFFFF_0000 | UInt32(truncatingIfNeeded: gate) & 0xFFFF
    return (handler, gate >> 40 & 0xF == 0xE, UInt8(truncatingIfNeeded: gate >> 45 & 3))
  }
}

extension LguestTables: SavedState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    for index in descriptors.indices {
      try archive.transfer(&descriptors[index], "descriptor \(index)")
    }
    for vector in gates.indices {
      var gate = gates[vector]
      try archive.transfer(&gate, "gate \(vector)")
      guard archive.isRestoring else { continue }
      let accepted = LguestTables.accepts(UInt32(vector), gate)
      try archive.require(accepted, "gate \(vector)", gate)
      gates[vector] = gate
    }
    var (selector, pointer) = stack
    try archive.transfer(&selector, "selector of the stack")
    try archive.require(selector == 0 || LguestTables.acceptsStack(UInt32(selector)), "selector of the stack", selector)
    try archive.transfer(&pointer, "pointer of the stack")
    stack = (selector, pointer)
    if archive.isRestoring { changes = .all }
  }
}

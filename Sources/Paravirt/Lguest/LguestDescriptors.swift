// SPDX-License-Identifier: Apache-2.0
// Descriptors of a ring-1 guest: it asks for entries of its global and interrupt descriptor tables by hypercall, and the
// host keeps the tables, so that no entry leads to level 0.

import X86

/// The global descriptor table: 32 entries in a page of the host's that the processor reads.
struct LguestGDT<Memory: GuestPhysicalWriter> {
  static var count: UInt32 { 32 }
  let memory: Memory
  /// Guest-physical, outside the RAM that the guest is told of.
  let address: UInt64

  /// Those of the kernel: entries 12 and 13, flat, of level 1.
  func reset() {
    for index in UInt32(0)..<LguestGDT.count { put(0, at: index) }
    put(0x00CF_BB00_0000_FFFF, at: 12)
    put(0x00CF_B300_0000_FFFF, at: 13)
  }

  /// Stores an entry as it may be: of level 1 if it says 0, marked as accessed, for the processor must not store to the
  /// table. The host's own (its segments, the task state's, the double fault's) never change, nor is anything but code
  /// and data believed.
  func set(_ index: UInt32, low: UInt32, high: UInt32) {
    if [10, 11, 16, 31].contains(index) { return }
    var high = high
    if high & 0x8000 != 0, high & 0x1000 == 0 { return put(0, at: index) }
    if high & 0x6000 == 0 { high |= 0x2000 }
    put(UInt64(high | 0x100) << 32 | UInt64(low), at: index)
  }

  private func put(_ value: UInt64, at index: UInt32) { memory.store(value, at: address + UInt64(index) * 8) }
}

/// The interrupt descriptor table: gates as the guest asked for them, made harmless, in the host's page, where the processor
/// finds them.
struct LguestIDT<Memory: GuestPhysicalWriter> {
  let memory: Memory
  /// Guest-physical, outside the RAM that the guest is told of.
  let address: UInt64

  /// Vectors whose gates are never the guest's: NMI, double fault, one that is reserved, and hypercalls.
  private static var reserved: [UInt32] { [2, 8, 15, UInt32(LguestCall.vector)] }

  /// Why an entry is refused, which ends the guest.
  struct Refusal: Error { let reason: String }

  func reset() { for vector in UInt64(0)..<256 { memory.store(UInt64(0), at: address + vector * 8) } }

  /// Stores a gate, to level 1 whatever it says; vectors that are the host's are ignored.
  func set(_ vector: UInt32, low: UInt32, high: UInt32) throws(Refusal) {
    if LguestIDT.reserved.contains(vector) { return }
    guard vector < 256 else { throw Refusal(reason: "Setting idt entry \(vector)") }
    let place = address + UInt64(vector) * 8
    guard high & 0x8000 != 0 else {
      memory.store(UInt64(0), at: place)
      return
    }
    let type = high >> 8 & 0xF
    guard type == 0xE || type == 0xF else { throw Refusal(reason: "bad IDT type \(type)") }
    memory.store(UInt64(high & 0xFFFF_EF00) << 32 | 0x61_0000 | UInt64(low & 0xFFFF), at: place)
  }

  /// Where a vector's handler is, whether it is entered with interrupts off, and the level that software may raise it
  /// from; nil if there is none.
  subscript(vector: UInt8) -> (handler: UInt32, isInterruptGate: Bool, level: UInt8)? {
    let gate = memory.loadQuadword(at: address + UInt64(vector) * 8) ?? 0
    guard gate >> 47 & 1 != 0 else { return nil }
    let handler = UInt32(truncatingIfNeeded: gate >> 32) & 0xFFFF_0000 | UInt32(truncatingIfNeeded: gate) & 0xFFFF
    return (handler, gate >> 40 & 0xF == 0xE, UInt8(truncatingIfNeeded: gate >> 45 & 3))
  }
}

/// The task-state segment, of which the processor reads the stack of level 1 alone.
struct LguestTaskState<Memory: GuestPhysicalWriter> {
  static var limit: UInt32 { 0x67 }
  let memory: Memory
  let address: UInt64

  func reset() {
    for offset in stride(from: UInt64(0), to: 0x68, by: 4) { memory.store(UInt32(0), at: address + offset) }
    // The I/O bitmap is beyond the limit: no port is the guest's.
    memory.store((LguestTaskState.limit + 1) << 16, at: address + 100)
  }

  func setStack(_ selector: UInt32, _ pointer: UInt32) {
    memory.store(pointer, at: address + 12)
    memory.store(selector & 0xFFFF, at: address + 16)
  }
}

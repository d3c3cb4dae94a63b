// SPDX-License-Identifier: Apache-2.0
// Per-CPU pages: what the processor reads is the guest's own after any change, exchange and move, and nothing is copied
// otherwise.

import Engine
import ScriptedEngine
import Testing
import X86

@testable import Paravirt

@Suite("lguest's per-CPU pages") struct LguestPageTests {
  /// A guest's side of it.
  private struct Guest {
    private final class Identity: Sendable {}
    private let identity = Identity()
    var tables = LguestTables()
    var counts = LguestResumeCounts()
    private var page: LguestPage?

    /// Goes on, and says how many bytes and entries that took.
    mutating func resume(on page: LguestPage) -> [UInt64] {
      let before = counts
      page.admit(ObjectIdentifier(identity), hasMoved: page !== self.page, &tables, &counts)
      self.page = page
      #expect(counts.resumes == before.resumes + 1 && counts.stacks == before.stacks + 1)
      return [counts.bytes - before.bytes, counts.entries - before.entries]
    }
  }

  private func gate(_ page: LguestPage, _ vector: Int) -> UInt64 {
    page.page.load(UInt64.self, at: LguestPage.gates + vector * 8)
  }
  private func descriptor(_ page: LguestPage, _ index: Int) -> UInt64 { page.page.load(UInt64.self, at: index * 8) }
  private static let all: [UInt64] = [288 * 8, 288]

  @Test("gates lead to level 1, and those of the host's vectors nowhere") func gates() throws {
    let page = LguestPage(try MachinePage())
    var guest = Guest()
    try guest.tables.setGate(0x80, low: 0x0008_5678, high: 0x1234_FF34)
    for vector in [UInt32(2), 8, 15, 0x1F] { try guest.tables.setGate(vector, low: 1, high: 0x8E00) }
    try guest.tables.setGate(5, low: 1, high: 0x8E00)
    try guest.tables.setGate(5, low: 0, high: 0)
    #expect(throws: LguestTables.Refusal.self) { try guest.tables.setGate(256, low: 0, high: 0) }
    #expect(throws: LguestTables.Refusal.self) { try guest.tables.setGate(3, low: 0, high: 0x8500) }
    #expect(guest.resume(on: page) == Self.all)
    #expect(gate(page, 0x80) == 0x1234_EF00_0061_5678)
    for vector in [2, 3, 5, 8, 15, 0x1F] { #expect(gate(page, vector) == 0) }
  }

  @Test("descriptors are of level 1 or 3, accessed, code or data, and the host's stay") func descriptors() throws {
    let page = LguestPage(try MachinePage())
    var guest = Guest()
    for index in UInt32(0)..<40 { guest.tables.setDescriptor(index, low: 0xFFFF, high: 0x00CF_9A00) }
    guest.tables.setDescriptor(20, low: 0x68, high: 0x8900)
    guest.tables.setDescriptor(21, low: 0xFFFF, high: 0x00CF_F200)
    guest.tables.setThreadDescriptors((1, 0x00CF_F200_0000_FFFF, 0))
    _ = guest.resume(on: page)
    for index in [10, 11, 16, 20, 31] { #expect(descriptor(page, index) == 0) }
    #expect(descriptor(page, 12) == 0x00CF_BB00_0000_FFFF && descriptor(page, 21) == 0x00CF_F300_0000_FFFF)
    #expect(descriptor(page, 7) == 0x00CF_F300_0000_FFFF)
    guest.tables.setStack(0x69, 0xC123_4567)
    #expect(guest.resume(on: page) == [0, 0])
    #expect(page.page.load(UInt32.self, at: LguestPage.taskState + 12) == 0xC123_4567)
    #expect(page.page.load(UInt32.self, at: LguestPage.taskState + 16) == 0x69)
  }

  @Test("an unchanged guest costs nothing, a change its table, an exchange and a move everything") func costs() throws {
    let (page, other) = (LguestPage(try MachinePage()), LguestPage(try MachinePage()))
    var (a, b) = (Guest(), Guest())
    #expect(a.resume(on: page) == Self.all)
    for _ in 0..<3 { #expect(a.resume(on: page) == [0, 0]) }
    try a.tables.setGate(3, low: 3, high: 0xEE00)
    #expect(a.resume(on: page) == [256 * 8, 256])
    // A vector that is the host's changes nothing.
    try a.tables.setGate(8, low: 3, high: 0x8500)
    #expect(a.resume(on: page) == [0, 0])
    a.tables.setDescriptor(6, low: 0xFFFF, high: 0x00CF_F200)
    #expect(a.resume(on: page) == [32 * 8, 32])
    a.tables.setThreadDescriptors((0, 0, 0))
    #expect(a.resume(on: page) == [3 * 8, 3])
    #expect(b.resume(on: page) == Self.all && gate(page, 3) == 0)
    #expect(a.resume(on: page) == Self.all && gate(page, 3) == 0x0000_EE00_0061_0003)
    #expect(a.resume(on: other) == Self.all && gate(other, 3) == 0x0000_EE00_0061_0003)
    #expect(a.resume(on: page) == Self.all && a.counts.moves == 3 && a.counts.exchanges == 1)
    let everything = LguestPage(try MachinePage(), policy: .everything)
    for _ in 0..<2 { #expect(a.resume(on: everything) == Self.all) }
  }

  /// A fill that is left out: a guest finds an old gate or descriptor, and this notices.
  @Test(
    "what is not filled is missed",
    arguments: [LguestTables.Changes.gates, .descriptors, .threadDescriptors].map(\.rawValue))
  func suppressed(kind: UInt8) throws {
    let page = LguestPage(try MachinePage())
    var guest = Guest()
    _ = guest.resume(on: page)
    page.suppressed = LguestTables.Changes(rawValue: kind)
    try guest.tables.setGate(3, low: 3, high: 0xEE00)
    _ = guest.resume(on: page)
    guest.tables.setDescriptor(20, low: 0xFFFF, high: 0x00CF_F200)
    _ = guest.resume(on: page)
    guest.tables.setThreadDescriptors((0x00CF_F200_0000_FFFF, 0, 0))
    _ = guest.resume(on: page)
    let found = [gate(page, 3) != 0, descriptor(page, 20) != 0, descriptor(page, 6) != 0]
    #expect(found == (0..<3).map { kind >> $0 & 1 == 0 })
  }
}

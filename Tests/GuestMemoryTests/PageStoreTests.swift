// SPDX-License-Identifier: Apache-2.0
// Pages that go away: RAM does not have their bytes any more, and every way to them brings them back, all of them.

import Foundation
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

@testable import GuestMemory

private let mib: UInt64 = 1 << 20
private let gib: UInt64 = 1 << 30

@Suite("Page store")
struct PageStoreTests {
  private static let page = GuestPhysical(0x5000)

  /// A byte that tells where it is.
  private func byte(_ address: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: address &* 37 &+ address >> 8 | 1) }

  private func bytes(_ range: Range<UInt64>) -> [UInt8] { range.map { byte($0) } }

  /// RAM whose pages from 0x4000 to 0x7FFF are full, and have gone away.
  private func evicted(delay: UInt64 = 0) throws -> GuestMemory {
    let memory = try GuestMemory(byteCount: mib, fetchDelay: delay)
    try memory.copy(from: bytes(0x4000..<0x8000), to: GuestPhysical(0x4000))
    #expect(evict(memory, 0x4000..<0x8000) == 4)
    return memory
  }

  private func evict(_ memory: GuestMemory, _ range: Range<UInt64>, limit: Int = .max) -> Int {
    for page in range.lowerBound >> 12..<range.upperBound >> 12 {
      memory.setFlag(.used, true, at: GuestPhysical(page << 12))
    }
    return memory.evictUsedPages(limit: limit)
  }

  /// What RAM holds, whether it is right or not.
  private func ram(_ memory: GuestMemory, _ range: Range<UInt64>) -> [UInt8] {
    unsafe Array(UnsafeRawBufferPointer(start: memory.baseAddress + Int(range.lowerBound), count: range.count))
  }

  @Test("RAM has neither the bytes nor the memory for them any more") func gone() throws {
    let memory = try evicted()
    #expect(memory.storeCounts.evicted == 4 && memory.storeCounts.awaited == 0)
    #expect(memory.dataExtents.isEmpty)
    #expect(memory.flags(at: GuestPhysical(0x4000)) == [.absent, .dirty])
    #expect(ram(memory, 0x4000..<0x8000).allSatisfy { $0 == 0 })
    memory.fetch(PageStoreTests.page)
    memory.fetch(PageStoreTests.page)
    #expect(ram(memory, 0x4000..<0x5000).allSatisfy { $0 == 0 } && ram(memory, 0x6000..<0x8000).allSatisfy { $0 == 0 })
    #expect(ram(memory, 0x5000..<0x6000) == bytes(0x5000..<0x6000))
    #expect(memory.flags(at: PageStoreTests.page) == .dirty)
    // Nothing of that outside RAM, and nothing at all without a store.
    memory.wait(for: GuestPhysical(.max))
    memory.fetch(GuestPhysical(mib))
    #expect(!memory.isAbsent(GuestPhysical(.max)) && !memory.isAbsent(GuestPhysical(mib)))
    let plain = try GuestMemory(byteCount: mib)
    #expect(evict(plain, 0..<0x8000) == 0 && !plain.isAbsent(GuestPhysical(0)))
    // What of it was written is known without a file.
    let large = try GuestMemory(byteCount: 3 * gib + mib)
    try large.store(UInt16(1), at: GuestPhysical(0x1FFF))
    try large.store(UInt8(1), at: GuestPhysical(3 * gib - 1))
    try large.store(UInt8(1), at: GuestPhysical(4 * gib))
    #expect(
      large.dataExtents == [0x1000..<0x3000, 3 << 30 - 4096..<3 << 30, 3 << 30..<3 << 30 + 4096])
  }

  /// Something done to the page, and the bytes it changes.
  private struct Change: Sendable, CustomTestStringConvertible {
    let name: String
    let body: @Sendable (GuestMemory) throws -> [UInt64: UInt8]
    var testDescription: String { name }
    init(_ name: String, _ body: @escaping @Sendable (GuestMemory) throws -> [UInt64: UInt8]) {
      self.name = name
      self.body = body
    }
  }

  private static let changes: [Change] = [
    Change("store") {
      try $0.store(UInt16(0xAABB), at: GuestPhysical(0x5123))
      return [0x5123: 0xBB, 0x5124: 0xAA]
    },
    Change("store across pages") {
      try $0.store(UInt32(0xAABB_CCDD), at: GuestPhysical(0x5FFE))
      return [0x5FFE: 0xDD, 0x5FFF: 0xCC, 0x6000: 0xBB, 0x6001: 0xAA]
    },
    Change("copy") {
      try $0.copy(from: [1, 2, 3], to: GuestPhysical(0x5FFF))
      return [0x5FFF: 1, 0x6000: 2, 0x6001: 3]
    },
    Change("fill") {
      try $0.fill(GuestPhysical(0x5010), count: 2, with: 9)
      return [0x5010: 9, 0x5011: 9]
    },
    Change("atomic") { memory in
      let before = try memory.withAtomic(UInt8.self, at: GuestPhysical(0x5001)) {
        $0.exchange(7, ordering: .sequentiallyConsistent)
      }
      #expect(before == UInt8(truncatingIfNeeded: 0x5001 * 37 + 0x50 | 1))
      return [0x5001: 7]
    },
    Change("file") {
      let file = try HostFile("/proc/self/exe", role: "test program")
      try $0.read(from: file, at: 0, count: 4, to: GuestPhysical(0x5100))
      return [0x5100: 0x7F, 0x5101: 0x45, 0x5102: 0x4C, 0x5103: 0x46]
    },
  ]

  @Test("Who changes a part of a page keeps the rest", arguments: changes)
  private func partly(_ change: Change) throws {
    let memory = try evicted()
    memory.setFlag(.dirty, false, at: PageStoreTests.page)
    var expected = bytes(0x5000..<0x7000)
    for (address, value) in try change.body(memory) { expected[Int(address - 0x5000)] = value }
    #expect(memory.flags(at: PageStoreTests.page) == .dirty)
    #expect(try memory.bytes(at: PageStoreTests.page, count: 0x2000) == expected)
    // And once more, now that the store has an older copy of the page.
    #expect(evict(memory, 0x4000..<0x8000) > 0)
    #expect(ram(memory, 0x5000..<0x6000).allSatisfy { $0 == 0 })
    #expect(try memory.bytes(at: PageStoreTests.page, count: 0x2000) == expected)
  }

  @Test("Whoever reads reads what was there") func reads() throws {
    let memory = try evicted()
    #expect(try memory.load(UInt8.self, at: GuestPhysical(0x4007)) == byte(0x4007))
    #expect(memory.isAbsent(GuestPhysical(0x5000)) && !memory.isAbsent(GuestPhysical(0x4000)))
    // From the last byte of one page to the first of the one after next.
    #expect(try memory.bytes(at: GuestPhysical(0x4FFF), count: 0x1002) == bytes(0x4FFF..<0x6001))
    #expect(memory.isAbsent(GuestPhysical(0x7000)))
    var buffer = [UInt8](repeating: 0, count: 4)
    unsafe try buffer.withUnsafeMutableBytes { unsafe try memory.read(into: $0, at: GuestPhysical(0x7FFC)) }
    #expect(buffer == bytes(0x7FFC..<0x8000))
    #expect(throws: MemoryError.self) { try memory.load(UInt32.self, at: GuestPhysical(mib - 2)) }
  }

  @Test("Pages that were zeroed come back as zeros, not as what was there before") func zeros() throws {
    let memory = try evicted()
    try memory.fill(GuestPhysical(0x4000), count: 0x4000)
    #expect(evict(memory, 0x4000..<0x8000) == 4)
    #expect(try memory.bytes(at: GuestPhysical(0x4000), count: 0x4000).allSatisfy { $0 == 0 })
  }

  @Test("Stores to pages that are away are reported, to the log and to translated code") func written() throws {
    let memory = try evicted()
    let seen = Mutex<[UInt64]>([])
    memory.setCodeWriteHandler { address, count in seen.withLock { $0 += [address, UInt64(count)] } }
    memory.setFlag(.code, true, at: GuestPhysical(0x6000))
    #expect(memory.writtenPages == [0x4000..<0x8000])
    for page in 4..<8 { memory.setFlag(.dirty, false, at: GuestPhysical(UInt64(page) << 12)) }
    try memory.store(UInt64(0), at: GuestPhysical(0x5FFC))
    #expect(memory.writtenPages == [0x5000..<0x7000])
    #expect(seen.withLock { $0 } == [0x6000, 4])
  }

  @Test("An image has every page, and RAM that is made from one can lose its pages") func image() throws {
    let path = FilePath(FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString)").path)
    defer { try? FileManager.default.removeItem(atPath: path.string) }
    let size = 3 * gib + mib
    let memory = try GuestMemory(byteCount: size, fetchDelay: 0)
    for start in [0x4000, 4 * gib] { try memory.copy(from: bytes(start..<start + 0x2000), to: GuestPhysical(start)) }
    #expect(evict(memory, 0x4000..<0x6000) == 2 && evict(memory, 4 * gib..<4 * gib + 0x2000) == 2)
    let file = try ReplacementFile(path)
    let sums = try memory.writeImage(to: file.output, at: 4096)
    try file.commit()
    #expect(sums.filter { $0 != Checksum.zeroPage }.count == 4 && !memory.isAbsent(GuestPhysical(4 * gib)))
    for delay in [nil, 0] as [UInt64?] {
      let copy = try GuestMemory(
        byteCount: size, image: try HostFile(path, role: "image"), at: 4096, fetchDelay: delay)
      #expect(try copy.firstDifference(from: sums, threadCount: 2).page == nil)
      #expect(evict(copy, 4 * gib..<4 * gib + 0x1000) == (delay == nil ? 0 : 1))
      #expect(ram(copy, 4 * gib..<4 * gib + 0x1000).allSatisfy { $0 == 0 } == (delay != nil))
      for start in [0x4000, 4 * gib] {
        #expect(try copy.bytes(at: GuestPhysical(start), count: 0x2000) == bytes(start..<start + 0x2000))
      }
    }
  }

  @Test("While an image is written nothing goes away") func noneGoes() throws {
    let memory = try evicted()
    memory.withAllPages {
      #expect((0x4000..<0x8000).allSatisfy { !memory.isAbsent(GuestPhysical($0)) })
      #expect(evict(memory, 0x4000..<0x8000) == 0)
      #expect(ram(memory, 0x4000..<0x8000) == bytes(0x4000..<0x8000))
    }
    #expect(memory.evictUsedPages() == 4)
  }

  @Test("The search goes on where it stopped, around the end of RAM") func limit() throws {
    let memory = try GuestMemory(byteCount: 3 * gib + mib, fetchDelay: 0)
    let places = [0x1000, 0x2000, 0x9000, 3 * gib - 4096, 4 * gib, 4 * gib + mib - 4096].map { GuestPhysical($0) }
    for place in places {
      try memory.store(place.value + 1, at: place)
      memory.setFlag(.used, true, at: place)
    }
    func absent() -> [Bool] { places.map { memory.isAbsent($0) } }
    #expect(memory.evictUsedPages(limit: 4) == 4 && absent() == [true, true, true, true, false, false])
    memory.fetch(places[0])
    memory.setFlag(.used, true, at: places[0])
    #expect(memory.evictUsedPages(limit: 2) == 2 && absent() == [false, true, true, true, true, true])
    #expect(memory.evictUsedPages(limit: 2) == 1 && memory.evictUsedPages() == 0)
    // Of a page that is away already there is nothing to take.
    memory.setFlag(.used, true, at: places[0])
    #expect(memory.evictUsedPages() == 0)
    for place in places { #expect(try memory.load(UInt64.self, at: place) == place.value + 1) }
  }

  @Test("A page takes its time, from its first touch on, until nobody needs to wait") func delays() throws {
    let delay: UInt64 = 20_000_000
    var memory = try evicted(delay: delay)
    var begin = HostClock.monotonic
    let due = memory.beginFetch(PageStoreTests.page)
    #expect(due >= begin + delay && memory.isAbsent(PageStoreTests.page))
    #expect(memory.beginFetch(GuestPhysical(0x5FFF)) == due)
    #expect(try memory.load(UInt8.self, at: PageStoreTests.page) == byte(0x5000))
    #expect(HostClock.monotonic >= due && memory.storeCounts.awaited == 1)
    // It is there now.
    #expect(memory.beginFetch(PageStoreTests.page) <= HostClock.monotonic)
    memory = try evicted(delay: 3600 * 1_000_000_000)
    begin = HostClock.monotonic
    let thread = try HostThread(name: "late") { [memory] in
      HostClock.sleep(until: HostClock.after(nanoseconds: 5_000_000))
      memory.endDelays()
    }
    #expect(try memory.bytes(at: GuestPhysical(0x4000), count: 0x4000) == bytes(0x4000..<0x8000))
    thread.join()
    #expect(HostClock.monotonic - begin < 60 * 1_000_000_000)
  }

  @Test("Many threads, and pages that go away under them", .timeLimit(.minutes(5))) func threads() throws {
    let memory = try GuestMemory(byteCount: mib, fetchDelay: 10_000)
    let (threadCount, rounds) = (4, 4000)
    let failures = Atomic<Int>(0)
    let running = Atomic<Int>(threadCount)
    let threads = try (0..<threadCount).map { number in
      try HostThread(name: "user") {
        defer { running.subtract(1, ordering: .releasing) }
        // A word of its own in each of 16 pages, one that all count in, and one across two pages.
        let own = UInt64(number + 1) * 64
        for round in 0..<UInt64(rounds) {
          let page = (round % 16) << 12
          do {
            if round >= 16, try memory.load(UInt64.self, at: GuestPhysical(page + own)) != round - 16 {
              failures.add(1, ordering: .relaxed)
            }
            try memory.store(round, at: GuestPhysical(page + own))
            _ = try memory.withAtomic(UInt64.self, at: GuestPhysical(page + 1024)) { $0.add(1, ordering: .relaxed) }
            if number == 0 {
              let place = GuestPhysical(page + 4093)
              if round >= 16, try memory.load(UInt32.self, at: place) != UInt32(round - 16) {
                failures.add(1, ordering: .relaxed)
              }
              try memory.store(UInt32(round), at: place)
            }
          } catch { failures.add(1, ordering: .relaxed) }
        }
      }
    }
    try #require(
      TestLimit.spin(seconds: 120) {
        _ = evict(memory, 0..<0x11000)
        return running.load(ordering: .acquiring) == 0
      })
    for thread in threads { thread.join() }
    #expect(failures.load(ordering: .relaxed) == 0 && memory.storeCounts.evicted > 0)
    var sum: UInt64 = 0
    for page in UInt64(0)..<16 { sum += try memory.load(UInt64.self, at: GuestPhysical(page << 12 + 1024)) }
    #expect(sum == UInt64(threadCount * rounds))
  }
}

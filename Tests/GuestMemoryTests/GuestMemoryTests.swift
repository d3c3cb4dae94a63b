// SPDX-License-Identifier: Apache-2.0
// RAM: its layout, the one bounds check, and who is told of stores.

import GuestMemory
import Host
import Synchronization
import SystemPackage
import Testing

private let mib: UInt64 = 1 << 20
private let gib: UInt64 = 1 << 30

private let badRanges: [(UInt64, Int)] = [
  (UInt64.max, 1), (UInt64.max - 7, 8), (UInt64.max - 3, 8), (mib - 3, 4), (mib, 1), (0, Int.max), (4 * gib, 1),
  (4 * gib - 4, 8), (1 << 63, 1), (0, -1),
]
private let badSizes: [UInt64] = [0, 1, 4097, UInt64.max, (16 << 40) + 4096]

@Suite("Guest memory")
struct GuestMemoryTests {
  @Test(
    "RAM above 3 GiB continues at 4 GiB", arguments: [mib, 512 * mib, 3 * gib, 3 * gib + 4096, 8 * gib, 1024 * gib])
  func layout(size: UInt64) throws {
    let memory = try GuestMemory(byteCount: size)
    #expect(memory.lowEnd == min(size, 3 * gib))
    #expect(memory.highEnd == 4 * gib + (size - memory.lowEnd))
    #expect(memory.contains(GuestPhysical(memory.lowEnd - 1), count: 1))
    #expect(!memory.contains(GuestPhysical(memory.lowEnd), count: 1))
    #expect(!memory.contains(GuestPhysical(4 * gib - 1), count: 1))
    #expect(memory.contains(GuestPhysical(4 * gib), count: 1) == (memory.highEnd > 4 * gib))
    if memory.highEnd > 4 * gib {
      try memory.store(UInt64(0x1122_3344_5566_7788), at: GuestPhysical(memory.highEnd - 8))
      #expect(try memory.load(UInt32.self, at: GuestPhysical(memory.highEnd - 8)) == 0x5566_7788)
      #expect(!memory.contains(GuestPhysical(memory.highEnd - 7), count: 8))
    }
  }

  @Test("No size, address or count wraps", arguments: badRanges)
  func refuses(address: UInt64, count: Int) throws {
    let memory = try GuestMemory(byteCount: mib)
    #expect(!memory.contains(GuestPhysical(address), count: count))
    #expect(throws: MemoryError.self) { try memory.bytes(at: GuestPhysical(address), count: count) }
    #expect(throws: MemoryError.self) { try memory.fill(GuestPhysical(address), count: count) }
  }

  @Test("Bytes are found wherever they were written, and nowhere else")
  func search() throws {
    let memory = try GuestMemory(byteCount: 4 * gib)
    let word = [UInt8]("needle".utf8), all = 0..<UInt64.max
    #expect(!memory.hasWritten(word, in: all) && !memory.hasWritten([0], in: all) && !memory.hasWritten([], in: all))
    // Across pages and across the pieces that are searched, at both ends of RAM and of its upper part.
    let places: [UInt64] = [
      0, 4093, 0x1_0000 - 3, 0x2_0000 - 6, 0x2_0000, 0x3_0FFF, 3 * gib - 6, 4 * gib, 5 * gib - 6,
    ]
    for place in places {
      try memory.fill(GuestPhysical(0), count: 0x4_0000, with: 0x6E)
      try memory.copy(from: word, to: GuestPhysical(place))
      let end = place + 6
      #expect(memory.hasWritten(word, in: all), "\(place)")
      #expect(memory.hasWritten(word, in: place..<end))
      #expect(!memory.hasWritten(word, in: place..<end - 1) && !memory.hasWritten(word, in: place + 1..<end + 100))
      #expect(!memory.hasWritten(word, in: 0..<place))
      try memory.store(UInt8(0x6E), at: GuestPhysical(place + 5))
      #expect(!memory.hasWritten(word, in: all))
    }
    // What was never written is not read, though it reads as zeros.
    #expect(!memory.hasWritten([0, 0, 0], in: 0x5_0000..<0x10_0000))
    #expect(memory.writtenPages.allSatisfy { $0.upperBound <= 0x4_0000 || $0.count == 4096 })
  }

  @Test("An empty range at the end of RAM is RAM")
  func empty() throws {
    let memory = try GuestMemory(byteCount: mib)
    #expect(try memory.bytes(at: GuestPhysical(mib), count: 0) == [])
    try memory.copy(from: [], to: GuestPhysical(0))
  }

  @Test("Bad sizes are refused", arguments: badSizes)
  func badSize(size: UInt64) {
    #expect(throws: HostError.self) { try GuestMemory(byteCount: size) }
  }

  @Test("The host address of RAM is base plus the guest-physical address")
  func addresses() throws {
    let memory = try GuestMemory(byteCount: 3 * gib + mib)
    unsafe #expect(UInt(bitPattern: memory.baseAddress) % (2 << 20) == 0)
    for address in [0, 3 * gib - 1, 4 * gib, 4 * gib + mib - 1] {
      unsafe memory.baseAddress.storeBytes(of: UInt8(address >> 30) + 1, toByteOffset: Int(address), as: UInt8.self)
      #expect(try memory.load(UInt8.self, at: GuestPhysical(address)) == UInt8(address >> 30) + 1)
    }
  }

  @Test("A store is reported as a written page")
  func writtenPages() throws {
    let memory = try GuestMemory(byteCount: 3 * gib + mib)
    #expect(memory.writtenPages.isEmpty)
    try memory.store(UInt32(7), at: GuestPhysical(0x1FFE))
    try memory.copy(from: [1, 2, 3], to: GuestPhysical(0x5000))
    try memory.store(UInt8(7), at: GuestPhysical(4 * gib))
    #expect(memory.flags(at: GuestPhysical(0x1000)) == .dirty)
    #expect(memory.writtenPages == [0x1000..<0x3000, 0x5000..<0x6000, 4 * gib..<4 * gib + 4096])
  }

  @Test("A store to translated code calls the handler, page by page, after the store")
  func codeWrites() throws {
    let memory = try GuestMemory(byteCount: mib)
    let seen = Mutex<[[UInt64]]>([])
    memory.setCodeWriteHandler { [unowned memory] address, count in
      let byte = try? memory.load(UInt8.self, at: GuestPhysical(address))
      try? memory.store(UInt8(1), at: GuestPhysical(0x9000))  // the handler may store
      seen.withLock { $0.append([address, UInt64(count), UInt64(byte ?? 0)]) }
    }
    unsafe memory.pageFlags[1] = PageFlags.code.rawValue
    unsafe memory.pageFlags[3] = PageFlags.code.rawValue
    try memory.fill(GuestPhysical(0xFFF), count: 0x3000, with: 0xAA)
    try memory.store(UInt64(5), at: GuestPhysical(0x5000))
    #expect(seen.withLock { $0 } == [[0x1000, 0x1000, 0xAA], [0x3000, 0xFFF, 0xAA]])
    memory.setCodeWriteHandler(nil)
    try memory.store(UInt8(0), at: GuestPhysical(0x1000))
    #expect(seen.withLock(\.count) == 2)
  }

  @Test("Atomics are shared with everyone and must be aligned")
  func atomics() throws {
    let memory = try GuestMemory(byteCount: mib)
    try memory.store(UInt32(41), at: GuestPhysical(0x2000))
    let before = try memory.withAtomic(UInt32.self, at: GuestPhysical(0x2000)) {
      $0.add(1, ordering: .sequentiallyConsistent).oldValue
    }
    #expect(before == 41)
    #expect(try memory.load(UInt32.self, at: GuestPhysical(0x2000)) == 42)
    #expect(throws: MemoryError.self) { try memory.withAtomic(UInt32.self, at: GuestPhysical(0x2002)) { _ in } }
  }

  @Test("A terabyte of RAM costs nothing until it is touched")
  func sparse() throws {
    let memory = try GuestMemory(byteCount: 1024 * gib)
    try memory.store(UInt8(1), at: GuestPhysical(memory.highEnd - 1))
    #expect(memory.flags(at: GuestPhysical(memory.highEnd - 1)) == .dirty)
    #expect(memory.flags(at: GuestPhysical(memory.highEnd)) == [])
  }

  @Test("A file is read straight into RAM, and a short one is refused")
  func files() throws {
    let memory = try GuestMemory(byteCount: 64 * mib)
    let file = try HostFile("/proc/self/exe", role: "test program")
    try memory.read(from: file, at: 1, count: 3, to: GuestPhysical(0x3000))
    #expect(try memory.bytes(at: GuestPhysical(0x3000), count: 4) == [0x45, 0x4C, 0x46, 0])
    #expect(throws: HostError.self) {
      try memory.read(from: file, at: file.byteCount - 1, count: 2, to: GuestPhysical(0))
    }
    #expect(throws: HostError.self) { try memory.read(from: file, at: 0, count: 4, to: GuestPhysical(64 * mib - 3)) }
  }

  @Test("RAM becomes what it was, and code is told") func reset() throws {
    let memory = try GuestMemory(byteCount: 3 * gib + 2 * mib)
    let high = GuestPhysical(4 * gib + 4096)
    try memory.store(UInt64(1), at: GuestPhysical(8192))
    try memory.store(UInt64(2), at: high)
    let content = try memory.content()
    let told = Mutex<[UInt64]>([])
    memory.setCodeWriteHandler { address, _ in told.withLock { $0.append(address) } }
    memory.setFlag(.code, true, at: GuestPhysical(5 * mib))
    try memory.store(UInt64(3), at: GuestPhysical(2 * gib))
    try memory.store(UInt64(4), at: high)
    try memory.reset(to: content)
    #expect(told.withLock { $0.contains(5 * mib) })
    #expect(try memory.load(UInt64.self, at: GuestPhysical(2 * gib)) == 0)
    #expect(try memory.load(UInt64.self, at: GuestPhysical(8192)) == 1 && memory.load(UInt64.self, at: high) == 2)
  }
}

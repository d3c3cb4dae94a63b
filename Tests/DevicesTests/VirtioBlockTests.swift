// SPDX-License-Identifier: Apache-2.0
// The virtio block device on either transport: requests that are right, media that fail, and drivers that are wrong.

import Devices
import Synchronization
import TestSupport
import Testing

/// A medium in memory, which fails when it is told to.
final class MemoryStore: BlockStore {
  private struct State {
    var bytes: [UInt8]
    var flushes = 0
    var fails = false
    var during: (@Sendable () -> Void)?
  }
  private let state: Mutex<State>
  let isReadOnly: Bool
  let sectorCount: UInt64
  let identity = "a disk of more than twenty letters"

  init(sectors: Int, isReadOnly: Bool = false) {
    state = Mutex(State(bytes: (0..<sectors * 512).map { UInt8(truncatingIfNeeded: $0 / 512 + $0) }))
    (self.isReadOnly, sectorCount) = (isReadOnly, UInt64(sectors))
  }

  var bytes: [UInt8] { state.withLock { $0.bytes } }
  var flushes: Int { state.withLock { $0.flushes } }
  func setFailing(_ fails: Bool) { state.withLock { $0.fails = fails } }
  /// Something that happens while a request is being served.
  func setDuring(_ body: @escaping @Sendable () -> Void) { state.withLock { $0.during = body } }

  func read(at offset: UInt64, count: Int) -> [UInt8]? {
    state.withLock { $0.during }?()
    return state.withLock { $0.fails ? nil : Array($0.bytes[Int(offset)..<Int(offset) + count]) }
  }
  func write(_ new: [UInt8], at offset: UInt64) -> Bool {
    state.withLock { state in
      if !state.fails { state.bytes.replaceSubrange(Int(offset)..<Int(offset) + new.count, with: new) }
      return !state.fails
    }
  }
  func flush() -> Bool {
    state.withLock { state in
      state.flushes += 1
      return !state.fails
    }
  }
}

/// Where a driver has the parts of a request.
private enum Place {
  static let header: UInt64 = 0x8000, data: UInt64 = 0x9000, status: UInt64 = 0xF000
}

private enum Kind {
  static let `in`: UInt32 = 0, out: UInt32 = 1, flush: UInt32 = 4, identity: UInt32 = 8
}

@Suite("Virtio block device") struct VirtioBlockTests {
  /// A disk of 64 sectors, and how a driver asks it.
  private final class Setup: Sendable {
    let store: MemoryStore
    let device: VirtioBlock
    let virtio: VirtioSetup
    var driver: QueueDriver { virtio.drivers[0] }
    var header: UInt32 { virtio.transport.blockHeader }
    private let round = Mutex(UInt16(0))
    let kicks = Kicks()

    final class Kicks: Sendable {
      private let count = Atomic(0)
      var all: Int { count.load(ordering: .relaxed) }
      func add() { count.add(1, ordering: .relaxed) }
    }

    init(_ transport: Transport, isReadOnly: Bool = false) {
      store = MemoryStore(sectors: 64, isReadOnly: isReadOnly)
      device = VirtioBlock(store) { [kicks] in kicks.add() }
      virtio = VirtioSetup(device, transport)
    }

    /// The rings are empty again.
    func restart() { round.withLock { $0 = 0 } }

    func put(header type: UInt32, _ sector: UInt64) {
      let reserved: UInt64 = 7 << 32
      // The third is Linux 2.6.24's alone; it is not looked at.
      let words: [UInt64] = [UInt64(type) | reserved, sector, 0x5A5A_A5A5_5A5A_A5A5]
      let bytes = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) } }
      #expect(driver.memory.store(bytes, at: Place.header))
    }

    /// Offers the chain that begins with descriptor 0, has it served, and says what came back.
    func serve() -> (head: UInt32, written: UInt32)? {
      let at = round.withLock { round in
        defer { round &+= 1 }
        return round
      }
      driver.offer(0, at: at)
      virtio.kick(0)
      device.work()
      return driver.returned(at)
    }

    /// One request: its status and what was told as written; nil if it did not come back.
    func request(_ type: UInt32, sector: UInt64, _ count: UInt32) -> (status: UInt8, written: UInt32)? {
      put(header: type, sector)
      driver.describe(0, Place.header, header, flags: QueueDriver.next, next: 1)
      let isWritten = type != Kind.out
      if count > 0 {
        // In two pieces, the second of which may be longer than a page.
        driver.describe(
          1, Place.data, min(count, 100), flags: QueueDriver.next | (isWritten ? 2 : 0), next: count > 100 ? 2 : 3)
        driver.describe(
          2, Place.data + 100, count > 100 ? count - 100 : 0, flags: QueueDriver.next | (isWritten ? 2 : 0), next: 3)
      } else {
        driver.describe(0, Place.header, header, flags: QueueDriver.next, next: 3)
      }
      driver.describe(3, Place.status, 1, flags: QueueDriver.write)
      _ = driver.memory.store([0xEE], at: Place.status)
      guard let returned = serve() else { return nil }
      return ((driver.memory.bytes(at: Place.status, count: 1) ?? [0xFF])[0], returned.written)
    }
  }

  @Test("what it offers: capacity, segments, flush, and whether it can be written") func facts() {
    let disk = VirtioBlock(MemoryStore(sectors: 64)) {}
    #expect(disk.deviceType == 2)
    #expect(disk.features == 0x204)
    #expect(disk.legacyFeatures == 0x204)
    #expect(disk.configuration == [64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 0, 0, 0])
    let locked = VirtioBlock(MemoryStore(sectors: 64, isReadOnly: true)) {}
    #expect(locked.features == 0x224)
  }

  @Test("read, write, flush and the name", arguments: Transport.allCases) func requests(transport: Transport) throws {
    let setup = Setup(transport)
    #expect(try #require(setup.request(Kind.in, sector: 3, 1024)) == (0, 1025))
    #expect(setup.driver.memory.bytes(at: Place.data, count: 1024) == Array(setup.store.bytes[3 * 512..<5 * 512]))
    let new = (0..<1536).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    #expect(setup.driver.memory.store(new, at: Place.data))
    #expect(try #require(setup.request(Kind.out, sector: 61, 1536)) == (0, 1))
    #expect(Array(setup.store.bytes[61 * 512..<64 * 512]) == new)
    #expect(try #require(setup.request(Kind.flush, sector: 0, 0)) == (0, 1) && setup.store.flushes == 1)
    #expect(try #require(setup.request(Kind.identity, sector: 0, 20)) == (0, 21))
    #expect(setup.driver.memory.bytes(at: Place.data, count: 20) == Array("a disk of more than ".utf8))
    #expect(try #require(setup.request(11, sector: 0, 16)).status == 2)
    #expect(setup.kicks.all == 5 && !setup.virtio.isBroken())
  }

  @Test(
    "beyond the disk, by halves, to a disk that is only read, and from a medium that fails: I/O errors",
    arguments: Transport.allCases)
  func errors(transport: Transport) throws {
    let setup = Setup(transport)
    let before = setup.store.bytes
    for (sector, count) in [
      (64, 512), (63, 1024), (.max, 512), (UInt64.max / 512, 512), (1 << 55, 512), (0, 100), (0, 513),
    ]
      as [(UInt64, UInt32)]
    {
      for type in [Kind.in, Kind.out] {
        let answer = try #require(setup.request(type, sector: sector, count), "\(sector) \(count)")
        #expect(answer == (1, type == Kind.out ? 1 : 0), "\(sector) \(count)")
      }
    }
    setup.store.setFailing(true)
    for (type, count) in [(Kind.in, UInt32(512)), (Kind.out, 512), (Kind.flush, 0)] {
      #expect(try #require(setup.request(type, sector: 0, count)).status == 1)
    }
    setup.store.setFailing(false)
    #expect(setup.store.bytes == before && !setup.virtio.isBroken())
    #expect(try #require(setup.request(Kind.in, sector: 63, 512)).status == 0)
    let locked = Setup(transport, isReadOnly: true)
    #expect(try #require(locked.request(Kind.out, sector: 0, 512)).status == 1)
    #expect(try #require(locked.request(Kind.in, sector: 0, 512)).status == 0)
    #expect(locked.store.bytes == before)
  }

  @Test(
    "a driver's mistake stops the queue, and nothing beside its buffers changes",
    arguments: Transport.allCases,
    ["no status", "no header", "short header", "round", "outside", "half outside", "giant", "beyond"])
  func mistakes(transport: Transport, kind: String) throws {
    let setup = Setup(transport)
    let driver = setup.driver
    setup.put(header: Kind.in, 0)
    driver.describe(0, Place.header, setup.header, flags: QueueDriver.next, next: 1)
    driver.describe(1, Place.data, 512, flags: QueueDriver.write | QueueDriver.next, next: 2)
    driver.describe(2, Place.status, 1, flags: QueueDriver.write)
    switch kind {
    case "no status":
      setup.put(header: Kind.out, 0)
      driver.describe(1, Place.data, 512)
    case "no header": driver.describe(0, Place.data, 512, flags: QueueDriver.write)
    case "short header": driver.describe(0, Place.header, setup.header - 1, flags: QueueDriver.next, next: 1)
    case "round": driver.describe(2, Place.data, 1, flags: QueueDriver.write | QueueDriver.next, next: 1)
    case "outside": driver.describe(1, 1 << 40, 512, flags: QueueDriver.write | QueueDriver.next, next: 2)
    case "half outside": driver.describe(1, 0xFF00, 512, flags: QueueDriver.write | QueueDriver.next, next: 2)
    case "giant": driver.describe(1, Place.data, .max, flags: QueueDriver.write | QueueDriver.next, next: 2)
    default: driver.describe(1, UInt64.max - 100, 512, flags: QueueDriver.write | QueueDriver.next, next: 2)
    }
    let disk = setup.store.bytes
    let ram = driver.memory.bytes(at: 0, count: 0x1080)
    #expect(setup.serve() == nil)
    #expect(setup.virtio.isBroken())
    // Nothing more happens until it is reset; then all is well.
    _ = setup.serve()
    #expect(driver.memory.loadShort(at: driver.used + 2) == 0)
    #expect(setup.store.bytes == disk)
    let left = driver.memory.bytes(at: 0, count: 0x1080)
    #expect(left?.prefix(0x1000) == ram?.prefix(0x1000))
    setup.virtio.reset()
    let zeros = [UInt8](repeating: 0, count: 64)
    for place in [driver.available, driver.used] { #expect(driver.memory.store(zeros, at: place)) }
    setup.virtio.begin()
    #expect(!setup.virtio.isBroken())
    setup.restart()
    let answer = try #require(setup.request(Kind.in, sector: 0, 512))
    #expect(answer.status == 0)
  }

  @Test("a reset while a request is served: nothing is stored afterwards", arguments: Transport.allCases)
  func reset(transport: Transport) {
    let setup = Setup(transport)
    let clean = [UInt8](repeating: 0x55, count: 512)
    #expect(setup.driver.memory.store(clean, at: Place.data))
    setup.store.setDuring { [virtio = setup.virtio] in virtio.reset() }
    #expect(setup.request(Kind.in, sector: 1, 512) == nil)
    #expect(setup.driver.memory.bytes(at: Place.data, count: 512) == clean)
    #expect(setup.driver.memory.bytes(at: Place.status, count: 1) == [0xEE])
  }

  @Test("a head that is offered twice is served twice, and its owner has the harm") func twice() throws {
    let setup = Setup(.legacy)
    setup.put(header: Kind.in, 0)
    setup.driver.describe(0, Place.header, setup.header, flags: QueueDriver.next, next: 1)
    setup.driver.describe(1, Place.data, 513, flags: QueueDriver.write)
    setup.driver.offer(0, at: 0)
    setup.driver.offer(0, at: 1)
    setup.device.work()
    #expect(try #require(setup.driver.returned(0)) == (0, 513))
    #expect(setup.driver.memory.loadShort(at: setup.driver.used + 2) == 2)
  }

  @Test("whoever is told to stop leaves the rest undone") func stop() {
    let setup = Setup(.pci)
    setup.put(header: Kind.in, 0)
    setup.driver.describe(0, Place.header, setup.header, flags: QueueDriver.next, next: 1)
    setup.driver.describe(1, Place.data, 513, flags: QueueDriver.write)
    setup.driver.offer(0, at: 0)
    setup.device.work { false }
    #expect(setup.driver.returned(0) == nil)
    setup.device.work()
    #expect(setup.driver.returned(0) != nil)
  }
}

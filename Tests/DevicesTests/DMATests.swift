// SPDX-License-Identifier: Apache-2.0
// The devices of Linux 2.6.23 without a guest: buffers that are bound and sent, requests and frames that are right, drivers
// that are wrong, and what of all that outlives a saved machine.

import Saving
import Synchronization
import TestSupport
import Testing

@testable import Devices

@Suite("Devices by direct memory access") struct DMATests {
  private static let page: UInt32 = 0xF000
  /// Where the driver has the buffer that it sends, buffers that it binds, and data.
  private static let sent: UInt32 = 0x1000, bound: UInt32 = 0x2000, data: UInt32 = 0x9000

  /// RAM, a disk of 64 sectors and a card, whose pages are the last.
  private final class Setup: Sendable {
    let memory = QueueMemory()
    let store: MemoryStore
    let disk: DMABlock
    let card: DMANetwork
    /// Interrupts, and who was woken: the disk's thread, the card's, and whoever looks at the guest.
    let raised = Log<UInt8>(), woken = Log<String>()

    init(isReadOnly: Bool = false) {
      let host = DMAHost(memory) { [raised] in raised.append($0) }
      let woken = woken
      store = MemoryStore(sectors: 64, isReadOnly: isReadOnly)
      disk = DMABlock(store, host, page: DMATests.page) { woken.append("disk") }
      card = DMANetwork(
        host, page: 0xE000, wake: { woken.append("card") }, wantsRoom: { woken.append("look") })
      disk.describe()
      card.describe()
    }

    func word(_ address: UInt32) -> UInt32 { memory.loadWord(at: UInt64(address)) ?? 0xEEEE_EEEE }
    func put(_ words: [UInt32], at address: UInt32) {
      for (index, word) in words.enumerated() {
        #expect(memory.storeWord(word, at: UInt64(address) + UInt64(index * 4)))
      }
    }

    /// A buffer of pieces that nothing is in.
    func put(buffer address: UInt32, _ pieces: [(address: UInt32, count: UInt16)], used: UInt32 = 0) {
      put([used] + pieces.map(\.address), at: address)
      for (index, count) in (pieces.map(\.count) + [0]).prefix(16).enumerated() {
        #expect(memory.storeShort(count, at: UInt64(address) + 68 + UInt64(index * 2)))
      }
    }

    /// A request, and what became of it: 0 if nothing did yet.
    func ask(_ kind: UInt32, sector: UInt32, _ count: UInt32, serves: Bool = true) -> UInt32 {
      put([kind, sector, count, 0], at: DMATests.page)
      disk.send(DMATests.sent)
      if serves { disk.work() }
      return word(DMATests.page + 12)
    }
  }

  /// 1,024 bytes in three pieces, two of them at the ends of pages.
  private static let pieces: [(address: UInt32, count: UInt16)] = [(0x9FF0, 16), (0xA000, 1000), (0xBFF8, 8)]

  private func pieced(_ setup: Setup) -> [UInt8] {
    DMATests.pieces.flatMap { setup.memory.bytes(at: UInt64($0.address), count: Int($0.count)) ?? [] }
  }

  // MARK: Buffers

  @Test("what can be bound, and what cannot: the buffers before stay") func binding() {
    let setup = Setup()
    let receiver = setup.card.receiver
    #expect(receiver.bind(DMATests.bound, count: 256, interrupt: 31))
    for (buffers, count, interrupt) in [
      (DMATests.bound, 257, 1), (DMATests.bound, 1, 0), (DMATests.bound, 1, 32), (65536 - 99, 1, 1),
      (0xFFFF_FFFF, 1, 1), (0, .max, 1),
    ] as [(UInt32, UInt32, UInt8)] {
      #expect(!receiver.bind(buffers, count: count, interrupt: interrupt))
    }
    setup.put(buffer: DMATests.bound, [(DMATests.data, 4)])
    #expect(receiver.put([1, 2, 3, 4]) && setup.raised.all == [31])
    #expect(receiver.bind(0, count: 0, interrupt: 0))
    if case .off = receiver.reception {} else { Issue.record("still bound") }
    #expect(!receiver.put([1]))
  }

  @Test("the first free buffer is filled, piece by piece; none is full, and the driver empties them silently")
  func receiving() {
    let setup = Setup()
    let receiver = setup.card.receiver
    for number in UInt32(0)..<3 {
      setup.put(
        buffer: DMATests.bound + number * 100,
        [(DMATests.data + number * 16, 3), (DMATests.data + number * 16 + 8, 2)],
        used: number == 1 ? 7 : 0)
    }
    #expect(receiver.bind(DMATests.bound, count: 3, interrupt: 5))
    #expect(!receiver.put([1, 2, 3, 4, 5, 6]) && setup.raised.all.isEmpty)
    #expect(receiver.put([1, 2, 3, 4]) && setup.word(DMATests.bound) == 4)
    #expect(setup.memory.bytes(at: UInt64(DMATests.data), count: 10) == [1, 2, 3, 0, 0, 0, 0, 0, 4, 0])
    #expect(receiver.put([9]) && setup.word(DMATests.bound + 200) == 1 && setup.word(DMATests.bound + 100) == 7)
    if case .full = receiver.reception {} else { Issue.record("not full") }
    #expect(!receiver.put([9]) && setup.raised.all == [5, 5])
    setup.put([0], at: DMATests.bound + 100)
    if case .ready = receiver.reception {} else { Issue.record("not ready") }
  }

  @Test(
    "a buffer that is shown as free and is none ends its binding: it is looked at once",
    arguments: [(0x9001, 4096), (0xFFFF_FFFF, 1), (65535, 2), (0x9000, 0)] as [(UInt32, UInt16)])
  func broken(address: UInt32, count: UInt16) {
    let setup = Setup()
    let receiver = setup.card.receiver
    for number in UInt32(0)..<256 { setup.put(buffer: DMATests.bound + number * 100, [(address, count)]) }
    #expect(receiver.bind(DMATests.bound, count: 256, interrupt: 5))
    let before = setup.memory.loads.load(ordering: .relaxed)
    for _ in 0..<10 { if case .off = receiver.reception {} else { Issue.record("still bound") } }
    #expect(setup.memory.loads.load(ordering: .relaxed) == before + 1 && setup.raised.all.isEmpty)
  }

  @Test("a look at full buffers is a word of each") func look() {
    let setup = Setup()
    for number in UInt32(0)..<256 { setup.put(buffer: DMATests.bound + number * 100, [(0xFFFF_FFFF, 1)], used: 1) }
    #expect(setup.card.receiver.bind(DMATests.bound, count: 256, interrupt: 5))
    let before = setup.memory.loads.load(ordering: .relaxed)
    // Nobody looks before a frame waits.
    #expect(!setup.card.look() && setup.memory.loads.load(ordering: .relaxed) == before)
    if case .full = setup.card.reception {} else { Issue.record("not full") }
    #expect(setup.card.look() && setup.memory.loads.load(ordering: .relaxed) == before + 512)
    setup.put(buffer: DMATests.bound + 25500, [(DMATests.data, 1600)])
    #expect(!setup.card.look() && !setup.card.look())
    #expect(setup.woken.all == ["look", "card"])
  }

  // MARK: The disk

  @Test("read and write, in pieces; the structure may go once it is sent") func requests() {
    let setup = Setup()
    #expect(setup.word(DMATests.page + 16) == 64)
    setup.put(buffer: DMATests.bound, DMATests.pieces)
    setup.put(buffer: DMATests.sent, [])
    #expect(setup.disk.receiver.bind(DMATests.bound, count: 1, interrupt: 2))
    #expect(setup.ask(0, sector: 3, 1024) == 1 && setup.raised.all == [2] && setup.woken.all == ["disk"])
    #expect(setup.word(DMATests.bound) == 1024 && pieced(setup) == Array(setup.store.bytes[3 * 512..<5 * 512]))
    setup.put([0], at: DMATests.bound)
    // Less than there is room for.
    #expect(setup.ask(0, sector: 63, 512) == 1 && setup.word(DMATests.bound) == 512)
    setup.put([0], at: DMATests.bound)
    for (index, piece) in DMATests.pieces.enumerated() {
      #expect(
        setup.memory.store([UInt8](repeating: UInt8(7 + index), count: Int(piece.count)), at: UInt64(piece.address)))
    }
    setup.put(buffer: DMATests.sent, DMATests.pieces)
    #expect(setup.ask(1, sector: 62, 1024, serves: false) == 0 && setup.word(DMATests.sent) == 1024)
    setup.put(buffer: DMATests.sent, [(0xFFFF_FFFF, 1)])
    setup.disk.work()
    #expect(setup.word(DMATests.page + 12) == 1 && setup.word(DMATests.bound) == 0)
    let expected = [(7, 16), (8, 1000), (9, 8)].flatMap { [UInt8](repeating: $0.0, count: $0.1) }
    #expect(Array(setup.store.bytes[62 * 512..<64 * 512]) == expected && setup.raised.all == [2, 2, 2])
  }

  @Test(
    "what a driver may not ask for, and what the medium refuses, ends as an error",
    arguments: [
      "kind", "behind", "across", "half", "nothing", "much", "less", "locked", "failing", "unbound", "busy", "nowhere",
    ])
  func mistakes(what: String) {
    let setup = Setup(isReadOnly: what == "locked")
    setup.put(buffer: DMATests.bound, [(DMATests.data, 1024)], used: what == "busy" ? 1 : 0)
    setup.put(buffer: DMATests.sent, [(what == "nowhere" ? 0x1_0000 : DMATests.data, 1024)])
    #expect(setup.disk.receiver.bind(DMATests.bound, count: what == "unbound" ? 0 : 1, interrupt: 2))
    setup.store.setFailing(what == "failing")
    let before = setup.store.bytes
    let result =
      switch what {
      case "kind": setup.ask(2, sector: 0, 1024)
      case "behind": setup.ask(0, sector: .max, 1024)
      case "across": setup.ask(0, sector: 63, 1024)
      case "half": setup.ask(0, sector: 0, 700)
      case "nothing": setup.ask(0, sector: 0, 0)
      case "much": setup.ask(0, sector: 0, 1536)
      case "less", "locked": setup.ask(1, sector: 0, what == "less" ? 512 : 1024)
      default: setup.ask(0, sector: 0, 1024)
      }
    // Nobody sent anything, or nobody is there to be told.
    #expect(result == (what == "nowhere" ? 0 : 2))
    #expect(setup.raised.all == (["nowhere", "unbound"].contains(what) ? [] : [2]))
    #expect(setup.store.bytes == before && setup.memory.bytes(at: UInt64(DMATests.data), count: 1024)?.max() == 0)
  }

  @Test("one request at a time; a reset in the middle of one: nothing is stored afterwards") func resets() {
    let setup = Setup()
    setup.put(buffer: DMATests.bound, [(DMATests.data, 512)])
    setup.put(buffer: DMATests.sent, [])
    #expect(setup.disk.receiver.bind(DMATests.bound, count: 1, interrupt: 2))
    #expect(setup.ask(0, sector: 1, 512, serves: false) == 0 && setup.ask(0, sector: 2, 512, serves: false) == 0)
    setup.disk.work { false }
    #expect(setup.word(DMATests.page + 12) == 0)
    setup.disk.work()
    #expect(setup.memory.bytes(at: UInt64(DMATests.data), count: 512) == Array(setup.store.bytes[512..<1024]))
    setup.put([0], at: DMATests.bound)
    setup.store.setDuring { [disk = setup.disk] in disk.reset() }
    let before = setup.memory.bytes(at: 0, count: 0xF000)
    #expect(setup.ask(0, sector: 5, 512) == 0 && setup.memory.bytes(at: 0, count: 0xF000) == before)
    #expect(setup.raised.all == [2])
  }

  // MARK: The card

  @Test("frames out are copied at once, and lost where there are too many or they are none") func out() {
    let setup = Setup()
    // A peer that wants every frame, and a place of the guest's that is free.
    #expect(setup.memory.bytes(at: 0xE000, count: 12) == [3] + [UInt8](repeating: 0, count: 11))
    #expect(setup.card.takeFrame() == nil)
    setup.put(buffer: DMATests.sent, DMATests.pieces)
    #expect(setup.memory.store([1, 2, 3], at: 0x9FF0))
    setup.card.send(DMATests.sent)
    let frame = pieced(setup)
    #expect(setup.word(DMATests.sent) == 1024 && setup.memory.store([0], at: 0x9FF0))
    #expect(setup.card.takeFrame() == frame && setup.card.takeFrame() == nil && setup.woken.all == ["card"])
    for count in [1, 13] as [UInt16] {
      setup.put(buffer: DMATests.sent, [(DMATests.data, count)])
      setup.card.send(DMATests.sent)
      #expect(setup.word(DMATests.sent) == 0 && setup.card.takeFrame() == nil)
    }
    setup.put(buffer: DMATests.sent, DMATests.pieces)
    for _ in 0..<300 { setup.card.send(DMATests.sent) }
    setup.put([0], at: DMATests.sent)
    setup.card.send(DMATests.sent)
    #expect(setup.word(DMATests.sent) == 0)
    var count = 0
    while setup.card.takeFrame() != nil { count += 1 }
    #expect(count == 256)
  }

  @Test("frames in, and on one of two cards that a guest may drive") func into() {
    let setup = Setup()
    let virtio = VirtioNetwork(address: [2, 0, 0, 0, 0, 1]) {}
    let ports = FramePorts([virtio, setup.card])
    let frame = [UInt8](repeating: 6, count: 60)
    #expect(ports.reception == .off && !ports.deliver(frame))
    setup.put(buffer: DMATests.bound, [(DMATests.data, 1514)])
    #expect(setup.card.receiver.bind(DMATests.bound, count: 1, interrupt: 9))
    #expect(ports.reception == .ready && !ports.deliver([UInt8](repeating: 6, count: 13)) && ports.deliver(frame))
    #expect(setup.word(DMATests.bound) == 60 && setup.raised.all == [9] && ports.reception == .full)
    #expect(setup.memory.bytes(at: UInt64(DMATests.data), count: 60) == frame)
    setup.put(buffer: DMATests.sent, [(DMATests.data, 60)])
    setup.card.send(DMATests.sent)
    #expect(ports.takeFrame() == frame && ports.takeFrame() == nil)
    setup.card.reset()
    let driver = VirtioSetup(virtio, .legacy)
    #expect(ports.reception == .full && driver.drivers.count == 2)
  }

  // MARK: Saved machines

  private func saved(_ setup: Setup) throws -> [[UInt8]] {
    try [setup.disk as any SavedState, setup.card].map { device in
      var (archive, device) = (StateArchive(savingAt: 0), device)
      try device.transfer(&archive)
      return archive.bytes
    }
  }

  private func restore(_ sections: [[UInt8]], _ setup: Setup) throws {
    for (device, bytes) in zip([setup.disk as any SavedState, setup.card], sections) {
      var (archive, device) = (StateArchive(restoring: bytes, at: 0), device)
      try device.transfer(&archive)
      try archive.finish()
    }
  }

  /// With a request that waits, and two frames.
  private func busy() -> Setup {
    let setup = Setup()
    setup.put(buffer: DMATests.bound, DMATests.pieces)
    setup.put(buffer: DMATests.sent, DMATests.pieces)
    #expect(setup.disk.receiver.bind(DMATests.bound, count: 1, interrupt: 2))
    #expect(setup.card.receiver.bind(DMATests.bound + 100, count: 8, interrupt: 3))
    for count in [60, 61] as [UInt16] {
      setup.put(buffer: DMATests.sent, [(DMATests.data, count)])
      setup.card.send(DMATests.sent)
    }
    setup.put(buffer: DMATests.sent, DMATests.pieces)
    #expect(setup.ask(0, sector: 3, 1024, serves: false) == 0)
    return setup
  }

  @Test("a machine goes on with its bindings, its request and its frames") func roundTrip() throws {
    let (old, new) = (busy(), Setup())
    let sections = try saved(old)
    #expect(new.memory.store(try #require(old.memory.bytes(at: 0, count: 65536)), at: 0))
    try restore(sections, new)
    #expect(try saved(new) == sections && new.woken.all == ["disk", "card"])
    new.disk.work()
    #expect(new.word(DMATests.page + 12) == 1 && new.word(DMATests.bound) == 1024 && new.raised.all == [2])
    #expect(pieced(new) == Array(new.store.bytes[3 * 512..<5 * 512]))
    #expect(new.card.takeFrame()?.count == 60 && new.card.takeFrame()?.count == 61 && new.card.takeFrame() == nil)
    new.put(buffer: DMATests.bound + 100, [(DMATests.data, 1514)])
    #expect(new.card.deliver([UInt8](repeating: 1, count: 14)) && new.raised.all == [2, 3])
    // What was not saved is gone.
    try restore(try saved(Setup()), new)
    #expect(new.card.reception == .off && new.card.takeFrame() == nil)
  }

  @Test("what no guest could have brought about is refused by name") func impossible() throws {
    let good = try saved(busy())
    func fields(_ index: Int) throws -> [SavedField] {
      var archive = StateArchive(restoring: good[index], at: 0, listsFields: true)
      let setup = busy()
      var device: any SavedState = index == 0 ? setup.disk : setup.card
      try device.transfer(&archive)
      return archive.fields ?? []
    }
    for (index, name, value, named) in [
      (0, "buffers", 65536, "buffers"), (0, "number of buffers", 257, "buffers"),
      (0, "number of buffers", 0, "buffers"), (0, "interrupt", 0, "interrupt"), (0, "interrupt", 32, "interrupt"),
      (0, "request's sector", 63, "request's sector"),
      (0, "request's length", 513, "request's sector"), (0, "request's length", 1536, "request's sector"),
      (0, "buffer", 65437, "buffer"), (0, "pieces", 0x9FF1, "piece"), (0, "pieces", 0x1_0000, "piece"),
      (0, "pieces' lengths", 0, "piece"), (0, "pieces's length", 17, "pieces's length"),
      (1, "number of frames", 257, "number of frames"), (1, "frame's length", 13, "frame"),
    ] as [(Int, String, UInt64, String)] {
      var sections = good
      let field = try #require(try fields(index).first { $0.name == name }, "\(name)")
      for byte in 0..<field.elementSize {
        sections[index][field.offset + byte] = UInt8(truncatingIfNeeded: value >> UInt64(byte * 8))
      }
      let error = #expect(throws: SavedStateError.self, "\(name)") { try restore(sections, busy()) }
      #expect(error?.description.contains(named) == true, "\(name) \(value): \(String(describing: error))")
    }
  }

  @Test("garbage is refused or harmless", arguments: 0..<40) func garbage(_ round: Int) throws {
    var random = SeededGenerator("garbage for DMA", salt: round)
    let setup = busy()
    var sections = try saved(setup)
    for index in sections.indices {
      for _ in 0..<Int.random(in: 1...8, using: &random) {
        let place = Int.random(in: 0..<sections[index].count, using: &random)
        sections[index][place] = UInt8.random(in: 0...255, using: &random)
      }
    }
    do { try restore(sections, setup) } catch { return #expect(error is SavedStateError) }
    setup.disk.work()
    while setup.card.takeFrame() != nil {}
    setup.card.deliver([UInt8](repeating: 1, count: 60))
  }
}

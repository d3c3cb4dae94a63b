// SPDX-License-Identifier: Apache-2.0
// Virtio on PCI: what a driver finds in configuration space, how it sets a queue up, and what else may be written there.

import Devices
import Saving
import Synchronization
import TestSupport
import Testing

@Suite("Virtio on PCI") struct VirtioPCITests {
  private static let region: UInt64 = 0x1000_0000

  /// A console as a function, and what it has written.
  private final class Setup: Sendable {
    let driver = QueueDriver()
    let text: Text
    let line: Line
    let console: VirtioConsole
    let function: VirtioPCI

    final class Text: Sendable {
      private let bytes = Mutex<[UInt8]>([])
      var all: [UInt8] { bytes.withLock { $0 } }
      func put(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
    }

    final class Line: Sendable {
      private let count = Atomic(0)
      var raised: Int { count.load(ordering: .relaxed) }
      func raise() { count.add(1, ordering: .relaxed) }
    }

    init() {
      let (text, line) = (Text(), Line())
      (self.text, self.line) = (text, line)
      console = VirtioConsole(write: { text.put($0) }, wantsInput: {})
      function = VirtioPCI(console, driver.memory, line: 1, region: VirtioPCITests.region) { line.raise() }
    }

    /// The capabilities: kind, place and length in the region, and where they stand.
    var capabilities: [(kind: UInt32, offset: UInt32, bytes: UInt32, place: Int)] {
      var found: [(UInt32, UInt32, UInt32, Int)] = []
      var place = Int(function.readSpace(0x34, size: 1))
      while place != 0, found.count < 10 {
        #expect(function.readSpace(place, size: 1) == 9)
        found.append(
          (
            function.readSpace(place + 3, size: 1), function.readSpace(place + 8, size: 4),
            function.readSpace(place + 12, size: 4), place
          ))
        place = Int(function.readSpace(place + 1, size: 1))
      }
      return found
    }
  }

  @Test("identity, class, region and capabilities") func space() {
    let function = Setup().function
    #expect(function.readSpace(0, size: 4) == 0x1043_1AF4 && function.readSpace(0x0A, size: 2) == 0x0700)
    #expect(function.readSpace(0x3C, size: 1) == 1 && function.readSpace(0x10, size: 4) == 0x1000_0000)
    #expect(function.readSpace(152, size: 1) == .max && function.readSpace(151, size: 2) == .max)
    function.writeSpace(0x10, size: 4, value: .max)
    #expect(function.readSpace(0x10, size: 4) == 0 &- UInt32(function.regionBytes))
    function.writeSpace(0x10, size: 4, value: 0x1000_0000)
    #expect(function.readSpace(0x10, size: 4) == 0x1000_0000)
    // Neither what it is nor its list of capabilities can be changed.
    for offset in [0, 8, 0x34, 0x40] { function.writeSpace(offset, size: 4, value: .max) }
    #expect(function.readSpace(0, size: 4) == 0x1043_1AF4)
    let kinds = Setup().capabilities.map(\.kind)
    #expect(kinds == [1, 2, 3, 5, 4])
  }

  @Test("a byte in an emergency goes through the window") func window() throws {
    let setup = Setup()
    let device = try #require(setup.capabilities.first { $0.kind == 4 })
    let window = try #require(setup.capabilities.first { $0.kind == 5 })
    setup.function.writeSpace(window.place + 4, size: 1, value: 0)
    setup.function.writeSpace(window.place + 12, size: 4, value: 4)
    setup.function.writeSpace(window.place + 8, size: 4, value: device.offset + 8)
    setup.function.writeSpace(window.place + 16, size: 4, value: 0x41)
    #expect(setup.text.all == [0x41])
    // Beside the region, of another one, or of no size.
    for (offset, bytes) in [(UInt32(1 << 20), UInt32(4)), (.max, 4), (0, 3), (2, 4)] as [(UInt32, UInt32)] {
      setup.function.writeSpace(window.place + 8, size: 4, value: offset)
      setup.function.writeSpace(window.place + 12, size: 4, value: bytes)
      setup.function.writeSpace(window.place + 16, size: 4, value: 0x42)
      _ = setup.function.readSpace(window.place + 16, size: 4)
    }
    #expect(setup.text.all == [0x41])
  }

  @Test("features, a queue, its kick and its interrupt; then a reset") func queue() {
    let setup = Setup()
    let function = setup.function
    func write(_ offset: Int, _ value: UInt32, _ size: Int = 4) {
      function.writeRegion(offset, size: size, value: value)
    }
    func read(_ offset: Int, _ size: Int = 4) -> UInt32 { function.readRegion(offset, size: size) }
    #expect(read(4) == 4)
    write(0, 1)
    #expect(read(4) == 1)
    write(0, 2)
    #expect(read(4) == 0 && read(18, 2) == 2)
    write(22, 5, 2)
    #expect(read(24, 2) == 0)
    write(22, 1, 2)
    #expect(read(24, 2) == 256)
    write(24, 8, 2)
    for (place, address) in [(32, setup.driver.start), (40, setup.driver.available), (48, setup.driver.used)] {
      write(place, UInt32(address))
      write(place + 4, 0)
    }
    write(28, 1, 2)
    write(20, 15, 1)
    #expect(read(28, 2) == 1 && read(20, 1) == 15)
    _ = setup.driver.memory.store(Array("hi".utf8), at: 0x4000)
    setup.driver.describe(0, 0x4000, 2)
    setup.driver.offer(0, at: 0)
    write(0x38, 1, 2)
    write(0x38, 77, 2)
    #expect(setup.text.all == Array("hi".utf8))
    #expect(setup.line.raised == 1 && read(0x3A, 1) == 1 && read(0x3A, 1) == 0)
    // A broken rule is told: the device needs a reset, and its configuration has changed.
    setup.driver.describe(0, 0x4000, 2, flags: QueueDriver.indirect)
    setup.driver.offer(0, at: 1)
    write(0x38, 1, 2)
    #expect(setup.line.raised == 2 && read(0x3A, 1) == 2 && read(20, 1) == 0x4F)
    write(20, 15, 1)
    #expect(read(20, 1) == 0x4F)
    write(20, 0, 1)
    #expect(read(28, 2) == 0 && read(24, 2) == 256 && read(20, 1) == 0)
    setup.driver.offer(0, at: 1)
    write(0x38, 1, 2)
    #expect(setup.text.all == Array("hi".utf8))
  }

  @Test("a hundred thousand accesses that mean nothing") func garbage() {
    var random = SeededGenerator(seed: TestSeed.of("virtio on PCI"))
    let setup = Setup()
    for _ in 0..<100_000 {
      let size = [1, 2, 4].randomElement(using: &random) ?? 1
      let value = UInt32.random(in: 0...(.max), using: &random) >> UInt32.random(in: 0...31, using: &random)
      let isSpace = Bool.random(using: &random)
      let offset = Int.random(in: 0..<(isSpace ? 260 : 128), using: &random)
      switch (isSpace, Bool.random(using: &random)) {
      case (true, true): setup.function.writeSpace(offset, size: size, value: value)
      case (true, false): _ = setup.function.readSpace(offset, size: size)
      case (false, true): setup.function.writeRegion(offset, size: size, value: value)
      case (false, false): _ = setup.function.readRegion(offset, size: size)
      }
    }
  }

  @Test("a function that is saved goes on with the next chain, and with one that was not given back") func saved()
    throws
  {
    func enable(_ setup: Setup) {
      setup.function.writeRegion(22, size: 2, value: 1)
      setup.function.writeRegion(24, size: 2, value: UInt32(QueueDriver.size))
      for (place, address) in [(32, setup.driver.start), (40, setup.driver.available), (48, setup.driver.used)] {
        setup.function.writeRegion(place, size: 4, value: UInt32(address))
      }
      setup.function.writeRegion(28, size: 2, value: 1)
      setup.function.writeRegion(20, size: 1, value: 15)
    }
    func put(_ text: String, at index: UInt16, _ driver: QueueDriver) {
      _ = driver.memory.store(Array(text.utf8), at: 0x8000)
      driver.describe(0, 0x8000, UInt32(text.utf8.count))
      driver.offer(0, at: index)
    }
    let old = Setup()
    enable(old)
    old.function.writeSpace(4, size: 2, value: 7)
    put("one", at: 0, old.driver)
    old.function.writeRegion(0x38, size: 2, value: 1)
    put("two", at: 1, old.driver)
    // Taken, and not given back.
    #expect(old.console.queues[1].take() != nil && old.text.all == Array("one".utf8))
    var archive = StateArchive(savingAt: 0)
    try old.function.transfer(&archive)

    let (text, line) = (Setup.Text(), Setup.Line())
    let console = VirtioConsole(write: { text.put($0) }, wantsInput: {})
    let new = VirtioPCI(console, old.driver.memory, line: 1, region: VirtioPCITests.region) { line.raise() }
    var reading = StateArchive(restoring: archive.bytes, at: 0)
    try new.transfer(&reading)
    try reading.finish()
    #expect(new.readSpace(4, size: 2) == 7 && new.readRegion(20, size: 1) == 15 && new.readRegion(28, size: 2) == 1)
    // What waits is seen without a kick.
    #expect(!console.isBehind)
    console.lookAgain()
    #expect(console.isBehind)
    console.goOn()
    #expect(text.all == Array("two".utf8) && old.driver.returned(1)?.head == 0 && line.raised == 1)
    put("three", at: 2, old.driver)
    new.writeRegion(0x38, size: 2, value: 1)
    #expect(text.all == Array("twothree".utf8) && new.readRegion(58, size: 1) == 1)
  }

  @Test("a wide write of configuration space changes what may be written, and nothing beside it") func neighbours() {
    let function = Setup().function
    let before = (0..<VirtioPCI.configurationBytes).map { function.readSpace($0, size: 1) }
    for offset in stride(from: 0, to: 0x88, by: 4) where offset != 0x10 {
      function.writeSpace(offset, size: 4, value: 0xFFFF_FFFF)
    }
    let changed = before.indices.filter { function.readSpace($0, size: 1) != before[$0] }
    #expect(changed == [0x04, 0x05, 0x0C, 0x0D, 0x3C])
  }
}

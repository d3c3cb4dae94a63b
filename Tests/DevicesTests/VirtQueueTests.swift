// SPDX-License-Identifier: Apache-2.0
// Virtqueues and the console on them: what a driver does right arrives, what it does wrong stops the queue and no more.

import Devices
import Synchronization
import TestSupport
import Testing

@Suite("Virtqueues") struct VirtQueueTests {
  @Test("chains go round the rings, and come back with what was written") func chains() throws {
    let driver = QueueDriver()
    var queue = driver.queue
    #expect(try queue.takeNext() == nil && !queue.hasNext)
    for round in UInt16(0)..<20 {
      driver.describe(3, 0x4000, 16, flags: QueueDriver.next, next: 5)
      driver.describe(5, 0x5000, 32, flags: QueueDriver.write)
      driver.offer(3, at: round)
      #expect(queue.hasNext)
      let chain = try #require(try queue.takeNext())
      #expect(chain.readable.map(\.address) == [0x4000] && chain.writable.map(\.count) == [32])
      try queue.putUsed(chain, written: UInt32(round))
      #expect(try #require(driver.returned(round)) == (3, UInt32(round)))
    }
    #expect(queue.wantsInterrupt)
    _ = driver.memory.storeShort(1, at: QueueDriver.available)
    #expect(!queue.wantsInterrupt)
    #expect(VirtQueue.legacyByteCount(size: 256) == 3 * 4096)
  }

  @Test(
    "a driver's mistake is an error",
    arguments: ["round", "number", "order", "indirect", "length", "index", "outside", "nowhere"])
  func mistakes(kind: String) {
    let driver = QueueDriver()
    var queue = driver.queue
    driver.offer(0, at: 0)
    switch kind {
    case "round":
      driver.describe(0, 0x4000, 1, flags: QueueDriver.next, next: 1)
      driver.describe(1, 0x4000, 1, flags: QueueDriver.next, next: 0)
    case "number": driver.describe(0, 0x4000, 1, flags: QueueDriver.next, next: 8)
    case "order":
      driver.describe(0, 0x4000, 1, flags: QueueDriver.next | QueueDriver.write, next: 1)
      driver.describe(1, 0x4000, 1)
    case "indirect": driver.describe(0, 0x4000, 16, flags: QueueDriver.indirect)
    case "length":
      driver.describe(0, 0x4000, 40000, flags: QueueDriver.next, next: 1)
      driver.describe(1, 0x4000, 40000)
    case "index": _ = driver.memory.storeShort(9, at: QueueDriver.available + 2)
    case "outside": queue = VirtQueue(driver.memory, size: 8, legacyAt: 0xFFF0, mostBytes: 65536)
    default: queue = VirtQueue(driver.memory, size: 0x8000, legacyAt: .max - 4, mostBytes: 65536)
    }
    #expect(throws: VirtQueueError.self) { try queue.takeNext() }
  }

  @Test("a thousand rings of garbage") func garbage() {
    var random = SeededGenerator(seed: TestSeed.of("virtqueues"))
    for _ in 0..<1000 {
      let memory = QueueMemory()
      _ = memory.store((0..<8192).map { _ in UInt8.random(in: 0...255, using: &random) }, at: 0x1000)
      var queue = VirtQueue(
        memory, size: UInt16.random(in: 0...300, using: &random), descriptors: 0x1000,
        available: UInt64.random(in: 0x1000...0x3000, using: &random),
        used: UInt64.random(in: 0x3000...0x10010, using: &random), mostBytes: 65536)
      for _ in 0..<8 {
        do throws(VirtQueueError) {
          guard let chain = try queue.takeNext() else { break }
          try queue.putUsed(chain, written: 1)
        } catch { break }
      }
    }
  }

  @Test("the console takes output, and hands over input where there is room") func console() {
    let driver = QueueDriver()
    let text = Mutex<[UInt8]>([])
    let interrupts = Mutex<[Int]>([])
    let console = VirtioConsole(
      driver.memory, write: { byte in text.withLock { $0.append(byte) } }, wantsInput: {},
      interrupt: { number in interrupts.withLock { $0.append(number) } })
    #expect(!console.hasRoom && !console.receive(65))
    console.setQueue(1, driver.queue)
    _ = driver.memory.store(Array("hello".utf8), at: 0x4000)
    driver.describe(0, 0x4000, 5)
    driver.offer(0, at: 0)
    console.kick(1)
    #expect(text.withLock { $0 } == Array("hello".utf8) && interrupts.withLock { $0 } == [1])
    console.setQueue(1, nil)
    console.kick(1)

    let input = QueueDriver()
    let listener = VirtioConsole(
      input.memory, write: { _ in }, wantsInput: {}, interrupt: { number in interrupts.withLock { $0.append(number) } })
    listener.setQueue(0, input.queue)
    #expect(!listener.hasRoom)
    input.describe(2, 0x5000, 4096, flags: QueueDriver.write)
    input.offer(2, at: 0)
    #expect(listener.hasRoom && listener.receive(66) && !listener.hasRoom)
    #expect(input.memory.bytes(at: 0x5000, count: 1) == [66])
    #expect(input.returned(0).map { $0 == (2, 1) } == true && interrupts.withLock { $0 } == [1, 0])
    // A buffer outside RAM ends it; nothing else happens.
    input.describe(2, 0x1_0000, 1, flags: QueueDriver.write)
    input.offer(2, at: 1)
    #expect(!listener.receive(67) && !listener.hasRoom)
  }
}

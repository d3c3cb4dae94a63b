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
    _ = driver.memory.storeShort(1, at: driver.available)
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
    case "index": _ = driver.memory.storeShort(9, at: driver.available + 2)
    case "outside": queue = VirtQueue(driver.memory, size: 8, legacyAt: 0xFFF0, mostBytes: 65536) { _ in }
    default: queue = VirtQueue(driver.memory, size: 0x8000, legacyAt: .max - 4, mostBytes: 65536) { _ in }
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
        used: UInt64.random(in: 0x3000...0x10010, using: &random), mostBytes: 65536, notify: { _ in })
      for _ in 0..<8 {
        do throws(VirtQueueError) {
          guard let chain = try queue.takeNext() else { break }
          try queue.putUsed(chain, written: 1)
        } catch { break }
      }
    }
  }

  @Test("a chain outlives its queue's reset, and stores nothing any more") func reset() throws {
    let driver = QueueDriver()
    let queue = DeviceQueue()
    #expect(!queue.isThere && queue.take() == nil)
    queue.set(driver.queue)
    for (round, resets) in [false, true].enumerated() {
      driver.describe(1, 0x4000, 3, flags: QueueDriver.next, next: 2)
      driver.describe(2, 0x5000, 8, flags: QueueDriver.write)
      #expect(driver.memory.store([1, 2, 3, UInt8(round)], at: 0x4000))
      #expect(driver.memory.store([0, 0], at: 0x5000))
      driver.offer(1, at: UInt16(round))
      let chain = try #require(queue.take())
      #expect(chain.readableCount == 3 && chain.writableCount == 8)
      #expect(queue.read(chain, at: 1, count: 100) == [2, 3])
      if resets { queue.set(driver.queue) }
      #expect(queue.write([7, 8], to: chain) == !resets)
      queue.giveBack(chain, written: 2)
      #expect(driver.memory.bytes(at: 0x5000, count: 2) == (resets ? [0, 0] : [7, 8]))
      #expect(driver.events.take() == (resets ? [] : [.used]))
    }
    // Neither what the driver offers again nor a chain that is given back twice harms.
    let again = try #require(queue.take())
    for _ in 0..<20 { queue.giveBack(again, written: .max) }
    #expect(queue.isThere && driver.events.take().count == 20)
  }

  @Test(
    "a buffer beyond the last address, or half in RAM, breaks the queue", arguments: [UInt64.max - 7, 0xFFFC, 1 << 63])
  func beyond(address: UInt64) throws {
    for isWritten in [false, true] {
      let driver = QueueDriver()
      let queue = DeviceQueue()
      queue.set(driver.queue)
      driver.describe(0, address, 16, flags: isWritten ? QueueDriver.write : 0)
      driver.offer(0, at: 0)
      let chain = try #require(queue.take())
      if isWritten {
        #expect(!queue.write([UInt8](repeating: 1, count: 16), to: chain))
      } else {
        #expect(queue.read(chain, at: 8, count: 8) == nil)
      }
      #expect(!queue.isThere && queue.take() == nil && driver.events.take() == [.broken])
      queue.giveBack(chain, written: 0)
      #expect(driver.returned(0) == nil)
    }
  }

  @Test("the console takes output, and hands over input where there is room") func console() {
    let driver = QueueDriver()
    let text = Mutex<[UInt8]>([])
    let console = VirtioConsole(write: { byte in text.withLock { $0.append(byte) } }, wantsInput: {})
    #expect(!console.hasRoom && !console.receive(65))
    console.queues[1].set(driver.queue)
    _ = driver.memory.store(Array("hello".utf8), at: 0x4000)
    driver.describe(0, 0x4000, 5)
    driver.offer(0, at: 0)
    console.kick(1)
    #expect(text.withLock { $0 } == Array("hello".utf8) && driver.events.take() == [.used])
    console.queues[1].set(nil)
    console.kick(1)

    // Much is taken in pieces, so that whoever asks for the vCPU need not wait.
    let much = QueueDriver()
    console.queues[1].set(much.queue)
    much.describe(1, 0x4000, 0x8000)
    for index in UInt16(0)..<3 { much.offer(1, at: index) }
    console.kick(1)
    #expect(text.withLock { $0.count } == 5 + 0x1_0000 && console.isBehind)
    console.goOn()
    #expect(text.withLock { $0.count } == 5 + 0x1_8000 && !console.isBehind)

    let input = QueueDriver()
    let listener = VirtioConsole(write: { _ in }, wantsInput: {})
    listener.queues[0].set(input.queue)
    #expect(!listener.hasRoom)
    input.describe(2, 0x5000, 4096, flags: QueueDriver.write)
    input.offer(2, at: 0)
    #expect(listener.hasRoom && listener.receive(66) && !listener.hasRoom)
    #expect(input.memory.bytes(at: 0x5000, count: 1) == [66])
    #expect(input.returned(0).map { $0 == (2, 1) } == true && input.events.take() == [.used])
    // A buffer outside RAM ends it; nothing else happens.
    input.describe(2, 0x1_0000, 1, flags: QueueDriver.write)
    input.offer(2, at: 1)
    #expect(!listener.receive(67) && !listener.hasRoom && input.events.take() == [.broken])
  }
}

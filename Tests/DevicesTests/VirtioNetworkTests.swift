// SPDX-License-Identifier: Apache-2.0
// The virtio network and entropy devices on either transport: frames out and in with the right header, and drivers that
// are wrong.

import Devices
import Synchronization
import TestSupport
import Testing

@Suite("Virtio network and entropy devices") struct VirtioNetworkTests {
  private static let address: [UInt8] = [0x02, 1, 2, 3, 4, 5]

  private func frame(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &+ 1) } }

  private func card(_ transport: Transport) -> (VirtioNetwork, VirtioSetup, header: UInt32) {
    let card = VirtioNetwork(address: VirtioNetworkTests.address) {}
    return (card, VirtioSetup(card, transport), transport.frameHeader)
  }

  @Test("what it offers: an address, and no offloads") func facts() {
    let (card, _, _) = card(.legacy)
    #expect(card.deviceType == 1)
    #expect(card.features == 0x20)
    #expect(card.configuration == VirtioNetworkTests.address)
    let random = EthernetFrame.localAddress([0xFF, 1, 2, 3, 4, 5, 6, 7])
    #expect(random == [0xFE, 1, 2, 3, 4, 5])
    #expect(EthernetFrame.localAddress([]).count == 6)
  }

  @Test("frames out, whose header is a buffer or part of one", arguments: Transport.allCases)
  func out(transport: Transport) throws {
    let (card, setup, header) = card(transport)
    let driver = setup.drivers[1]
    #expect(card.takeFrame() == nil)
    for (round, size) in [14, 60, 1514].enumerated() {
      #expect(driver.memory.store([UInt8](repeating: 0xAA, count: Int(header)), at: 0x8000))
      #expect(driver.memory.store(frame(size), at: 0x8000 + UInt64(header)))
      if round == 0 {
        driver.describe(0, 0x8000, header + UInt32(size))
      } else {
        driver.describe(0, 0x8000, header, flags: QueueDriver.next, next: 1)
        driver.describe(1, 0x8000 + UInt64(header), UInt32(size))
      }
      driver.offer(0, at: UInt16(round))
      setup.kick(1)
      #expect(card.takeFrame() == frame(size))
      #expect(try #require(driver.returned(UInt16(round))) == (0, 0))
    }
    // What is no frame goes back and says nothing.
    for (round, size) in [(UInt16(3), UInt32(0)), (4, 13), (5, 65563)] {
      driver.describe(0, 0x8000, header, flags: QueueDriver.next, next: 1)
      driver.describe(1, 0, size)
      driver.offer(0, at: round)
      #expect(card.takeFrame() == [], "\(size)")
      #expect(!setup.isBroken(1))
    }
  }

  @Test("frames in, with what the driver has room for", arguments: Transport.allCases)
  func into(transport: Transport) throws {
    let (card, setup, header) = card(transport)
    let driver = setup.drivers[0]
    #expect(card.reception == .full)
    #expect(!card.deliver(frame(60)))
    driver.describe(0, 0x8000, header, flags: QueueDriver.write | QueueDriver.next, next: 1)
    driver.describe(1, 0x9000, 1514, flags: QueueDriver.write)
    for (round, size) in [(UInt16(0), 14), (1, 1514)] {
      driver.offer(0, at: round)
      #expect(card.reception == .ready)
      #expect(card.deliver(frame(size)))
      #expect(try #require(driver.returned(round)) == (0, header + UInt32(size)))
      #expect(driver.memory.bytes(at: 0x9000, count: size) == frame(size))
      // No offloads, and from version 1.0 on one buffer.
      let zeros = [UInt8](repeating: 0, count: min(Int(header), 10))
      let rest: [UInt8] = transport == .pci ? [1, 0] : []
      #expect(driver.memory.bytes(at: 0x8000, count: Int(header)) == zeros + rest)
    }
    // Too long for the buffers: lost, and the buffers go back. What is no frame never arrives.
    driver.offer(0, at: 2)
    #expect(!card.deliver(frame(13)) && !card.deliver(frame(65563)) && driver.returned(2) == nil)
    #expect(!card.deliver(frame(1515)))
    #expect(try #require(driver.returned(2)) == (0, 0))
    setup.reset()
    #expect(card.reception == .off)
    #expect(!card.deliver(frame(60)))
  }

  @Test(
    "a driver's mistake stops the queue, and nothing beside its buffers changes", arguments: Transport.allCases,
    ["no room", "only read", "outside", "header outside", "round", "giant"])
  func mistakes(transport: Transport, kind: String) {
    let (card, setup, header) = card(transport)
    let driver = setup.drivers[0]
    driver.describe(0, 0x8000, header, flags: QueueDriver.write | QueueDriver.next, next: 1)
    driver.describe(1, 0x9000, 1514, flags: QueueDriver.write)
    switch kind {
    case "no room": driver.describe(0, 0x8000, header, flags: QueueDriver.write)
    case "only read": driver.describe(0, 0x8000, 1600)
    case "outside": driver.describe(1, 0xFFF0, 1514, flags: QueueDriver.write)
    case "header outside": driver.describe(0, 1 << 63, header, flags: QueueDriver.write | QueueDriver.next, next: 1)
    case "round": driver.describe(1, 0x9000, 10, flags: QueueDriver.write | QueueDriver.next, next: 1)
    default: driver.describe(1, 0x9000, .max, flags: QueueDriver.write)
    }
    driver.offer(0, at: 0)
    let before = driver.memory.bytes(at: 0, count: 0x8000)
    #expect(!card.deliver(frame(60)) && setup.isBroken(0) && driver.returned(0) == nil)
    #expect(driver.memory.bytes(at: 0, count: 0x8000) == before)
    // The other queue goes on.
    let sender = setup.drivers[1]
    #expect(sender.memory.store(frame(60), at: 0x8000 + UInt64(header)))
    sender.describe(0, 0x8000, header + 60)
    sender.offer(0, at: 0)
    #expect(card.takeFrame() == frame(60))
    sender.describe(0, 0x8000, header - 1)
    sender.offer(0, at: 1)
    #expect(card.takeFrame() == nil && setup.isBroken(1))
  }

  @Test("random numbers fill what is there, some at a time", arguments: Transport.allCases)
  func entropy(transport: Transport) throws {
    let asked = Mutex<[Int]>([])
    let device = VirtioEntropy { count in
      asked.withLock { $0.append(count) }
      return [UInt8](repeating: 0x77, count: count)
    }
    #expect(device.deviceType == 4 && device.configuration.isEmpty)
    #expect(device.features == 0)
    let setup = VirtioSetup(device, transport)
    let driver = setup.drivers[0]
    for (round, size) in [(UInt16(0), UInt32(64)), (1, 1), (2, 9000)] {
      driver.describe(0, 0x8000, size, flags: QueueDriver.write)
      driver.offer(0, at: round)
      setup.kick(0)
      #expect(try #require(driver.returned(round)) == (0, min(size, 256)))
    }
    #expect(asked.withLock { $0 } == [64, 1, 256])
    #expect(driver.memory.bytes(at: 0x80FF, count: 2) == [0x77, 0])
    driver.describe(0, 0x8000, 64)
    driver.offer(0, at: 3)
    setup.kick(0)
    #expect(setup.isBroken() && driver.returned(3) == nil)
  }
}

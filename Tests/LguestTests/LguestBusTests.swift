// SPDX-License-Identifier: Apache-2.0
// The buses of lguest's guests: what a guest finds in the page of descriptors and in the slots of PCI, interrupts, and
// drivers that begin, go on and begin anew.

import Devices
import GuestMemory
import Synchronization
import SystemPackage
import TestSupport
import Testing

@testable import Lguest

@Suite("Buses of lguest") struct LguestBusTests {
  private static let size: UInt64 = 16 << 20

  private final class Disk: BlockStore {
    let sectorCount: UInt64 = 8, isReadOnly = false, identity = "d"
    func read(at offset: UInt64, count: Int) -> [UInt8]? { [UInt8](repeating: 0x5A, count: count) }
    func write(_ bytes: [UInt8], at offset: UInt64) -> Bool { true }
    func flush() -> Bool { true }
  }

  /// A disk, a network card, random numbers and a console, on both buses.
  private final class Setup: Sendable {
    let memory: GuestMemory
    let bus: LguestBus
    let pci: LguestPCI
    let block: VirtioBlock
    let raised = Raised()

    final class Raised: Sendable {
      private let all = Mutex<[UInt8]>([])
      func put(_ number: UInt8) { all.withLock { $0.append(number) } }
      func take() -> [UInt8] {
        all.withLock { all in
          defer { all = [] }
          return all
        }
      }
    }

    init() throws {
      memory = try GuestMemory(byteCount: LguestLayout.limit(LguestBusTests.size))
      block = VirtioBlock(Disk()) {}
      let others: [any VirtioDevice] = [
        block, VirtioNetwork(address: [2, 0, 0, 0, 0, 9]) {}, VirtioEntropy { [UInt8](repeating: 3, count: $0) },
      ]
      let console = VirtioConsole(write: { _ in }, wantsInput: {})
      let raise: @Sendable (UInt8) -> Void = { [raised] in raised.put($0) }
      bus = LguestBus(memory, page: LguestBusTests.size, .records, devices: others + [console], raise: raise)
      pci = LguestPCI(
        memory, region: LguestLayout.region(LguestBusTests.size), devices: [console] + others, raise: raise)
      bus.describe()
    }

    func byte(_ address: UInt64) -> UInt8 { (try? memory.load(UInt8.self, at: GuestPhysical(address))) ?? 0xEE }

    /// The descriptors, as a guest reads them: address, type, queues' interrupts and pages, features, configuration.
    var descriptors:
      [(address: UInt64, type: UInt8, queues: [(irq: UInt16, page: UInt32)], features: UInt32, own: [UInt8])]
    {
      var (found, place) = ([(UInt64, UInt8, [(irq: UInt16, page: UInt32)], UInt32, [UInt8])](), LguestBusTests.size)
      while byte(place) != 0, found.count < 40 {
        let (count, features, own) = (UInt64(byte(place + 1)), UInt64(byte(place + 2)), UInt64(byte(place + 3)))
        let queues = (0..<count).map { number -> (irq: UInt16, page: UInt32) in
          let at = GuestPhysical(place + 5 + number * 8)
          #expect((try? memory.load(UInt16.self, at: at)) == 256)
          return ((try? memory.load(UInt16.self, at: at + 2)) ?? 0, (try? memory.load(UInt32.self, at: at + 4)) ?? 0)
        }
        let behind = place + 5 + count * 8
        let offered = features == 0 ? 0 : (try? memory.load(UInt32.self, at: GuestPhysical(behind))) ?? 0
        let start = behind + 2 * features
        found.append((place, byte(place), queues, offered, (0..<own).map { byte(start + $0) }))
        place = start + own
      }
      return found
    }
  }

  @Test("the page of descriptors: types, features, and an interrupt for each queue") func page() throws {
    let setup = try Setup()
    let found = setup.descriptors
    #expect(found.map(\.type) == [2, 1, 4, 3])
    #expect(found.map(\.features) == [0x204, 0x20, 0, 0])
    let interrupts: [UInt16] = found.flatMap { row in row.queues.map { queue in queue.irq } }
    #expect(interrupts == [1, 2, 3, 4, 5, 6])
    #expect(found[0].own.prefix(8) == [8, 0, 0, 0, 0, 0, 0, 0])
    #expect(found[1].own == [2, 0, 0, 0, 0, 9])
    // Queues begin behind the page, three pages each, all of which the guest has.
    let pages: [UInt64] = found.flatMap { row in row.queues.map { queue in UInt64(queue.page) } }
    let first = (LguestBusTests.size >> 12) + 1
    let expected: [UInt64] = [first, first + 3, first + 6, first + 9, first + 12, first + 15]
    #expect(pages == expected)
    let end = LguestLayout.limit(LguestBusTests.size) >> 12
    #expect(first + 18 <= end)
  }

  @Test("status, kicks and interrupts; another status is no beginning, a reset is") func protocols() throws {
    let setup = try Setup()
    let row = setup.descriptors[0]
    let ring = UInt64(row.queues[0].page) << 12
    let memory = GuestDeviceMemory(memory: setup.memory)
    /// A request of no known kind, whose status is the only byte written.
    func ask(_ round: UInt16) {
      let header: [UInt8] = [99] + [UInt8](repeating: 0, count: 15)
      #expect(memory.store(header, at: 0x4000))
      #expect(memory.store([0, 0x40, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0], at: ring))
      #expect(memory.store([0, 0x50, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0], at: ring + 16))
      #expect(memory.storeShort(0, at: ring + 4096 + 4 + UInt64(round % 256) * 2))
      #expect(memory.storeShort(round &+ 1, at: ring + 4096 + 2))
      #expect(setup.bus.notify(ring))
      setup.block.work()
    }
    var used: UInt16? { memory.loadShort(at: ring + 2 * 4096 + 2) }
    ask(0)
    #expect(used == 0 && setup.raised.take() == [])
    for status: UInt8 in [1, 3] {
      #expect(memory.store([status], at: row.address + 4) && setup.bus.notify(row.address))
    }
    setup.block.work()
    #expect(used == 1 && setup.raised.take() == [1] && setup.byte(0x5000) == 2)
    // Drivers of 2.6.31 say all they do; what has been served is not served again.
    #expect(memory.store([7], at: row.address + 4) && setup.bus.notify(row.address))
    ask(1)
    #expect(used == 2 && setup.raised.take() == [1])
    #expect(memory.store([0], at: row.address + 4) && setup.bus.notify(row.address))
    #expect(used == 0 && memory.loadShort(at: ring + 4096 + 2) == 0)
    #expect(setup.descriptors.map(\.type) == [2, 1, 4, 3])
    #expect(memory.store([7], at: row.address + 4) && setup.bus.notify(row.address))
    ask(0)
    #expect(used == 1 && setup.raised.take() == [1])
    // A driver that has failed asks for nothing more.
    #expect(memory.store([0x87], at: row.address + 4) && setup.bus.notify(row.address))
    ask(1)
    #expect(used == 1 && setup.raised.take() == [])
    for address in [0, LguestBusTests.size + 1, row.address + 1, ring + 4096, UInt64.max] {
      #expect(!setup.bus.notify(address))
    }
  }

  @Test("PCI: the console first, a slot and an interrupt each, regions that do not touch") func slots() throws {
    let setup = try Setup()
    func config(_ slot: UInt32, _ register: UInt32) -> UInt32? {
      let address: UInt32 = 0x8000_0000 | slot << 11 | register
      #expect(setup.pci.writePort(0xCF8, size: 4, value: address))
      return setup.pci.readPort(0xCFC, size: 4)
    }
    let identities: [UInt32] = (1...6).map { config(UInt32($0), 0) ?? 0 }
    #expect(identities == [0x1043_1AF4, 0x1042_1AF4, 0x1041_1AF4, 0x1044_1AF4, .max, .max])
    let classes: [UInt32] = (1...4).map { (config(UInt32($0), 8) ?? 0) >> 16 }
    #expect(classes == [0x0700, 0x0180, 0x0200, 0xFF00])
    let lines: [UInt32] = (1...4).map { (config(UInt32($0), 0x3C) ?? 0) & 0xFF }
    #expect(lines == [1, 2, 3, 4])
    let regions: [UInt64] = (1...4).map { UInt64(config(UInt32($0), 0x10) ?? 0) }
    let start = LguestLayout.region(LguestBusTests.size)
    #expect(regions == [start, start + 4096, start + 8192, start + 12288])
    // The disk's capacity through its region; the entropy device has no configuration, and nothing is behind its region.
    #expect(setup.pci.readMemory(regions[1] + 0x3C, size: 4) == 8)
    #expect(setup.pci.readMemory(regions[3] + 0x3C, size: 4) == 0)
    #expect(setup.pci.readMemory(regions[3] + 0x40, size: 4) == nil)
    #expect(setup.pci.readMemory(regions[0] - 4, size: 4) == nil)
  }

  @Test("Linux 2.6.23: sixteen descriptors, and whom a key belongs to") func buffers() throws {
    let (size, written) = (LguestBusTests.size, Setup.Raised())
    let memory = try GuestMemory(byteCount: LguestLayout.limit(size))
    let host = DMAHost(GuestDeviceMemory(memory: memory)) { _ in }
    let first = UInt32(LguestDMA.firstPage(size))
    func dma(disks: Int, networks: Int) -> LguestDMA {
      LguestDMA(
        memory, page: size, host,
        disks: (0..<disks).map { DMABlock(Disk(), host, page: first + UInt32($0) * 4096) {} },
        networks: (0..<networks).map {
          DMANetwork(host, page: first + UInt32(disks + $0) * 4096, wake: {}, wantsRoom: {})
        }, write: { written.put($0) })
    }
    func short(_ address: UInt64) throws -> UInt16 { try memory.load(at: GuestPhysical(address)) }
    func word(_ address: UInt64) throws -> UInt32 { try memory.load(at: GuestPhysical(address)) }
    #expect(dma(disks: 9, networks: 6).describe() == nil)
    #expect(dma(disks: 10, networks: 6).describe()?.hasPrefix("16 disks and networks: ") == true)
    let devices = dma(disks: 2, networks: 1)
    #expect(devices.describe() == nil)
    // Type, features, pages and the first of them; interrupts are by place.
    let rows = try (0..<UInt64(16)).map { row in
      [try short(size + row * 12), try short(size + row * 12 + 2), try short(size + row * 12 + 6)]
    }
    #expect(rows.prefix(4) == [[1, 0, 0], [3, 0x8000, 1], [3, 0x8000, 1], [2, 0x8001, 1]])
    #expect(rows.dropFirst(4).allSatisfy { $0 == [0, 0, 0] })
    for row in UInt64(1)..<4 { #expect(try word(size + row * 12 + 8) == (first >> 12) + UInt32(row) - 1) }
    #expect(try word(UInt64(first) + 16) == 8)
    // Keys: the console's, disks', the card's own; nobody else's, and a peer binds nothing.
    for (key, isThere) in [
      (0, true), (first, true), (first + 4096, true), (first + 8196, true), (first + 8192, false), (4, false),
      (first + 12288, false),
    ] as [(UInt32, Bool)] {
      #expect(devices.bind(key, buffers: 0x1000, count: 1, interrupt: 1) == isThere)
    }
    // What the console is sent, and what it is not: a piece across pages.
    for (address, count) in [(0x2000, 3), (0x2FFF, 2)] as [(UInt32, UInt16)] {
      try memory.copy(from: Array("abc".utf8), to: GuestPhysical(0x2000))
      for (offset, value) in [(0, 0), (4, address), (68, UInt32(count))] as [(UInt64, UInt32)] {
        try memory.store(value, at: GuestPhysical(0x3000 + offset))
      }
      devices.send(0, buffer: 0x3000)
      #expect(try word(0x3000) == (count == 3 ? 3 : 0))
    }
    devices.send(0, buffer: .max)
    devices.send(99, buffer: 0x3000)
    #expect(written.take() == Array("abc".utf8))
    // Typed to the first free buffer.
    #expect(devices.takesInput == false)
    for (offset, value) in [(0, 0), (4, 0x5000), (68, 16)] as [(UInt64, UInt32)] {
      try memory.store(value, at: GuestPhysical(0x1000 + offset))
    }
    #expect(devices.bind(0, buffers: 0x1000, count: 1, interrupt: 1) && devices.takesInput)
    devices.take(65)
    #expect(try word(0x1000) == 1 && !devices.takesInput)
    devices.reset()
    try memory.store(UInt32(0), at: GuestPhysical(0x1000))
    #expect(!devices.takesInput)
  }

  @Test("disks and networks are checked before anything runs") func configuration() throws {
    var configuration = VirtualMachine.Configuration(kernel: "/dev/null")
    configuration.abi = .lguest
    configuration.disks = [VirtualMachine.Configuration.Disk](
      repeating: VirtualMachine.Configuration.Disk(file: "/nowhere"), count: 26)
    configuration.networks = [.socket("/nowhere")]
    #expect(throws: Never.self) { try configuration.validateValues() }
    configuration.networks.append(.listen("/nowhere"))
    #expect(throws: ConfigurationError.self) { try configuration.validateValues() }
    configuration.abi = .kvm
    configuration.networks = []
    let error = #expect(throws: ConfigurationError.self) { try configuration.validateDevices() }
    #expect(error?.problem == "disks are for --abi lguest only so far")
  }
}

// SPDX-License-Identifier: Apache-2.0
// Targets that are drivers of virtio devices on lguest's two buses: rings and descriptors of any content, status, kicks,
// configuration space and memory regions, while the threads of devices do their work in between.

import GuestMemory
import Host
import Synchronization

@testable import Devices
@testable import Lguest

/// A disk of 64 sectors that knows what it may be asked.
final class FuzzMedium: BlockStore {
  let sectorCount: UInt64 = 64, isReadOnly = false, identity = "fuzz"
  private let wrong = Mutex<String?>(nil)

  private func note(_ offset: UInt64, _ count: Int) {
    let (end, isBeyond) = offset.addingReportingOverflow(UInt64(count))
    if isBeyond || end > sectorCount * 512 { wrong.withLock { $0 = "\(count) bytes at \(offset) of the disk" } }
  }
  func read(at offset: UInt64, count: Int) -> [UInt8]? {
    note(offset, count)
    return offset & 512 == 0 ? [UInt8](repeating: 7, count: count) : nil
  }
  func write(_ bytes: [UInt8], at offset: UInt64) -> Bool {
    note(offset, bytes.count)
    return offset & 1024 == 0
  }
  func flush() -> Bool { true }

  /// Fails if it was asked for what it has not.
  func check() throws {
    if let wrong = wrong.withLock({ $0 }) { throw FuzzFailure("\(wrong), which has 64 sectors") }
  }
}

extension FramePort {
  /// Takes what the guest sends, 300 frames at most.
  func drain() throws {
    var count = 0
    while count < 300, let frame = takeFrame() {
      if !frame.isEmpty, !EthernetFrame.sizes.contains(frame.count) {
        throw FuzzFailure("a frame of \(frame.count) bytes")
      }
      count += 1
    }
  }

  /// A frame of some length comes, or what is none.
  func bring(_ input: inout FuzzInput) {
    deliver([UInt8](repeating: 9, count: input.choose([0, 13, 14, 60, 1514, 9000, 65562, 65563])))
  }
}

/// A machine's devices, and RAM of a megabyte.
private final class VirtioMachine: Sendable {
  static let size: UInt64 = 1 << 20

  let memory: GuestMemory
  let bus: LguestBus
  let pci: LguestPCI
  let console: VirtioConsole
  let disk: VirtioBlock
  let card: VirtioNetwork
  let store = FuzzMedium()

  init() throws {
    memory = try GuestMemory(byteCount: LguestLayout.limit(VirtioMachine.size))
    console = VirtioConsole(write: { _ in }, wantsInput: {})
    disk = VirtioBlock(store) {}
    card = VirtioNetwork(address: [2, 0, 0, 0, 0, 1]) {}
    let others: [any VirtioDevice] = [disk, card, VirtioEntropy { [UInt8](repeating: 1, count: $0) }]
    bus = LguestBus(memory, page: VirtioMachine.size, .records, devices: others + [console]) { _ in }
    pci = LguestPCI(
      memory, region: LguestLayout.region(VirtioMachine.size), devices: [console] + others
    ) { _ in }
    bus.describe()
  }

  func put(_ bytes: [UInt8], at address: UInt64) { try? memory.copy(from: bytes, to: GuestPhysical(address)) }

  /// What the threads of devices and the host's end of the console do.
  func work(_ input: inout FuzzInput) throws {
    switch input.byte() % 4 {
    case 0: disk.work()
    case 1: try card.drain()
    case 2: card.bring(&input)
    default: _ = console.receive(65)
    }
    try store.check()
  }

  /// A chain in a ring, mostly one that makes sense, and the ring's index.
  func offer(_ input: inout FuzzInput, descriptors: UInt64, available: UInt64, size: UInt16) {
    let count = Int(1 + input.byte() % 5)
    let first = UInt16(input.byte()) % size
    for number in 0..<count {
      let isLast = number == count - 1
      var flags = UInt16(isLast ? 0 : 1) | (number > 0 && input.chance(2) || isLast ? 2 : 0)
      if input.chance(24) { flags = input.word() }
      let address: UInt64 = input.chance(12) ? input.value() : UInt64(input.word(UInt32.self)) % VirtioMachine.size
      let length: UInt32 =
        input.chance(12) ? input.word() : number == 0 ? 16 : input.choose([1, 10, 512, 1024, 1600, 4096])
      if number == 0 {
        put([input.byte() % 12, 0, 0, 0, 0, 0, 0, 0, input.byte() % 80, 0, 0, 0, 0, 0, 0, 0], at: address)
      }
      let next = input.chance(16) ? input.word(UInt16.self) : (first &+ UInt16(number) &+ 1) % size
      let words = [address, UInt64(length) | UInt64(flags) << 32 | UInt64(next) << 48]
      put(
        words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) } },
        at: descriptors &+ UInt64((first &+ UInt16(number)) % size) * 16)
    }
    let memory = GuestDeviceMemory(memory: memory)
    let index = memory.loadShort(at: available &+ 2) ?? 0
    _ = memory.storeShort(input.chance(20) ? input.word() : first, at: available &+ 4 &+ UInt64(index % size) * 2)
    _ = memory.storeShort(input.chance(20) ? input.word() : index &+ 1, at: available &+ 2)
  }
}

/// Drivers by way of the page of descriptors.
enum LguestBusDrivers {
  static func run(_ input: inout FuzzInput) throws {
    let machine = try VirtioMachine()
    let page = VirtioMachine.size
    // Descriptors of the disk, the card, random numbers and the console, and their six queues of three pages.
    let descriptors = [page, page + 37, page + 72, page + 85]
    repeat {
      let queue = page + 4096 + UInt64(input.below(6)) * 3 * 4096
      switch input.byte() % 8 {
      case 0:
        let place = input.choose(descriptors)
        machine.put([input.choose([0, 1, 3, 7, 0x87, input.byte()])], at: place + 4)
        _ = machine.bus.notify(place)
      case 1: machine.put(input.take(Int(input.byte())), at: queue + UInt64(input.word(UInt16.self)) % 0x3000)
      case 2: machine.put(input.take(8), at: page + UInt64(input.byte()))
      case 3, 4:
        machine.offer(&input, descriptors: queue, available: queue + 4096, size: 256)
        _ = machine.bus.notify(queue)
      case 5: _ = machine.bus.notify(input.chance(2) ? queue : input.value())
      default: try machine.work(&input)
      }
    } while !input.isOver
  }
}

/// Drivers by way of PCI.
enum LguestPCIDrivers {
  static func run(_ input: inout FuzzInput) throws {
    let machine = try VirtioMachine()
    let region = LguestLayout.region(VirtioMachine.size)
    repeat {
      let size = input.choose([1, 2, 4])
      let slot = UInt64(input.below(4))
      func write(_ offset: UInt64, _ size: Int, _ value: UInt32) {
        _ = machine.pci.writeMemory(region + slot * 4096 + offset, size: size, value: value)
      }
      switch input.byte() % 8 {
      case 0: _ = machine.pci.writePort(0xCF8 + UInt16(input.byte() % 10), size: size, value: input.word())
      case 1:
        // Any register of any slot, the window among them.
        let address =
          0x8000_0000 | UInt32(input.byte() % 8) << 11 | UInt32(
            input.choose([0x10, 0x88, 0x8C, 0x90, 0x94, input.byte()])) & 0xFC
        _ = machine.pci.writePort(0xCF8, size: 4, value: address)
        let port = 0xCFC + UInt16(input.byte() & 3)
        if input.chance(2) {
          _ = machine.pci.writePort(
            port, size: size, value: input.chance(2) ? UInt32(input.byte() & 0x7F) : input.word())
        } else {
          _ = machine.pci.readPort(port, size: size)
        }
      case 2: write(UInt64(input.byte() & 0x7F), size, input.chance(2) ? UInt32(input.byte()) : input.word())
      case 3: _ = machine.pci.readMemory(region &+ slot * 4096 &+ UInt64(input.byte()), size: size)
      case 4:
        // A queue as a driver sets it up, sometimes where nothing is.
        let (number, start) = (UInt32(input.below(3)), UInt32(0x2_0000) + UInt32(slot) * 0x8000)
        write(20, 1, UInt32(input.choose([0, 15, 15, 15])))
        write(22, 2, number)
        write(24, 2, UInt32(1) << UInt32(input.below(9)))
        for (part, offset) in [(32, 0), (40, 0x1000), (48, 0x2000)] as [(UInt64, UInt32)] {
          write(part, 4, input.chance(16) ? input.word() : start + offset)
          write(part + 4, 4, input.chance(16) ? input.word() : 0)
        }
        write(28, 2, 1)
      case 5:
        let start = 0x2_0000 + slot * 0x8000
        let queueSize = UInt16(1) << UInt16(input.below(9))
        machine.offer(&input, descriptors: start, available: start + 0x1000, size: queueSize)
        write(0x38, 2, UInt32(input.below(3)))
      default: try machine.work(&input)
      }
    } while !input.isOver
  }
}

/// A peer of a network, whatever it sends.
enum FrameStreams {
  static func run(_ input: inout FuzzInput) throws {
    let longest = input.choose([64, 1600, 65562])
    var assembler = FrameAssembler(longest: longest)
    repeat {
      if input.chance(3) {
        assembler.put(FrameAssembler.packed(input.take(input.below(200))))
      } else {
        assembler.put(input.take(Int(input.byte())))
      }
      next: while true {
        switch assembler.next() {
        case .frame(let frame): if frame.count > longest { throw FuzzFailure("a frame of \(frame.count) bytes") }
        case .nothing: break next
        case .nonsense: return
        }
      }
    } while !input.isOver
  }
}

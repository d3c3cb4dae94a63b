// SPDX-License-Identifier: Apache-2.0
// Drivers of Linux 2.6.23's devices: buffers of any content bound and sent under any key, requests in pages, machines that
// are saved in the middle and restored from what is nearly a file, while the threads of devices do their work in between.

import GuestMemory
import Saving
import Synchronization

@testable import Devices
@testable import Lguest

/// Drivers by hypercalls that name buffers.
enum DMADrivers {
  private static let size: UInt64 = 1 << 20
  /// The keys that mean something: the console, a disk, a card's peer and the card itself.
  private static let keys: [UInt32] = [0, UInt32(size) + 4096, UInt32(size) + 8192, UInt32(size) + 8196]

  /// RAM of a megabyte, a disk of 64 sectors and a card.
  private struct Machine {
    let memory: GuestMemory
    let store = FuzzMedium()
    let disk: DMABlock
    let card: DMANetwork
    let dma: LguestDMA

    init() throws {
      memory = try GuestMemory(byteCount: LguestLayout.limit(size))
      let host = DMAHost(GuestDeviceMemory(memory: memory)) { _ in }
      disk = DMABlock(store, host, page: keys[1]) {}
      card = DMANetwork(host, page: keys[2], wake: {}, wantsRoom: {})
      dma = LguestDMA(memory, page: size, host, disks: [disk], networks: [card], write: { _ in })
      if let reason = dma.describe() { throw FuzzFailure(reason) }
    }

    func put(_ bytes: [UInt8], at address: UInt64) { try? memory.copy(from: bytes, to: GuestPhysical(address)) }
    func put(_ word: UInt32, at address: UInt64) { try? memory.store(word, at: GuestPhysical(address)) }

    /// A structure, mostly one that makes sense.
    func offer(_ input: inout FuzzInput, at address: UInt64) {
      put(input.chance(4) ? input.word() : 0, at: address)
      let count = input.below(17)
      for index in 0..<UInt64(count) {
        let place: UInt32 = input.chance(16) ? input.word() : (input.word(UInt32.self) % UInt32(size)) & ~0xFFF
        put(place, at: address + 4 + index * 4)
        let length: UInt16 = input.chance(16) ? input.word() : input.choose([1, 14, 60, 256, 512, 512, 1024, 4096])
        try? memory.store(length, at: GuestPhysical(address + 68 + index * 2))
      }
      if count < 16 { try? memory.store(UInt16(0), at: GuestPhysical(address + 68 + UInt64(count) * 2)) }
    }

    /// The devices go on as from a file, in which some bytes may be others.
    func move(_ input: inout FuzzInput) throws {
      var archive = StateArchive(savingAt: 0)
      try dma.transfer(&archive)
      var bytes = archive.bytes
      for _ in 0..<input.below(4) where !bytes.isEmpty {
        bytes[input.below(bytes.count)] = input.byte()
      }
      let isAsSaved = bytes == archive.bytes
      archive = StateArchive(restoring: bytes, at: 0)
      do throws(SavedStateError) {
        try dma.transfer(&archive)
        try archive.finish()
      } catch {
        if isAsSaved { throw FuzzFailure("what was saved is refused: \(error)") }
        dma.reset()
      }
    }
  }

  static func run(_ input: inout FuzzInput) throws {
    let machine = try Machine()
    repeat {
      let key: UInt32 = input.chance(16) ? input.word() : input.choose(keys)
      // Sixteen places for structures, that they may meet.
      let place: UInt64 = input.chance(24) ? input.value() : UInt64(input.byte() % 16) * 100
      switch input.byte() % 8 {
      case 0, 1: machine.offer(&input, at: place & 0xF_FFFF)
      case 2:
        let count: UInt32 = input.chance(12) ? input.word() : UInt32(input.below(9))
        _ = machine.dma.bind(
          key, buffers: UInt32(truncatingIfNeeded: place), count: count, interrupt: input.byte() % 34)
      case 3:
        // A request in the page.
        let words: [UInt32] = [
          input.chance(8) ? input.word() : UInt32(input.byte() & 1),
          input.chance(8) ? input.word() : UInt32(input.byte() % 66),
          input.chance(8) ? input.word() : UInt32(input.byte() % 20) * 512, 0,
        ]
        for (index, word) in words.enumerated() { machine.put(word, at: UInt64(keys[1]) + UInt64(index * 4)) }
        machine.dma.send(keys[1], buffer: UInt32(truncatingIfNeeded: place))
      case 4: machine.dma.send(key, buffer: UInt32(truncatingIfNeeded: place))
      case 5: try machine.move(&input)
      case 6: if machine.dma.takesInput { machine.dma.take(65) }
      default:
        switch input.byte() % 4 {
        case 0: machine.disk.work()
        case 1: try machine.card.drain()
        case 2:
          if case .ready = machine.card.reception { machine.card.bring(&input) }
          _ = machine.dma.look()
        default: machine.put(input.take(Int(input.byte())), at: UInt64(input.byte()) * 8)
        }
        try machine.store.check()
      }
    } while !input.isOver
  }
}

// SPDX-License-Identifier: Apache-2.0
// The bus of lguest's guests from Linux 2.6.31 to 3.19: a page of descriptors right behind RAM, and behind it the queues
// of each device, in the legacy layout. A guest that has something to say notifies the descriptor's address, or a queue's.

import Devices
import GuestMemory
import Host
import Paravirt
import Synchronization

/// Guest RAM for devices.
struct GuestDeviceMemory: DeviceMemory {
  let memory: GuestMemory

  func bytes(at address: UInt64, count: Int) -> [UInt8]? {
    do throws(MemoryError) { return try memory.bytes(at: GuestPhysical(address), count: count) } catch { return nil }
  }
  func store(_ bytes: [UInt8], at address: UInt64) -> Bool {
    do throws(MemoryError) { try memory.copy(from: bytes, to: GuestPhysical(address)) } catch { return false }
    return true
  }
  func loadShort(at address: UInt64) -> UInt16? {
    do throws(MemoryError) { return try memory.load(UInt16.self, at: GuestPhysical(address)) } catch { return nil }
  }
  func storeShort(_ value: UInt16, at address: UInt64) -> Bool {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    do throws(MemoryError) { try memory.store(value, at: GuestPhysical(address)) } catch { return false }
    return true
  }
}

/// The descriptors and queues of a machine's devices: a console.
final class LguestBus: Sendable {
  private static let queueSize: UInt16 = 256
  private static let failed: UInt8 = 0x80
  /// Where a descriptor has its status.
  private static let status: UInt64 = 4

  private let memory: GuestDeviceMemory
  /// The page of descriptors.
  private let page: UInt64
  private let queues: [UInt64]
  let console: VirtioConsole

  /// - Parameters:
  ///   - page: The first address behind RAM.
  ///   - raise: Raises an interrupt by number.
  init(
    _ memory: GuestMemory, page: UInt64, raise: @escaping @Sendable (UInt8) -> Void,
    write: @escaping @Sendable (UInt8) -> Void, wantsInput: @escaping @Sendable () -> Void
  ) {
    self.memory = GuestDeviceMemory(memory: memory)
    self.page = page
    let bytes = VirtQueue.legacyByteCount(size: LguestBus.queueSize)
    // Interrupt 0 is the timer's.
    console = VirtioConsole(self.memory, write: write, wantsInput: wantsInput) { raise(UInt8(1 + $0)) }
    queues = (0..<UInt64(console.queueCount)).map { page + 4096 + $0 * bytes }
  }

  /// Writes the page of descriptors: type, queues, lengths of features and configuration, status, and for each queue
  /// its size, interrupt and first page.
  func describe() {
    var bytes: [UInt8] = [console.deviceType, UInt8(queues.count), 0, 0, 0]
    for (number, queue) in queues.enumerated() {
      let words = UInt64(LguestBus.queueSize) | UInt64(1 + number) << 16 | (queue >> 12) << 32
      bytes += (0..<8).map { UInt8(truncatingIfNeeded: words >> UInt64($0 * 8)) }
    }
    // Type 0 ends the list.
    _ = memory.store(bytes + [0], at: page)
  }

  /// NOTIFY: false if nothing of the bus's is there.
  func notify(_ address: UInt64) -> Bool {
    if let number = queues.firstIndex(of: address) {
      console.kick(number)
      return true
    }
    guard address == page else { return false }
    let status = memory.bytes(at: page + LguestBus.status, count: 1)?.first ?? 0
    let isReset = status == 0 || status & LguestBus.failed != 0
    for (number, queue) in queues.enumerated() {
      console.setQueue(
        number,
        isReset
          ? nil
          : VirtQueue(
            memory, size: LguestBus.queueSize, legacyAt: queue, mostBytes: console.mostBytes))
    }
    return true
  }
}

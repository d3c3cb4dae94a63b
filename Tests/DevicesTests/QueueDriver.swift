// SPDX-License-Identifier: Apache-2.0
// A driver of a virtqueue, and the RAM in which it puts chains.

import Devices
import Synchronization
import Testing

/// 64 KiB of RAM.
final class QueueMemory: DeviceMemory {
  private let bytes = Mutex([UInt8](repeating: 0, count: 65536))

  func contains(_ address: UInt64, count: Int) -> Bool { address <= 65536 && count <= 65536 - Int(address) }
  func bytes(at address: UInt64, count: Int) -> [UInt8]? {
    guard contains(address, count: count) else { return nil }
    return bytes.withLock { Array($0[Int(address)..<Int(address) + count]) }
  }
  func store(_ new: [UInt8], at address: UInt64) -> Bool {
    guard contains(address, count: new.count) else { return false }
    bytes.withLock { $0.replaceSubrange(Int(address)..<Int(address) + new.count, with: new) }
    return true
  }
  func loadShort(at address: UInt64) -> UInt16? {
    bytes(at: address, count: 2).map { UInt16($0[0]) | UInt16($0[1]) << 8 }
  }
  func storeShort(_ value: UInt16, at address: UInt64) -> Bool {
    store([UInt8(truncatingIfNeeded: value), UInt8(value >> 8)], at: address)
  }
  func loadWord(at address: UInt64) -> UInt32? {
    loads.add(1, ordering: .relaxed)
    return bytes(at: address, count: 4).map { $0.reversed().reduce(0) { $0 << 8 | UInt32($1) } }
  }
  func storeWord(_ value: UInt32, at address: UInt64) -> Bool {
    store((0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) }, at: address)
  }
  /// Words that have been loaded.
  let loads = Atomic(0)
}

/// The driver's side of a queue of eight, the first at 0x1000, in the legacy layout.
struct QueueDriver {
  static let size: UInt16 = 8
  let start: UInt64, available: UInt64, used: UInt64
  static let next: UInt16 = 1, write: UInt16 = 2, indirect: UInt16 = 4
  let memory: QueueMemory
  /// What the driver was told.
  let events = Events()
  var queue: VirtQueue { queue(mostBytes: 65536) }

  func queue(mostBytes: UInt64, headers: VirtioHeaders = .legacy) -> VirtQueue {
    VirtQueue(
      memory, size: QueueDriver.size, legacyAt: start, mostBytes: mostBytes, headers: headers,
      notify: { [events] in events.put($0) })
  }

  final class Events: Sendable {
    private let all = Mutex<[VirtQueue.Event]>([])
    func put(_ event: VirtQueue.Event) { all.withLock { $0.append(event) } }
    /// What has come since this was asked last.
    func take() -> [VirtQueue.Event] {
      all.withLock { all in
        defer { all = [] }
        return all
      }
    }
  }

  /// - Parameter number: Queues of one device, in the same RAM, begin 8 KiB apart.
  init(_ number: UInt64 = 0, in memory: QueueMemory = QueueMemory()) {
    self.memory = memory
    start = 0x1000 + number * 0x2000
    (available, used) = (start + 0x80, start + 0x1000)
  }

  func describe(_ index: UInt16, _ address: UInt64, _ count: UInt32, flags: UInt16 = 0, next: UInt16 = 0) {
    let words = [address, UInt64(count) | UInt64(flags) << 32 | UInt64(next) << 48]
    let bytes = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) } }
    #expect(memory.store(bytes, at: start + UInt64(index) * 16))
  }

  func offer(_ head: UInt16, at index: UInt16) {
    _ = memory.storeShort(head, at: available + 4 + UInt64(index % QueueDriver.size) * 2)
    _ = memory.storeShort(index &+ 1, at: available + 2)
  }

  /// What has been returned: number and bytes.
  func returned(_ index: UInt16) -> (head: UInt32, written: UInt32)? {
    guard memory.loadShort(at: used + 2) != index,
      let bytes = memory.bytes(at: used + 4 + UInt64(index % QueueDriver.size) * 8, count: 8)
    else { return nil }
    func word(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << UInt32($1 * 8) } }
    return (word(0), word(4))
  }
}

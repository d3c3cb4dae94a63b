// SPDX-License-Identifier: Apache-2.0
// Direct memory access as guests of Linux 2.6.23 ask for it: a hypercall sends a buffer to whom a key belongs to, another
// binds buffers to a key for what comes from there. Key 0 is the console's; a device with a page has that page's address.

import Devices
import GuestMemory
import Synchronization

/// The page of device descriptors of that era, and the buffers.
final class LguestDMA: Sendable {
  /// Buffers for what comes under a key, and the interrupt that tells of it.
  private struct Binding {
    let buffers: UInt64
    let count: UInt64
    let interrupt: UInt8
  }

  /// struct lguest_dma: bytes used, and sixteen pieces by address and by length, of which one without length is the last.
  private enum Buffer {
    static let pieces = 16, addresses = 4, lengths = 68, byteCount = 100
  }

  private static let consoleKey: UInt32 = 0
  private static let consoleType: UInt16 = 1
  /// Of a guest, at most.
  private static let mostBindings = 61
  private static let mostBuffers: UInt32 = 256

  private let memory: GuestDeviceMemory
  private let page: UInt64
  private let bindings = Mutex<[UInt32: Binding]>([:])
  private let raise: @Sendable (UInt8) -> Void
  private let write: @Sendable (UInt8) -> Void

  /// - Parameters:
  ///   - page: The first address behind RAM.
  ///   - raise: Raises an interrupt by number.
  ///   - write: Takes what the guest writes to its console.
  init(
    _ memory: GuestMemory, page: UInt64, raise: @escaping @Sendable (UInt8) -> Void,
    write: @escaping @Sendable (UInt8) -> Void
  ) {
    (self.memory, self.page) = (GuestDeviceMemory(memory: memory), page)
    (self.raise, self.write) = (raise, write)
  }

  /// Writes the page of descriptors: type, features, status and number of pages, 16 bits each, and the first page. There
  /// are sixteen, of which one of type 0 is free.
  func describe() {
    let console = [LguestDMA.consoleType, 0, 0, 0, 0, 0].flatMap { [UInt8(truncatingIfNeeded: $0), UInt8($0 >> 8)] }
    _ = memory.store(console + [UInt8](repeating: 0, count: 15 * 12), at: page)
  }

  /// Forgets all buffers.
  func reset() { bindings.withLock { $0 = [:] } }

  /// BIND_DMA: no buffers is the end of a binding. Says whether it is done.
  func bind(_ key: UInt32, buffers: UInt32, count: UInt32, interrupt: UInt8) -> Bool {
    bindings.withLock { bindings in
      guard count > 0 else {
        bindings[key] = nil
        return true
      }
      guard count <= LguestDMA.mostBuffers, (1..<32).contains(interrupt),
        bindings[key] != nil || bindings.count < LguestDMA.mostBindings
      else { return false }
      bindings[key] = Binding(buffers: UInt64(buffers), count: UInt64(count), interrupt: interrupt)
      return true
    }
  }

  /// SEND_DMA: what nobody owns is lost.
  func send(_ key: UInt32, buffer: UInt32) {
    guard key == LguestDMA.consoleKey, let pieces = pieces(of: UInt64(buffer)) else { return }
    var count = 0
    for piece in pieces {
      guard let bytes = memory.bytes(at: piece.address, count: piece.count) else { return }
      for byte in bytes { write(byte) }
      count += bytes.count
    }
    setUsed(count, of: UInt64(buffer))
  }

  // MARK: Buffers

  private func word(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> UInt64 {
    bytes[offset..<offset + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// The pieces of a buffer; nil if it, or a piece, is not all RAM, or if a piece lies across pages.
  private func pieces(of buffer: UInt64) -> [(address: UInt64, count: Int)]? {
    guard let bytes = memory.bytes(at: buffer, count: Buffer.byteCount) else { return nil }
    var pieces: [(address: UInt64, count: Int)] = []
    for index in 0..<Buffer.pieces {
      let count = Int(word(bytes, Buffer.lengths + index * 2, 2))
      if count == 0 { break }
      let address = word(bytes, Buffer.addresses + index * 4, 4)
      guard address & 4095 + UInt64(count) <= 4096, memory.bytes(at: address, count: count) != nil else { return nil }
      pieces.append((address, count))
    }
    return pieces
  }

  private func setUsed(_ count: Int, of buffer: UInt64) {
    _ = memory.store((0..<4).map { UInt8(truncatingIfNeeded: count >> ($0 * 8)) }, at: buffer)
  }

  /// The first buffer of a key that nothing is in.
  private func free(_ key: UInt32) -> (buffer: UInt64, pieces: [(address: UInt64, count: Int)], interrupt: UInt8)? {
    guard let binding = bindings.withLock({ $0[key] }) else { return nil }
    for number in 0..<binding.count {
      let buffer = binding.buffers + number * UInt64(Buffer.byteCount)
      guard let used = memory.bytes(at: buffer, count: 4) else { return nil }
      if word(used, 0, 4) == 0, let pieces = pieces(of: buffer), !pieces.isEmpty {
        return (buffer, pieces, binding.interrupt)
      }
    }
    return nil
  }
}

extension LguestDMA: ConsolePort {
  var takesInput: Bool { free(LguestDMA.consoleKey) != nil }

  func take(_ byte: UInt8) {
    guard let (buffer, pieces, interrupt) = free(LguestDMA.consoleKey), memory.store([byte], at: pieces[0].address)
    else {
      return
    }
    setUsed(1, of: buffer)
    raise(interrupt)
  }
}

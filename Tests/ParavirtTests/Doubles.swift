// SPDX-License-Identifier: Apache-2.0
// What the tests put in place of RAM, clocks, machine and CPU.

import Paravirt
import Synchronization
import X86

/// A little RAM at a given address; counts and can watch its stores.
final class TestMemory: GuestPhysicalWriter {
  let base: UInt64
  let bytes: Mutex<[UInt8]>
  /// The bytes after each store.
  let history = Mutex<[[UInt8]]>([])
  private let keepsHistory: Bool

  init(base: UInt64 = 0, count: Int = 3 * 4096, keepsHistory: Bool = true) {
    self.base = base
    self.keepsHistory = keepsHistory
    bytes = Mutex([UInt8](repeating: 0, count: count))
  }

  var storeCount: Int { history.withLock { $0.count } }

  func contains(_ address: UInt64, byteCount: UInt64) -> Bool {
    let size = bytes.withLock { UInt64($0.count) }
    return address >= base && byteCount <= size && address - base <= size - byteCount
  }

  func load(_ count: Int, at address: UInt64) -> UInt64? {
    guard contains(address, byteCount: UInt64(count)) else { return nil }
    let offset = Int(address - base)
    return bytes.withLock { bytes in
      (0..<count).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64(8 * $1) }
    }
  }

  func put(_ value: UInt64, _ count: Int, at address: UInt64) -> Bool {
    guard contains(address, byteCount: UInt64(count)) else { return false }
    let offset = Int(address - base)
    let after = bytes.withLock { bytes in
      for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
      return keepsHistory ? bytes : []
    }
    if keepsHistory { history.withLock { $0.append(after) } }
    return true
  }

  func loadByte(at address: UInt64) -> UInt8? { load(1, at: address).map { UInt8($0) } }
  func loadWord(at address: UInt64) -> UInt32? { load(4, at: address).map { UInt32($0) } }
  func loadQuadword(at address: UInt64) -> UInt64? { load(8, at: address) }
  func has(_ text: String, in range: Range<UInt64>) -> Bool {
    let text = [UInt8](text.utf8)
    return bytes.withLock { bytes in
      let first = Int(clamping: range.lowerBound &- base),
        end = min(Int(clamping: range.upperBound &- base), bytes.count)
      return first < end && bytes[first..<end].firstRange(of: text) != nil
    }
  }
  func exchangeByte(_ value: UInt8, at address: UInt64) -> UInt8? {
    guard contains(address, byteCount: 1) else { return nil }
    let offset = Int(address - base)
    let (old, after) = bytes.withLock { bytes in
      let old = bytes[offset]
      bytes[offset] = value
      return (old, keepsHistory ? bytes : [])
    }
    if keepsHistory { history.withLock { $0.append(after) } }
    return old
  }
  @discardableResult func store(_ value: UInt8, at address: UInt64) -> Bool { put(UInt64(value), 1, at: address) }
  @discardableResult func store(_ value: UInt32, at address: UInt64) -> Bool { put(UInt64(value), 4, at: address) }
  @discardableResult func store(_ value: UInt64, at address: UInt64) -> Bool { put(value, 8, at: address) }
}

/// Clocks that stand still until they are told; `step` is added to the TSC at each reading.
final class TestTime: GuestTimeSource {
  struct Clocks {
    var timestamp: UInt64 = 0
    var monotonic: UInt64 = 0
    var wall: Int64 = 0
    var step: UInt64 = 0
  }
  let clocks: Mutex<Clocks>

  init(timestamp: UInt64 = 0, monotonic: UInt64 = 0, wall: Int64 = 0) {
    clocks = Mutex(Clocks(timestamp: timestamp, monotonic: monotonic, wall: wall))
  }

  func set(timestamp: UInt64) { clocks.withLock { $0.timestamp = timestamp } }
  func set(monotonic: UInt64) { clocks.withLock { $0.monotonic = monotonic } }
  func set(step: UInt64) { clocks.withLock { $0.step = step } }

  func guestTimestamp() -> UInt64 {
    clocks.withLock {
      $0.timestamp &+= $0.step
      return $0.timestamp
    }
  }
  func monotonicNanoseconds() -> UInt64 { clocks.withLock { $0.monotonic } }
  func wallNanoseconds() -> Int64 { clocks.withLock { $0.wall } }
}

/// The guest's side of `pvclock_vcpu_time_info`, as Linux reads it.
struct TimeStructure: Equatable {
  var version: UInt32
  var timestamp, systemTime: UInt64
  var multiplier: UInt32
  var shift: Int8
  var flags: UInt8

  init?(_ memory: TestMemory, _ address: UInt64) {
    guard let version = memory.loadWord(at: address), let timestamp = memory.load(8, at: address + 8),
      let systemTime = memory.load(8, at: address + 16), let multiplier = memory.loadWord(at: address + 24),
      let shift = memory.loadByte(at: address + 28), let flags = memory.loadByte(at: address + 29)
    else { return nil }
    self.version = version
    self.timestamp = timestamp
    self.systemTime = systemTime
    self.multiplier = multiplier
    self.shift = Int8(bitPattern: shift)
    self.flags = flags
  }

  func nanoseconds(at tsc: UInt64) -> UInt64 {
    var delta = tsc &- timestamp
    delta = shift < 0 ? delta >> UInt64(-Int(shift)) : delta << UInt64(shift)
    let product = delta.multipliedFullWidth(by: UInt64(multiplier))
    return systemTime &+ (product.high << 32 | product.low >> 32)
  }

  /// pvclock_tsc_khz.
  var kilohertz: UInt64 {
    let khz = (UInt64(1_000_000) << 32) / UInt64(multiplier)
    return shift < 0 ? khz << UInt64(-Int(shift)) : khz >> UInt64(shift)
  }
}

/// Records what hypercalls ask of it; CPUs 0..<count accept interrupts.
final class TestMachine: HypercallMachine {
  enum Event: Equatable {
    case kick(UInt32)
    case send(UInt32, UInt32)
    case yield(UInt32)
  }
  var events: [Event] = []
  let count: UInt32
  init(count: UInt32) { self.count = count }

  func kick(apicID: UInt32) { events.append(.kick(apicID)) }
  func send(interruptCommand: UInt32, to apicID: UInt32) -> Bool {
    guard apicID < count else { return false }
    events.append(.send(interruptCommand, apicID))
    return true
  }
  func yield(to apicID: UInt32) { events.append(.yield(apicID)) }
}

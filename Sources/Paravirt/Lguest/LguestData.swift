// SPDX-License-Identifier: Apache-2.0
// struct lguest_data: the memory that a ring-1 guest and its host share, registered by LGUEST_INIT. Its layout changed
// with the years; a guest does not say which it has, but no two of them that one register can point to look alike before it
// is registered.

/// Where the fields are, in bytes from the start.
package struct LguestDataLayout: Sendable, Equatable {
  /// Where interrupts must not be delivered: between two addresses, or at one (that of an IRET).
  enum IretWindow: Equatable {
    case range(start: UInt64, end: UInt64)
    case point(UInt64)
  }

  package let irqPending: UInt64?
  let time: UInt64?
  /// 64 bytes, and 64 calls of `callBytes`.
  package let status: UInt64
  package let calls: UInt64
  package let callBytes: UInt64
  package let reserveMemory: UInt64
  /// Where the guest finds its own number, of two bytes, of which its network cards make their address.
  var guestNumber: UInt64?
  package let timestampKilohertz: UInt64
  /// Where the guest finds the first page tables, if the host has made them.
  var firstTables: UInt64?
  let iretWindow: IretWindow
  /// Not in the first era, in which the kernel's start says it; nor the vector.
  let kernelAddress: UInt64?
  let syscallVector: UInt64?
  let byteCount: UInt64

  // The same in all of them.
  package static let irqEnabled: UInt64 = 0
  package static let blockedInterrupts: UInt64 = 4
  static let cr2: UInt64 = 8
  static let ringCount = 64

  /// Linux 4.0 to 4.13.
  static let from4_0 = LguestDataLayout(
    irqPending: 20, time: 12, status: 24, calls: 88, callBytes: 20, reserveMemory: 1368, timestampKilohertz: 1372,
    iretWindow: .point(1376), kernelAddress: 1380, syscallVector: 1384, byteCount: 1388)
  /// Linux 3.1 to 3.19.
  package static let from3_1 = LguestDataLayout(
    irqPending: 20, time: 12, status: 24, calls: 88, callBytes: 20, reserveMemory: 1368, timestampKilohertz: 1372,
    iretWindow: .range(start: 1376, end: 1380), kernelAddress: 1384, syscallVector: 1388,
    byteCount: 1392)
  /// Linux 2.6.31 to 3.0.
  static let from2_6_31 = LguestDataLayout(
    irqPending: 20, time: 12, status: 24, calls: 88, callBytes: 20, reserveMemory: 1368, timestampKilohertz: 1372,
    firstTables: 1376, iretWindow: .range(start: 1380, end: 1384), kernelAddress: 1388, syscallVector: 1392,
    byteCount: 1396)
  /// Linux 2.6.24 to 2.6.30.
  static let from2_6_24 = LguestDataLayout(
    irqPending: nil, time: 12, status: 20, calls: 84, callBytes: 16, reserveMemory: 1108, timestampKilohertz: 1112,
    firstTables: 1116, iretWindow: .range(start: 1120, end: 1124), kernelAddress: 1128, syscallVector: 1132,
    byteCount: 1136)
  /// Linux 2.6.23.
  static let from2_6_23 = LguestDataLayout(
    irqPending: nil, time: nil, status: 12, calls: 76, callBytes: 16, reserveMemory: 1100, guestNumber: 1104,
    timestampKilohertz: 1108, iretWindow: .range(start: 1112, end: 1116), kernelAddress: nil, syscallVector: nil,
    byteCount: 1120)
  /// The same with the time, which came before the next era, perhaps before its release.
  static let from2_6_23WithTime = LguestDataLayout(
    irqPending: nil, time: 12, status: 20, calls: 84, callBytes: 16, reserveMemory: 1108, guestNumber: 1112,
    timestampKilohertz: 1116, iretWindow: .range(start: 1120, end: 1124), kernelAddress: nil, syscallVector: nil,
    byteCount: 1128)

  /// The vector of system calls, which every guest has.
  static let systemCall: UInt32 = 0x80

  /// Whether what lies at an address is of this layout and has not been registered.
  ///
  /// - Parameter limit: The first linear address that is the host's.
  func fits(_ memory: some GuestPhysicalWriter, _ address: UInt64, limit: UInt32) -> Bool {
    // Its words are read and written as wholes, by processors too.
    guard address & 3 == 0, memory.contains(address, byteCount: byteCount) else { return false }
    func word(_ offset: UInt64) -> UInt32 { memory.loadWord(at: address + offset) ?? 0 }
    guard (0..<UInt64(LguestDataLayout.ringCount / 4)).allSatisfy({ word(status + $0 * 4) == .max }) else {
      return false
    }
    if let syscallVector, word(syscallVector) != LguestDataLayout.systemCall { return false }
    if let kernelAddress {
      let kernel = word(kernelAddress)
      return kernel >= 0x4000_0000 && kernel & 0xF_FFFF == 0 && kernel < limit
    }
    // Without these there are the addresses of a few instructions of the kernel's.
    guard case .range(let start, let end) = iretWindow else { return false }
    return word(start) >= 0x4000_0000 && word(end) >= word(start) && word(end) - word(start) < 64
  }
}

extension LguestDataLayout {
  /// A structure of Linux 3.1 to 3.19 as a guest has it before it registers it: all slots of the ring free, all interrupts
  /// blocked.
  package static func blank3_1(kernelAddress: UInt32) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(from3_1.byteCount))
    func put(_ value: UInt32, at offset: UInt64) {
      for index in 0..<4 { bytes[Int(offset) + index] = UInt8(truncatingIfNeeded: value >> UInt32(index * 8)) }
    }
    put(.max, at: blockedInterrupts)
    for slot in 0..<UInt64(ringCount / 4) { put(.max, at: from3_1.status + slot * 4) }
    if let place = from3_1.kernelAddress { put(kernelAddress, at: place) }
    if let place = from3_1.syscallVector { put(systemCall, at: place) }
    return bytes
  }
}

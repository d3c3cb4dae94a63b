// SPDX-License-Identifier: Apache-2.0
// struct lguest_data: the memory that a ring-1 guest and its host share, registered by LGUEST_INIT. Its layout changed
// with the years; a guest does not say which it has, but no two of them look alike before it is registered.

/// Where the fields are, in bytes from the start.
package struct LguestDataLayout: Sendable, Equatable {
  /// Where interrupts must not be delivered: between two addresses, or at one (that of an IRET).
  enum IretWindow: Equatable {
    case range(start: UInt64, end: UInt64)
    case point(UInt64)
  }

  let irqPending: UInt64?
  let time: UInt64?
  /// 64 bytes, and 64 calls of `callBytes`.
  let status: UInt64
  let calls: UInt64
  let callBytes: UInt64
  let reserveMemory: UInt64
  let timestampKilohertz: UInt64
  let iretWindow: IretWindow
  let kernelAddress: UInt64
  let syscallVector: UInt64
  let byteCount: UInt64

  // The same in all of them.
  static let irqEnabled: UInt64 = 0
  static let blockedInterrupts: UInt64 = 4
  static let cr2: UInt64 = 8
  static let ringCount = 64

  /// Linux 4.0 to 4.13.
  static let from4_0 = LguestDataLayout(
    irqPending: 20, time: 12, status: 24, calls: 88, callBytes: 20, reserveMemory: 1368, timestampKilohertz: 1372,
    iretWindow: .point(1376), kernelAddress: 1380, syscallVector: 1384, byteCount: 1388)
  /// Linux 3.1 to 3.19.
  static let from3_1 = LguestDataLayout(
    irqPending: 20, time: 12, status: 24, calls: 88, callBytes: 20, reserveMemory: 1368, timestampKilohertz: 1372,
    iretWindow: .range(start: 1376, end: 1380), kernelAddress: 1384, syscallVector: 1388,
    byteCount: 1392)
  /// Linux 2.6.31 to 3.0. (At 1376 they find the page tables that a host may make for them.)
  static let from2_6_31 = LguestDataLayout(
    irqPending: 20, time: 12, status: 24, calls: 88, callBytes: 20, reserveMemory: 1368, timestampKilohertz: 1372,
    iretWindow: .range(start: 1380, end: 1384), kernelAddress: 1388, syscallVector: 1392,
    byteCount: 1396)

  static let all = [from4_0, from3_1, from2_6_31]

  /// The vector of system calls, which every guest has.
  static let systemCall: UInt32 = 0x80

  /// The layout of what lies at an address; nil if it is none.
  ///
  /// - Parameter limit: The first linear address that is the host's.
  static func identify(_ memory: some GuestPhysicalWriter, at address: UInt64, limit: UInt32) -> LguestDataLayout? {
    all.first { layout in
      guard memory.contains(address, byteCount: layout.byteCount) else { return false }
      let isFree = (0..<UInt64(ringCount / 4)).allSatisfy {
        memory.loadWord(at: address + layout.status + $0 * 4) == .max
      }
      guard isFree, memory.loadWord(at: address + layout.syscallVector) == systemCall,
        let kernel = memory.loadWord(at: address + layout.kernelAddress)
      else { return false }
      return kernel >= 0x4000_0000 && kernel & 0xF_FFFF == 0 && kernel < limit
    }
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
    put(kernelAddress, at: from3_1.kernelAddress)
    put(systemCall, at: from3_1.syscallVector)
    return bytes
  }
}

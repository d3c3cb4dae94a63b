// SPDX-License-Identifier: Apache-2.0
// Paravirtual end of interrupt: a bit in guest memory that says "nobody waits for your EOI". A guest that finds it set
// clears it and saves the write to its APIC, which is an exit; the host looks at the bit when it next has to know
// (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_EOI_EN).

public import Saving

/// The end-of-interrupt byte of one vCPU.
///
/// Used by the thread that runs the vCPU, while it is stopped; guests use the byte on that vCPU only.
public struct KVMEndOfInterrupt<Memory: GuestPhysicalWriter>: Sendable {
  /// The last value accepted: guest-physical address, 4-byte aligned, and, in bit 0, enable.
  public private(set) var register: UInt64 = 0
  /// The bit was set for the interrupt in service, and what became of it is not known.
  public private(set) var isOffered = false
  private let memory: Memory

  public init(memory: Memory) { self.memory = memory }

  private var address: UInt64 { register & ~3 }

  /// Whether the guest registered a byte.
  public var isEnabled: Bool { register & 1 != 0 }

  private func accepts(_ value: UInt64) -> Bool {
    value & 2 == 0 && (value & 1 == 0 || memory.contains(value & ~3, byteCount: 4))
  }

  /// WRMSR at CPL 0; false is #GP(0), and nothing changes. An offer is forgotten: whoever delivers interrupts takes it
  /// back by `settle` before.
  public mutating func write(_ value: UInt64) -> Bool {
    guard accepts(value) else { return false }
    register = value
    isOffered = false
    return true
  }

  /// Sets the bit for the interrupt that is being delivered. Its end must interest nobody else: no other interrupt
  /// waits, and it is not level-triggered.
  public mutating func offer() {
    if isEnabled { isOffered = memory.store(UInt8(1), at: address) }
  }

  /// What became of an offer.
  ///
  /// - Parameter withdrawing: Whether the end of the interrupt has come to matter: an offer still open is taken back,
  ///   and the guest will write to its APIC.
  /// - Returns: Whether the guest ended its interrupt: the APIC must be told.
  public mutating func settle(withdrawing: Bool) -> Bool {
    guard isOffered else { return false }
    // A byte that is gone reads as "not ended": the guest then writes to its APIC.
    guard let byte = withdrawing ? memory.exchangeByte(0, at: address) : memory.loadByte(at: address) else {
      isOffered = false
      return false
    }
    let isEnded = byte & 1 == 0
    if isEnded || withdrawing { isOffered = false }
    return isEnded
  }

  /// RESET or INIT: the byte is left alone from here on.
  public mutating func reset() {
    register = 0
    isOffered = false
  }
}

extension KVMEndOfInterrupt: SavedState {
  public mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&register, "register")
    try archive.require(accepts(register), "register", register)
    try archive.transfer(&isOffered, "offer")
    try archive.require(isEnabled || !isOffered, "offer")
  }
}

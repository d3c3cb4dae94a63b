// SPDX-License-Identifier: Apache-2.0
// Steal time: how long a vCPU wanted to run and was not let, told to the guest in a structure it registered, and a byte
// beside it that says "not running now". Other vCPUs read the byte to decide whom to wait for; they may also leave
// a wish in it, a TLB flush, instead of interrupting a vCPU that does not run (Linux
// Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME; Wanpeng Li, "KVM: X86: Add Paravirt TLB Shootdown", kvm,
// 2017).

public import Saving

/// The steal-time structure of one vCPU, `struct kvm_steal_time`, 64 bytes.
///
/// Used by the thread that runs the vCPU, while it is stopped.
public struct KVMStealTime<Memory: GuestPhysicalWriter>: Sendable {
  /// Offsets of the fields, in bytes.
  private enum Field {
    static var steal: UInt64 { 0 }
    static var version: UInt64 { 8 }
    static var preempted: UInt64 { 16 }
  }
  private static var byteCount: UInt64 { 64 }
  /// Bits of the `preempted` byte (arch/x86/include/uapi/asm/kvm_para.h).
  private static var preemptedFlag: UInt8 { 1 }
  private static var flushFlag: UInt8 { 2 }
  private static var reserved: UInt64 { 0x3E }

  /// The last value written: guest-physical address of the structure and, in bit 0, enable.
  public private(set) var register: UInt64 = 0
  private let memory: Memory
  /// What of the vCPU's total the guest has been told, in nanoseconds.
  private var told: UInt64 = 0

  public init(memory: Memory) { self.memory = memory }

  private var address: UInt64? {
    let address = register & ~(KVMStealTime.reserved | 1)
    return register & 1 != 0 && memory.contains(address, byteCount: KVMStealTime.byteCount) ? address : nil
  }

  private static func accepts(_ value: UInt64) -> Bool { value & reserved == 0 }

  /// WRMSR at CPL 0; false is #GP(0). An address that is not RAM is accepted and nothing is ever stored.
  ///
  /// - Parameter total: What `resume` would be given now: the guest is told only what it waits from here on.
  public mutating func write(_ value: UInt64, total: UInt64) -> Bool {
    guard KVMStealTime.accepts(value) else { return false }
    register = value
    told = total
    _ = resume(total: total)
    return true
  }

  /// The vCPU is being scheduled out although it could run, and executes nothing until `resume`.
  public func preempt() {
    if let address { memory.store(KVMStealTime.preemptedFlag, at: address + Field.preempted) }
  }

  /// The vCPU is about to execute guest code after not running.
  ///
  /// - Parameter total: How long it waited while it could have run, in nanoseconds, since it exists.
  /// - Returns: Whether another vCPU wants its TLB flushed, global entries too, before it executes anything.
  public mutating func resume(total: UInt64) -> Bool {
    guard let address else { return false }
    // One step: a wish that comes later finds the vCPU running and sends an interrupt.
    let wishes = memory.exchangeByte(0, at: address + Field.preempted) ?? 0
    update(total: total)
    return wishes & KVMStealTime.flushFlag != 0
  }

  /// Tells the guest how long the vCPU has waited by now, if that has changed.
  public mutating func update(total: UInt64) {
    guard let address, total != told, let version = memory.loadWord(at: address + Field.version),
      let steal = memory.loadQuadword(at: address + Field.steal)
    else { return }
    let odd = (version &+ 1) | 1
    memory.store(odd, at: address + Field.version)
    memory.store(steal &+ (total &- told), at: address + Field.steal)
    memory.store(odd &+ 1, at: address + Field.version)
    told = total
  }

  /// RESET or INIT: nothing is stored any more.
  public mutating func reset() { register = 0 }
}

extension KVMStealTime: SavedState {
  /// What the guest has been told stands in its own memory; a restored vCPU begins to wait anew.
  public mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&register, "register")
    try archive.require(KVMStealTime.accepts(register), "register", register)
    if archive.isRestoring { told = 0 }
  }
}

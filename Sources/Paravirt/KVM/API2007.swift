// SPDX-License-Identifier: Apache-2.0
// KVM's first hypercall interface: a guest registers a page by writing its address to a model-specific register, and
// the host patches a stub in the guest into VMCALL or VMMCALL and a return (Ingo Molnar, "[PATCH 7/13] KVM: add MSR
// based hypercall API", linux-kernel, 19 February 2007). The calls themselves are the host program's.

import Engine
import X86

/// Which of KVM's hypercall interfaces a guest meets.
public enum KVMInterface: String, Sendable, CaseIterable {
  /// Today's.
  case modern
  /// That of August 2007: no register, and no hypercall that exists.
  case refactored
  /// That of February 2007: the register, and hypercalls that the host program answers.
  case year2007 = "2007"
}

/// What one vCPU has registered.
public struct KVMRegistration2007: Sendable, Equatable {
  /// MSR_KVM_API_MAGIC. Only WRMSR knows it.
  public static let register: UInt32 = 0x8765_5678
  /// KVM_PARA_API_VERSION.
  public static let version: UInt32 = 1
  /// -KVM_EINVAL, which is 1 in this interface.
  static let refused: UInt32 = 0xFFFF_FFFF

  /// Guest-physical addresses of the page and of the stub.
  public let page: UInt64
  public let stub: UInt64
}

/// How a registration went, for those who watch.
public struct KVMRegistrationRecord: Sendable, Equatable {
  /// What the guest wrote to the register and, if that was the address of a page, what stood there.
  public let address: UInt64
  public internal(set) var guestVersion: UInt32?
  public internal(set) var size: UInt32?
  public internal(set) var stub: UInt64?
  /// What was registered; nil if it was refused.
  public internal(set) var registration: KVMRegistration2007?

  /// One line, in the words of 2007.
  public var text: String {
    func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
    var text = "guest trying to enter paravirtual mode: para_state_gpa \(hex(address))"
    if let guestVersion { text += ", guest version \(guestVersion)" }
    if let size { text += ", size \(size)" }
    if let stub { text += ", hypercall_gpa \(hex(stub))" }
    return text + (registration == nil ? ": refused" : ": para guest successfully registered")
  }
}

/// The page `kvm_vcpu_para_state`: what a guest of 2007 and its host tell each other.
public enum KVMParaState {
  /// Offsets of its fields, in bytes.
  enum Field {
    static let guestVersion: UInt64 = 0, hostVersion: UInt64 = 4, size: UInt64 = 8, result: UInt64 = 12
    static let stub: UInt64 = 16
  }
  static let byteCount: UInt64 = 4096

  /// WRMSR of the register. A record without a guest version is #GP(0); otherwise WRMSR completes.
  ///
  /// Registering again replaces what was registered; there is no way to take it back but a reset.
  public static func register<Memory: GuestPhysicalWriter>(
    _ address: UInt64, in memory: Memory, native: HypercallOpcode
  ) -> KVMRegistrationRecord {
    var record = KVMRegistrationRecord(address: address)
    guard address & (byteCount - 1) == 0, memory.contains(address, byteCount: byteCount),
      let version = memory.loadWord(at: address + Field.guestVersion)
    else { return record }
    record.guestVersion = version
    record.size = memory.loadWord(at: address + Field.size)
    // The host's version is told whatever the guest's is. The store also marks the page as written.
    memory.store(KVMRegistration2007.version, at: address + Field.hostVersion)
    // A newer host serves older guests; an older host refuses newer ones.
    guard version <= KVMRegistration2007.version, let low = memory.loadWord(at: address + Field.stub),
      let high = memory.loadWord(at: address + Field.stub + 4)
    else {
      memory.store(KVMRegistration2007.refused, at: address + Field.result)
      return record
    }
    let stub = UInt64(high) << 32 | UInt64(low)
    record.stub = stub
    // The stub may lie anywhere, also across pages; where the original ran past a page, all four bytes must be RAM.
    guard memory.contains(stub, byteCount: 4) else {
      memory.store(KVMRegistration2007.refused, at: address + Field.result)
      return record
    }
    let returnNear: UInt32 = 0xC3
    let code = native.bytes.enumerated().reduce(returnNear << 24) { $0 | UInt32($1.element) << UInt32(8 * $1.offset) }
    memory.store(code, at: stub)
    memory.store(UInt32(0), at: address + Field.result)
    record.registration = KVMRegistration2007(page: address, stub: stub)
    return record
  }
}

/// A hypercall of 2007, by the register convention of the merged kernel.
public struct KVMCall2007: Sendable, Equatable {
  public var number: UInt64
  /// Six.
  public var arguments: [UInt64]
  /// Decided by EFER.LMA, whatever the code segment says.
  public var isLong: Bool
  /// What the guest gets if nobody answers: -KVM_EINVAL.
  public static let unanswered = UInt64.max

  /// Reads the registers: in long mode the number is in RAX and the arguments are in RDI, RSI, RDX, RCX, R8 and R9;
  /// else in EBX and in EAX, ECX, EDX, ESI, EDI and EBP.
  public init(_ cpu: some CPUEngine) {
    isLong = cpu.isLongModeActive
    let registers = cpu.generalRegisters
    number = isLong ? registers[GPR.rax] : registers[GPR.rbx] & 0xFFFF_FFFF
    arguments =
      isLong
      ? [GPR.rdi, GPR.rsi, GPR.rdx, GPR.rcx, GPR.r8, GPR.r9].map { registers[$0] }
      : [GPR.rax, GPR.rcx, GPR.rdx, GPR.rsi, GPR.rdi, GPR.rbp].map { registers[$0] & 0xFFFF_FFFF }
  }
}

// SPDX-License-Identifier: Apache-2.0
// The other vendor's hypercall instruction: performed for the guest each time, or replaced in guest memory the first
// time, as KVM does since 2007 (Anthony Liguori, "KVM: Refactor hypercall infrastructure (v3)", kvm-devel). A guest
// that moves between vendors heals call by call; other instructions are left alone.

import Engine
import X86

/// Answers `VCPUExit.foreignHypercall`.
public struct HypercallPatching: Sendable {
  /// What was done.
  public enum Outcome: Sendable, Equatable {
    /// To be performed; the instruction has been skipped.
    case perform
    /// The instruction is now the vendor's own and runs again.
    case patched
    /// The instruction changed in the meantime: whatever is there now runs.
    case retried
    /// The guest got #UD, #GP or the page fault of the store.
    case refused
  }

  private let native: HypercallOpcode
  private let policy: HypercallPolicy

  public init(native: HypercallOpcode, policy: HypercallPolicy) {
    self.native = native
    self.policy = policy
  }

  /// Deals with the instruction at RIP.
  public func answer(_ cpu: some CPUEngine) -> Outcome {
    let place = cpu.linearInstructionPointer
    let code = cpu.read(linear: place, count: HypercallOpcode.byteCount, as: .code)
    guard let opcode = HypercallOpcode(code: code) else { return refuse(cpu, .invalidOpcode) }
    // Another vCPU was first. Fetching anew makes sure that this one sees what it wrote.
    guard opcode != native else {
      cpu.refetchCode()
      return .retried
    }
    switch policy {
    case .emulate:
      cpu.skip(byteCount: HypercallOpcode.byteCount)
      return .perform
    case .patch:
      // KVM's emulator: VMMCALL needs protected mode, VMCALL is privileged.
      if opcode == .vmmcall && !cpu.isProtected { return refuse(cpu, .invalidOpcode) }
      if opcode == .vmcall && cpu.currentPrivilegeLevel > 0 { return refuse(cpu, .generalProtection()) }
      // In the guest's name: where it may not write the fault is its own. Only the last byte differs, and only that is
      // stored: no other vCPU sees half an instruction, or loses a breakpoint that it puts there.
      let last = UInt64(HypercallOpcode.byteCount - 1)
      if let fault = cpu.storeFault(linear: place, count: HypercallOpcode.byteCount, as: .data)
        ?? cpu.write(linear: place &+ last, [native.rawValue], as: .data)
      {
        return refuse(cpu, fault)
      }
      cpu.refetchCode()
      return .patched
    case .native, .fault: return refuse(cpu, .invalidOpcode)
    }
  }

  private func refuse(_ cpu: some CPUEngine, _ exception: Exception) -> Outcome {
    cpu.raise(exception)
    return .refused
  }
}

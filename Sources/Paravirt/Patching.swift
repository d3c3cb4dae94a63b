// SPDX-License-Identifier: Apache-2.0
// The other vendor's hypercall instruction: performed for the guest each time, or replaced in guest memory the first
// time, as KVM does since 2007 (Anthony Liguori, "KVM: Refactor hypercall infrastructure (v3)", kvm-devel). A guest
// that moves between vendors heals call by call; an instruction that is no hypercall is none of our business.

import X86

/// Answers `VCPUExit.foreignHypercall`.
public struct HypercallPatching: Sendable {
  /// What was done.
  public enum Outcome: Sendable, Equatable {
    /// To be performed; `skipHypercall` has been called.
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
  ///
  /// - Parameter isProtected: Whether CR0.PE is set.
  public func answer<Engine: CPUEngine>(_ cpu: Engine, isProtected: Bool) -> Outcome {
    guard let opcode = HypercallOpcode(code: cpu.hypercallCode) else {
      cpu.refuseHypercall(privileged: false)
      return .refused
    }
    // Another vCPU was first. Fetching anew makes sure that this one sees what it wrote.
    guard opcode != native else {
      cpu.refetchCode()
      return .retried
    }
    switch policy {
    case .emulate:
      cpu.skipHypercall()
      return .perform
    case .patch:
      // KVM's emulator: VMMCALL needs protected mode, VMCALL is privileged.
      if opcode == .vmmcall && !isProtected {
        cpu.refuseHypercall(privileged: false)
        return .refused
      }
      if opcode == .vmcall && cpu.currentPrivilegeLevel > 0 {
        cpu.refuseHypercall(privileged: true)
        return .refused
      }
      guard cpu.replaceHypercall(with: native) else { return .refused }
      cpu.refetchCode()
      return .patched
    case .native, .fault:
      cpu.refuseHypercall(privileged: false)
      return .refused
    }
  }
}

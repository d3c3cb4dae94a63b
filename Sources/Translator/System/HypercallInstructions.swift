// SPDX-License-Identifier: Apache-2.0
// VMCALL and VMMCALL: the vendor's own leaves for the machine, the other one does what the policy says.

import Engine
import X86

extension Processor {
  /// VMCALL, VMMCALL. Neither takes a 66, F2 or F3 prefix (SDM volume 3, chapter 31; APM volume 3).
  func hypercall(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    guard !instruction.hasOperandSizePrefix, instruction.repeatPrefix == 0 else { throw .invalidOpcode }
    if instruction.modRM != state.nativeHypercall?.rawValue {
      switch state.hypercallPolicy {
      case .native: break
      case .fault: throw .invalidOpcode
      case .emulate, .patch:
        // A prefixed form is left alone: the three bytes to replace would not be those at RIP.
        guard instruction.length == HypercallOpcode.byteCount else { throw .invalidOpcode }
        return .exit(.foreignHypercall)
      }
    }
    advance(instruction)
    return .exit(.hypercall)
  }
}

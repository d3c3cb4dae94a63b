// SPDX-License-Identifier: Apache-2.0
// Model-specific registers that only AMD's CPUs have, as far as Linux reads them without asking first. KVM answers the
// same (AMD PPR for family 17h, chapter 2.1; registers in parentheses by their Linux names).

import X86

extension Processor {
  private enum AMDRegister {
    /// Performance counters and what they count (MSR_K7_EVNTSEL0, MSR_K7_PERFCTR0): there are none.
    static let performance: ClosedRange<UInt32> = 0xC001_0000...0xC001_0007
    static let systemConfiguration: UInt32 = 0xC001_0010  // MSR_AMD64_SYSCFG
    static let hardwareConfiguration: UInt32 = 0xC001_0015  // MSR_K7_HWCR
    static let northbridgeConfiguration: UInt32 = 0xC001_001F  // MSR_AMD64_NB_CFG
    static let decodeConfiguration: UInt32 = 0xC001_1029  // MSR_AMD64_DE_CFG
    /// LFENCE is serializing.
    static let serializingLFENCE: UInt64 = 1 << 1
  }

  private var isAMD: Bool { state.cpuid.isAMD }

  /// The value of a register of AMD's; nil if the CPU has none of that number.
  func readVendorMSR(_ index: UInt32) -> UInt64? {
    guard isAMD else { return nil }
    return switch index {
    case AMDRegister.performance, AMDRegister.systemConfiguration, AMDRegister.hardwareConfiguration,
      AMDRegister.northbridgeConfiguration:
      0
    case AMDRegister.decodeConfiguration: AMDRegister.serializingLFENCE
    default: nil
    }
  }

  /// Accepts a write without effect. Returns false if the CPU has no such register.
  func writeVendorMSR(_ index: UInt32) -> Bool { readVendorMSR(index) != nil }
}

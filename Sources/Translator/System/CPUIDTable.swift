// SPDX-License-Identifier: Apache-2.0
// CPUID. The machine decides the model and supplies the leaves (X86's CPUIDTable); here are the instruction and the
// features that the engine itself asks about.

import CHost
import X86

extension CPUIDTable {
  func basicECX(_ bit: UInt32) -> Bool { stored(1).ecx >> bit & 1 != 0 }
  func basicEDX(_ bit: UInt32) -> Bool { stored(1).edx >> bit & 1 != 0 }
  func structuredEBX(_ bit: UInt32) -> Bool { stored(7).ebx >> bit & 1 != 0 }
  func structuredECX(_ bit: UInt32) -> Bool { stored(7).ecx >> bit & 1 != 0 }
  func extendedEDX(_ bit: UInt32) -> Bool { stored(0x8000_0001).edx >> bit & 1 != 0 }

  /// State components that XCR0 may enable: x87, SSE, AVX at most.
  var supportedXCR0: UInt64 {
    guard basicECX(26) else { return 1 }
    return basicECX(28) ? 7 : 3
  }
  var hasRDTSCP: Bool { extendedEDX(27) }
  var hasRDPID: Bool { structuredECX(22) }
}

extension Processor {
  /// CPUID.
  func cpuid() {
    let answer = cpuid(
      UInt32(truncatingIfNeeded: page[register: GPR.rax]), UInt32(truncatingIfNeeded: page[register: GPR.rcx]))
    page[register: GPR.rax] = UInt64(answer.eax)
    page[register: GPR.rbx] = UInt64(answer.ebx)
    page[register: GPR.rcx] = UInt64(answer.ecx)
    page[register: GPR.rdx] = UInt64(answer.edx)
  }

  /// What CPUID answers now.
  func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDRegisters {
    state.cpuid.execute(
      leaf: leaf, subleaf: subleaf, cr4: page[\.cr4], xcr0: page[\.xcr0], apicEnabled: state.isAPICEnabled)
  }
}

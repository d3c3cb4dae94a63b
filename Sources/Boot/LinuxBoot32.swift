// SPDX-License-Identifier: Apache-2.0
// Linux's 32-bit boot protocol: flat protected mode, paging off, ESI holds the zero page, EBP, EDI and EBX are zero
// (Linux, Documentation/arch/x86/boot.rst, "32-bit Boot Protocol"). Every bzImage has this entry, 64-bit ones too.

import GuestMemory
import X86

enum LinuxBoot32 {
  /// Writes the descriptor table and returns the CPU at `entry`.
  static func prepare(_ memory: GuestMemory, entry: UInt64) throws(BootError) -> CPUState {
    var state = try FlatSegments.install(in: memory, code: .flatCode32)
    state.cr0 = CR0.et | CR0.pe
    state.rip = entry
    state[register: GPR.rsi] = BootLayout.zeroPage
    return state
  }
}

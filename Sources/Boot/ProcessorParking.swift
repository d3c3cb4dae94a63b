// SPDX-License-Identifier: Apache-2.0
// Where application processors wait if the kernel is to start them through a mailbox instead of by INIT and start-up
// IPIs: a loop of firmware code in 64-bit mode, everything it needs in memory that the kernel is told to leave alone
// (ACPI 6.5, 5.2.12.19, multiprocessor wakeup structure).

import GuestMemory
import X86

/// The waiting room of application processors.
package enum ProcessorParking {
  /// The mailbox: command, APIC ID and address, the rest of its first half the kernel's; the second half is ours.
  package static let mailbox: UInt64 = 0xF_0000
  private static let code = mailbox + 0x800
  private static let segments = mailbox + 0xC00
  private static let pageTables = mailbox + 0x1000

  private static let loop: [UInt8] = [
    0xF3, 0x90,  // pause
    0x66, 0x83, 0x3C, 0x25, 0x00, 0x00, 0x0F, 0x00, 0x01,  // cmp word [mailbox], 1
    0x75, 0xF3,  // jne from the start
    0x39, 0x1C, 0x25, 0x04, 0x00, 0x0F, 0x00,  // cmp [mailbox + 4], ebx
    0x75, 0xEA,  // jne from the start
    0x48, 0x8B, 0x04, 0x25, 0x08, 0x00, 0x0F, 0x00,  // mov rax, [mailbox + 8]
    0x66, 0xC7, 0x04, 0x25, 0x00, 0x00, 0x0F, 0x00, 0x00, 0x00,  // mov word [mailbox], 0
    0xFF, 0xE0,  // jmp rax
  ]

  /// Writes the mailbox, the loop and its tables, and returns a processor in the loop; its APIC ID goes to EBX.
  package static func prepare(_ memory: GuestMemory) throws(BootError) -> CPUState {
    try memory.clear(GuestPhysical(mailbox), count: 4096)
    try memory.place(loop, at: code)
    try memory.place(LinuxBoot64.pageTables(at: pageTables), at: pageTables)
    var state = try FlatSegments.install(in: memory, code: .flatCode64, at: segments)
    state.tr = .task64
    state.cr0 = CR0.pg | CR0.et | CR0.pe
    state.cr3 = pageTables
    state.cr4 = CR4.pae
    state.efer = EFER.lma | EFER.lme
    state.rip = code
    state[register: GPR.rsp] = code
    return state
  }
}

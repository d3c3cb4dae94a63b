// SPDX-License-Identifier: Apache-2.0
// Linux's 64-bit boot protocol: the boot CPU is already in long mode with the first 4 GiB mapped one to one, and
// RSI holds the zero page (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

import GuestMemory
import X86

enum LinuxBoot64 {
  /// Writes the tables and returns the CPU at `entry`.
  static func prepare(_ memory: GuestMemory, entry: UInt64) throws(BootError) -> CPUState {
    try memory.place(pageTables(at: BootLayout.pageTables), at: BootLayout.pageTables)
    var state = try FlatSegments.install(in: memory, code: .flatCode64)
    // A 64-bit TSS descriptor is 16 bytes long: entries 4 and 5 of the table.
    state.tr = .task64
    state.cr0 = CR0.pg | CR0.et | CR0.pe
    state.cr3 = BootLayout.pageTables
    state.cr4 = CR4.pae
    state.efer = EFER.lma | EFER.lme
    state.rip = entry
    state[register: GPR.rsi] = BootLayout.zeroPage
    return state
  }

  /// One PML4, one page-directory-pointer table and four page directories of 2 MiB pages: 0 to 4 GiB, writable.
  static func pageTables(at base: UInt64) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 6 * 4096)
    bytes.setLittle(base + 0x1000 | 3, at: 0)
    for gib in 0..<4 { bytes.setLittle(base + 0x2000 + UInt64(gib) * 4096 | 3, at: 0x1000 + gib * 8) }
    for page in 0..<2048 { bytes.setLittle(UInt64(page) << 21 | 0x83, at: 0x2000 + page * 8) }
    return bytes
  }
}

/// The descriptor table all protocols use: code at selector 0x10, data at 0x18, a busy TSS at 0x20.
enum FlatSegments {
  /// Writes the table and returns a CPU whose segment registers are loaded from it. Interrupts are off.
  ///
  /// - Parameter address: Where the table goes, and an empty interrupt table 64 bytes behind it.
  static func install(
    in memory: GuestMemory, code: Segment, at address: UInt64 = BootLayout.gdt
  ) throws(BootError) -> CPUState {
    let idt = address + BootLayout.idt - BootLayout.gdt
    let is64Bit = code.attributes & 0x2000 != 0
    let table: [UInt64] = [
      0, 0, is64Bit ? 0x00AF_9B00_0000_FFFF : 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF,
      is64Bit ? 0x008F_8B00_0000_FFFF : 0x0000_8B00_0000_0067, 0,
    ]
    var bytes: [UInt8] = []
    for entry in table { bytes.appendLittle(entry) }
    try memory.place(bytes, at: address)
    try memory.place([UInt8](repeating: 0, count: 8), at: idt)

    var state = CPUState()
    state.cs = code
    state.ds = .flatData
    state.es = .flatData
    state.ss = .flatData
    state.fs = .flatData
    state.gs = .flatData
    state.ldtr = .unusable
    state.tr = .task32
    state.gdtr = DescriptorTable(base: address, limit: UInt16(bytes.count - 1))
    state.idtr = DescriptorTable(base: idt, limit: 7)
    state.rflags = RFLAGS.ones
    state[register: GPR.rsp] = BootLayout.stackTop  // no protocol asks for a stack, every kernel likes one
    return state
  }
}

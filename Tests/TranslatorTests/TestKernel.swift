// SPDX-License-Identifier: Apache-2.0
// What a test's kernel is made of, whoever uses it: where its tables are, descriptors, gates, page tables of four levels,
// the CPUID that it sees and the state in which it starts.

import GuestMemory
import X86

/// A guest with the tables of a kernel.
protocol TestKernel: AnyObject {
  var memory: GuestMemory { get }
  /// Whether level 3 may use a page of the first 2 MiB, or of 2 MiB behind them.
  static func isUser(page: UInt64) -> Bool
  static func isUser(region: UInt64) -> Bool
  /// Descriptors behind those that all have, from 0x80 on.
  static var moreDescriptors: [UInt64] { get }
}

extension TestKernel {
  // MARK: Places

  static var pml4: UInt64 { 0x1000 }
  static var pdpt: UInt64 { 0x2000 }
  static var directory: UInt64 { 0x3000 }
  static var table: UInt64 { 0x4000 }
  static var gdt: UInt64 { 0x5000 }
  static var idt: UInt64 { 0x6000 }
  static var tss: UInt64 { 0x7000 }
  static var code: UInt64 { 0x10000 }
  static var data: UInt64 { 0x20000 }
  static var stack: UInt64 { 0x80000 }
  /// The stack of level 0 in the task state, and the first of its table.
  static var stack0: UInt64 { 0x90000 }
  static var interruptStack: UInt64 { 0xA0000 }
  /// HLT for each vector, 16 bytes apart; those of SYSCALL and SYSENTER follow.
  static var handlers: UInt64 { 0xB0000 }
  static var systemCallHandler: UInt64 { handlers + 0x1000 }

  static var kernelCode32: UInt64 { 0x08 }
  static var kernelCode: UInt64 { 0x10 }
  static var kernelData: UInt64 { 0x18 }
  static var userCode32: UInt64 { 0x23 }
  static var userData: UInt64 { 0x2B }
  static var userCode: UInt64 { 0x33 }
  static var task: UInt64 { 0x40 }

  // MARK: Tables

  static var descriptors: [UInt64] {
    [
      0, 0x00CF_9B00_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF,  // 08 10 18: kernel
      0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_1300_0000_FFFF,  // 20 28 30: user
      tss << 16 | 0x0000_8B00_0000_0067, 0,  // 40: TSS
      0x0000_9B00_0000_FFFF, 0x0000_9300_0000_FFFF,  // 50 58: 16-bit code and data
      0x0040_9700_0000_0FFF, 0x0040_9302_0000_00FF,  // 60: expand-down, 68: 256 bytes at 20000
      0x00CF_9100_0000_FFFF, 0x00CF_F900_0000_FFFF,  // 70: read-only, 78: execute-only, DPL 3
    ] + moreDescriptors
  }

  static func privilege(ofGate vector: UInt8) -> UInt64 { [3, 4, 0x80].contains(vector) ? 3 : 0 }

  /// An interrupt gate to a vector's handler, the first half of one of 64 bits or one of 32.
  static func gate(
    _ vector: UInt8, to selector: UInt64, privilege: UInt64, stack: UInt64 = 0, trap: Bool = false
  ) -> UInt64 {
    let target = handlers + UInt64(vector) * 16
    let access = 0x8E | privilege << 5 | (trap ? 1 : 0)
    return target & 0xFFFF | selector << 16 | stack << 32 | access << 40 | (target >> 16) << 48
  }

  /// Writes page tables for the first 1 GiB and for the fourth, which is not RAM; GDT, TSS, IDT and handlers.
  func makeKernelTables() throws {
    func poke<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: UInt64) throws {
      try memory.store(value, at: GuestPhysical(address))
    }
    try poke(Self.pdpt | 7, at: Self.pml4)
    try poke(Self.directory | 7, at: Self.pdpt)
    try poke(0xC000_0000 | UInt64(0x87), at: Self.pdpt + 24)
    try poke(Self.table | 7, at: Self.directory)
    for index in UInt64(1)..<512 {
      try poke(index << 21 | (Self.isUser(region: index << 21) ? 0x87 : 0x83), at: Self.directory + index * 8)
    }
    for page in UInt64(0)..<512 { try poke(page << 12 | (Self.isUser(page: page) ? 7 : 3), at: Self.table + page * 8) }
    for (index, value) in Self.descriptors.enumerated() { try poke(value, at: Self.gdt + UInt64(index) * 8) }
    try poke(Self.stack0, at: Self.tss + 4)
    try poke(Self.interruptStack, at: Self.tss + 36)
    try poke(UInt16(0x68), at: Self.tss + 102)
    for vector in UInt8(0)...255 {
      let entry = Self.idt + UInt64(vector) * 16
      try poke(Self.gate(vector, to: Self.kernelCode, privilege: Self.privilege(ofGate: vector)), at: entry)
      try poke(UInt64(0), at: entry + 8)
      // HLT, and HLT again.
      try poke(UInt32(0x90FD_EBF4), at: Self.handlers + UInt64(vector) * 16)
    }
  }

  // MARK: Processor

  /// What all of a kernel's processors say of themselves: everything that the engine offers but MONITOR.
  static var cpuid: CPUIDTable { .testProcessor(isAMD: false) }

  static func segment(
    _ selector: some BinaryInteger, _ attributes: UInt32, base: UInt64 = 0, limit: UInt32 = .max
  ) -> Segment {
    Segment(selector: UInt16(truncatingIfNeeded: selector), base: base, limit: limit, attributes: attributes)
  }

  /// State before the first instruction: 64-bit mode, level 0 or 3, everything that a kernel enables.
  static func longState(user: Bool = false) -> CPUState {
    var state = CPUState()
    state.cs = user ? segment(userCode, 0xA0FB) : segment(kernelCode, 0xA09B)
    state.setDataSegments(user ? segment(userData, 0xC0F3) : segment(kernelData, 0xC093))
    state.tr = segment(task, 0x8B, base: tss, limit: 0x67)
    state.ldtr = .unusable
    state.gdtr = DescriptorTable(base: gdt, limit: UInt16(descriptors.count * 8 - 1))
    state.idtr = DescriptorTable(base: idt, limit: 0xFFF)
    state.cr0 = CR0.pg | CR0.wp | CR0.ne | CR0.et | CR0.mp | CR0.pe
    state.cr3 = pml4
    state.cr4 = CR4.osxsave | CR4.osxmmexcpt | CR4.osfxsr | CR4.pge | CR4.pae | CR4.pse
    state.efer = EFER.nxe | EFER.lma | EFER.lme | EFER.sce
    state.xcr0 = 7
    state.star = 0x0020_0010_0000_0000
    state.lstar = systemCallHandler
    state.rip = code
    state[register: GPR.rsp] = stack
    return state
  }
}

extension CPUState {
  /// SS, DS, ES, FS and GS.
  mutating func setDataSegments(_ segment: Segment) {
    for path in [\CPUState.ss, \.ds, \.es, \.fs, \.gs] { self[keyPath: path] = segment }
  }
}

extension CPUIDTable {
  /// A processor with everything that the engine offers but MONITOR.
  static func testProcessor(isAMD: Bool) -> CPUIDTable {
    CPUIDTable([
      isAMD
        ? .init(0, subleaf: nil, eax: 7, ebx: 0x6874_7541, ecx: 0x444D_4163, edx: 0x6974_6E65)
        : .init(0, subleaf: nil, eax: 7, ebx: 0x756E_6547, ecx: 0x6C65_746E, edx: 0x4965_6E69),
      .init(1, subleaf: nil, eax: 0x106CA, ebx: 0, ecx: 0xFFFF_FFFF & ~(1 << 3), edx: 0x178B_FBFF),
      .init(7, subleaf: 0, eax: 0, ebx: 0x0010_04A9, ecx: 4, edx: 0),
      .init(0x8000_0000, subleaf: nil, eax: 0x8000_0001, ebx: 0, ecx: 0, edx: 0),
      .init(0x8000_0001, subleaf: nil, eax: 0, ebx: 0, ecx: 0x21, edx: 0x2C10_0800),
    ])
  }
}

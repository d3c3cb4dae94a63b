// SPDX-License-Identifier: Apache-2.0
// CR0 to CR8 and XCR0: which bits exist, which combinations are refused, what a change flushes (SDM volume 3, 2.5,
// 2.6, 4.1.2, 4.4.1, 4.10.4 and 9.8.5).

import CHost
import X86

extension CR4 {
  /// A change of one of these invalidates our translations: those that PCIDE ends, and rights that the tables keep.
  static let translations = paging | pcide | smap

  /// The bits whose features a CPU model has.
  static func supported(by cpuid: CPUIDTable) -> UInt64 {
    var bits = pce
    if cpuid.basicEDX(1) { bits |= vme | pvi }
    if cpuid.basicEDX(2) { bits |= de }
    if cpuid.basicEDX(3) { bits |= pse }
    if cpuid.basicEDX(4) { bits |= tsd }
    if cpuid.basicEDX(6) { bits |= pae }
    if cpuid.basicEDX(7) { bits |= mce }
    if cpuid.basicEDX(13) { bits |= pge }
    if cpuid.basicEDX(24) { bits |= osfxsr }
    if cpuid.basicEDX(25) { bits |= osxmmexcpt }
    if cpuid.basicECX(17) { bits |= pcide }
    if cpuid.basicECX(26) { bits |= osxsave }
    if cpuid.structuredECX(2) { bits |= umip }
    if cpuid.structuredEBX(0) { bits |= fsgsbase }
    if cpuid.structuredEBX(7) { bits |= smep }
    if cpuid.structuredEBX(20) { bits |= smap }
    return bits
  }
}

extension EFER {
  /// The bits whose features a CPU model has.
  static func supported(by cpuid: CPUIDTable) -> UInt64 {
    var bits: UInt64 = 0
    if cpuid.extendedEDX(11) || cpuid.isAMD { bits |= sce }
    if cpuid.extendedEDX(20) { bits |= nxe }
    if cpuid.extendedEDX(29) { bits |= lme | lma }
    return bits
  }
}

extension Processor {
  // MARK: Instructions

  func moveFromControl(_ instruction: Instruction) throws(Fault) {
    try requireControlAccess()
    let value: UInt64
    switch instruction.reg {
    case 0: value = page[\.cr0]
    case 2: value = page[\.cr2]
    case 3: value = page[\.cr3]
    case 4: value = page[\.cr4]
    case 8 where page.isLongMode: value = page[\.cr8]
    default: throw .invalidOpcode
    }
    setRegister(instruction.rm, value, size: page.isLongMode ? 8 : 4)
  }

  func moveToControl(_ instruction: Instruction) throws(Fault) {
    guard [0, 2, 3, 4].contains(instruction.reg) || (instruction.reg == 8 && page.isLongMode) else {
      throw .invalidOpcode
    }
    try requireControlAccess()
    let value = register(instruction.rm, size: page.isLongMode ? 8 : 4)
    switch instruction.reg {
    case 0: try writeCR0(value)
    case 2: page[\.cr2] = value
    case 3: try writeCR3(value)
    case 4: try writeCR4(value)
    default:
      guard CR8.accepts(value) else { throw .generalProtection() }
      page[\.cr8] = value
      state.taskPriorityWritten = true
    }
  }

  private func requireControlAccess() throws(Fault) {
    // In virtual-8086 mode the privilege level is 3.
    try requirePrivilege()
  }

  func clearTaskSwitched() throws(Fault) {
    try requirePrivilege()
    page[\.cr0] = page[\.cr0] & ~CR0.ts
    page.updateMode()
  }

  /// SMSW stores CR0: 16 bits to memory, operand size to a register.
  func storeMachineStatus(_ instruction: Instruction) throws(Fault) {
    try requireUserInstruction()
    try writeRM(instruction, page[\.cr0], size: instruction.isMemory ? 2 : instruction.operandSize)
  }

  /// LMSW writes PE, MP, EM and TS; it cannot clear PE.
  func loadMachineStatus(_ instruction: Instruction) throws(Fault) {
    try requirePrivilege()
    let value = try readRM(instruction, size: 2)
    let old = page[\.cr0]
    try writeCR0(old & ~0xE | value & 0xE | (old | value) & CR0.pe)
  }

  // MARK: CR0

  func writeCR0(_ value: UInt64) throws(Fault) {
    guard CR0.accepts(value) else { throw .generalProtection() }
    let old = page[\.cr0]
    let new = CR0.stored(value)
    var efer = page[\.efer]
    let cr4 = page[\.cr4]
    if (new ^ old) & CR0.pg != 0 {
      if new & CR0.pg == 0 {
        // 64-bit code cannot turn paging off.
        if page.isLongMode || cr4 & CR4.pcide != 0 { throw .generalProtection() }
        efer &= ~EFER.lma
      } else if efer & EFER.lme != 0 {
        guard cr4 & CR4.pae != 0, page[.cs].attributes & 0x2000 == 0 else { throw .generalProtection() }
        efer |= EFER.lma
      }
    }
    let usesPDPTEs = new & CR0.pg != 0 && cr4 & CR4.pae != 0 && efer & EFER.lma == 0
    if usesPDPTEs && (new ^ old) & (CR0.pg | CR0.cd | CR0.nw) != 0 { try loadPDPTEs(page[\.cr3]) }
    page[\.cr0] = new
    page[\.efer] = efer
    page.updateMode()
    if (new ^ old) & (CR0.pg | CR0.pe | CR0.wp) != 0 { unsafe chost_flush_all(page.pointer) }
  }

  // MARK: CR3

  func writeCR3(_ written: UInt64) throws(Fault) {
    var value = written
    // Under PCIDE bit 63 asks for nothing to be invalidated; doing so is allowed (SDM volume 3, 4.10.4.1), and needed,
    // since our translations do not say which context they are of.
    if page[\.cr4] & CR4.pcide != 0 { value &= ~(1 << 63) }
    if page.isLMA {
      guard acceptsCR3(value) else { throw .generalProtection() }
    } else if page[\.cr0] & CR0.pg != 0 && page[\.cr4] & CR4.pae != 0 {
      try loadPDPTEs(value)
    }
    page[\.cr3] = value
    unsafe chost_flush_nonglobal(page.pointer)
  }

  /// Whether a page table can be there. Outside 64-bit mode MOV has no other bits to write.
  func acceptsCR3(_ value: UInt64) -> Bool { value & ~page[\.physical_mask] == 0 }

  /// Whether a top entry of PAE paging has none of its reserved bits set, or is not present.
  func acceptsPDPTE(_ entry: UInt64) -> Bool {
    entry & 1 == 0 || entry & (~page[\.physical_mask] | 0x1E6) == 0
  }

  /// PAE paging keeps its four top entries in registers; reserved bits in a present one are #GP(0)
  /// (SDM volume 3, 4.4.1).
  func loadPDPTEs(_ cr3: UInt64) throws(Fault) {
    let table = cr3 & 0xFFFF_FFE0 & ~page[\.address_cut]
    let entry0 = physicalLoad(UInt64.self, table)
    let entry1 = physicalLoad(UInt64.self, table &+ 8)
    let entry2 = physicalLoad(UInt64.self, table &+ 16)
    let entry3 = physicalLoad(UInt64.self, table &+ 24)
    for entry in [entry0, entry1, entry2, entry3] where !acceptsPDPTE(entry) { throw .generalProtection() }
    page[\.pdpte.0] = entry0
    page[\.pdpte.1] = entry1
    page[\.pdpte.2] = entry2
    page[\.pdpte.3] = entry3
  }

  // MARK: CR4

  /// Whether MOV to CR4 accepts a value, whatever the other registers hold.
  func acceptsCR4(_ value: UInt64) -> Bool { value & ~state.supportedCR4 == 0 }

  func writeCR4(_ value: UInt64) throws(Fault) {
    guard acceptsCR4(value) else { throw .generalProtection() }
    let old = page[\.cr4]
    if page.isLMA && value & CR4.pae == 0 { throw .generalProtection() }
    let changed = value ^ old
    // PCIDE needs IA-32e mode and context 0 (SDM volume 3, 4.10.1).
    if changed & value & CR4.pcide != 0, !page.isLMA || page[\.cr3] & 0xFFF != 0 { throw .generalProtection() }
    if page[\.cr0] & CR0.pg != 0 && !page.isLMA && value & CR4.pae != 0 && changed & CR4.paging != 0 {
      try loadPDPTEs(page[\.cr3])
    }
    page[\.cr4] = value
    page.updateMode()
    if changed & CR4.translations != 0 { unsafe chost_flush_all(page.pointer) }
  }

  // MARK: Translations

  func invalidatePage(_ instruction: Instruction) throws(Fault) {
    try requirePrivilege()
    let operand = effectiveAddress(instruction)
    let linear = uncheckedLinear(operand.segment, operand.offset)
    // INVLPG of a non-canonical address does nothing.
    guard Processor.isCanonical(linear) else { return }
    unsafe chost_flush_page(page.pointer, linear)
  }

  /// INVPCID (SDM volume 2). Translations do not say which context they are of: all that are not global may be of the
  /// one that is named.
  func invalidateContext(_ instruction: Instruction) throws(Fault) {
    try requirePrivilege()
    let memory = try span(effectiveAddress(instruction), count: 16, write: false)
    let context = load(UInt64.self, memory)
    let linear = load(UInt64.self, memory, at: 8)
    let type = register(instruction.reg, size: page.isLongMode ? 8 : 4)
    guard context >> 12 == 0 else { throw .generalProtection() }
    if type < 2 && context != 0 && page[\.cr4] & CR4.pcide == 0 { throw .generalProtection() }
    switch type {
    case 0:
      guard Processor.isCanonical(linear) else { throw .generalProtection() }
      unsafe chost_flush_page(page.pointer, linear)
    case 1, 3: unsafe chost_flush_nonglobal(page.pointer)
    case 2: unsafe chost_flush_all(page.pointer)
    default: throw .generalProtection()
    }
  }

  // MARK: XCR0

  func readExtendedControl() throws(Fault) {
    guard page[\.cr4] & CR4.osxsave != 0 else { throw .invalidOpcode }
    let index = UInt32(truncatingIfNeeded: page[register: GPR.rcx])
    // XCR1 is XCR0 & XINUSE; every enabled component counts as in use.
    let hasInUse = state.cpuid.stored(0xD, subleaf: 1).eax & 4 != 0
    guard index == 0 || (index == 1 && hasInUse) else { throw .generalProtection() }
    page[register: GPR.rax] = page[\.xcr0] & 0xFFFF_FFFF
    page[register: GPR.rdx] = page[\.xcr0] >> 32
  }

  /// Whether XSETBV accepts a value of XCR0: x87 always, of the rest what the CPU has, AVX not without SSE (SDM volume
  /// 1, 13.3).
  func acceptsXCR0(_ value: UInt64) -> Bool {
    value & 1 != 0 && value & ~state.supportedXCR0 == 0 && value & 6 != 4
  }

  func writeExtendedControl() throws(Fault) {
    guard page[\.cr4] & CR4.osxsave != 0 else { throw .invalidOpcode }
    try requirePrivilege()
    let value = edxEAX
    guard UInt32(truncatingIfNeeded: page[register: GPR.rcx]) == 0, acceptsXCR0(value) else {
      throw .generalProtection()
    }
    page[\.xcr0] = value
    page.updateMode()
  }

  /// EDX:EAX.
  var edxEAX: UInt64 { page[register: GPR.rdx] << 32 | page[register: GPR.rax] & 0xFFFF_FFFF }
}

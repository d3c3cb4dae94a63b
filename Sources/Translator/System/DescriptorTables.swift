// SPDX-License-Identifier: Apache-2.0
// The instructions about descriptor tables: LGDT to STR, and the ones that only look at descriptors, LAR, LSL,
// VERR, VERW and ARPL (SDM volume 2).

import CHost
import X86

extension Processor {
  /// UMIP keeps SGDT, SIDT, SLDT, STR and SMSW from user mode (SDM volume 3, 2.5).
  func requireUserInstruction() throws(Fault) {
    if page[\.cr4] & CR4.umip != 0 && privilege != 0 { throw .generalProtection() }
  }

  // MARK: GDTR, IDTR

  func storeTable(_ table: chost_table, _ instruction: Instruction) throws(Fault) {
    try requireUserInstruction()
    let size = page.isLongMode ? 10 : 6
    let memory = try span(effectiveAddress(instruction), count: size, write: true)
    store(table.limit, memory)
    if page.isLongMode {
      store(table.base, memory, at: 2)
    } else {
      store(UInt32(truncatingIfNeeded: table.base), memory, at: 2)
    }
  }

  /// The operand of LGDT and LIDT. A 16-bit operand size uses 24 bits of the base.
  func loadTable(_ instruction: Instruction) throws(Fault) -> chost_table {
    try requirePrivilege()
    let memory = try span(effectiveAddress(instruction), count: page.isLongMode ? 10 : 6, write: false)
    var table = chost_table()
    table.limit = load(UInt16.self, memory)
    if page.isLongMode {
      table.base = load(UInt64.self, memory, at: 2)
      guard Processor.isCanonical(table.base) else { throw .generalProtection() }
    } else {
      table.base = UInt64(load(UInt32.self, memory, at: 2))
      if instruction.operandSize == 2 { table.base &= 0xFF_FFFF }
    }
    return table
  }

  // MARK: LDTR, TR

  func storeLDT(_ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    try requireUserInstruction()
    try writeSelector(page[.ldtr].selector, instruction)
  }

  func storeTask(_ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    try requireUserInstruction()
    try writeSelector(page[.tr].selector, instruction)
  }

  func loadLDT(_ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    try requirePrivilege()
    page[.ldtr] = try localTable(UInt16(truncatingIfNeeded: try readRM(instruction, size: 2)), or: .protection)
  }

  /// What LDTR holds after loading a selector.
  func localTable(_ selector: UInt16, or fault: SelectorFault) throws(Fault) -> chost_segment {
    if Processor.isNull(selector) { return .unusable(selector: selector) }
    guard selector & 4 == 0 else { throw fault(selector) }
    var descriptor = try descriptor(selector, or: fault)
    guard !descriptor.isCodeOrData, descriptor.type == SystemType.ldt else { throw fault(selector) }
    guard descriptor.isPresent else {
      throw fault == .protection ? SelectorFault.notPresent(selector) : fault(selector)
    }
    try extend(&descriptor, selector, or: fault)
    if page.isLMA {
      guard Processor.isCanonical(descriptor.base) else { throw fault(selector) }
    }
    return descriptor.segment(selector)
  }

  func loadTask(_ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    try requirePrivilege()
    let selector = UInt16(truncatingIfNeeded: try readRM(instruction, size: 2))
    guard !Processor.isNull(selector) else { throw .generalProtection() }
    guard selector & 4 == 0 else { throw SelectorFault.protection(selector) }
    var descriptor = try descriptor(selector)
    let available = descriptor.type == SystemType.tss || (descriptor.type == SystemType.tss16 && !page.isLMA)
    guard !descriptor.isCodeOrData, available else { throw SelectorFault.protection(selector) }
    guard descriptor.isPresent else { throw SelectorFault.notPresent(selector) }
    try extend(&descriptor, selector, or: .protection)
    if page.isLMA {
      guard Processor.isCanonical(descriptor.base) else { throw SelectorFault.protection(selector) }
    }
    try setBits(2, at: descriptor.address &+ 5, as: .implicit)  // busy
    descriptor.low |= 2 << 40
    page[.tr] = descriptor.segment(selector)
  }

  // MARK: Looking at descriptors

  /// The descriptor that LAR, LSL, VERR or VERW may see; nil where the instruction clears ZF instead of faulting.
  private func visibleDescriptor(_ selector: UInt16, allowing types: UInt16) throws(Fault) -> Descriptor? {
    guard !Processor.isNull(selector) else { return nil }
    let table = selector & 4 != 0 ? page[.ldtr].limit : UInt32(page[\.gdtr].limit)
    if selector & 4 != 0 && page[.ldtr].isUnusable { return nil }
    guard UInt32(selector | 7) & 0xFFFF <= table else { return nil }
    var found = try descriptor(selector)
    if found.isCodeOrData {
      if !found.isConforming && max(UInt8(selector & 3), privilege) > found.dpl { return nil }
      return found
    }
    guard types >> UInt16(found.type) & 1 != 0 else { return nil }
    guard max(UInt8(selector & 3), privilege) <= found.dpl else { return nil }
    if page.isLMA {
      guard UInt32(selector & 0xFFF8) &+ 15 <= table else { return nil }
      found.high = try read(UInt64.self, at: found.address &+ 8, as: .implicit)
      guard found.high >> 40 & 0x1F == 0 else { return nil }
    }
    return found
  }

  private func setZero(_ value: Bool) {
    let flags = page.rflags
    page.rflags = value ? flags | RFLAGS.zf : flags & ~RFLAGS.zf
  }

  func loadAccessRights(_ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    let selector = UInt16(truncatingIfNeeded: try readRM(instruction, size: 2))
    // SDM volume 2, LAR, table 3-54: LDT, TSS and call gates; the 16-bit ones and task gates outside IA-32e mode.
    let types: UInt16 = page.isLMA ? 0b0001_1010_0000_0100 : 0b0001_1010_0011_1110
    guard let found = try visibleDescriptor(selector, allowing: types) else { return setZero(false) }
    setRegister(instruction.reg, found.low >> 32 & 0x00FF_FF00, size: instruction.operandSize)
    setZero(true)
  }

  func loadSegmentLimit(_ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    let selector = UInt16(truncatingIfNeeded: try readRM(instruction, size: 2))
    let types: UInt16 = page.isLMA ? 0b0000_1010_0000_0100 : 0b0000_1010_0000_1110
    guard let found = try visibleDescriptor(selector, allowing: types) else { return setZero(false) }
    setRegister(instruction.reg, UInt64(found.limit), size: instruction.operandSize)
    setZero(true)
  }

  func verify(_ instruction: Instruction, write: Bool) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    let selector = UInt16(truncatingIfNeeded: try readRM(instruction, size: 2))
    guard let found = try visibleDescriptor(selector, allowing: 0) else { return setZero(false) }
    setZero(write ? found.isWritableData : found.isReadable)
  }

  /// ARPL: raises the RPL of the first operand to that of the second.
  func adjustPrivilege(_ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else { throw .invalidOpcode }
    let source = register(instruction.reg, size: 2)
    if instruction.isMemory {
      let operand = effectiveAddress(instruction)
      let selector = UInt64(load(UInt16.self, try span(operand, count: 2, write: false)))
      if selector & 3 < source & 3 {
        store(selector & ~3 | source & 3, try span(operand, count: 2, write: true), size: 2)
      }
      setZero(selector & 3 < source & 3)
    } else {
      let selector = register(instruction.rm, size: 2)
      if selector & 3 < source & 3 { setRegister(instruction.rm, selector & ~3 | source & 3, size: 2) }
      setZero(selector & 3 < source & 3)
    }
  }
}

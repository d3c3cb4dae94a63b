// SPDX-License-Identifier: Apache-2.0
// Loading segment registers: MOV Sreg, POP Sreg, LDS and friends, and the checks that far transfers share
// (SDM volume 3, 5.5 to 5.8; volume 2, MOV).

import CHost
import X86

extension Processor {
  /// Loads DS, ES, SS, FS or GS.
  ///
  /// The caller has read the selector already; nothing of the register changes if this throws.
  func loadSegment(_ register: SegmentRegister, _ selector: UInt16) throws(Fault) {
    page[register] = try checkedSegment(register, selector)
    page.updateMode()
  }

  /// What a segment register would hold after loading a selector. Sets the descriptor's accessed bit.
  func checkedSegment(_ register: SegmentRegister, _ selector: UInt16) throws(Fault) -> chost_segment {
    guard usesDescriptors else { return realSegment(register, selector) }
    if register == .ss { return try stackSegment(selector, privilege: privilege, null: nullStackAllowed(selector)) }
    if Processor.isNull(selector) { return .unusable(selector: selector) }
    var descriptor = try descriptor(selector)
    guard descriptor.isCodeOrData, descriptor.isReadable else { throw SelectorFault.protection(selector) }
    if !descriptor.isConforming && max(UInt8(selector & 3), privilege) > descriptor.dpl {
      throw SelectorFault.protection(selector)
    }
    guard descriptor.isPresent else { throw SelectorFault.notPresent(selector) }
    try markAccessed(&descriptor)
    return descriptor.segment(selector)
  }

  /// A segment as real-address or virtual-8086 mode loads it.
  ///
  /// Real-address mode changes selector and base only: limits set in protected mode stay ("unreal mode").
  func realSegment(_ register: SegmentRegister, _ selector: UInt16) -> chost_segment {
    if page.isVM86 { return .real(selector: selector, attributes: 0xF3) }
    let old = page[register]
    let type: UInt32 = register == .cs ? 0x9B : 0x93
    return .real(
      selector: selector, limit: old.isUnusable ? 0xFFFF : old.limit,
      attributes: old.isUnusable ? type : old.attributes & 0xF000 | type)
  }

  /// 64-bit mode below CPL 3 lets SS be null, with RPL equal to CPL.
  private func nullStackAllowed(_ selector: UInt16) -> Bool {
    page.isLongMode && privilege != 3 && UInt8(selector & 3) == privilege
  }

  /// The checks of a stack segment for code at `privilege`.
  ///
  /// - Parameters:
  ///   - null: whether a null selector is acceptable.
  ///   - fault: what bad selectors raise: #TS when the selector comes from a TSS. A segment that is not
  ///     present is #SS in either case.
  func stackSegment(
    _ selector: UInt16, privilege: UInt8, null: Bool = false, or fault: SelectorFault = .protection
  ) throws(Fault) -> chost_segment {
    if Processor.isNull(selector) {
      guard null else { throw fault(0) }
      return .unusable(selector: selector, dpl: privilege)
    }
    var descriptor = try descriptor(selector, or: fault)
    guard UInt8(selector & 3) == privilege, descriptor.isWritableData, descriptor.dpl == privilege else {
      throw fault(selector)
    }
    guard descriptor.isPresent else { throw SelectorFault.stack(selector) }
    try markAccessed(&descriptor)
    return descriptor.segment(selector)
  }

  /// After a return to an outer level: data segments that the new level may not use become null
  /// (SDM volume 2, RET, "RETURN-TO-OUTER-PRIVILEGE-LEVEL").
  func dropInnerDataSegments() {
    let privilege = self.privilege
    for register in [SegmentRegister.es, .ds, .fs, .gs] {
      let segment = page[register]
      if segment.isUnusable { continue }
      let conforming = segment.type & 0xC == 0xC
      if segment.isCodeOrData && !conforming && segment.dpl < privilege {
        page[register] = .unusable(selector: 0)
      }
    }
  }

  // MARK: Instructions

  /// MOV Sw,Ew.
  func moveToSegment(_ instruction: Instruction) throws(Fault) {
    let number = instruction.modRM >> 3 & 7
    guard number != 1, number < 6, let register = SegmentRegister(rawValue: Int(number)) else { throw .invalidOpcode }
    let selector = UInt16(truncatingIfNeeded: try readRM(instruction, size: 2))
    try loadSegment(register, selector)
    if register == .ss { state.interruptShadow = .movSS }
  }

  /// MOV Evw,Sw: 16 bits to memory, zero-extended to the operand size in a register.
  func moveFromSegment(_ instruction: Instruction) throws(Fault) {
    let number = instruction.modRM >> 3 & 7
    guard number < 6, let register = SegmentRegister(rawValue: Int(number)) else { throw .invalidOpcode }
    try writeSelector(page[register].selector, instruction)
  }

  /// Stores a selector the way MOV, STR and SLDT do.
  func writeSelector(_ selector: UInt16, _ instruction: Instruction) throws(Fault) {
    try writeRM(instruction, UInt64(selector), size: instruction.isMemory ? 2 : instruction.operandSize)
  }

  /// PUSH of a segment register. With operand size 32, Intel CPUs write 16 bits and leave the rest of the slot.
  func pushSegment(_ register: SegmentRegister, _ instruction: Instruction) throws(Fault) {
    let size = stackOperandSize(instruction)
    let selector = UInt64(page[register].selector)
    let pointer = (stackPointer &- UInt64(size)) & stackMask
    try writeMemory(.ss, pointer, selector, size: size == 4 ? 2 : size)
    stackPointer = pointer
  }

  func popSegment(_ register: SegmentRegister, _ instruction: Instruction) throws(Fault) {
    let size = stackOperandSize(instruction)
    let selector = UInt16(truncatingIfNeeded: try peek(size: 2))
    // The stack pointer moves by the old stack segment's rules even when SS itself is popped.
    let mask = stackMask
    let pointer = stackPointer &+ UInt64(size)
    try loadSegment(register, selector)
    setStackPointer(pointer, mask: mask)
    if register == .ss { state.interruptShadow = .movSS }
  }

  /// LDS, LES, LFS, LGS, LSS.
  func loadFarPointer(_ register: SegmentRegister, _ instruction: Instruction) throws(Fault) {
    let (selector, offset) = try farPointer(instruction)
    try loadSegment(register, selector)
    setRegister(instruction.reg, offset, size: instruction.operandSize)
  }

  /// A far pointer in memory: an offset of operand size, then a selector.
  func farPointer(_ instruction: Instruction) throws(Fault) -> (selector: UInt16, offset: UInt64) {
    let size = instruction.operandSize
    let memory = try span(effectiveAddress(instruction), count: Int(size) &+ 2, write: false)
    return (load(UInt16.self, memory, at: Int(size)), load(memory, size: size))
  }
}

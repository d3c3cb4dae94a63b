// SPDX-License-Identifier: Apache-2.0
// Far JMP, CALL and RET: directly to code segments and through call gates, in every mode (SDM volume 3, 5.8;
// volume 2, JMP, CALL, RET). Task gates and TSS descriptors are in TaskSwitch.swift.

import CHost
import X86

extension Processor {
  // MARK: Code segments

  /// RIP within a code segment, or #GP(0).
  func checkTarget(_ target: Descriptor, _ offset: UInt64) throws(Fault) {
    if page.isLMA && target.isLong {
      guard Processor.isCanonical(offset) else { throw .generalProtection() }
    } else {
      guard offset <= UInt64(target.limit) else { throw .generalProtection() }
    }
  }

  /// A present code segment with L and D not both set in IA-32e mode.
  func checkCode(_ target: Descriptor, _ selector: UInt16) throws(Fault) {
    guard target.isCode, !(page.isLMA && target.isLong && target.isBig) else {
      throw SelectorFault.protection(selector)
    }
  }

  /// Checks a far JMP or CALL straight to a code segment.
  private func checkDirect(_ target: Descriptor, _ selector: UInt16) throws(Fault) {
    try checkCode(target, selector)
    if target.isConforming {
      guard target.dpl <= privilege else { throw SelectorFault.protection(selector) }
    } else {
      guard UInt8(selector & 3) <= privilege, target.dpl == privilege else { throw SelectorFault.protection(selector) }
    }
    guard target.isPresent else { throw SelectorFault.notPresent(selector) }
  }

  // MARK: JMP

  func farJump(_ selector: UInt16, _ offset: UInt64, _ instruction: Instruction) throws(Fault) {
    guard usesDescriptors else {
      let segment = realSegment(.cs, selector)
      guard offset <= UInt64(segment.limit) else { throw .generalProtection() }
      page[.cs] = segment
      page[\.rip] = offset
      return page.updateMode()
    }
    guard !Processor.isNull(selector) else { throw .generalProtection() }
    var target = try descriptor(selector)
    if target.isCodeOrData {
      try checkDirect(target, selector)
      try checkTarget(target, offset)
      try markAccessed(&target)
      enterCode(target, selector, privilege: privilege, offset)
      return page.updateMode()
    }
    try checkSystemTarget(target, selector)
    guard isCallGate(target.type) else {
      return try switchTask(
        to: target.type == SystemType.taskGate ? target.gateSelector : selector, reason: .jump,
        returnAddress: next(instruction))
    }
    var gate = target
    try extend(&gate, selector, or: .protection)
    let (found, codeSelector) = try gateCodeSegment(gate)
    var code = found
    // A jump never changes the privilege level.
    if !code.isConforming && code.dpl != privilege { throw SelectorFault.protection(codeSelector) }
    guard code.isPresent else { throw SelectorFault.notPresent(codeSelector) }
    let entry = gateEntry(gate)
    try checkTarget(code, entry)
    try markAccessed(&code)
    enterCode(code, codeSelector, privilege: privilege, entry)
    page.updateMode()
  }

  /// DPL, type and presence of a gate or TSS that a far transfer names.
  private func checkSystemTarget(_ target: Descriptor, _ selector: UInt16) throws(Fault) {
    let known: Bool
    switch target.type {
    case SystemType.callGate: known = true
    case SystemType.callGate16, SystemType.taskGate, SystemType.tss16, SystemType.tss: known = !page.isLMA
    default: known = false
    }
    guard known, target.dpl >= privilege, target.dpl >= UInt8(selector & 3) else {
      throw SelectorFault.protection(selector)
    }
    guard target.isPresent else { throw SelectorFault.notPresent(selector) }
  }

  private func isCallGate(_ type: UInt8) -> Bool { type == SystemType.callGate || type == SystemType.callGate16 }

  private func gateEntry(_ gate: Descriptor) -> UInt64 {
    if page.isLMA { return gate.gateOffset }
    return gate.type == SystemType.callGate ? gate.gateOffset & 0xFFFF_FFFF : gate.gateOffset & 0xFFFF
  }

  private func gateCodeSegment(_ gate: Descriptor) throws(Fault) -> (Descriptor, UInt16) {
    let selector = gate.gateSelector
    guard !Processor.isNull(selector) else { throw .generalProtection() }
    let code = try descriptor(selector)
    guard code.isCode, code.dpl <= privilege else { throw SelectorFault.protection(selector) }
    if page.isLMA {
      guard code.isLong, !code.isBig else { throw SelectorFault.protection(selector) }
    }
    return (code, selector)
  }

  // MARK: CALL

  func farCall(_ selector: UInt16, _ offset: UInt64, _ instruction: Instruction) throws(Fault) {
    let size = instruction.operandSize
    let returnAddress = next(instruction)
    guard usesDescriptors else {
      let segment = realSegment(.cs, selector)
      var frame = currentFrame()
      try reserve(&frame, 2, size: size)
      guard offset <= UInt64(segment.limit) else { throw .generalProtection() }
      try pushReturn(returnAddress, size: size, &frame)
      setStackPointer(frame.pointer, mask: frame.mask)
      page[.cs] = segment
      page[\.rip] = offset
      return page.updateMode()
    }
    guard !Processor.isNull(selector) else { throw .generalProtection() }
    var target = try descriptor(selector)
    if target.isCodeOrData {
      try checkDirect(target, selector)
      var frame = currentFrame()
      try reserve(&frame, 2, size: size)
      try checkTarget(target, offset)
      try markAccessed(&target)
      try pushReturn(returnAddress, size: size, &frame)
      setStackPointer(frame.pointer, mask: frame.mask)
      enterCode(target, selector, privilege: privilege, offset)
      return page.updateMode()
    }
    try checkSystemTarget(target, selector)
    guard isCallGate(target.type) else {
      return try switchTask(
        to: target.type == SystemType.taskGate ? target.gateSelector : selector, reason: .call,
        returnAddress: returnAddress)
    }
    var gate = target
    try extend(&gate, selector, or: .protection)
    try callThroughGate(gate, returnAddress: returnAddress)
  }

  private func pushReturn(_ returnAddress: UInt64, size: UInt8, _ frame: inout StackFrame) throws(Fault) {
    try push(UInt64(page[.cs].selector), size: size, &frame)
    try push(returnAddress, size: size, &frame)
  }

  private func callThroughGate(_ gate: Descriptor, returnAddress: UInt64) throws(Fault) {
    let (found, selector) = try gateCodeSegment(gate)
    var code = found
    guard code.isPresent else { throw SelectorFault.notPresent(selector) }
    let size: UInt8 = page.isLMA ? 8 : gate.type == SystemType.callGate ? 4 : 2
    let entry = gateEntry(gate)
    let level = code.isConforming ? privilege : code.dpl
    if level == privilege {
      var frame = currentFrame()
      if page.isLMA { frame = longFrameOnCurrentStack() }
      try reserve(&frame, 2, size: size)
      try checkTarget(code, entry)
      try markAccessed(&code)
      try pushReturn(returnAddress, size: size, &frame)
      setStackPointer(frame.pointer, mask: frame.mask)
      enterCode(code, selector, privilege: level, entry)
      return page.updateMode()
    }
    var frame: StackFrame
    if page.isLMA {
      frame = longFrame(privilege: level, pointer: try longStackPointer(tssOffset: 4 &+ UInt32(level) &* 8))
    } else {
      frame = try innerFrame(privilege: level)
    }
    let parameters = page.isLMA ? 0 : Int(gate.gateParameters)
    try reserve(&frame, 4 &+ parameters, size: size)
    // Parameters are read first, from the outer stack; the outer stack is read with the outer privilege.
    if parameters > 0 { _ = try peek(UInt64(truncatingIfNeeded: (parameters &- 1) &* Int(size)), size: size) }
    try checkTarget(code, entry)
    try markAccessed(&code)
    try push(UInt64(page[.ss].selector), size: size, &frame)
    try push(page[register: GPR.rsp] & Processor.mask(size), size: size, &frame)
    for index in (0..<parameters).reversed() {
      try push(try peek(UInt64(truncatingIfNeeded: index &* Int(size)), size: size), size: size, &frame)
    }
    try pushReturn(returnAddress, size: size, &frame)
    adopt(frame)
    enterCode(code, selector, privilege: level, entry)
    page.updateMode()
  }

  /// The current stack, pushed to with 64-bit rules: a call gate in compatibility mode leads to 64-bit code.
  private func longFrameOnCurrentStack() -> StackFrame {
    var frame = longFrame(privilege: privilege, pointer: page[register: GPR.rsp])
    frame.segment = page[.ss]
    return frame
  }

  // MARK: RET

  /// RET far, dropping `parameters` bytes above the return address.
  func farReturn(_ instruction: Instruction, parameters: UInt64) throws(Fault) {
    let size = instruction.operandSize
    let step = UInt64(size)
    let offset = try peek(size: size)
    let selector = UInt16(truncatingIfNeeded: try peek(step, size: size))
    guard usesDescriptors else {
      let segment = realSegment(.cs, selector)
      guard offset <= UInt64(segment.limit) else { throw .generalProtection() }
      page[.cs] = segment
      page[\.rip] = offset
      drop(2 &* step &+ parameters)
      return page.updateMode()
    }
    var target = try returnCode(selector)
    let level = UInt8(selector & 3)
    if level == privilege {
      try checkTarget(target, offset)
      try markAccessed(&target)
      drop(2 &* step &+ parameters)
      enterCode(target, selector, privilege: level, offset)
      return page.updateMode()
    }
    let pointer = try peek(2 &* step &+ parameters, size: size)
    let stack = UInt16(truncatingIfNeeded: try peek(3 &* step &+ parameters, size: size))
    let segment = try returnStack(stack, privilege: level, long: page.isLMA && target.isLong)
    try checkTarget(target, offset)
    try markAccessed(&target)
    enterCode(target, selector, privilege: level, offset)
    adoptReturnStack(segment, pointer, adding: parameters)
  }

  /// The code segment of a far return or IRET.
  func returnCode(_ selector: UInt16) throws(Fault) -> Descriptor {
    guard !Processor.isNull(selector) else { throw .generalProtection() }
    let target = try descriptor(selector)
    let level = UInt8(selector & 3)
    guard level >= privilege else { throw SelectorFault.protection(selector) }
    try checkCode(target, selector)
    guard target.isConforming ? target.dpl <= level : target.dpl == level else {
      throw SelectorFault.protection(selector)
    }
    guard target.isPresent else { throw SelectorFault.notPresent(selector) }
    return target
  }

  /// The stack segment of a return to `privilege`. Returning to 64-bit code below level 3 accepts a null SS.
  func returnStack(_ selector: UInt16, privilege: UInt8, long: Bool) throws(Fault) -> chost_segment {
    try stackSegment(selector, privilege: privilege, null: long && privilege != 3 && UInt8(selector & 3) == privilege)
  }

  /// Finishes a return that loads SS:RSP; CS is the new one already.
  func adoptReturnStack(_ segment: chost_segment, _ pointer: UInt64, adding parameters: UInt64) {
    page[.ss] = segment
    page.updateMode()
    setStackPointer(pointer &+ parameters, mask: stackMask)
    dropInnerDataSegments()
    page.updateMode()
  }
}

// SPDX-License-Identifier: Apache-2.0
// PUSH, POP, CALL, RET, ENTER and their relatives when the stack cannot be reached directly, and the near branches
// that go with them. Every form for 16-, 32- and 64-bit stacks (SDM volume 2; volume 1, 6.2).

import CHost
import X86

extension Processor {
  // MARK: PUSH, POP

  func pop(_ instruction: Instruction) throws(Fault) {
    let size = stackOperandSize(instruction)
    let value = try peek(size: size)
    guard instruction.hasModRM else {
      // POP RSP: the popped value wins.
      drop(UInt64(size))
      return setRegister(instruction.opcode & 7 | (instruction.rex & 1) << 3, value, size: size)
    }
    // An address that uses RSP sees it incremented.
    let old = page[register: GPR.rsp]
    drop(UInt64(size))
    do throws(Fault) { try writeRM(instruction, value, size: size) } catch {
      page[register: GPR.rsp] = old
      throw error
    }
  }

  func pushAll(_ instruction: Instruction) throws(Fault) {
    let size: UInt8 = instruction.operandSize == 2 ? 2 : 4
    var frame = currentFrame()
    try reserve(&frame, 8, size: size)
    for number in UInt8(0)..<8 { try push(page[register: number], size: size, &frame) }
    setStackPointer(frame.pointer, mask: frame.mask)
  }

  func popAll(_ instruction: Instruction) throws(Fault) {
    let size: UInt8 = instruction.operandSize == 2 ? 2 : 4
    let step = UInt64(size)
    // Every element is read once for its faults before a register changes.
    for index in UInt64(0)..<8 { _ = try peek(index &* step, size: size) }
    for index in UInt64(0)..<8 where index != 3 {
      setRegister(7 &- UInt8(truncatingIfNeeded: index), try peek(index &* step, size: size), size: size)
    }
    drop(8 &* step)
  }

  // MARK: ENTER, LEAVE

  func enter(_ instruction: Instruction) throws(Fault) {
    let size = stackOperandSize(instruction)
    let step = UInt64(size)
    let bytes = instruction.immediate & 0xFFFF
    let level = Int(instruction.immediate2 & 31)
    let mask = stackMask
    var frame = currentFrame()
    try reserve(&frame, level == 0 ? 1 : level &+ 1, size: size)
    let pointer = page[register: GPR.rbp]
    // Of a 16-bit stack pointer too, a 32-bit frame pointer is all of ESP.
    let top = page[register: GPR.rsp] & ~mask | (stackPointer &- step) & mask
    // The display is read before the frame is written: they may overlap only in a frame that is nonsense.
    let final = (stackPointer &- step &* UInt64(level == 0 ? 1 : level &+ 1) &- bytes) & mask
    // The final stack pointer must be writable too (SDM volume 2, ENTER).
    let probe = try linear(.ss, final, size: Int(size), write: true)
    _ = try span(probe, count: Int(size), write: true, as: authority, stack: true)
    for index in 0..<max(level &- 1, 0) {
      _ = try readMemory(.ss, (pointer &- step &* UInt64(index &+ 1)) & mask, size: size)
    }
    try push(pointer, size: size, &frame)
    if level > 0 {
      for index in 0..<(level &- 1) {
        let entry = try readMemory(.ss, (pointer &- step &* UInt64(index &+ 1)) & mask, size: size)
        try push(entry, size: size, &frame)
      }
      try push(top, size: size, &frame)
    }
    // RBP is written with the width of the operand (measured: ENTER with 66 in 64-bit code changes BP).
    setRegister(GPR.rbp, top, size: size)
    setStackPointer(final, mask: mask)
  }

  func leave(_ instruction: Instruction) throws(Fault) {
    let size = stackOperandSize(instruction)
    let pointer = page[register: GPR.rbp] & stackMask
    let value = try readMemory(.ss, pointer, size: size)
    stackPointer = pointer &+ UInt64(size)
    setRegister(GPR.rbp, value, size: size)
  }

  // MARK: Near branches

  /// Operand size of a near branch.
  func branchSize(_ instruction: Instruction) -> UInt8 { stackOperandSize(instruction, narrow: state.cpuid.isAMD) }

  /// A branch target, checked: canonical, or inside the code segment.
  func nearTarget(_ target: UInt64, size: UInt8) throws(Fault) -> UInt64 {
    let masked = target & Processor.mask(size)
    if page.isLongMode {
      guard Processor.isCanonical(masked) else { throw .generalProtection() }
    } else {
      guard masked <= UInt64(page[.cs].limit) else { throw .generalProtection() }
    }
    return masked
  }

  func jump(to target: UInt64, size: UInt8) throws(Fault) {
    page[\.rip] = try nearTarget(target, size: size)
    clearResume()
  }

  /// The target of a relative branch.
  func relativeTarget(_ instruction: Instruction) -> UInt64 {
    page[\.rip] &+ UInt64(instruction.length) &+ instruction.immediate
  }

  func call(to target: UInt64, _ instruction: Instruction) throws(Fault) {
    let size = branchSize(instruction)
    let checked = try nearTarget(target, size: size)
    try push(next(instruction), size: size)
    page[\.rip] = checked
    clearResume()
  }

  func nearReturn(_ instruction: Instruction, parameters: UInt64) throws(Fault) {
    let size = branchSize(instruction)
    let target = try nearTarget(try peek(size: size), size: size)
    drop(UInt64(size) &+ parameters)
    page[\.rip] = target
    clearResume()
  }

  /// Whether condition 0...15 holds.
  func condition(_ number: UInt8) -> Bool {
    let flags = page.rflags
    let sign = flags & RFLAGS.sf != 0
    let overflow = flags & RFLAGS.of != 0
    let zero = flags & RFLAGS.zf != 0
    let holds: Bool
    switch number >> 1 & 7 {
    case 0: holds = overflow
    case 1: holds = flags & RFLAGS.cf != 0
    case 2: holds = zero
    case 3: holds = flags & RFLAGS.cf != 0 || zero
    case 4: holds = sign
    case 5: holds = flags & RFLAGS.pf != 0
    case 6: holds = sign != overflow
    default: holds = zero || sign != overflow
    }
    return holds != (number & 1 != 0)
  }

  func branch(if taken: Bool, _ instruction: Instruction) throws(Fault) {
    guard taken else { return advance(instruction) }
    try jump(to: relativeTarget(instruction), size: branchSize(instruction))
  }

  /// LOOPNE, LOOPE, LOOP, JRCXZ (E0...E3).
  func loop(_ instruction: Instruction) throws(Fault) {
    let size = instruction.addressSize
    var count = register(GPR.rcx, size: size)
    if instruction.opcode & 3 == 3 { return try branch(if: count == 0, instruction) }
    count = (count &- 1) & Processor.mask(size)
    let zero = page.rflags & RFLAGS.zf != 0
    var taken = count != 0
    switch instruction.opcode & 3 {
    case 0: taken = taken && !zero
    case 1: taken = taken && zero
    default: break
    }
    try branch(if: taken, instruction)
    setRegister(GPR.rcx, count, size: size)
  }

  // MARK: Moves without ModRM

  /// MOV between the accumulator and an offset in the instruction (A0...A3).
  func moveOffset(_ instruction: Instruction) throws(Fault) {
    let size = instruction.opcode & 1 == 0 ? 1 : instruction.operandSize
    let offset = instruction.immediate & Processor.mask(instruction.addressSize)
    let segment = dataSegment(instruction)
    if instruction.opcode & 2 == 0 {
      setRegister(GPR.rax, try readMemory(segment, offset, size: size), size: size)
    } else {
      try writeMemory(segment, offset, register(GPR.rax, size: size), size: size)
    }
  }

  func translateByte(_ instruction: Instruction) throws(Fault) {
    let offset = (page[register: GPR.rbx] &+ page[register: GPR.rax] & 0xFF) & Processor.mask(instruction.addressSize)
    setRegister(GPR.rax, try readMemory(dataSegment(instruction), offset, size: 1), size: 1)
  }
}

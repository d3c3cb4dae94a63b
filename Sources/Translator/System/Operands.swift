// SPDX-License-Identifier: Apache-2.0
// Operands of instructions that Swift executes: effective addresses, segmentation, the stack. This is the one
// place that turns segment:offset into a linear address (SDM volume 3, 3.4 and 5.3).

import CHost
import X86

/// A memory operand before segmentation.
struct MemoryOperand {
  var segment: SegmentRegister
  var offset: UInt64
}

extension Processor {
  // MARK: Effective addresses

  /// The ModRM memory operand of an instruction, wrapped to its address size.
  func effectiveAddress(_ instruction: Instruction) -> MemoryOperand {
    var offset = UInt64(bitPattern: Int64(instruction.displacement))
    if instruction.isRIPRelative {
      offset &+= page[\.rip] &+ UInt64(instruction.length)
    }
    if instruction.base != 0xFF { offset &+= page[register: instruction.base] }
    if instruction.index != 0xFF {
      offset &+= page[register: instruction.index] << UInt64(instruction.scale & 3)
    }
    return MemoryOperand(
      segment: SegmentRegister(rawValue: Int(instruction.segment & 7)) ?? .ds,
      offset: offset & Processor.mask(instruction.addressSize))
  }

  /// The segment of an operand whose default is DS (string sources, XLAT, moffs).
  func dataSegment(_ instruction: Instruction) -> SegmentRegister {
    guard instruction.segmentPrefix != 0xFF else { return .ds }
    return SegmentRegister(rawValue: Int(instruction.segmentPrefix & 7)) ?? .ds
  }

  // MARK: Segmentation

  /// The linear address of `size` bytes at segment:offset, after all checks of segmentation.
  ///
  /// - Throws: #SS(0) for the stack segment, #GP(0) for the others; #AC(0) when alignment is checked.
  func linear(
    _ segment: SegmentRegister, _ offset: UInt64, size: Int, write: Bool
  ) throws(Fault) -> UInt64 {
    let address = try Processor.linear(
      page[segment], register: segment, offset, size: size, write: write,
      long: page.isLongMode, typed: usesDescriptors)
    if mode(CHOST_MODE_ALIGN) && (size == 2 || size == 4 || size == 8)
      && address & UInt64(truncatingIfNeeded: size &- 1) != 0
    {
      throw .alignmentCheck
    }
    if mode(CHOST_MODE_STEP) {
      state.pendingDebug |= dataBreakpoint(at: address, count: UInt64(truncatingIfNeeded: size), write: write)
    }
    return address
  }

  /// The linear address of segment:offset, before any check: in 64-bit mode FS and GS alone have a base.
  func uncheckedLinear(_ segment: SegmentRegister, _ offset: UInt64) -> UInt64 {
    Processor.uncheckedLinear(page[segment], register: segment, offset, long: page.isLongMode)
  }

  private static func uncheckedLinear(
    _ hidden: chost_segment, register: SegmentRegister, _ offset: UInt64, long: Bool
  ) -> UInt64 {
    if long { return register == .fs || register == .gs ? hidden.base &+ offset : offset }
    return (hidden.base &+ offset) & 0xFFFF_FFFF
  }

  /// The same as `linear` for a segment that need not be loaded: the stack of a privilege level about to be entered.
  ///
  /// - Parameters:
  ///   - long: 64-bit mode: no limits, no bases but those of FS and GS.
  ///   - typed: protected mode: type and null-selector checks apply.
  ///   - code: error code of #SS.
  static func linear(
    _ hidden: chost_segment, register: SegmentRegister, _ offset: UInt64, size: Int, write: Bool, long: Bool,
    typed: Bool, code: UInt32 = 0
  ) throws(Fault) -> UInt64 {
    let last = UInt64(truncatingIfNeeded: size &- 1)
    let address = uncheckedLinear(hidden, register: register, offset, long: long)
    if long {
      guard isCanonical(address), isCanonical(address &+ last) else {
        throw register == .ss ? .stackFault(code) : .generalProtection()
      }
      return address
    }
    let limit = UInt64(hidden.limit)
    let end = offset &+ last
    var allowed: Bool
    if typed {
      allowed = !hidden.isUnusable
      if hidden.type & 8 != 0 {  // code
        allowed = allowed && !write && hidden.type & 2 != 0
      } else {
        allowed = allowed && (!write || hidden.type & 2 != 0)
      }
    } else {
      allowed = true
    }
    if typed && hidden.type & 0xC == 4 {  // expand-down data
      let top: UInt64 = hidden.attributes & 0x4000 != 0 ? 0xFFFF_FFFF : 0xFFFF
      allowed = allowed && offset > limit && end <= top
    } else {
      allowed = allowed && end <= limit && end >= offset
    }
    guard allowed else { throw register == .ss ? .stackFault(code) : .generalProtection() }
    return address
  }

  /// Checks and translates `count` bytes at segment:offset.
  func span(_ segment: SegmentRegister, _ offset: UInt64, count: Int, write: Bool) throws(Fault) -> LinearSpan {
    let address = try linear(segment, offset, size: count, write: write)
    return try span(address, count: count, write: write, as: authority, stack: segment == .ss)
  }

  func span(_ operand: MemoryOperand, count: Int, write: Bool) throws(Fault) -> LinearSpan {
    try span(operand.segment, operand.offset, count: count, write: write)
  }

  // MARK: Values

  func readMemory(_ segment: SegmentRegister, _ offset: UInt64, size: UInt8) throws(Fault) -> UInt64 {
    load(try span(segment, offset, count: Int(size), write: false), size: size)
  }

  func writeMemory(_ segment: SegmentRegister, _ offset: UInt64, _ value: UInt64, size: UInt8) throws(Fault) {
    store(value, try span(segment, offset, count: Int(size), write: true), size: size)
  }

  /// The ModRM.rm operand.
  func readRM(_ instruction: Instruction, size: UInt8) throws(Fault) -> UInt64 {
    if instruction.isMemory {
      let operand = effectiveAddress(instruction)
      return try readMemory(operand.segment, operand.offset, size: size)
    }
    return size == 1 ? byteRegister(instruction.rm, instruction) : register(instruction.rm, size: size)
  }

  func writeRM(_ instruction: Instruction, _ value: UInt64, size: UInt8) throws(Fault) {
    if instruction.isMemory {
      let operand = effectiveAddress(instruction)
      try writeMemory(operand.segment, operand.offset, value, size: size)
    } else if size == 1 {
      setByteRegister(instruction.rm, value, instruction)
    } else {
      setRegister(instruction.rm, value, size: size)
    }
  }

  // MARK: Stack

  /// Bits of RSP that stack accesses use.
  var stackMask: UInt64 {
    if page.isLongMode { return .max }
    return mode(CHOST_MODE_STACK32) ? 0xFFFF_FFFF : 0xFFFF
  }

  /// The stack pointer as stack accesses see it.
  var stackPointer: UInt64 {
    get { page[register: GPR.rsp] & stackMask }
    nonmutating set { setStackPointer(newValue, mask: stackMask) }
  }

  func setStackPointer(_ value: UInt64, mask: UInt64) {
    if mask == 0xFFFF {
      page[register: GPR.rsp] = page[register: GPR.rsp] & ~0xFFFF | value & 0xFFFF
    } else {
      page[register: GPR.rsp] = value & mask
    }
  }

  /// Operand size of PUSH, POP and near branches: 64 bits in 64-bit mode, unless 66h asks for 16 and `narrow`
  /// allows it (near branches on Intel CPUs do not).
  func stackOperandSize(_ instruction: Instruction, narrow: Bool = true) -> UInt8 {
    if page.isLongMode { return narrow && instruction.hasOperandSizePrefix && !instruction.w ? 2 : 8 }
    return instruction.operandSize == 2 ? 2 : 4
  }

  func push(_ value: UInt64, size: UInt8) throws(Fault) {
    let pointer = (stackPointer &- UInt64(size)) & stackMask
    try writeMemory(.ss, pointer, value, size: size)
    stackPointer = pointer
  }

  /// Reads the value at the top of the stack, `depth` bytes down, without popping it.
  func peek(_ depth: UInt64 = 0, size: UInt8) throws(Fault) -> UInt64 {
    try readMemory(.ss, (stackPointer &+ depth) & stackMask, size: size)
  }

  /// Drops bytes from the stack.
  func drop(_ count: UInt64) { stackPointer = stackPointer &+ count }
}

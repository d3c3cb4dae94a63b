// SPDX-License-Identifier: Apache-2.0
// One instruction, executed by Swift: the switch from encodings to the functions of this folder. It knows every
// instruction that translated code may hand over, the privileged ones and the slow forms of ordinary ones.

import CHost
import Engine
import X86

extension Processor {
  /// Executes the instruction at RIP, which `instruction` and `row` describe.
  ///
  /// On success RIP is past it (or at its target, or still here for a repeated string instruction with elements
  /// left). The interrupt shadow of the instruction before ends; STI and loads of SS start a new one. Data and
  /// I/O breakpoints that were hit are in `state.pendingDebug`, for `debugTrap`.
  ///
  /// - Throws: what the instruction raises; then no register has changed and RIP is still at it. The exceptions
  ///   are faults inside a new task after a task switch.
  func execute(_ instruction: Instruction, row: Opcode) throws(Fault) -> SystemOutcome {
    state.interruptShadow = .none
    state.pendingDebug = 0
    switch row.map {
    case .one: return try executeOneByte(instruction)
    case .x0F: return try executeTwoByte(instruction)
    case .x0F38:
      // INVPCID.
      guard instruction.opcode == 0x82, instruction.hasOperandSizePrefix, instruction.isMemory,
        state.cpuid.structuredEBX(10)
      else { throw .invalidOpcode }
      try invalidateContext(instruction)
      advance(instruction)
      return .done
    default: throw .invalidOpcode
    }
  }

  // MARK: One-byte opcodes

  private func executeOneByte(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    let opcode = instruction.opcode
    switch opcode {
    // Instructions that leave, or whose exit carries RIP.
    case 0x6C, 0x6D: return try inputElement(instruction)
    case 0x6E, 0x6F: return try outputElement(instruction)
    case 0xE4, 0xE5: return try input(instruction, port: UInt16(truncatingIfNeeded: instruction.immediate & 0xFF))
    case 0xE6, 0xE7: return try output(instruction, port: UInt16(truncatingIfNeeded: instruction.immediate & 0xFF))
    case 0xEC, 0xED: return try input(instruction, port: UInt16(truncatingIfNeeded: page[register: GPR.rdx]))
    case 0xEE, 0xEF: return try output(instruction, port: UInt16(truncatingIfNeeded: page[register: GPR.rdx]))
    case 0x90 where instruction.repeatPrefix == 0xF3:
      page[\.pauses] = state.pausesToExit
      advance(instruction)
      return state.pausesToExit != 0 ? .exit(.spinning) : .done
    case 0xF4:
      try requirePrivilege()
      advance(instruction)
      return .exit(.halt)
    default: break
    }
    if try executeTransfer(instruction) { return .done }
    try executeFallThrough(instruction)
    advance(instruction)
    return .done
  }

  /// Instructions that set RIP themselves. Returns false if this is none of them.
  private func executeTransfer(_ instruction: Instruction) throws(Fault) -> Bool {
    let opcode = instruction.opcode
    let immediate = instruction.immediate
    switch opcode {
    case 0x70...0x7F: try branch(if: condition(opcode & 15), instruction)
    case 0x9A: try farCall(instruction.immediate2, immediate & Processor.mask(instruction.operandSize), instruction)
    case 0xA4...0xA7, 0xAA...0xAF: try stringElement(instruction)
    case 0xC2: try nearReturn(instruction, parameters: immediate & 0xFFFF)
    case 0xC3: try nearReturn(instruction, parameters: 0)
    case 0xCA: try farReturn(instruction, parameters: immediate & 0xFFFF)
    case 0xCB: try farReturn(instruction, parameters: 0)
    case 0xCC: try softwareInterrupt(3, instruction, checksIOPL: false)
    case 0xCD: try softwareInterrupt(UInt8(truncatingIfNeeded: immediate), instruction, checksIOPL: true)
    case 0xCE:
      guard !page.isLongMode else { throw .invalidOpcode }
      guard page.rflags & RFLAGS.of != 0 else { return false }
      try softwareInterrupt(4, instruction, checksIOPL: false)
    case 0xCF: try interruptReturn(instruction)
    case 0xE0...0xE3: try loop(instruction)
    case 0xE8: try call(to: relativeTarget(instruction), instruction)
    case 0xE9, 0xEB: try branch(if: true, instruction)
    case 0xEA: try farJump(instruction.immediate2, immediate & Processor.mask(instruction.operandSize), instruction)
    case 0xF1: try debugInterrupt(instruction)
    case 0xFF:
      switch instruction.modRM >> 3 & 7 {
      case 2: try call(to: try readRM(instruction, size: branchSize(instruction)), instruction)
      case 4:
        let size = branchSize(instruction)
        try jump(to: try readRM(instruction, size: size), size: size)
      case 3, 5:
        guard instruction.isMemory else { throw .invalidOpcode }
        let (selector, offset) = try farPointer(instruction)
        if instruction.modRM >> 3 & 7 == 3 {
          try farCall(selector, offset, instruction)
        } else {
          try farJump(selector, offset, instruction)
        }
      default: return false
      }
    default: return false
    }
    return true
  }

  /// Instructions after which the next one follows.
  private func executeFallThrough(_ instruction: Instruction) throws(Fault) {
    let opcode = instruction.opcode
    switch opcode {
    case 0x06: try pushSegment(.es, instruction)
    case 0x07: try popSegment(.es, instruction)
    case 0x0E: try pushSegment(.cs, instruction)
    case 0x16: try pushSegment(.ss, instruction)
    case 0x17: try popSegment(.ss, instruction)
    case 0x1E: try pushSegment(.ds, instruction)
    case 0x1F: try popSegment(.ds, instruction)
    case 0x27: decimalAdjust(subtract: false)
    case 0x2F: decimalAdjust(subtract: true)
    case 0x37: asciiAdjust(subtract: false)
    case 0x3F: asciiAdjust(subtract: true)
    case 0x50...0x57:
      let size = stackOperandSize(instruction)
      try push(page[register: opcode & 7 | (instruction.rex & 1) << 3], size: size)
    case 0x58...0x5F, 0x8F: try pop(instruction)
    case 0x60: try pushAll(instruction)
    case 0x61: try popAll(instruction)
    case 0x62: try bound(instruction)
    case 0x63: try adjustPrivilege(instruction)
    case 0x68, 0x6A: try push(instruction.immediate, size: stackOperandSize(instruction))
    case 0x8C: try moveFromSegment(instruction)
    case 0x8E: try moveToSegment(instruction)
    case 0x8D: setRegister(instruction.reg, effectiveAddress(instruction).offset, size: instruction.operandSize)
    case 0x90, 0x9B: break
    case 0x9C: try pushFlags(instruction)
    case 0x9D: try popFlags(instruction)
    case 0xA0...0xA3: try moveOffset(instruction)
    case 0xC4: try loadFarPointer(.es, instruction)
    case 0xC5: try loadFarPointer(.ds, instruction)
    case 0xC8: try enter(instruction)
    case 0xC9: try leave(instruction)
    case 0xCE: break  // INTO without overflow
    case 0xD4: try asciiMultiply(UInt8(truncatingIfNeeded: instruction.immediate))
    case 0xD5: asciiDivide(UInt8(truncatingIfNeeded: instruction.immediate))
    case 0xD6: setALFromCarry()
    case 0xD7: try translateByte(instruction)
    case 0xFA: try clearInterrupts()
    case 0xFB: try setInterrupts()
    case 0xFC: page.rflags = page.rflags & ~RFLAGS.df
    case 0xFD: page.rflags = page.rflags | RFLAGS.df
    case 0xFF where instruction.modRM >> 3 & 7 == 6:
      let size = stackOperandSize(instruction)
      try push(try readRM(instruction, size: size), size: size)
    default: throw .invalidOpcode
    }
  }

  // MARK: Two-byte opcodes

  private func executeTwoByte(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    switch instruction.opcode {
    // Instructions that set RIP themselves, or leave.
    case 0x05: try systemCall(instruction)
    case 0x07: try systemReturn(instruction)
    case 0x34: try sysenter()
    case 0x35: try sysexit(instruction)
    case 0x30: return try writeMSR(instruction)
    case 0x32: return try readMSR(instruction)
    case 0x22 where instruction.reg == 8:
      let old = page[\.cr8]
      try moveToControl(instruction)
      advance(instruction)
      // What was held back comes before the next instruction (SDM volume 3, 11.8.6).
      if page[\.cr8] < old { return .exit(.kicked) }
    case 0x80...0x8F: try branch(if: condition(instruction.opcode & 15), instruction)
    case 0x01 where HypercallOpcode(rawValue: instruction.modRM) != nil: return try hypercall(instruction)
    default:
      try executeSystemGroup(instruction)
      advance(instruction)
    }
    return .done
  }

  private func executeSystemGroup(_ instruction: Instruction) throws(Fault) {
    switch instruction.opcode {
    case 0x00: try executeGroup6(instruction)
    case 0x01: try executeGroup7(instruction)
    case 0x02: try loadAccessRights(instruction)
    case 0x03: try loadSegmentLimit(instruction)
    case 0x06: try clearTaskSwitched()
    case 0x0D, 0x18...0x1F: break  // prefetches and other hints
    case 0x08, 0x09: try requirePrivilege()  // INVD, WBINVD: guest memory is coherent
    case 0x20: try moveFromControl(instruction)
    case 0x21: try moveFromDebug(instruction)
    case 0x22: try moveToControl(instruction)
    case 0x23: try moveToDebug(instruction)
    case 0x31: try readTimestamp(auxiliary: false)
    case 0x33: try readPerformanceCounter()
    case 0xA0: try pushSegment(.fs, instruction)
    case 0xA1: try popSegment(.fs, instruction)
    case 0xA2: cpuid()
    case 0xA8: try pushSegment(.gs, instruction)
    case 0xA9: try popSegment(.gs, instruction)
    case 0xAE where instruction.repeatPrefix == 0xF3 && !instruction.isMemory:
      switch instruction.modRM >> 3 & 7 {
      case 0: try segmentBase(.fs, write: false, instruction)
      case 1: try segmentBase(.gs, write: false, instruction)
      case 2: try segmentBase(.fs, write: true, instruction)
      case 3: try segmentBase(.gs, write: true, instruction)
      default: throw .invalidOpcode
      }
    case 0xB2: try loadFarPointer(.ss, instruction)
    case 0xB4: try loadFarPointer(.fs, instruction)
    case 0xB5: try loadFarPointer(.gs, instruction)
    case 0xC7 where instruction.repeatPrefix == 0xF3 && instruction.modRM >> 3 == 0b11111:
      try readProcessorID(instruction)
    default: throw .invalidOpcode
    }
  }

  private func executeGroup6(_ instruction: Instruction) throws(Fault) {
    switch instruction.modRM >> 3 & 7 {
    case 0: try storeLDT(instruction)
    case 1: try storeTask(instruction)
    case 2: try loadLDT(instruction)
    case 3: try loadTask(instruction)
    case 4: try verify(instruction, write: false)
    case 5: try verify(instruction, write: true)
    default: throw .invalidOpcode
    }
  }

  private func executeGroup7(_ instruction: Instruction) throws(Fault) {
    let field = instruction.modRM >> 3 & 7
    if instruction.isMemory {
      switch field {
      case 0: try storeTable(page[\.gdtr], instruction)
      case 1: try storeTable(page[\.idtr], instruction)
      case 2: page[\.gdtr] = try loadTable(instruction)
      case 3: page[\.idtr] = try loadTable(instruction)
      case 4: try storeMachineStatus(instruction)
      case 6: try loadMachineStatus(instruction)
      case 7: try invalidatePage(instruction)
      default: throw .invalidOpcode
      }
      return
    }
    switch instruction.modRM {
    case 0xC8, 0xC9:  // MONITOR, MWAIT: waiting is allowed to end at once
      guard state.cpuid.basicECX(3), privilege == 0 else { throw .invalidOpcode }
    case 0xCA, 0xCB:  // CLAC, STAC
      guard state.cpuid.structuredEBX(20), privilege == 0 else { throw .invalidOpcode }
      setFlags(instruction.modRM == 0xCB ? page.rflags | RFLAGS.ac : page.rflags & ~RFLAGS.ac)
    case 0xD0: try readExtendedControl()
    case 0xD1: try writeExtendedControl()
    case 0xF8: try swapGS()
    case 0xF9: try readTimestamp(auxiliary: true)
    default:
      switch field {
      case 4: try storeMachineStatus(instruction)
      case 6: try loadMachineStatus(instruction)
      default: throw .invalidOpcode
      }
    }
  }
}

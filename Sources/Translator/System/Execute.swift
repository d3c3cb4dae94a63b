// SPDX-License-Identifier: Apache-2.0
// One instruction, executed by Swift: from its row's rule, and for system instructions the row's operation, to the functions
// of this folder. It knows every instruction that translated code may hand over, the privileged ones and the slow forms of
// ordinary ones.

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
    switch row.rule {
    // Instructions that leave, or whose exit carries RIP.
    case .ins: return try inputElement(instruction)
    case .outs: return try outputElement(instruction)
    case .hypercall: return try hypercall(instruction)
    case .pause:
      page[\.pauses] = state.pausesToExit
      advance(instruction)
      return state.pausesToExit != 0 ? .exit(.spinning) : .done
    case .system, .decimal: return try perform(row.operation, instruction, row)

    // Instructions that set RIP themselves.
    case .jcc:
      try branch(if: condition(instruction.opcode & 15), instruction)
      return .done
    case .loop:
      try loop(instruction)
      return .done
    case .jump:
      try branch(if: true, instruction)
      return .done
    case .jumpIndirect:
      let size = branchSize(instruction)
      try jump(to: try readRM(instruction, size: size), size: size)
      return .done
    case .call:
      try call(to: relativeTarget(instruction), instruction)
      return .done
    case .callIndirect:
      try call(to: try readRM(instruction, size: branchSize(instruction)), instruction)
      return .done
    case .ret:
      try nearReturn(instruction, parameters: Processor.parameters(instruction, row))
      return .done
    case .movs, .stos, .lods, .scas, .cmps:
      try stringElement(instruction)
      return .done
    case .syscall:
      try systemCall(instruction)
      return .done
    case .sysret:
      try systemReturn(instruction)
      return .done

    // Instructions after which the next one follows.
    case .nop: break
    case .lea: setRegister(instruction.reg, effectiveAddress(instruction).offset, size: instruction.operandSize)
    case .push: try push(instruction, row)
    case .pop: try pop(instruction)
    case .pushFlags: try pushFlags(instruction)
    case .popFlags: try popFlags(instruction)
    case .enter: try enter(instruction)
    case .leave: try leave(instruction)
    case .pushAll: try pushAll(instruction)
    case .popAll: try popAll(instruction)
    case .pushSegment: try pushSegment(Processor.segment(row.operand1), instruction)
    case .popSegment: try popSegment(Processor.segment(row.operand1), instruction)
    case .xlat: try translateByte(instruction)
    case .moffs: try moveOffset(instruction)
    case .bound: try bound(instruction)
    case .arpl: try adjustPrivilege(instruction)
    case .movSegment: try moveFromSegment(instruction)
    case .cld: page.rflags = page.rflags & ~RFLAGS.df
    case .std: page.rflags = page.rflags | RFLAGS.df
    case .cpuid: cpuid()
    case .rdtsc: try readTimestamp(auxiliary: false)
    case .rdtscp: try readTimestamp(auxiliary: true)
    case .swapgs: try swapGS()
    case .cli: try clearInterrupts()
    case .sti: try setInterrupts()
    case .stac, .clac:
      guard state.cpuid.structuredEBX(20), privilege == 0 else { throw .invalidOpcode }
      setFlags(row.rule == .stac ? page.rflags | RFLAGS.ac : page.rflags & ~RFLAGS.ac)
    case .rdfsbase, .wrfsbase:
      // ModRM.reg is odd for GS.
      let register: SegmentRegister = instruction.modRM & 0b1000 == 0 ? .fs : .gs
      try segmentBase(register, write: row.rule == .wrfsbase, instruction)

    // What the host executes on a copy of its operand, and what is no instruction.
    case .copy, .x87, .mmx, .sse, .avx, .wait, .incDec32, .bitMemory, .gather, .maskMove, .cmpxchgWide, .saveState,
      .restoreState, .undefined:
      throw .invalidOpcode
    }
    advance(instruction)
    return .done
  }

  /// The immediate of RET and RETF, 0 without one.
  private static func parameters(_ instruction: Instruction, _ row: Opcode) -> UInt64 {
    row.operand1 == .Iw ? instruction.immediate & 0xFFFF : 0
  }

  private func push(_ instruction: Instruction, _ row: Opcode) throws(Fault) {
    let size = stackOperandSize(instruction)
    let value: UInt64
    switch row.operand1 {
    case .Zv: value = page[register: instruction.opcode & 7 | (instruction.rex & 1) << 3]
    case .Ev: value = try readRM(instruction, size: size)
    default: value = instruction.immediate
    }
    try push(value, size: size)
  }

  private static func segment(_ operand: Operand) -> SegmentRegister {
    switch operand {
    case .ES: .es
    case .CS: .cs
    case .SS: .ss
    case .DS: .ds
    case .FS: .fs
    default: .gs
    }
  }

  // MARK: Operations

  private func perform(
    _ operation: Operation, _ instruction: Instruction, _ row: Opcode
  ) throws(Fault) -> SystemOutcome {
    let immediate = instruction.immediate
    switch operation {
    // Instructions that leave, or set RIP themselves.
    case .input: return try input(instruction, port: port(instruction, row.operand2))
    case .output: return try output(instruction, port: port(instruction, row.operand1))
    case .rdmsr: return try readMSR(instruction)
    case .wrmsr: return try writeMSR(instruction)
    case .hlt:
      try requirePrivilege()
      advance(instruction)
      return .exit(.halt)
    case .callFar:
      let (selector, offset) = try farTarget(instruction, row)
      try farCall(selector, offset, instruction)
      return .done
    case .jumpFar:
      let (selector, offset) = try farTarget(instruction, row)
      try farJump(selector, offset, instruction)
      return .done
    case .returnFar:
      try farReturn(instruction, parameters: Processor.parameters(instruction, row))
      return .done
    case .int3: return try softwareInterrupt(3, instruction, checksIOPL: false)
    case .int:
      return try softwareInterrupt(UInt8(truncatingIfNeeded: immediate), instruction, checksIOPL: true)
    case .int1: return try debugInterrupt(instruction)
    case .into:
      guard !page.isLongMode else { throw .invalidOpcode }
      if page.rflags & RFLAGS.of != 0 { return try softwareInterrupt(4, instruction, checksIOPL: false) }
    case .iret:
      try interruptReturn(instruction)
      return .done
    case .sysenter:
      try sysenter()
      return .done
    case .sysexit:
      try sysexit(instruction)
      return .done
    case .movToControl:
      let old = page[\.cr8]
      try moveToControl(instruction)
      advance(instruction)
      // What was held back comes before the next instruction (SDM volume 3, 11.8.6).
      return instruction.reg == 8 && page[\.cr8] < old ? .exit(.kicked) : .done

    // Instructions after which the next one follows.
    case .none: throw .invalidOpcode
    case .daa: decimalAdjust(subtract: false)
    case .das: decimalAdjust(subtract: true)
    case .aaa: asciiAdjust(subtract: false)
    case .aas: asciiAdjust(subtract: true)
    case .aam: try asciiMultiply(UInt8(truncatingIfNeeded: immediate))
    case .aad: asciiDivide(UInt8(truncatingIfNeeded: immediate))
    case .salc: setALFromCarry()
    case .sldt: try storeLDT(instruction)
    case .str: try storeTask(instruction)
    case .lldt: try loadLDT(instruction)
    case .ltr: try loadTask(instruction)
    case .verr: try verify(instruction, write: false)
    case .verw: try verify(instruction, write: true)
    case .sgdt: try storeTable(page[\.gdtr], instruction)
    case .sidt: try storeTable(page[\.idtr], instruction)
    case .lgdt: page[\.gdtr] = try loadTable(instruction)
    case .lidt: page[\.idtr] = try loadTable(instruction)
    case .lar: try loadAccessRights(instruction)
    case .lsl: try loadSegmentLimit(instruction)
    case .movToSegment: try moveToSegment(instruction)
    case .les: try loadFarPointer(.es, instruction)
    case .lds: try loadFarPointer(.ds, instruction)
    case .lss: try loadFarPointer(.ss, instruction)
    case .lfs: try loadFarPointer(.fs, instruction)
    case .lgs: try loadFarPointer(.gs, instruction)
    case .smsw: try storeMachineStatus(instruction)
    case .lmsw: try loadMachineStatus(instruction)
    case .clts: try clearTaskSwitched()
    case .movFromControl: try moveFromControl(instruction)
    case .movFromDebug: try moveFromDebug(instruction)
    case .movToDebug: try moveToDebug(instruction)
    case .rdpmc: try readPerformanceCounter()
    case .rdpid: try readProcessorID(instruction)
    case .xgetbv: try readExtendedControl()
    case .xsetbv: try writeExtendedControl()
    case .invd, .wbinvd: try requirePrivilege()  // Guest memory is coherent.
    case .invlpg: try invalidatePage(instruction)
    case .invpcid:
      guard instruction.isMemory, state.cpuid.structuredEBX(10) else { throw .invalidOpcode }
      try invalidateContext(instruction)
    case .monitor, .mwait:  // Waiting is allowed to end at once.
      guard state.cpuid.basicECX(3), privilege == 0 else { throw .invalidOpcode }
    }
    advance(instruction)
    return .done
  }

  /// The port that IN or OUT names: an immediate, or DX.
  private func port(_ instruction: Instruction, _ operand: Operand) -> UInt16 {
    UInt16(truncatingIfNeeded: operand == .DX ? page[register: GPR.rdx] : instruction.immediate & 0xFF)
  }

  /// Where a far CALL or JMP goes: an immediate, or a pointer in memory.
  private func farTarget(_ instruction: Instruction, _ row: Opcode) throws(Fault) -> (selector: UInt16, offset: UInt64)
  {
    if row.operand1 == .Ap {
      return (instruction.immediate2, instruction.immediate & Processor.mask(instruction.operandSize))
    }
    guard instruction.isMemory else { throw .invalidOpcode }
    return try farPointer(instruction)
  }
}

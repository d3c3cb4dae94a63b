// SPDX-License-Identifier: Apache-2.0
// Executing an instruction in Swift: it is fetched and decoded again, and its row says whether the host executes it on a copy
// of its operand (SlowAccess.swift) or a function of System/ performs it.

import CHost
import Engine
import Synchronization
import X86

extension TranslatedCPU {
  /// Executes the instruction at RIP in Swift. Returns an exit for the machine, if one is needed.
  func executeSlowly() -> VCPUExit? {
    let fetched = processor.fetch(at: page[\.rip])
    var bytes = (fetched.low, fetched.high)
    let result = unsafe withUnsafePointer(to: &bytes) {
      unsafe translation.cache.translator.decoder.decode(
        UnsafeRawPointer($0), count: fetched.count, code: BlockTranslator.codeSize(page[\.mode]))
    }
    switch result {
    case .complete(var instruction):
      instruction.row = translation.cache.translator.substitute(instruction.row)
      return executeSlowly(instruction)
    case .needsMore: fault(fetched.end ?? .generalProtection())
    case .tooLong: fault(.generalProtection())
    }
    return nil
  }

  private func executeSlowly(_ instruction: Instruction) -> VCPUExit? {
    let table = translation.cache.translator.table
    let row = table[instruction.row]
    let wasStepping = isStepping
    let held = processor.state.pendingDebug
    do throws(Fault) {
      // What has no row may have an opcode that means something elsewhere: 06 in 64-bit mode.
      if row.rule == .undefined || row.rule != .nop && translation.cache.translator.isMissing(instruction.row) {
        throw .invalidOpcode
      }
      let traits = translation.cache.translator.traits(of: instruction.row)
      if traits.rule.contains(.runsOnCopy) {
        let size = traits.memorySize
        try checkFPU(row.rule, size, waits: TranslatedCPU.waits(instruction))
        // CVTPS2PI and its like write MMX registers.
        if row.rule == .sse && row.operand1 == .Pq && hasPendingX87Exception { throw .floatingPoint }
        if try prepare(instruction, row) {
          // Copied, changed and copied back is no atomic operation, unless nobody else looks.
          return isAtomic(instruction, row) ? translation.alone(as: self) { continueAlone() } : continueSlow()
        }
        processor.advance(instruction)
        if wasStepping { processor.state.pendingDebug |= DR6.step }
      } else if row.rule == .gather || row.rule == .maskMove {
        try checkFPU(row.operand1 == .Pq ? .mmx : (instruction.hasVEX ? .avx : .sse), .none, waits: true)
        let outcome = try executeVectorMemoryWithDevices(instruction, row)
        if case .exit(let exit) = outcome { return exit }
        if wasStepping { processor.state.pendingDebug |= DR6.step }
      } else {
        let outcome = try executeWithDevices { () throws(Fault) in
          try processor.execute(instruction, row: row)
        }
        if isRestarting {
          if case .exit(let exit) = outcome { return exit }
        }
        // Not executed yet: the machine completes it or changes it.
        if case .exit(.foreignHypercall) = outcome { return .foreignHypercall }
        // Transfers complete too; IRET alone loads RF, which means something only beside a breakpoint: translated code
        // does not end it.
        if row.map != .one || instruction.opcode != 0xCF || !processor.hasBreakpoints { processor.clearResume() }
        finishStep(instruction, row, wasStepping: wasStepping, held: held)
        switch outcome {
        case .done: return nil
        case .shutdown: return .shutdown
        // A stepped HLT traps instead of waiting.
        case .exit(.halt) where processor.state.pendingDebug != 0: return nil
        case .exit(let exit): return exit
        }
      }
    } catch {
      fault(error)
      return nil
    }
    return nil
  }

  private func continueAlone() -> VCPUExit? {
    isAlone = true
    defer { isAlone = false }
    return continueSlow()
  }

  var isStepping: Bool { page[\.system_flags] & UInt32(truncatingIfNeeded: RFLAGS.tf) != 0 }

  /// The single-step trap of an instruction that Swift executed: by TF before it, but SYSCALL and SYSRET obey the TF
  /// that they load, and software interrupts, which clear TF, do not trap. `held`: traps that MOV SS delayed.
  private func finishStep(_ instruction: Instruction, _ row: Opcode, wasStepping: Bool, held: UInt64) {
    let traps: Bool
    switch row.rule {
    case .syscall, .sysret: traps = isStepping
    default:
      let isInterrupt = row.map == .one && [0xCC, 0xCD, 0xCE, 0xF1].contains(instruction.opcode)
      // That of a load of SS is lost, not late (SDM volume 3, 6.8.3).
      traps = wasStepping && (!isInterrupt || isStepping) && processor.state.interruptShadow != .movSS
    }
    processor.state.pendingDebug |= held | (traps ? DR6.step : 0)
  }

  /// #UD and #NM of the floating-point and vector state (SDM volume 3, 2.5 and table 13-1).
  ///
  /// A pending x87 exception comes before those of the memory operand.
  private func checkFPU(_ rule: Rule, _ size: MemorySize, waits: Bool) throws(Fault) {
    func has(_ bit: Int) -> Bool { page[\.mode] & UInt32(bit) != 0 }
    switch rule {
    case .saveState where size == .xsave, .restoreState where size == .xsave:
      // EM has no say (SDM volume 2, XSAVE and XRSTOR).
      if !has(Int(CHOST_MODE_OSXSAVE)) { throw .invalidOpcode }
      if has(Int(CHOST_MODE_TS)) { throw .deviceNotAvailable }
    case .x87, .saveState, .restoreState:
      if has(Int(CHOST_MODE_EM)) || has(Int(CHOST_MODE_TS)) { throw .deviceNotAvailable }
      if waits && hasPendingX87Exception { throw .floatingPoint }
    case .mmx:
      if has(Int(CHOST_MODE_EM)) { throw .invalidOpcode }
      if has(Int(CHOST_MODE_TS)) { throw .deviceNotAvailable }
      if hasPendingX87Exception { throw .floatingPoint }
    case .sse:
      if has(Int(CHOST_MODE_EM)) || !has(Int(CHOST_MODE_OSFXSR)) { throw .invalidOpcode }
      if has(Int(CHOST_MODE_TS)) { throw .deviceNotAvailable }
    case .avx:
      if !has(Int(CHOST_MODE_AVX)) { throw .invalidOpcode }
      if has(Int(CHOST_MODE_TS)) { throw .deviceNotAvailable }
    case .wait:
      if has(Int(CHOST_MODE_MP)) && has(Int(CHOST_MODE_TS)) { throw .deviceNotAvailable }
    default: break
    }
  }

  /// FCW in the saved image.
  var controlWord: UInt16 {
    unsafe UnsafeRawPointer(page.pointer).load(fromByteOffset: Int(CHOST_ENV) + Int(CHOST_FPU), as: UInt16.self)
  }

  /// FSW.ES in the saved image.
  private var hasPendingX87Exception: Bool {
    unsafe UnsafeRawPointer(page.pointer).load(fromByteOffset: Int(CHOST_ENV) + Int(CHOST_FPU) + 2, as: UInt16.self)
      & 0x80 != 0
  }

  /// Whether an instruction of the x87, or one that saves or restores its state, checks for pending exceptions: all of
  /// opcodes D8 to DF but FNSTENV, FNSTCW, FNSAVE, FNSTSW, FNCLEX, FNINIT and what has come of the 8087's FNENI and FNDISI
  /// and the 287's FNSETPM (SDM volume 1, 8.6).
  private static func waits(_ instruction: Instruction) -> Bool {
    if instruction.isMemory {
      switch instruction.opcode {
      case 0xD9, 0xDD: return instruction.modRM >> 3 & 7 < 6
      case 0xD8...0xDF: return true
      default: return false
      }
    }
    switch instruction.opcode {
    case 0xDB: return !(0xE0...0xE4).contains(instruction.modRM)
    case 0xDF: return instruction.modRM != 0xE0
    default: return true
    }
  }

  /// Whether an instruction with a memory operand is locked: by prefix, or as XCHG always is.
  private func isAtomic(_ instruction: Instruction, _ row: Opcode) -> Bool {
    instruction.hasLock || row.map == .one && instruction.opcode & 0xFE == 0x86
  }
}

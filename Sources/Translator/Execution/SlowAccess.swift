// SPDX-License-Identifier: Apache-2.0
// The one slow mechanism for accesses that the software TLB cannot serve: page-crossing, device, code-page and faulting
// ones. Every page is checked with its final rights first; the operand is copied to the bounce buffer in the vCPU
// page; the *same* instruction runs with its operand pointing there; the result is written back. So every
// instruction works in every place, and none is interpreted.

import CHost
import GuestMemory
import Synchronization
import X86

/// An instruction on its way through the slow path.
struct SlowAccess {
  enum Phase { case read, write }
  var phase: Phase
  let instruction: Instruction
  let row: Opcode
  let span: LinearSpan
  let reads: Bool
  let writes: Bool
  /// Bytes of the operand already moved in this phase.
  var position = 0
}

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
      if runsNatively(row.rule, instruction) {
        let size = translation.cache.translator.traits(of: instruction.row).memorySize
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

  private var isStepping: Bool { page[\.system_flags] & UInt32(truncatingIfNeeded: RFLAGS.tf) != 0 }

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

  /// Instructions that the host executes on a copy of their operand.
  private func runsNatively(_ rule: Rule, _ instruction: Instruction) -> Bool {
    switch rule {
    case .copy, .incDec32, .x87, .mmx, .sse, .avx, .wait, .cmpxchgWide, .bitMemory, .saveState, .restoreState: true
    default: false
    }
  }

  /// #UD and #NM of the floating-point and vector state (SDM volume 3, 2.5 and table 13-1).
  ///
  /// A pending x87 exception comes before those of the memory operand.
  private func checkFPU(_ rule: Rule, _ size: MemorySize, waits: Bool) throws(Fault) {
    func has(_ bit: Int) -> Bool { page[\.mode] & UInt32(bit) != 0 }
    switch rule {
    case .x87, .saveState, .restoreState:
      if size == .xsave && !has(Int(CHOST_MODE_OSXSAVE)) { throw .invalidOpcode }
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
  private var controlWord: UInt16 {
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

  // MARK: Operands

  /// Checks the operand and starts the phases; false if the instruction had no memory operand and is done.
  private func prepare(_ instruction: Instruction, _ row: Opcode) throws(Fault) -> Bool {
    let traits = translation.cache.translator.traits(of: instruction.row)
    guard instruction.isMemory else {
      try runOnHost(instruction, row)
      return false
    }
    var operand = processor.effectiveAddress(instruction)
    if row.rule == .bitMemory {
      // The bit offset selects the word (SDM volume 2, BT).
      let size = instruction.operandSize
      let value = Processor.signExtend(page[register: instruction.reg], size: size)
      let bits: UInt64 = size == 8 ? 6 : (size == 4 ? 5 : 4)
      let words = UInt64(bitPattern: Int64(bitPattern: value) >> Int64(bits))
      operand.offset = (operand.offset &+ words &* UInt64(size)) & Processor.mask(instruction.addressSize)
    }
    let isState = row.rule == .saveState || row.rule == .restoreState
    var size = traits.memoryBytes(instruction)
    if traits.memorySize == .xsave {
      let mask = (page[register: GPR.rdx] << 32 | page[register: GPR.rax] & 0xFFFF_FFFF) & page[\.xcr0]
      size = mask & 4 != 0 ? 832 : 576
    }
    guard size > 0, size <= 1024 else { throw .invalidOpcode }
    let writes = traits.memoryWrites || row.rule == .saveState
    var alignment = row.attribute == .aligned ? UInt64(size) : 1
    if traits.memorySize == .xsave { alignment = 64 }
    if traits.memorySize == .fxsave { alignment = 16 }
    if traits.memorySize == .wide && size == 16 { alignment = 16 }
    // Before the stack's limit and before an address that is not canonical: so on Intel's family 6 model 207.
    let unchecked = processor.uncheckedLinear(operand.segment, operand.offset)
    if unchecked & (alignment &- 1) != 0 { throw .generalProtection() }
    let linear = try processor.linear(operand.segment, operand.offset, size: size, write: writes)
    let span = try processor.span(
      linear, count: size, write: writes, as: processor.authority, stack: operand.segment == .ss)
    // State images are merged with what is there (XSAVE leaves parts alone).
    // An x87 store whose exception is not masked leaves memory alone: so does writing back what was there.
    let mayNotStore = row.rule == .x87 && writes && controlWord & 0x3F != 0x3F
    slow = SlowAccess(
      phase: .read, instruction: instruction, row: row, span: span,
      reads: traits.memoryReads || isState || mayNotStore, writes: writes)
    return true
  }

  /// Moves the operand, runs the instruction, moves it back; returns an exit for every piece that is a device's.
  func continueSlow() -> VCPUExit? {
    guard var access = slow else { return nil }
    if access.phase == .read {
      if access.reads, let exit = move(&access, write: false) { return exit }
      do throws(Fault) { try runOnHost(access.instruction, access.row) } catch {
        slow = nil
        fault(error)
        return nil
      }
      access.phase = .write
      access.position = 0
    }
    if access.writes, let exit = move(&access, write: true) { return exit }
    slow = nil
    if isStepping { processor.state.pendingDebug |= DR6.step }
    processor.advance(access.instruction)
    return nil
  }

  /// Copies between the operand and the bounce buffer, from `position` on.
  private func move(_ access: inout SlowAccess, write: Bool) -> VCPUExit? {
    let span = access.span
    while access.position < span.count {
      let physical = span.physical(access.position)
      let end = access.position < span.firstCount ? span.firstCount : span.count
      let left = end - access.position
      var size = left >= 8 ? 8 : (left >= 4 ? 4 : (left >= 2 ? 2 : 1))
      if processor.isRAM(physical) {
        if write {
          storePiece(bounce(access.position, size), physical, size)
        } else {
          setBounce(access.position, size, loadPiece(physical, size))
        }
        access.position += size
        continue
      }
      // Devices see naturally aligned accesses.
      while physical & UInt64(size - 1) != 0 { size >>= 1 }
      if write {
        let value = bounce(access.position, size)
        access.position += size
        slow = access
        return .mmioWrite(address: physical, size: UInt8(size), value: value)
      }
      slow = access
      return .mmioRead(address: physical, size: UInt8(size))
    }
    return nil
  }

  /// The machine's answer to an MMIO read.
  func completeSlowRead(_ value: UInt64) {
    guard var access = slow, access.phase == .read else { return }
    let physical = access.span.physical(access.position)
    let end = access.position < access.span.firstCount ? access.span.firstCount : access.span.count
    let left = end - access.position
    var size = left >= 8 ? 8 : (left >= 4 ? 4 : (left >= 2 ? 2 : 1))
    while physical & UInt64(size - 1) != 0 { size >>= 1 }
    setBounce(access.position, size, value)
    access.position += size
    slow = access
  }

  private func loadPiece(_ physical: UInt64, _ size: Int) -> UInt64 {
    switch size {
    case 1: UInt64(processor.physicalLoad(UInt8.self, physical))
    case 2: UInt64(processor.physicalLoad(UInt16.self, physical))
    case 4: UInt64(processor.physicalLoad(UInt32.self, physical))
    default: processor.physicalLoad(UInt64.self, physical)
    }
  }

  private func storePiece(_ value: UInt64, _ physical: UInt64, _ size: Int) {
    switch size {
    case 1: processor.physicalStore(UInt8(truncatingIfNeeded: value), physical)
    case 2: processor.physicalStore(UInt16(truncatingIfNeeded: value), physical)
    case 4: processor.physicalStore(UInt32(truncatingIfNeeded: value), physical)
    default: processor.physicalStore(value, physical)
    }
  }

  // MARK: The bounce buffer

  private var bounceBuffer: UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(page.pointer) + Int(CHOST_ENV) + Int(CHOST_BOUNCE)
  }

  private func bounce(_ offset: Int, _ size: Int) -> UInt64 {
    switch size {
    case 1: UInt64(unsafe bounceBuffer.load(fromByteOffset: offset, as: UInt8.self))
    case 2: UInt64(unsafe bounceBuffer.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    case 4: UInt64(unsafe bounceBuffer.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    default: unsafe bounceBuffer.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
    }
  }

  private func setBounce(_ offset: Int, _ size: Int, _ value: UInt64) {
    switch size {
    case 1: unsafe bounceBuffer.storeBytes(of: UInt8(truncatingIfNeeded: value), toByteOffset: offset, as: UInt8.self)
    case 2: unsafe bounceBuffer.storeBytes(of: UInt16(truncatingIfNeeded: value), toByteOffset: offset, as: UInt16.self)
    case 4: unsafe bounceBuffer.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: offset, as: UInt32.self)
    default: unsafe bounceBuffer.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    }
  }

  // MARK: Running one instruction

  /// Runs the instruction in the vCPU's scratch area, its memory operand in the bounce buffer.
  private func runOnHost(_ instruction: Instruction, _ row: Opcode) throws(Fault) {
    let saved = (page[register: GPR.rax], page[register: GPR.rdx])
    let traits = translation.cache.translator.traits(of: instruction.row)
    let isXSAVE = traits.memorySize == .xsave
    if isXSAVE {
      if row.rule == .restoreState { try checkXSAVEHeader() }
      // The host's XCR0 has more than the guest's.
      page[register: GPR.rax] = saved.0 & page[\.xcr0]
      page[register: GPR.rdx] = 0
    }
    let mode = page[\.mode]
    let entry = translation.lock.withLock { _ in
      translation.cache.emitScratch(number, instruction, row, traits, mode: mode)
    }
    page[\.linear] = 0
    if !page.isLongMode && (isXSAVE || traits.memorySize == .fxsave) {
      unsafe keepingUpperVectors(inBounceBuffer: bounceBuffer, save: row.rule == .saveState, extended: isXSAVE) {
        enter(entry)
      }
    } else {
      enter(entry)
    }
    exitCounts[0] &+= 1
    if isXSAVE {
      page[register: GPR.rax] = saved.0
      page[register: GPR.rdx] = saved.1
    }
    let reason = page[\.exit_info] >> UInt32(CHOST_INFO_REASON_SHIFT)
    if reason == UInt32(CHOST_EXIT_FAULT) { throw guestFault(hostTrap: page[\.fault_trap]) }
    if row.rule == .saveState { hideHostAddresses(traits.memorySize, instruction) }
  }

  /// XRSTOR's header checks against the guest's XCR0 (SDM volume 1, 13.8.1); the host makes the others.
  private func checkXSAVEHeader() throws(Fault) {
    let components = bounce(512, 8)
    let compaction = bounce(520, 8)
    if components & ~page[\.xcr0] != 0 || compaction != 0 { throw .generalProtection() }
    for offset in stride(from: 528, to: 576, by: 8) where bounce(offset, 8) != 0 { throw .generalProtection() }
  }

  /// The host stores where *its* last x87 instruction and operand were: the guest sees zeros.
  private func hideHostAddresses(_ size: MemorySize, _ instruction: Instruction) {
    switch size {
    case .fxsave, .xsave:
      setBounce(8, 8, 0)
      setBounce(16, 8, 0)
    case .fsave, .fenv:
      if instruction.operandSize == 2 {
        setBounce(6, 8, 0)
      } else {
        setBounce(12, 8, 0)
        setBounce(20, 8, 0)
      }
    default: break
    }
  }
}

extension CodeCache {
  /// Emits `instruction` alone into a vCPU's scratch area, its memory operand in the bounce buffer; returns where to
  /// enter.
  func emitScratch(
    _ number: Int, _ instruction: Instruction, _ row: Opcode, _ traits: RowTraits, mode: UInt32
  ) -> UInt64 {
    let (hot, cold) = scratch(number)
    let entry = hot.address
    var builder = unsafe BlockBuilder(
      hot: hot, cold: cold, mode: mode, bytes: GuestCode(page: translator.scratchBytes), decoder: translator.decoder,
      stubs: stubs, firstEdge: 0, faults: translator.faults, edges: translator.edges, groups: translator.groups,
      row: row)
    builder.traits = traits
    builder.current.instruction = instruction
    builder.current.liveBefore = ArithmeticFlags.all
    builder.current.liveAfter = ArithmeticFlags.all
    builder.flagsAreLive = true
    builder.pageFlags = true
    builder.needHostFlags()
    if row.rule == .bitMemory && instruction.isMemory {
      builder.bitInBounceBuffer()
    } else if row.rule == .incDec32 {
      _ = builder.incDec32()
    } else {
      builder.copyFromBounceBuffer()
    }
    builder.finishFlags()
    builder.exit(Int(CHOST_EXIT_NONE), at: 0)
    largestScratch = max(largestScratch, builder.hot.count, builder.cold.count)
    return entry
  }
}

extension BlockBuilder {
  /// The copy rule with the memory operand in the bounce buffer.
  mutating func copyFromBounceBuffer() {
    let i = instruction
    guard i.isMemory else {
      emit(memory: nil)
      return
    }
    if traits.reg.isGeneral && traits.reg.isByte && i.isHighByte(i.reg) {
      hot.store(.env(Slot.scratch0), RegisterMap.rdi)
      hot.lea(RegisterMap.rdi, .env(Int32(CHOST_BOUNCE)))
      emit(memory: HostMemory(RegisterMap.rdi))
      hot.load(RegisterMap.rdi, .env(Slot.scratch0))
    } else {
      emit(memory: .env(Int32(CHOST_BOUNCE)))
    }
  }

  /// Bit tests: the bounce buffer holds the word, so only the offset within it counts.
  mutating func bitInBounceBuffer() {
    let i = instruction
    let t2 = RegisterMap.t2
    let size = i.operandSize
    let bits = value(of: i.reg, scratch: t2)
    if bits != t2 { hot.mov(t2, bits) }
    hot.alu(.and, t2, immediate: Int32(size) &* 8 &- 1, w: false)
    hot.restoreFlags(scratch: RegisterMap.t1, from: .env(Slot.flags))
    if size == 2 { hot.byte(0x66) }
    let target = HostMemory.env(Int32(CHOST_BOUNCE))
    hot.rex(w: size == 8, reg: t2, memory: target)
    hot.byte(0x0F)
    hot.byte(i.opcode)
    hot.modRM(reg: t2, memory: target)
  }
}

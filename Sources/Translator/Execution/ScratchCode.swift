// SPDX-License-Identifier: Apache-2.0
// One instruction as code of its own, in a vCPU's scratch area, with its memory operand in the bounce buffer: how the host
// executes what translated code may not.

import CHost
import Synchronization
import X86

extension TranslatedCPU {
  /// Runs the instruction in the vCPU's scratch area, its memory operand in the bounce buffer.
  func runOnHost(_ instruction: Instruction, _ row: Opcode) throws(Fault) {
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
    // The compacted form, and what is reserved of the header: bytes 23:8, not those behind (SDM volume 1, 13.8.1).
    if components & ~page[\.xcr0] != 0 || bounce(520, 8) != 0 || bounce(528, 8) != 0 { throw .generalProtection() }
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

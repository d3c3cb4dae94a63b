// SPDX-License-Identifier: Apache-2.0
// System instructions that are hot enough to be emitted in line; the others leave to Swift (System/*.swift), which
// also holds the complete semantics of these.

import CHost
import X86

extension BlockBuilder {
  private static let interruptFlag: Int32 = 0x200

  /// CLI at CPL 0 (elsewhere IOPL decides: Swift).
  mutating func cli() -> Bool {
    guard privilege == 0, !has(Int(CHOST_MODE_VM86)) else { return false }
    clobberFlags()
    hot.alu32(.and, .env(Slot.systemFlags), immediate: ~BlockBuilder.interruptFlag)
    finishFlags()
    return true
  }

  /// STI at CPL 0, the next instruction in the same block. With an interrupt waiting, Swift executes it and honours
  /// the shadow.
  mutating func sti() -> Bool {
    guard privilege == 0, !has(Int(CHOST_MODE_VM86)), !isLast else { return false }
    clobberFlags()
    let stub = coldExitInstruction()
    hot.alu32(.cmp, .env(Slot.interruptWaiting), immediate: 0)
    hot.jump(if: CodeEmitter.notEqual, to: stub)
    hot.alu32(.or, .env(Slot.systemFlags), immediate: BlockBuilder.interruptFlag)
    finishFlags()
    return true
  }

  /// CLAC, STAC at CPL 0. The software TLB keeps no right that EFLAGS.AC gives, so nothing is flushed.
  mutating func setAlignmentCheck(_ set: Bool) -> Bool {
    guard privilege == 0, !has(Int(CHOST_MODE_VM86)) else { return false }
    clobberFlags()
    let flag = Int32(truncatingIfNeeded: RFLAGS.ac)
    hot.alu32(set ? .or : .and, .env(Slot.systemFlags), immediate: set ? flag : ~flag)
    finishFlags()
    return true
  }

  /// CLD, STD.
  mutating func setDirection(_ set: Bool) -> Bool {
    clobberFlags()
    if set {
      hot.alu32(.or, .env(Slot.systemFlags), immediate: 0x400)
    } else {
      hot.alu32(.and, .env(Slot.systemFlags), immediate: ~0x400)
    }
    finishFlags()
    return true
  }

  /// RDTSC and RDTSCP: the host's counter plus the vCPU's offset, and the guest's TSC_AUX.
  mutating func rdtsc() -> Bool {
    guard privilege == 0 || !has(Int(CHOST_MODE_TSD)) else { return false }
    clobberFlags()
    hot.byte(0x0F)
    if row.rule == .rdtscp {
      hot.byte(0x01)
      hot.byte(0xF9)
      hot.load32(RegisterMap.rcx, .env(Slot.tscAux))
    } else {
      hot.byte(0x31)
    }
    hot.shiftLeft(2, 32, w: true)
    hot.alu(.or, RegisterMap.rax, 2)
    hot.alu(.add, RegisterMap.rax, .env(Slot.tscOffset))
    hot.mov(2, RegisterMap.rax)
    hot.shiftRight(2, 32)
    hot.mov32(RegisterMap.rax, RegisterMap.rax)
    finishFlags()
    return true
  }

  /// SWAPGS at CPL 0 in 64-bit mode.
  mutating func swapgs() -> Bool {
    guard isLong, privilege == 0 else { return false }
    let base = BlockBuilder.segmentBase(5)
    hot.load(RegisterMap.t0, .env(base))
    hot.load(RegisterMap.t1, .env(Slot.kernelGSBase))
    hot.store(.env(base), RegisterMap.t1)
    hot.store(.env(Slot.kernelGSBase), RegisterMap.t0)
    finishFlags()
    return true
  }

  /// Calls a light helper (CHOST_LIGHT_*). Flags are in the page before and after.
  mutating func light(_ number: Int) {
    needPageFlags()
    hostFlags = false
    hot.mov(RegisterMap.t0, immediate: UInt64(number))
    let word = info(
      Int(CHOST_EXIT_INSTRUCTION), offset: current.offset, size: Int(instruction.length), flagsSaved: true)
    hot.mov(RegisterMap.t1, immediate: UInt64(word))
    hot.call(stubs.light)
  }

  /// SYSCALL.
  mutating func syscall() -> Bool {
    guard isLong else { return false }
    light(Int(CHOST_LIGHT_SYSCALL))
    return true
  }

  /// VMCALL, VMMCALL at CPL 0, if this CPU has it.
  mutating func hypercall(_ accepted: [HypercallOpcode]) -> Bool {
    let i = instruction
    guard isLong, privilege == 0, !has(Int(CHOST_MODE_STEP)), !i.hasOperandSizePrefix, i.repeatPrefix == 0,
      accepted.contains(where: { $0.rawValue == i.modRM })
    else { return false }
    light(Int(CHOST_LIGHT_HYPERCALL))
    return true
  }

  /// SYSRETQ.
  mutating func sysret() -> Bool {
    guard isLong, privilege == 0, instruction.w else { return false }
    light(Int(CHOST_LIGHT_SYSRET))
    return true
  }

  /// POPFQ, POPFD.
  mutating func popFlags() -> Bool {
    if !isLong { return popFlags32() }
    guard instruction.operandSize == 8, hasInlineStack else { return false }
    light(Int(CHOST_LIGHT_POPF))
    return true
  }

  /// IRETQ, MOV to and from CR2 and CR3, INVLPG, WRMSR at CPL 0.
  mutating func system() -> Bool {
    if !isLong { return system32() }
    guard privilege == 0, !has(Int(CHOST_MODE_STEP)) else { return false }
    let i = instruction
    switch (row.map, i.opcode) {
    case (.one, 0xCF) where i.operandSize == 8:
      light(Int(CHOST_LIGHT_IRET))
    case (.x0F, 0x30):
      light(Int(CHOST_LIGHT_WRMSR))
    case (.x0F, 0x01) where i.isMemory && i.modRM >> 3 & 7 == 7:
      guard isInline, isFlat(i.segment) else { return false }
      clobberFlags()
      effectiveAddress()
      hot.store(.env(Slot.scratch0), RegisterMap.t0)
      light(Int(CHOST_LIGHT_INVLPG))
    case (.x0F, 0x20) where !i.isMemory && (i.reg == 2 || i.reg == 3):
      hot.load(RegisterMap.t0, .env(i.reg == 2 ? Slot.cr2 : Slot.cr3))
      write(i.rm, RegisterMap.t0, size: 8)
    case (.x0F, 0x22) where !i.isMemory && i.reg == 3:
      let source = value(of: i.rm, scratch: RegisterMap.t0)
      hot.store(.env(Slot.scratch0), source)
      light(Int(CHOST_LIGHT_CR3))
    default: return false
    }
    return true
  }

  /// RDFSBASE, RDGSBASE.
  mutating func rdfsbase() -> Bool {
    guard isLong, has(Int(CHOST_MODE_FSGSBASE)) else { return false }
    let i = instruction
    hot.load(RegisterMap.t0, .env(BlockBuilder.segmentBase(i.modRM >> 3 & 1 == 0 ? 4 : 5)))
    write(i.rm, RegisterMap.t0, size: i.w ? 8 : 4)
    finishFlags()
    return true
  }
}

// SPDX-License-Identifier: Apache-2.0
// Saving and restoring x87, SSE and AVX state: every context switch of a guest does it. The host's own instruction
// runs on guest memory; before it stand what the guest's XCR0 allows and what makes the processor forget the host's
// addresses of the last x87 instruction and operand: another vCPU may see every byte that the instruction writes.

import CHost
import X86

extension BlockBuilder {
  /// FXSAVE, FXRSTOR, XSAVE and XRSTOR in 64-bit mode; the other forms are left to Swift.
  mutating func stateImage() -> Bool {
    let i = instruction
    guard isLong, i.isMemory, isInline, !has(Int(CHOST_MODE_TS)), !has(Int(CHOST_MODE_EM)) else {
      return false
    }
    switch traits.memorySize {
    case .fxsave: return stateImage(size: 512, alignment: 16)
    case .xsave:
      guard has(Int(CHOST_MODE_OSXSAVE)), row.map == .x0F, i.opcode == 0xAE, i.modRM >> 3 & 7 < 6 else { return false }
      return stateImage(size: 832, alignment: 64)
    default: return false
    }
  }

  private mutating func stateImage(size: Int, alignment: Int32) -> Bool {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1, t2 = RegisterMap.t2
    let saves = row.rule == .saveState
    let masks = size == 832
    flagsAreLive = true
    clobberFlags()
    let memory = access(size: size, write: saves)
    hot.lea(t0, memory)
    let misaligned = coldExitInstruction()
    hot.test32(t0, immediate: alignment &- 1)
    hot.jump(if: CodeEmitter.notEqual, to: misaligned)
    if masks && !saves {
      // Components beyond the guest's XCR0 and the compacted format: #GP, which the host's XCR0 would not raise.
      hot.load(t2, .env(Slot.xcr0))
      hot.not(t2)
      mayFault()
      hot.load(t1, HostMemory(t0, 512))
      hot.test(t2, t1)
      hot.jump(if: CodeEmitter.notEqual, to: misaligned)
      mayFault()
      hot.load(t1, HostMemory(t0, 520))
      hot.test(t1, t1)
      hot.jump(if: CodeEmitter.notEqual, to: misaligned)
    }
    if masks {
      hot.store(.env(Slot.scratch0), RegisterMap.rax)
      hot.store(.env(Slot.scratch1), 2)
      hot.alu32(.and, RegisterMap.rax, .env(Slot.xcr0))
      hot.mov(2, immediate: 0)
    }
    if saves { clearX87Pointers() }
    mayFault(canRaise: true, restoresScratch: masks)
    hot.rex(w: instruction.w, reg: 0, memory: HostMemory(t0))
    hot.byte(0x0F)
    hot.byte(0xAE)
    hot.modRM(reg: instruction.modRM >> 3 & 7, memory: HostMemory(t0))
    // AMD's processors write no pointers while no exception is pending (APM, FXSAVE), and what the guest had there stays:
    // it reads 0 on either vendor's.
    if saves {
      if masks {
        hot.byte(0xA8)  // TEST AL,1: x87 state was asked for
        hot.byte(1)
        hot.byte(0x74)
        hot.byte(16)
      }
      for offset: Int32 in [8, 16] {
        mayFault(restoresScratch: masks)
        hot.storeImmediate64(HostMemory(t0, offset), 0)  // 8 bytes each
      }
    }
    if masks {
      hot.load(RegisterMap.rax, .env(Slot.scratch0))
      hot.load(2, .env(Slot.scratch1))
    }
    hostFlags = false
    finishFlags()
    return true
  }

  /// FNSTENV, and FLDENV of the same with both pointers 0: only loading sets them to what is no address of the host's.
  private mutating func clearX87Pointers() {
    x87Environment(6)
    // FIP and FDP of the 32-bit format (SDM volume 1, figure 8-9).
    for offset: Int32 in [12, 20] { hot.storeImmediate32(.env(Slot.x87Environment &+ offset), 0) }
    x87Environment(4)
  }

  /// FNSTENV (6), FLDENV (4).
  private mutating func x87Environment(_ digit: UInt8) {
    let memory = HostMemory.env(Slot.x87Environment)
    hot.rex(w: false, reg: 0, memory: memory)
    hot.byte(0xD9)
    hot.modRM(reg: digit, memory: memory)
  }

  /// WRFSBASE, WRGSBASE.
  mutating func wrfsbase() -> Bool {
    guard isLong, has(Int(CHOST_MODE_FSGSBASE)) else { return false }
    let i = instruction
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1
    clobberFlags()
    let source = value(of: i.rm, scratch: t0)
    if i.w {
      if source != t0 { hot.mov(t0, source) }
      hot.mov(t1, t0)
      hot.shiftLeft(t1, 16, w: true)
      hot.shiftRightArithmetic(t1, 16)
      hot.alu(.cmp, t1, t0)
      hot.jump(if: CodeEmitter.notEqual, to: coldExitInstruction())
    } else {
      hot.mov32(t0, source)
    }
    hot.store(.env(BlockBuilder.segmentBase(i.modRM >> 3 & 1 == 0 ? 4 : 5)), t0)
    finishFlags()
    return true
  }
}

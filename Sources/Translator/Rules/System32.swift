// SPDX-License-Identifier: Apache-2.0
// System instructions of 32-bit kernels and their programs that are hot enough to stay in translated code: system calls
// and returns, segment registers, control registers. The light helpers (CHost/system32.c) do the work.

import CHost
import X86

extension BlockBuilder {
  /// Protected mode outside IA-32e mode, no virtual-8086 mode, nothing armed: what the light helpers handle.
  private var isPlain32: Bool {
    has(Int(CHOST_MODE_PROTECTED)) && !has(Int(CHOST_MODE_LMA)) && !has(Int(CHOST_MODE_VM86))
      && !has(Int(CHOST_MODE_SEGMENTED)) && has(Int(CHOST_MODE_CODE32)) && has(Int(CHOST_MODE_STACK32)) && isInline
  }

  /// IRETD, INT, SYSENTER, SYSEXIT, MOV to a segment register, MOV from and to control registers, INVLPG.
  mutating func system32() -> Bool {
    guard isPlain32 else { return false }
    let i = instruction
    switch (row.map, i.opcode) {
    case (.one, 0x8E): return moveToSegment()
    case (.one, 0xCD):
      hot.storeImmediate32(.env(Slot.scratch0), UInt32(truncatingIfNeeded: i.immediate & 0xFF))
      light(Int(CHOST_LIGHT_INT))
      return true
    case (.x0F, 0x34):
      light(Int(CHOST_LIGHT_SYSENTER))
      return true
    case (.one, 0xCF) where i.operandSize == 4 && privilege <= 1:
      light(Int(CHOST_LIGHT_IRET))
      return true
    default: break
    }
    guard privilege == 0 else { return false }
    switch (row.map, i.opcode) {
    case (.x0F, 0x35): light(Int(CHOST_LIGHT_SYSEXIT))
    case (.x0F, 0x01) where i.isMemory && i.modRM >> 3 & 7 == 7:
      guard isFlat(i.segment) else { return false }
      clobberFlags()
      effectiveAddress()
      hot.store(.env(Slot.scratch0), RegisterMap.t0)
      light(Int(CHOST_LIGHT_INVLPG))
    case (.x0F, 0x20) where !i.isMemory && (i.reg == 2 || i.reg == 3):
      hot.load32(RegisterMap.t0, .env(i.reg == 2 ? Slot.cr2 : Slot.cr3))
      write(i.rm, RegisterMap.t0, size: 4)
    case (.x0F, 0x22) where !i.isMemory && i.reg == 3:
      hot.mov32(RegisterMap.t0, RegisterMap.host(i.rm))
      hot.store(.env(Slot.scratch0), RegisterMap.t0)
      light(Int(CHOST_LIGHT_CR3))
    default: return false
    }
    return true
  }

  /// POPFD.
  mutating func popFlags32() -> Bool {
    guard isPlain32, instruction.operandSize == 4 else { return false }
    light(Int(CHOST_LIGHT_POPF))
    return true
  }

  /// MOV Sreg.
  private mutating func moveToSegment() -> Bool {
    let i = instruction
    let number = i.modRM >> 3 & 7
    guard isLightSegment(number) else { return false }
    if i.isMemory {
      let memory = access(size: 2, write: false)
      loadOperand(RegisterMap.t0, memory, size: 2)
    } else {
      hot.zeroExtend16(RegisterMap.t0, RegisterMap.host(i.rm))
    }
    loadSegment(number)
    return true
  }

  /// POP of a segment register.
  mutating func popSegment() -> Bool {
    guard isPlain32, let number = namedSegment, isLightSegment(number) else { return false }
    loadTop(RegisterMap.t0, size: 2)
    loadSegment(number)
    release(stackSize)
    return true
  }

  /// PUSH of a segment register outside 64-bit mode. With operand size 32, Intel CPUs write 16 bits and leave the rest
  /// of the slot.
  mutating func pushSegment() -> Bool {
    guard hasInlineStack, !isLong, let number = namedSegment else { return false }
    hot.load32(RegisterMap.t2, .env(BlockBuilder.selector(number)))
    push(RegisterMap.t2, size: stackSize, stored: 2)
    finishFlags()
    return true
  }

  /// Not CS, and not SS, whose load delays interrupts.
  private func isLightSegment(_ number: UInt8) -> Bool { [0, 3, 4, 5].contains(number) }

  /// The segment register that a PUSH or POP names by its opcode.
  private var namedSegment: UInt8? {
    switch instruction.opcode & 0xFE {
    case 0x06: 0
    case 0x0E: 1
    case 0x16: 2
    case 0x1E: 3
    case 0xA0: 4
    case 0xA8: 5
    default: nil
    }
  }

  /// Loads a segment register with the selector in T0.
  private mutating func loadSegment(_ number: UInt8) {
    needPageFlags()
    hostFlags = false
    hot.alu(.or, RegisterMap.t0, immediate: Int32(number) << 16, w: false)
    hot.store(.env(Slot.scratch0), RegisterMap.t0)
    light(Int(CHOST_LIGHT_SEGMENT))
  }
}

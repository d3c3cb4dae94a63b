// SPDX-License-Identifier: Apache-2.0
// Ordinary instructions whose encoding or operand needs a rule of its own: LEA, bit tests with a register offset,
// the moffs moves, INC and DEC without ModRM, XLAT, and the string instructions, which run in a light helper.

import CHost
import X86

/// A string instruction as CHost does it: the argument of `chost_string`, and the exit information word.
private struct StringOperation {
  let operation: UInt32
  let info: UInt32
}

extension CodeEmitter {
  /// Has CHost do a string instruction.
  fileprivate mutating func string(_ request: StringOperation, _ stubs: CodeStubs) {
    storeImmediate32(.env(Slot.stringOperation), request.operation)
    mov(RegisterMap.t1, immediate: UInt64(request.info))
    call(stubs.string)
  }
}

extension BlockBuilder {
  /// LEA.
  mutating func lea() -> Bool {
    let i = instruction
    let target = RegisterMap.host(i.reg)
    if i.addressSize == (isLong ? 8 : 4) && i.operandSize != 2 && target != RegisterMap.inMemory && !i.isRIPRelative
      && i.base != 0xFF && RegisterMap.host(i.base) != RegisterMap.inMemory
      && (i.index == 0xFF || RegisterMap.host(i.index) != RegisterMap.inMemory)
    {
      var memory = HostMemory(RegisterMap.host(i.base), i.displacement)
      if i.index != 0xFF {
        memory.index = RegisterMap.host(i.index)
        memory.scale = i.scale
      }
      if i.operandSize == 8 { hot.lea(target, memory) } else { hot.lea32(target, memory) }
    } else if isLong && i.isRIPRelative && i.operandSize == 8 && i.addressSize == 8 && target != RegisterMap.inMemory {
      hot.load(target, .env(Slot.pageAddress))
      add(Int64(nextOffset) &+ Int64(i.displacement), to: target)
    } else {
      effectiveAddress()
      write(i.reg, RegisterMap.t0, size: Int32(i.operandSize))
    }
    finishFlags()
    return true
  }

  /// PAUSE, counted down without touching EFLAGS; at 0 Swift executes it, and the machine hears of it.
  mutating func pause(isCounted: Bool) -> Bool {
    hot.byte(0xF3)
    hot.byte(0x90)
    guard isCounted else { return true }
    let t1 = RegisterMap.t1, rcx = RegisterMap.rcx
    let stub = coldExitInstruction()
    hot.mov(t1, rcx)
    hot.load(rcx, .env(Slot.pauses))
    hot.lea(rcx, HostMemory(rcx, -1))
    hot.store(.env(Slot.pauses), rcx)
    hot.byte(0xE3)  // JRCXZ over MOV, 3 bytes, and a short JMP
    hot.byte(5)
    hot.mov(rcx, t1)
    hot.byte(0xEB)  // over MOV and a near JMP
    hot.byte(8)
    hot.mov(rcx, t1)
    hot.jump(to: stub)
    return true
  }

  /// BT, BTS, BTR, BTC with a bit offset in a register: the operand is the word that holds the bit, which may lie
  /// far from the addressed one.
  mutating func bitMemory() -> Bool {
    let i = instruction
    guard i.isMemory else { return copy() }
    guard isInline else { return false }
    clobberFlags()
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1, t2 = RegisterMap.t2
    effectiveAddress()
    let size = i.operandSize
    let source = value(of: i.reg, scratch: t2)
    switch size {
    case 8: if source != t2 { hot.mov(t2, source) }
    case 4: hot.signExtend32(t2, source)
    default: hot.signExtend16(t2, source)
    }
    hot.shiftRightArithmetic(t2, size == 8 ? 6 : (size == 4 ? 5 : 4))
    hot.lea(t0, HostMemory(t0, index: t2, scale: size == 8 ? 3 : (size == 4 ? 2 : 1)))
    wrapAddress()
    toLinear(i.segment, size: Int(size), write: traits.memoryWrites)
    let memory = accessAtT0(size: Int(size), write: traits.memoryWrites)
    hot.lea(t0, memory)
    let bits = value(of: i.reg, scratch: t2)
    if bits != t2 { hot.mov(t2, bits) }
    hot.alu(.and, t2, immediate: Int32(size) &* 8 &- 1, w: false)
    prepareFlags(scratch: t1)
    mayFault()
    if i.hasLock { hot.byte(0xF0) }
    if size == 2 { hot.byte(0x66) }
    let target = HostMemory(t0)
    hot.rex(w: size == 8, reg: t2, memory: target)
    hot.byte(0x0F)
    hot.byte(i.opcode)
    hot.modRM(reg: t2, memory: target)
    finishFlags()
    return true
  }

  /// MOV between AL/AX/EAX/RAX and an absolute offset.
  mutating func moffs() -> Bool {
    let i = instruction
    guard isInline else { return false }
    let size = i.offsetBytes
    let write = i.opcode & 2 != 0
    let memory = accessOffset(size: size, write: write)
    move(RegisterMap.rax, memory, size: size, isStore: write)
    finishFlags()
    return true
  }

  /// MOV between a register's low bytes and memory.
  private mutating func move(_ register: HostRegister, _ memory: HostMemory, size: Int, isStore: Bool) {
    mayFault()
    if !isStore { hot.note(register) }
    if !isStore && size < 4 && register == RegisterMap.t2 {
      // MOVZX: what else the scratch register held must not linger.
      hot.rex(w: false, reg: register, memory: memory)
      hot.byte(0x0F)
      hot.byte(size == 1 ? 0xB6 : 0xB7)
      return hot.modRM(reg: register, memory: memory)
    }
    if size == 2 { hot.byte(0x66) }
    hot.rex(w: size == 8, reg: register, memory: memory)
    hot.byte((isStore ? 0x88 : 0x8A) | (size == 1 ? 0 : 1))
    hot.modRM(reg: register, memory: memory)
  }

  /// INC and DEC in the one-byte encodings that became REX.
  mutating func incDec32() -> Bool {
    let i = instruction
    prepareFlags()
    let register = RegisterMap.host(i.opcode & 7)
    if i.operandSize == 2 { hot.byte(0x66) }
    hot.rex(w: false, reg: 0, rm: register)
    hot.byte(0xFF)
    hot.modRM(reg: i.opcode & 8 == 0 ? 0 : 1, rm: register)
    finishFlags()
    return true
  }

  /// XLAT.
  mutating func xlat() -> Bool {
    let i = instruction
    guard isInline else { return false }
    clobberFlags()
    hot.byte(0x44)  // MOVZX R13D, AL
    hot.byte(0x0F)
    hot.byte(0xB6)
    hot.byte(0xE8)
    hot.lea(RegisterMap.t0, HostMemory(3, index: RegisterMap.t2))
    wrapAddress()
    toLinear(i.segment, size: 1, write: false)
    let memory = accessAtT0(size: 1, write: false)
    mayFault()
    hot.rex(w: false, reg: RegisterMap.rax, memory: memory)
    hot.byte(0x8A)
    hot.modRM(reg: RegisterMap.rax, memory: memory)
    finishFlags()
    return true
  }

  /// MOVS, STOS, LODS, SCAS, CMPS, repeated or not.
  mutating func string(_ kind: Int) -> Bool {
    let i = instruction
    guard isInline else { return false }
    // Single-stepping traps after every element (SDM volume 3, 17.3.1.4): Swift executes one at a time.
    if has(Int(CHOST_MODE_STEP)) && i.repeatPrefix != 0 { return false }
    let compares = kind == Int(CHOST_STRING_SCAS) || kind == Int(CHOST_STRING_CMPS)
    if compares { flagsAreLive = true }
    clobberFlags()
    let operation = stringOperation(kind)
    if !compares && i.repeatPrefix == 0 && hasPlainAddresses && i.addressSize == (isLong ? 8 : 4) && i.segment < 4
      && form == .full
    {
      moveOnce(kind, operation)
    } else if i.repeatPrefix != 0 && i.addressSize == (isLong ? 8 : 4) {
      // Compilers end a copy by words with one of the bytes that are left, most often none: over it.
      if i.addressSize == 4 { hot.byte(0x67) }
      hot.byte(0xE3)  // JRCXZ
      let displacement = hot.count
      hot.byte(0)
      hot.string(operation, stubs)
      hot.setByte(displacement, UInt8(truncatingIfNeeded: hot.count &- displacement &- 1))
    } else {
      hot.string(operation, stubs)
    }
    hostFlags = false
    if compares { pageFlags = true }
    flagsAreLive = current.liveAfter != 0
    return true
  }

  /// MOVS, STOS or LODS of one element, upwards: a load and a store. Downwards CHost does it.
  private mutating func moveOnce(_ kind: Int, _ operation: StringOperation) {
    let size = instruction.opcode & 1 == 0 ? 1 : Int(instruction.operandSize)
    let rsi: HostRegister = 6, rdi = RegisterMap.rdi
    // TEST byte: DF
    let direction = HostMemory.env(Slot.systemFlags &+ 1)
    hot.rex(w: false, reg: 0, memory: direction)
    hot.byte(0xF6)
    hot.modRM(reg: 0, memory: direction)
    hot.byte(UInt8(truncatingIfNeeded: RFLAGS.df >> 8))
    hot.jump(if: CodeEmitter.notEqual, to: cold.address)
    cold.string(operation, stubs)
    cold.jump(to: hot.address)
    let back = cold.address
    site = nil
    let value = kind == Int(CHOST_STRING_MOVS) ? RegisterMap.t2 : RegisterMap.rax
    if kind != Int(CHOST_STRING_STOS) {
      move(value, access(base: rsi, displacement: 0, size: size, write: false), size: size, isStore: false)
    }
    if kind != Int(CHOST_STRING_LODS) {
      move(value, access(base: rdi, displacement: 0, size: size, write: true), size: size, isStore: true)
      advance(rdi, by: size)
    }
    if kind != Int(CHOST_STRING_STOS) { advance(rsi, by: size) }
    cold.patch(back, to: hot.address)
  }

  private mutating func advance(_ register: HostRegister, by count: Int) {
    let target = HostMemory(register, Int32(truncatingIfNeeded: count))
    if isLong { hot.lea(register, target) } else { hot.lea32(register, target) }
  }

  /// What CHost is told about the current instruction.
  private func stringOperation(_ kind: Int) -> StringOperation {
    let i = instruction
    let compares = kind == Int(CHOST_STRING_SCAS) || kind == Int(CHOST_STRING_CMPS)
    let size: UInt32 = i.opcode & 1 == 0 ? 0 : (i.operandSize == 8 ? 3 : (i.operandSize == 4 ? 2 : 1))
    var operation = UInt32(kind) | size << 4 | (i.addressSize == 8 ? 3 : (i.addressSize == 4 ? 2 : 1)) << 8
    if i.repeatPrefix != 0 { operation |= (compares && i.repeatPrefix == 0xF2 ? 2 : 1) << 12 }
    operation |= UInt32(i.segment) << 16
    if privilege == 3 { operation |= 1 << 24 }
    return StringOperation(
      operation: operation, info: info(Int(CHOST_EXIT_MEMORY), offset: current.offset, flagsSaved: true))
  }

  /// MOV r/m16, Sreg to a register.
  mutating func movSegment() -> Bool {
    let i = instruction
    guard !i.isMemory else { return false }
    hot.load32(RegisterMap.t0, .env(BlockBuilder.selector(i.reg & 7)))
    write(i.rm, RegisterMap.t0, size: Int32(i.operandSize))
    finishFlags()
    return true
  }
}

// SPDX-License-Identifier: Apache-2.0
// The stack rule: PUSH, POP, PUSHF, LEAVE. RSP has a host register of its own, so the guest's stack is an ordinary
// redirected operand; it moves only after the access has succeeded.

import CHost
import X86

extension BlockBuilder {
  /// Whether stack accesses are served in line.
  var hasInlineStack: Bool { isInline }

  /// Whether the stack pointer is SP.
  private var hasNarrowStack: Bool { !isLong && !has(Int(CHOST_MODE_STACK32)) }

  /// Bytes that the instruction pushes or pops.
  var stackSize: Int32 { Int32(instruction.operandSize) }

  /// Pushes T2 (`size` bytes). Destroys EFLAGS, which must have been saved if live.
  mutating func pushT2(size: Int32) { push(RegisterMap.t2, size: size) }

  /// Pushes a host register (`size` bytes). The value may be in T2 or in a guest register.
  ///
  /// - Parameter stored: bytes that are written, if fewer than RSP moves by; outside 64-bit mode.
  mutating func push(_ value: HostRegister, size: Int32, stored: Int32? = nil) {
    let sp = RegisterMap.stackPointer
    if hasPlainAddresses {
      // The simple form's checks want T2.
      let isLent = form != .full && value == RegisterMap.t2
      if isLent { hot.store(.env(Slot.scratch0), value) }
      let memory = accessStack(displacement: -size, size: Int(stored ?? size), write: true)
      if isLent { hot.load(value, .env(Slot.scratch0)) }
      storeOperand(memory, value, size: stored ?? size)
      release(-size)
    } else {
      clobberFlags()
      var value = value
      if value == RegisterMap.t2 { hot.store(.env(Slot.scratch0), value) }
      hot.lea32(RegisterMap.t0, HostMemory(sp, -size))
      let memory = stackAtT0(size: stored ?? size, write: true)
      if value == RegisterMap.t2 {
        hot.load(RegisterMap.t2, .env(Slot.scratch0))
        value = RegisterMap.t2
      }
      storeOperand(memory, value, size: stored ?? size)
      release(-size)
    }
  }

  /// Redirects an access to the stack outside 64-bit mode, the offset in T0 not yet wrapped.
  private mutating func stackAtT0(size: Int32, write: Bool) -> HostMemory {
    if hasNarrowStack { hot.zeroExtend16(RegisterMap.t0, RegisterMap.t0) }
    toLinear(2, size: Int(size), write: write)
    return accessAtT0(size: Int(size), write: write)
  }

  /// Loads the top of the stack into `target` (zero-extended) without moving RSP.
  mutating func loadTop(_ target: HostRegister, size: Int32) {
    let sp = RegisterMap.stackPointer
    let memory: HostMemory
    if hasPlainAddresses {
      memory = accessStack(displacement: 0, size: Int(size), write: false)
    } else {
      clobberFlags()
      // LEA and not MOV, which the checker takes for the beginning of a check.
      hot.lea32(RegisterMap.t0, HostMemory(sp))
      memory = stackAtT0(size: size, write: false)
    }
    loadOperand(target, memory, size: size)
  }

  /// RSP += count, perhaps later.
  mutating func release(_ count: Int32) {
    if current.stackGroup >= 0 {
      pendingStack &+= count
    } else {
      setStackPointer(RegisterMap.stackPointer, plus: count)
    }
  }

  /// RSP = base + count, as wide as the stack pointer is.
  mutating func setStackPointer(_ base: HostRegister, plus count: Int32) {
    let sp = RegisterMap.stackPointer
    if isLong { return hot.lea(sp, HostMemory(base, count)) }
    if hasNarrowStack { hot.byte(0x66) }
    hot.lea32(sp, HostMemory(base, count))
  }

  /// MOV [memory], register of 2, 4 or 8 bytes.
  mutating func storeOperand(_ memory: HostMemory, _ value: HostRegister, size: Int32) {
    if memory.base != RegisterMap.env { mayFault() }
    switch size {
    case 8: hot.store(memory, value)
    case 4: hot.store32(memory, value)
    default:
      hot.byte(0x66)
      hot.store32(memory, value)
    }
  }

  /// MOV or MOVZX register, [memory].
  mutating func loadOperand(_ target: HostRegister, _ memory: HostMemory, size: Int32) {
    mayFault()
    switch size {
    case 8: hot.load(target, memory)
    case 4: hot.load32(target, memory)
    default:
      hot.note(target)
      hot.rex(w: false, reg: target, memory: memory)
      hot.byte(0x0F)
      hot.byte(0xB7)
      hot.modRM(reg: target, memory: memory)
    }
  }

  /// Reads guest register `number` for use as a value: its host register, or `scratch` after a load.
  mutating func value(of number: UInt8, scratch: HostRegister) -> HostRegister {
    let host = RegisterMap.host(number)
    if host != RegisterMap.inMemory { return host }
    load(number, into: scratch)
    return scratch
  }

  /// Writes `source` to guest register `number` as an operand of `size` bytes. `source` is clobbered for 4-byte
  /// writes to registers in the page.
  mutating func write(_ number: UInt8, _ source: HostRegister, size: Int32) {
    let host = RegisterMap.host(number)
    if host == RegisterMap.inMemory {
      switch size {
      case 8: store(number, from: source)
      case 4:
        hot.mov32(source, source)
        store(number, from: source)
      default:
        storeOperand(.env(RegisterMap.slot(number)), source, size: 2)
        forget(number)
      }
      return
    }
    switch size {
    case 8: if host != source { hot.mov(host, source) }
    case 4: hot.mov32(host, source)
    default:
      hot.byte(0x66)
      hot.mov32(host, source)
    }
  }

  /// PUSH register, immediate or memory.
  mutating func push() -> Bool {
    guard hasInlineStack else { return false }
    let i = instruction
    let size = stackSize
    if row.form == .plus {
      let value = value(of: i.plusRegister, scratch: RegisterMap.t2)
      push(value, size: size)
    } else if i.hasModRM {
      if i.isMemory {
        let memory = access(size: Int(size), write: false)
        loadOperand(RegisterMap.t2, memory, size: size)
        pushT2(size: size)
      } else {
        let value = value(of: i.rm, scratch: RegisterMap.t2)
        push(value, size: size)
      }
    } else {
      hot.mov(RegisterMap.t2, immediate: i.immediate)
      pushT2(size: size)
    }
    finishFlags()
    return true
  }

  /// POP.
  mutating func pop() -> Bool {
    guard hasInlineStack else { return false }
    let size = stackSize
    if row.form != .plus && instruction.isMemory { return popMemory(size) }
    let number = row.form == .plus ? instruction.plusRegister : instruction.rm
    let host = RegisterMap.host(number)
    if size >= 4 && host != RegisterMap.inMemory && host != RegisterMap.stackPointer {
      loadTop(host, size: size)
      release(size)
    } else {
      loadTop(RegisterMap.t0, size: size)
      release(size)
      // POP RSP: what was popped counts.
      if number == 4 { settleStackPointer() }
      write(number, RegisterMap.t0, size: size)
    }
    finishFlags()
    return true
  }

  /// POP memory. An address with RSP is that after the pop, and left to Swift.
  private mutating func popMemory(_ size: Int32) -> Bool {
    guard instruction.base != GPR.rsp else { return false }
    loadTop(RegisterMap.t2, size: size)
    // The check of the destination wants T2.
    hot.store(.env(Slot.scratch0), RegisterMap.t2)
    let memory = access(size: Int(size), write: true)
    hot.load(RegisterMap.t2, .env(Slot.scratch0))
    storeOperand(memory, RegisterMap.t2, size: size)
    release(size)
    finishFlags()
    return true
  }

  /// LEAVE: RSP = RBP, POP RBP.
  mutating func leave() -> Bool {
    guard hasInlineStack, !isLong || instruction.operandSize != 2 else { return false }
    clobberFlags()
    let size = stackSize
    let memory: HostMemory
    if hasPlainAddresses {
      memory = access(base: 5, displacement: 0, size: Int(size), write: false)
    } else {
      hot.lea32(RegisterMap.t0, HostMemory(5))
      memory = stackAtT0(size: size, write: false)
    }
    loadOperand(RegisterMap.t0, memory, size: size)
    setStackPointer(5, plus: size)
    write(5, RegisterMap.t0, size: size)
    finishFlags()
    return true
  }

  /// PUSHF outside VM86: the arithmetic flags from EFLAGS, the others from the page.
  mutating func pushFlags() -> Bool {
    guard hasInlineStack, !has(Int(CHOST_MODE_VM86)) else { return false }
    let t1 = RegisterMap.t1, t2 = RegisterMap.t2
    flagsAreLive = true
    needPageFlags()
    hostFlags = false
    hot.load32(t2, .env(Slot.flags))
    hot.mov32(t1, t2)
    hot.shiftRight32(t2, 8)
    hot.alu(.and, t2, immediate: 0xD5, w: false)
    hot.alu(.and, t1, immediate: 1, w: false)
    hot.shiftLeft(t1, 11, w: false)
    hot.alu32(.or, t2, t1)
    hot.load32(t1, .env(Slot.systemFlags))
    // The image has RF and VM clear (SDM volume 2, PUSHF).
    hot.alu(.and, t1, immediate: ~(0x3_0000), w: false)
    hot.alu32(.or, t2, t1)
    hot.alu(.or, t2, immediate: 2, w: false)
    pushT2(size: stackSize)
    finishFlags()
    return true
  }
}

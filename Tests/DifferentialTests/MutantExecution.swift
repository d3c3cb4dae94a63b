// SPDX-License-Identifier: Apache-2.0
// The instructions of the machine that judges mutants. Moves, addresses, additions, comparisons, shifts and branches
// compute what the processor does; everything else accesses what it accesses and leaves random values.

import CHost
import X86

@testable import Translator

extension MutantMachine {
  /// Executes one instruction. Returns false where the run ends.
  func execute(_ s: HostStep) -> Bool {
    // What is patched while others execute it is the displacement of a branch.
    if s.isChanged, let edge = code.edge(in: s) {
      let isBranch = s.rule == .jcc || s.rule == .jump || s.rule == .call
      if !isBranch || s.next != Int(edge.end) || s.i.immediateBytes != 4 { fail(.control) }
    }
    if s.i.hasLock && !(s.i.isMemory && (s.row.attribute == .lockable || s.row.attribute == .exchange)) { return false }
    if s.i.isMemory && s.rule != .lea && s.rule != .nop && s.i.segment >= 4 { fail(.outside) }
    if danger != nil { return false }
    let after = s.next
    switch s.rule {
    case .undefined: return false
    case .nop where s.i.opcode == 0x90 && s.i.rm & 8 != 0:
      // XCHG RAX, R8.
      if isSecret(0) || isSecret(8) { fail(.secret) }
      (registers[0], registers[8]) = (registers[8], registers[0])
    case .nop, .pause, .wait: break
    case .lea:
      let isSecret = s.i.base != 0xFF && isSecret(Int(s.i.base)) || s.i.index != 0xFF && isSecret(Int(s.i.index))
      set(Int(s.i.reg), address(s), s.width, isSecret || s.i.isRIPRelative)
    case .copy: copy(s)
    case .x87, .mmx, .sse, .avx, .cmpxchgWide, .bitMemory, .saveState, .restoreState, .rdtsc, .rdtscp: anything(s)
    case .jcc, .loop, .jump, .call, .ret, .jumpIndirect, .callIndirect: return branch(s)
    case .push:
      guard s.row.form == .plus, !s.i.hasOperandSizePrefix else { return false }
      push(registers[Int(s.i.rm)], isSecret: isSecret(Int(s.i.rm)), isCode: false)
    case .pop:
      guard s.row.form == .plus, !s.i.hasOperandSizePrefix else { return false }
      let word = stackWord(registers[4], hint: nil)
      registers[4] &+= 8
      set(Int(s.i.rm), word.value, 8, word.isSecret)
    default: fail(.instruction)
    }
    place = after
    if !code.contains(place) { fail(.control) }
    return danger == nil
  }

  /// The address that the operand names.
  private func address(_ s: HostStep) -> UInt64 {
    var address = UInt64(bitPattern: Int64(s.i.displacement))
    if s.i.isRIPRelative { address &+= 0x4000_0000_0000 &+ UInt64(s.next) }
    if s.i.base != 0xFF { address &+= registers[Int(s.i.base & 15)] }
    if s.i.index != 0xFF { address &+= registers[Int(s.i.index & 15)] << UInt64(s.i.scale) }
    return s.i.addressSize == 4 ? address & 0xFFFF_FFFF : address
  }

  // MARK: Branches

  private func branch(_ s: HostStep) -> Bool {
    let edge = s.i.immediateBytes == 4 ? code.edges.first { Int($0.end) == s.next } : nil
    let isLinked = edge != nil && chance(4) & 1 != 0
    switch s.rule {
    case .ret:
      if s.i.opcode != 0xC3 || s.i.hasOperandSizePrefix { fail(.frame) } else { ret() }
      return false
    case .jumpIndirect, .callIndirect: return indirect(s)
    case .call:
      if s.i.hasOperandSizePrefix { fail(.control) }
      let stubs = code.block.stubs
      if !isLinked, [stubs.tlbMiss, stubs.slotMiss, stubs.groupMiss, stubs.light, stubs.string].contains(s.target) {
        return callStub(s.target, next: s.next)
      }
      push(UInt64(s.next), isSecret: true, isCode: true)
      if danger != nil { return false }
      place = s.next
      if isLinked, let edge {
        follow(edge)
        if danger == nil { comeBack() }
      } else if s.target == stubs.jumpMiss || s.target == stubs.callMiss {
        if s.target == stubs.callMiss { checkRefusal() }
        leave(needsT0: true)
        if danger == nil { comeBack() }
      } else {
        return go(to: s.target)
      }
      if !code.contains(place) { fail(.control) }
      return danger == nil
    default: break
    }
    if s.i.hasOperandSizePrefix { fail(.control) }
    let isTaken =
      switch s.rule {
      case .jcc: holds(s.i.opcode & 15)
      case .loop: loops(s)
      default: true
      }
    if !isTaken {
      place = s.next
      if !code.contains(place) { fail(.control) }
      return danger == nil
    }
    if isLinked, let edge {
      follow(edge)
      return false
    }
    return danger == nil && go(to: s.target)
  }

  private func holds(_ condition: UInt8) -> Bool {
    guard let flags else { return chance(6) & 1 != 0 }
    let holds: Bool
    switch condition >> 1 {
    case 0: holds = flags.of
    case 1: holds = flags.cf
    case 2: holds = flags.zf
    case 3: holds = flags.cf || flags.zf
    case 4: holds = flags.sf
    case 5: holds = chance(6) & 2 != 0
    case 6: holds = flags.sf != flags.of
    default: holds = flags.zf || flags.sf != flags.of
    }
    return holds != (condition & 1 != 0)
  }

  private func loops(_ s: HostStep) -> Bool {
    let mask: UInt64 = s.i.addressSize == 4 ? 0xFFFF_FFFF : .max
    if s.i.opcode == 0xE3 { return registers[1] & mask == 0 }
    set(1, registers[1] &- 1, s.i.addressSize == 4 ? 4 : 8, isSecret(1))
    let goes = registers[1] & mask != 0
    return s.i.opcode == 0xE2 ? goes : goes && chance(6) & 1 != 0
  }

  /// Through memory: an entry of the jump cache whose tag is T0.
  private func indirect(_ s: HostStep) -> Bool {
    guard s.i.isMemory, !s.i.hasOperandSizePrefix else {
      fail(.control)
      return false
    }
    let displacement = Int(truncatingIfNeeded: address(s) &- MutantMachine.env)
    guard displacement & 7 == 0, case .jump(let isUser, let index, true) = MutantEntry(displacement),
      index < Int(CHOST_JUMP_ENTRIES)
    else {
      fail(.control)
      return false
    }
    _ = load(address(s), 8)
    let key = displacement - Int(CHOST_JUMP_ENTRIES) * 8
    if entries.first(where: { $0.key == key })?.tag != registers[15] { fail(.control) }
    if isUser != code.isUser { fail(.privilege) }
    if s.rule == .callIndirect {
      push(UInt64(s.next), isSecret: true, isCode: true)
      place = s.next
      if danger == nil, leave(needsT0: true) { comeBack() }
      if !code.contains(place) { fail(.control) }
      return danger == nil
    }
    if danger == nil { leave(needsT0: true) }
    return false
  }

  // MARK: Exact instructions

  private func copy(_ s: HostStep) {
    let i = s.i
    let width = s.width
    guard s.row.map == .one || s.row.map == .x0F else { return anything(s) }
    if s.row.map == .x0F {
      guard i.opcode & 0xF6 == 0xB6, s.row.prefix != .pF3, !(i.opcode & 1 == 0 && !i.isMemory && i.isHighByte(i.rm))
      else { return anything(s) }
      let size = i.opcode & 1 == 0 ? 1 : 2
      let word = operand(s, size)
      var value = word.value & (1 << UInt64(size * 8) &- 1)
      if i.opcode & 8 != 0 {
        value =
          size == 1
          ? UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: value)))
          : UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: value)))
      }
      return set(Int(i.reg), value, width, word.isSecret)
    }
    switch i.opcode {
    case 0x89:
      let value = registers[Int(i.reg)], isSecret = isSecret(Int(i.reg))
      if i.isMemory { store(address(s), width, value, isSecret) } else { set(Int(i.rm), value, width, isSecret) }
    case 0x8B:
      let word = operand(s, width)
      set(Int(i.reg), word.value, width, word.isSecret)
    case 0x63 where width == 8:
      let word = operand(s, 4)
      set(Int(i.reg), UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: word.value))), 8, word.isSecret)
    case 0xB8...0xBF: set(Int(i.rm), i.immediate, width, false)
    case 0xC7:
      if i.isMemory { store(address(s), width, i.immediate, false) } else { set(Int(i.rm), i.immediate, width, false) }
    case 0x81, 0x83, 0x01, 0x03, 0x09, 0x0B, 0x21, 0x23, 0x29, 0x2B, 0x31, 0x33, 0x39, 0x3B, 0x85:
      if width < 4 { return anything(s) }
      arithmetic(s)
    case 0xC1 where width >= 4 && !i.isMemory: shift(s)
    case 0xFF where width >= 4 && !i.isMemory:
      if isSecret(Int(i.rm)) { fail(.secret) }
      set(
        Int(i.rm), i.modRM & 8 == 0 ? registers[Int(i.rm)] &+ 1 : registers[Int(i.rm)] &- 1, width, isSecret(Int(i.rm)))
      flags = nil
    case 0x69, 0x6B:
      if width < 4 { return anything(s) }
      let word = operand(s, width)
      set(Int(i.reg), word.value &* i.immediate, width, word.isSecret)
      flags = nil
    default: anything(s)
    }
  }

  /// The ModRM operand.
  private func operand(_ s: HostStep, _ size: Int, hint: UInt64? = nil) -> (value: UInt64, isSecret: Bool) {
    if s.i.isMemory { return load(address(s), size, hint: hint, register: Int(s.i.reg)) }
    return (registers[Int(s.i.rm)], isSecret(Int(s.i.rm)))
  }

  /// ADD, OR, AND, SUB, XOR, CMP and TEST of 4 and 8 bytes; ADC and SBB but for the carry.
  private func arithmetic(_ s: HostStep) {
    let i = s.i, width = s.width
    let isImmediate = i.opcode >= 0x81 && i.opcode != 0x85
    let isTest = i.opcode == 0x85
    let kind = isTest ? 4 : isImmediate ? Int(i.modRM >> 3 & 7) : Int(i.opcode >> 3)
    let toRegister = !isImmediate && !isTest && i.opcode & 2 != 0
    let hint = kind == 5 || kind == 7 ? registers[Int(i.reg)] : nil
    let rm = operand(s, width, hint: toRegister ? hint : nil)
    let reg =
      isImmediate
      ? (value: i.immediate, isSecret: false) : (value: registers[Int(i.reg)], isSecret: isSecret(Int(i.reg)))
    let mask: UInt64 = width == 8 ? .max : 0xFFFF_FFFF
    let a = (toRegister ? reg.value : rm.value) & mask, b = (toRegister ? rm.value : reg.value) & mask
    let top: UInt64 = width == 8 ? 1 << 63 : 1 << 31
    var result: UInt64
    flags = nil
    switch kind {
    case 0:
      result = (a &+ b) & mask
      flags = (result < a, result == 0, result & top != 0, (a ^ result) & (b ^ result) & top != 0)
    case 5, 7:
      result = (a &- b) & mask
      flags = (a < b, result == 0, result & top != 0, (a ^ b) & (a ^ result) & top != 0)
    case 1, 4, 6:
      result = kind == 1 ? a | b : kind == 4 ? a & b : a ^ b
      flags = (false, result == 0, result & top != 0, false)
    default: result = draw() & mask
    }
    let isSecret = rm.isSecret || reg.isSecret
    // RSP is compared with the shadow stack's top.
    if isSecret && !(kind == 7 && toRegister && i.reg == 4) { fail(.secret) }
    if kind == 7 || isTest || danger != nil { return }
    if toRegister {
      set(Int(i.reg), result, width, isSecret)
    } else if i.isMemory {
      store(address(s), width, result, isSecret)
    } else {
      set(Int(i.rm), result, width, isSecret)
    }
  }

  private func shift(_ s: HostStep) {
    let number = Int(s.i.rm), width = s.width
    let count = s.i.immediate & (width == 8 ? 63 : 31)
    let value = width == 8 ? registers[number] : registers[number] & 0xFFFF_FFFF
    switch s.i.modRM >> 3 & 7 {
    case 4, 6: set(number, value << count, width, isSecret(number))
    case 5: set(number, value >> count, width, isSecret(number))
    case 7:
      let signed = width == 8 ? Int64(bitPattern: value) : Int64(Int32(truncatingIfNeeded: value))
      set(number, UInt64(bitPattern: signed >> Int64(count)), width, isSecret(number))
    default: set(number, draw(), width, isSecret(number))
    }
    if isSecret(number) { fail(.secret) }
    flags = nil
  }

  // MARK: All others

  /// Accesses the operand; what is written is random, and secret if something that was read is.
  private func anything(_ s: HostStep) {
    let i = s.i, traits = s.traits
    var isSecret = false
    func number(_ use: FieldUse, _ register: UInt8) -> Int {
      Int(use.isByte && i.isHighByte(register) ? register & 3 : register & 15)
    }
    func read(_ use: FieldUse, _ register: UInt8) {
      if use.isGeneral && use.reads { isSecret = isSecret || self.isSecret(number(use, register)) }
    }
    read(traits.reg, i.reg)
    read(traits.vvvv, i.vvvv)
    read(traits.plus, i.rm)
    if !i.isMemory { read(traits.rm, i.rm) }
    for register in 0..<3 where hiddenReads(s) >> register & 1 != 0 { isSecret = isSecret || self.isSecret(register) }
    // TEST of where in its page an address lies tells nothing.
    let isAlignment = i.opcode == 0xF7 && i.modRM & 0x30 == 0 && i.immediate < 4096
    if isSecret && s.row.flags.writesMaybe != 0 && !isAlignment { return fail(.secret) }
    if i.isMemory {
      var address = address(s)
      var size = max(s.size, 1)
      if traits.memorySize == .xsave {
        // More than the guest's components are the host's.
        if registers[0] & 0xFFFF_FFF8 != 0 || registers[2] & 0xFFFF_FFFF != 0 { size = 4096 }
      }
      if s.rule == .bitMemory {
        let bits = registers[Int(i.reg)]
        let signed =
          size == 8
          ? Int64(bitPattern: bits)
          : size == 4 ? Int64(Int32(truncatingIfNeeded: bits)) : Int64(Int16(truncatingIfNeeded: bits))
        let words = signed >> (size == 8 ? 6 : size == 4 ? 5 : 4)
        address = address &+ UInt64(bitPattern: words &* Int64(size))
      }
      let isSave = s.rule == .saveState
      if traits.memoryReads || !(traits.memoryWrites || isSave) {
        isSecret = load(address, size).isSecret || isSecret
      }
      if danger == nil, traits.memoryWrites || isSave { store(address, size, draw(), isSecret) }
      if danger != nil { return }
    }
    if isSecret && s.rule != .copy && s.rule != .bitMemory { return fail(.secret) }
    func write(_ use: FieldUse, _ register: UInt8) {
      guard use.isGeneral && use.writes else { return }
      let size = use.isByte ? 1 : traits.usesOperandSize ? s.width : i.w ? 8 : 4
      set(number(use, register), draw(), use.isByte && i.isHighByte(register) ? 2 : size, isSecret)
    }
    write(traits.reg, i.reg)
    write(traits.vvvv, i.vvvv)
    write(traits.plus, i.rm)
    if !i.isMemory { write(traits.rm, i.rm) }
    for register in 0..<3 where hidden(s) >> register & 1 != 0 { set(register, draw(), 8, isSecret) }
    if s.row.flags.writesMaybe != 0 { flags = nil }
  }

  /// RAX, RCX and RDX, where they are read without being named.
  private func hiddenReads(_ s: HostStep) -> Int {
    let rax = 1, rcx = 2, rdx = 4, opcode = s.i.opcode
    if s.i.hasVEX { return s.row.map == .vex0F38 && opcode == 0xF6 && s.row.prefix == .pF2 ? rdx : 0 }
    switch s.row.map {
    case .one:
      switch opcode {
      case 0x98, 0x99, 0x9E: return rax
      case 0xD2, 0xD3: return rcx
      case 0xF6, 0xF7: return s.i.modRM & 0x20 == 0 ? 0 : s.i.modRM & 0x10 == 0 ? rax : rax | rdx
      default: break
      }
      switch s.row.operand1 {
      case .AL, .AX, .rAX, .eAX: return rax
      default: return s.row.operand2 == .rAX && s.row.form == .plus ? rax : 0
      }
    case .x0F:
      switch opcode {
      case 0xA5, 0xAD: return rcx
      case 0xB0, 0xB1: return rax
      case 0xC7: return s.i.isMemory ? rax | rdx : 0  // with a register RDRAND and its like
      default: return 0
      }
    default: return 0
    }
  }

  /// RAX, RCX and RDX, where they are written without being named.
  private func hidden(_ s: HostStep) -> Int {
    let rax = 1, rcx = 2, rdx = 4, opcode = s.i.opcode
    if s.i.hasVEX { return (opcode == 0x61 || opcode == 0x63) && s.row.map == .vex0F3A ? rcx : 0 }
    switch s.row.map {
    case .one:
      if s.rule == .x87 { return opcode == 0xDF && s.i.modRM == 0xE0 ? rax : 0 }
      if opcode == 0x98 || opcode == 0x9F { return rax }
      if opcode == 0x99 { return rdx }
      // Of bytes the product, or quotient and remainder, are in AX.
      if opcode & 0xFE == 0xF6 { return s.i.modRM & 0x20 == 0 ? 0 : opcode == 0xF6 ? rax : rax | rdx }
      switch s.row.operand1 {
      case .AL, .AX, .rAX, .eAX: return s.row.access == .read ? 0 : rax
      default: return s.row.operand2 == .rAX && s.row.form == .plus ? rax : 0
      }
    case .x0F:
      switch opcode {
      case 0xB0, 0xB1: return rax
      case 0xC7: return s.i.isMemory ? rax | rdx : 0
      case 0x31: return rax | rdx
      case 0x01: return rax | rcx | rdx
      default: return 0
      }
    case .x0F3A: return opcode == 0x61 || opcode == 0x63 ? rcx : 0
    default: return 0
    }
  }
}

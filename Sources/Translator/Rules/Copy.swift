// SPDX-License-Identifier: Apache-2.0
// The copy rule: nearly every instruction runs as it is, with its general registers renamed and its memory operand
// redirected. Registers without a host register pass through a scratch one.

import CHost
import X86

/// The host registers that stand for the fields of the instruction being copied.
struct RenamedFields {
  var reg: HostRegister
  var rm: HostRegister
  var vvvv: HostRegister
  var plus: HostRegister
}

extension BlockBuilder {
  /// Translates the current instruction by the copy rule. Returns false if Swift must execute it.
  mutating func copy() -> Bool {
    let i = instruction
    if i.isMemory {
      guard isInline else { return false }
      let size = traits.memoryBytes(i)
      guard size > 0 else { return false }
      var memory = access(size: size, write: traits.memoryWrites)
      let high = (traits.reg.isGeneral && traits.reg.isByte && i.isHighByte(i.reg))
      if high || scratchDemand > 1 {
        hot.lea(RegisterMap.t0, memory)
        memory = HostMemory(RegisterMap.t0)
      }
      if high {
        // AH...BH cannot be encoded beside a REX prefix: address through RDI.
        prepareFlags()
        hot.store(.env(Slot.scratch0), RegisterMap.rdi)
        hot.mov(RegisterMap.rdi, RegisterMap.t0)
        lendsRDI = true
        emit(memory: HostMemory(RegisterMap.rdi))
        lendsRDI = false
        hot.load(RegisterMap.rdi, .env(Slot.scratch0))
      } else {
        prepareFlags()
        emit(memory: memory)
      }
    } else {
      prepareFlags()
      emit(memory: nil)
    }
    finishFlags()
    return true
  }

  /// A byte source in AH...BH beside a register that only a REX prefix reaches on the host (MOVZX ESP, AH; CRC32):
  /// not encodable. Without a REX prefix of the guest's that register is RSP.
  @inline(__always)
  private var highByteNeedsREX: Bool {
    let i = instruction
    return traits.rm.isByte && i.isHighByte(i.rm) && traits.reg.isGeneral && !traits.reg.isByte
      && RegisterMap.host(i.reg) >= 8
  }

  /// How many scratch registers the instruction's register operands want.
  @inline(__always)
  private var scratchDemand: Int {
    let i = instruction
    func wants(_ use: FieldUse, _ number: UInt8) -> Int {
      use.isGeneral && !(use.isByte && i.isHighByte(number)) && RegisterMap.host(number) == RegisterMap.inMemory ? 1 : 0
    }
    return wants(traits.reg, i.reg) &+ (i.isMemory ? 0 : wants(traits.rm, i.rm)) &+ wants(traits.vvvv, i.vvvv)
      &+ wants(traits.plus, i.plusRegister)
  }

  /// Emits the operation itself with renamed registers, loading and storing those that live in the page.
  mutating func emit(memory: HostMemory?) {
    let i = instruction
    var fields = RenamedFields(reg: i.reg, rm: i.rm, vvvv: i.vvvv, plus: i.plusRegister)
    var scratch = ScratchRegisters(besides: memory)
    let namesRM = memory == nil && i.hasModRM && traits.rm.isGeneral && !(traits.rm.isByte && i.isHighByte(i.rm))
    // The ModRM register is in the page, and named there.
    let direct = namesRM && slotServesAsOperand && holder(of: i.rm) == nil
    if traits.reg.isGeneral && !(traits.reg.isByte && i.isHighByte(i.reg)) {
      let isReadElsewhere = namesRM && i.rm == i.reg || traits.vvvv.isGeneral && i.vvvv == i.reg
      fields.reg = rename(i.reg, isRead: !overwrites(traits.reg) || isReadElsewhere, &scratch)
    } else if !traits.reg.isGeneral {
      fields.reg = isExtension ? i.modRM >> 3 & 7 : i.reg
    }
    if namesRM && !direct { fields.rm = rename(i.rm, isRead: !overwrites(traits.rm), &scratch) }
    if traits.vvvv.isGeneral { fields.vvvv = rename(i.vvvv, isRead: true, &scratch) }
    if traits.plus.isGeneral && !(traits.plus.isByte && i.isHighByte(i.plusRegister)) {
      fields.plus = rename(i.plusRegister, isRead: true, &scratch)
    }

    if memory == nil && highByteNeedsREX {
      // The byte passes through DIL.
      hot.store(.env(Slot.scratch0), RegisterMap.rdi)
      hot.byte(0x0F)  // MOVZX EDI, AH...BH
      hot.byte(0xB6)
      hot.modRM(reg: RegisterMap.rdi, rm: i.rm)
      fields.rm = RegisterMap.rdi
      encode(fields, memory: nil)
      hot.load(RegisterMap.rdi, .env(Slot.scratch0))
    } else {
      if mayRaise || memory != nil { mayFault(canRaise: mayRaise) }
      encode(fields, memory: direct ? .env(RegisterMap.slot(i.rm)) : memory)
    }

    if traits.reg.isGeneral && traits.reg.writes { writeBack(i.reg, fields.reg, isByte: traits.reg.isByte) }
    if direct && traits.rm.writes { forget(i.rm) }
    if memory == nil && !direct && traits.rm.isGeneral && traits.rm.writes {
      writeBack(i.rm, fields.rm, isByte: traits.rm.isByte)
    }
    if traits.vvvv.isGeneral && traits.vvvv.writes { writeBack(i.vvvv, fields.vvvv, isByte: false) }
    if traits.plus.isGeneral && traits.plus.writes {
      writeBack(i.plusRegister, fields.plus, isByte: traits.plus.isByte)
    }
  }

  /// Whether the whole register is written without being read: what it held need not be loaded.
  private func overwrites(_ use: FieldUse) -> Bool {
    use.writes && !use.reads && !use.isByte && (!traits.usesOperandSize || instruction.operandSize >= 4)
  }

  /// Whether the ModRM register lives in the page and the instruction may name it there: its form with a memory operand
  /// does the same. A 32-bit result must be extended, and a shorter store would not forward to the next load.
  @inline(__always)
  private var slotServesAsOperand: Bool {
    let i = instruction
    guard i.hasModRM, traits.rm.isGeneral, RegisterMap.host(i.rm) == RegisterMap.inMemory, row.rule == .copy,
      !(traits.rm.isByte && i.isHighByte(i.rm)), !traits.rm.writes || (i.operandSize == 8 && !traits.rm.isByte)
    else { return false }
    // Otherwise the register field would be loaded as well, for nothing.
    if traits.reg.isGeneral && i.reg == i.rm && RegisterMap.host(i.reg) == RegisterMap.inMemory { return false }
    switch (row.map, i.opcode) {
    case (.one, 0x00...0x3F), (.one, 0x63), (.one, 0x69), (.one, 0x6B), (.one, 0x80...0x85), (.one, 0x88...0x8B),
      (.one, 0xC1), (.one, 0xD1), (.one, 0xD3), (.one, 0xC7), (.one, 0xF6), (.one, 0xF7), (.one, 0xFF),
      (.x0F, 0x40...0x4F), (.x0F, 0xAF), (.x0F, 0xB6...0xB7), (.x0F, 0xBE...0xBF):
      return true
    default: return false
    }
  }

  private mutating func writeBack(_ guest: UInt8, _ host: HostRegister, isByte: Bool) {
    if isByte && instruction.isHighByte(guest) { return }
    if RegisterMap.host(guest) == RegisterMap.inMemory { store(guest, from: host) }
  }

  /// ModRM.reg extends the opcode.
  private var isExtension: Bool {
    switch row.form {
    case .plain, .plus, .modRM, .memory, .register: false
    default: true
    }
  }

  /// The host may raise an exception in the guest's place.
  private var mayRaise: Bool {
    traits.rule.contains(.mayRaise) || row.attribute == .mayFault || row.attribute == .aligned
  }

  /// Writes prefixes, opcode, ModRM and immediates.
  private mutating func encode(_ fields: RenamedFields, memory: HostMemory?) {
    let i = instruction
    if i.hasVEX {
      // Outside 64-bit mode there are eight vector registers: VZEROUPPER and VZEROALL leave the others alone.
      if !isLong && row.map == .vex0F && row.byte == 0x77 { return zeroVectors() }
      encodeVEX(fields, memory: memory)
    } else {
      if i.hasLock { hot.byte(0xF0) }
      // 66 is a mandatory prefix, or means 16-bit operands, or nothing.
      let isSized = traits.usesOperandSize && row.rule != .mmx && row.rule != .sse
      let wants66 =
        isSized ? i.operandSize == 2 : row.prefix == .p66 || row.prefix != .any && i.hasOperandSizePrefix
      if wants66 { hot.byte(0x66) }
      if i.repeatPrefix != 0 && row.prefix != .any { hot.byte(i.repeatPrefix) }
      var rex: UInt8 = i.rex & 8
      if i.hasModRM {
        rex |= (fields.reg >> 3 & 1) << 2
        if let memory {
          rex |= memory.base >> 3 & 1
          if memory.index != 0xFF { rex |= (memory.index >> 3 & 1) << 1 }
        } else {
          rex |= fields.rm >> 3 & 1
        }
      } else if row.form == .plus {
        rex |= fields.plus >> 3 & 1
      }
      if rex != 0 || i.rex != 0 { hot.byte(0x40 | rex) }
      switch row.map {
      case .one: break
      case .x0F, .vex0F: hot.byte(0x0F)
      case .x0F38, .vex0F38:
        hot.byte(0x0F)
        hot.byte(0x38)
      case .x0F3A, .vex0F3A:
        hot.byte(0x0F)
        hot.byte(0x3A)
      }
      var opcode = i.opcode
      if row.map == .one {
        // 82 is 80 in the modes that have it.
        if opcode == 0x82 { opcode = 0x80 }
        // MOVSXD r16, r/m16 moves a word (SDM volume 2, MOVSXD). AMD's CPUs read four bytes for it: MOV does not.
        if opcode == 0x63 && i.operandSize == 2 { opcode = 0x8B }
      }
      hot.byte(row.form == .plus ? opcode & 0xF8 | fields.plus & 7 : opcode)
    }
    if i.hasModRM {
      if let memory {
        hot.modRM(reg: fields.reg, memory: memory)
      } else {
        hot.modRM(reg: fields.reg, rm: fields.rm)
      }
    }
    // The register in an immediate is one of eight outside 64-bit mode.
    let isRegister = row.operand4 == .Lx && !isLong
    immediate(isRegister ? i.immediate & ~0x80 : i.immediate, bytes: i.immediateBytes)
  }

  /// VZEROUPPER or VZEROALL on the first eight registers: VMOVDQA XMMn,XMMn or VPXOR XMMn,XMMn,XMMn.
  private mutating func zeroVectors() {
    for number in UInt8(0)..<8 {
      hot.byte(0xC5)
      hot.byte(0x81 | (instruction.vexL ? ~number & 15 : 15) << 3)
      hot.byte(instruction.vexL ? 0xEF : 0x6F)
      hot.modRM(reg: number, rm: number)
    }
  }

  mutating func immediate(_ value: UInt64, bytes: UInt8) {
    var value = value
    for _ in 0..<bytes {
      hot.byte(UInt8(truncatingIfNeeded: value))
      value >>= 8
    }
  }

  private mutating func encodeVEX(_ fields: RenamedFields, memory: HostMemory?) {
    let i = instruction
    let r = fields.reg >> 3 & 1
    var x: UInt8 = 0
    var b: UInt8 = 0
    if let memory {
      b = memory.base >> 3 & 1
      if memory.index != 0xFF { x = memory.index >> 3 & 1 }
    } else {
      b = fields.rm >> 3 & 1
    }
    let w: UInt8 = i.vexW ? 1 : 0
    let map: UInt8 =
      switch row.map {
      case .vex0F38: 2
      case .vex0F3A: 3
      default: 1
      }
    let pp: UInt8 =
      switch row.prefix {
      case .p66: 1
      case .pF3: 2
      case .pF2: 3
      default: 0
      }
    let tail = (~fields.vvvv & 15) << 3 | (i.vexL ? 4 : 0) | pp
    if map == 1 && w == 0 && x == 0 && b == 0 {
      hot.byte(0xC5)
      hot.byte((r ^ 1) << 7 | tail)
    } else {
      hot.byte(0xC4)
      hot.byte((r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | map)
      hot.byte(w << 7 | tail)
    }
    hot.byte(i.opcode)
  }
}

extension Instruction {
  /// The register in the opcode's low bits.
  @inline(__always) var plusRegister: UInt8 { opcode & 7 | (rex & 1) << 3 }
}

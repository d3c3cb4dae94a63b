// SPDX-License-Identifier: Apache-2.0
// Random encodings of an opcode row in 64-bit mode, in pieces, so that displacement and immediate can be changed
// until the operand lies where a test wants it.

import X86

/// An encoding in pieces.
struct Encoding {
  var prefixes: [UInt8] = []
  /// REX or VEX, escape bytes, opcode, ModRM, SIB.
  var head: [UInt8] = []
  var displacementBytes = 0
  var displacement: Int32 = 0
  var immediate: [UInt8] = []

  var bytes: [UInt8] {
    var all = prefixes + head
    for index in 0..<displacementBytes { all.append(UInt8(truncatingIfNeeded: displacement >> Int32(index * 8))) }
    return all + immediate
  }

  var length: Int { prefixes.count + head.count + displacementBytes + immediate.count }
}

extension Opcode {
  var isVEX: Bool { map == .vex0F || map == .vex0F38 || map == .vex0F3A }

  private func has(_ operand: Operand) -> Bool {
    operand1 == operand || operand2 == operand || operand3 == operand || operand4 == operand
  }

  var hasVSIB: Bool { has(.Vsibd) || has(.Vsibq) }

  /// What stands before the opcode without VEX.
  var escape: [UInt8] {
    switch map {
    case .x0F: [0x0F]
    case .x0F38: [0x0F, 0x38]
    case .x0F3A: [0x0F, 0x3A]
    default: []
    }
  }

  /// VEX.mmmmm, VEX.pp, and whether VEX.vvvv names a register.
  var vexMap: UInt8 { map == .vex0F ? 1 : (map == .vex0F38 ? 2 : 3) }
  var vexPrefix: UInt8 {
    switch prefix {
    case .p66: 1
    case .pF3: 2
    case .pF2: 3
    default: 0
    }
  }
  var usesVvvv: Bool { has(.Hx) || has(.Ho) || has(.By) }

  /// Whether the row has a memory form, a register form.
  var memoryForms: (memory: Bool, register: Bool) {
    switch form {
    case .plain, .plus: (false, false)
    case .modRM, .ext0, .ext1, .ext2, .ext3, .ext4, .ext5, .ext6, .ext7: (true, true)
    case .memory, .mem0, .mem1, .mem2, .mem3, .mem4, .mem5, .mem6, .mem7: (true, false)
    case .register, .exact, .reg0, .reg1, .reg2, .reg3, .reg4, .reg5, .reg6, .reg7: (false, true)
    }
  }

  /// The opcode extension in ModRM.reg.
  var digit: UInt8? {
    switch form {
    case .ext0, .mem0, .reg0: 0
    case .ext1, .mem1, .reg1: 1
    case .ext2, .mem2, .reg2: 2
    case .ext3, .mem3, .reg3: 3
    case .ext4, .mem4, .reg4: 4
    case .ext5, .mem5, .reg5: 5
    case .ext6, .mem6, .reg6: 6
    case .ext7, .mem7, .reg7: 7
    default: nil
    }
  }

  /// Bytes of immediates with the given sizes.
  func immediateBytes(operandSize: Int, wide: Bool, addressSize: Int) -> Int {
    var count = 0
    for operand in [operand1, operand2, operand3, operand4] {
      switch operand {
      case .Ib, .Ibs, .Jb, .Ib2, .Lx: count += 1
      case .Iw: count += 2
      case .Iz, .Jz: count += operandSize == 2 ? 2 : 4
      case .Iv: count += wide ? 8 : operandSize
      case .Ob, .Ov: count += addressSize
      case .Ap: count += operandSize + 2
      default: break
      }
    }
    return count
  }
}

extension Random {
  /// An encoding of `row`; it may turn out to be another row's, so callers decode it.
  mutating func encode(_ row: Opcode) -> Encoding {
    var e = Encoding()
    let forms = row.memoryForms
    let isMemory = forms.memory && (!forms.register || chance(60))
    let branches = row.rule == .jump || row.rule == .jcc || row.rule == .call || row.rule == .loop
    var operandSize16 = false
    if row.isVEX {
      if chance(10) && isMemory { e.prefixes.append(0x67) }
    } else {
      switch row.prefix {
      case .any:
        // 66 on branches means different things to Intel and AMD.
        if chance(25), !branches, row.rule != .ret, row.rule != .jumpIndirect, row.rule != .callIndirect {
          operandSize16 = true
        }
      case .none: break
      case .p66: operandSize16 = true
      case .pF3, .pF2: if chance(15), row.map != .one || row.byte != 0x90 { operandSize16 = true }
      }
      if operandSize16 { e.prefixes.append(0x66) }
      if isMemory || row.rule == .moffs || row.rule == .xlat || isString(row.rule), chance(15) {
        e.prefixes.append(0x67)
      }
      if isString(row.rule) && chance(60) { e.prefixes.append(chance(50) ? 0xF3 : 0xF2) }
      if row.prefix == .pF3 { e.prefixes.append(0xF3) }
      if row.prefix == .pF2 { e.prefixes.append(0xF2) }
      if isMemory, row.attribute == .lockable || row.attribute == .exchange || row.rule == .cmpxchgWide, chance(30) {
        e.prefixes.append(0xF0)
      }
    }
    if isMemory || row.rule == .moffs || row.rule == .xlat || isString(row.rule) {
      if chance(15) { e.prefixes.append(chance(50) ? 0x64 : 0x65) } else if chance(3) { e.prefixes.append(0x2E) }
    }
    if chance(50) { e.prefixes.shuffle(using: &self) }

    let (wide, long) = widths(row)
    let reg = UInt8(below(16)), rm = UInt8(below(16)), vvvv = UInt8(below(16))
    var index = UInt8(below(16)), base = UInt8(below(16))
    let isVSIB = row.hasVSIB
    var modRMBytes: [UInt8] = []
    if forms.memory || forms.register {
      let field = row.digit ?? (reg & 7)
      if row.form == .exact {
        modRMBytes = [row.exact]
      } else if !isMemory {
        modRMBytes = [0xC0 | field << 3 | rm & 7]
        base = rm
        index = 0
      } else if isVSIB || chance(45) {
        let mod = UInt8(below(3))
        modRMBytes = [mod << 6 | field << 3 | 4, UInt8(below(4)) << 6 | (index & 7) << 3 | base & 7]
        e.displacementBytes = mod == 1 ? 1 : (mod == 2 || base & 7 == 5 ? 4 : 0)
      } else {
        let mod = UInt8(below(3))
        index = 0
        if base & 7 == 4 { base = 3 }
        modRMBytes = [mod << 6 | field << 3 | base & 7]
        e.displacementBytes = mod == 1 ? 1 : (mod == 2 || base & 7 == 5 ? 4 : 0)
      }
    } else if row.form == .plus {
      base = rm
      index = 0
    } else {
      base = 0
      index = 0
    }
    e.displacement = Int32(Int8(truncatingIfNeeded: next()))
    if e.displacementBytes == 4 { e.displacement = Int32(truncatingIfNeeded: next()) >> 8 }
    if e.displacementBytes == 0 { e.displacement = 0 }

    let r = reg >> 3, x = index >> 3, b = base >> 3
    if row.isVEX {
      let map = row.vexMap, tail = ((row.usesVvvv ? ~vvvv : 15) & 15) << 3 | (long ? 4 : 0) | row.vexPrefix
      if map == 1 && !wide && x == 0 && b == 0 && chance(70) {
        e.head = [0xC5, (r ^ 1) << 7 | tail]
      } else {
        e.head = [0xC4, (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | map, (wide ? 0x80 : 0) | tail]
      }
    } else {
      let rex = (wide ? 8 : 0) | r << 2 | x << 1 | b
      if row.form == .exact || row.form == .plain {
        if wide { e.head = [0x48] }
      } else if rex != 0 || chance(25) {
        e.head = [0x40 | rex]
      }
      e.head += row.escape
    }
    e.head.append(row.form == .plus ? row.byte & 0xF8 | base & 7 : row.byte)
    e.head += modRMBytes
    let size = wide ? 8 : (operandSize16 ? 2 : 4)
    let immediates = row.immediateBytes(
      operandSize: size, wide: wide && !row.isVEX, addressSize: e.prefixes.contains(0x67) ? 4 : 8)
    e.immediate = immediate(immediates)
    return e
  }

  /// REX.W or VEX.W, and VEX.L.
  mutating func widths(_ row: Opcode) -> (wide: Bool, long: Bool) {
    var wide = chance(40), long = chance(50)
    switch row.attribute {
    case .rexW0, .vexW0, .vexL0W0, .vexL1W0: wide = false
    case .rexW1, .vexW1, .vexL0W1, .vexL1W1: wide = true
    default: break
    }
    switch row.attribute {
    case .vexL0, .vexL0W0, .vexL0W1, .secondWritten: long = false
    case .vexL1, .vexL1W0, .vexL1W1: long = true
    default: if row.rule == .copy { long = false }
    }
    return (wide, long)
  }

  /// The bytes of an immediate.
  mutating func immediate(_ count: Int) -> [UInt8] {
    let value = value()
    return (0..<count).map { UInt8(truncatingIfNeeded: $0 < 8 ? value >> UInt64($0 * 8) : 0) }
  }

  func isString(_ rule: Rule) -> Bool {
    switch rule {
    case .movs, .stos, .lods, .scas, .cmps: true
    default: false
    }
  }
}

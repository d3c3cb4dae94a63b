// SPDX-License-Identifier: Apache-2.0
// Random encodings of an opcode row in 16- and 32-bit code.

import X86

extension Random {
  /// An encoding of `row`; it may turn out to be another row's, so callers decode it.
  mutating func encodeLegacy(_ row: Opcode, is16: Bool) -> Encoding {
    var e = Encoding()
    let forms = row.memoryForms
    let isMemory = forms.memory && (!forms.register || chance(65))
    let hasMemory = isMemory || row.rule == .moffs || row.rule == .xlat || isString(row.rule)
    var changesSize = false
    switch row.prefix {
    case .any: changesSize = !row.isVEX && chance(25)
    case .none: break
    case .p66: changesSize = !row.isVEX
    case .pF3, .pF2: changesSize = !row.isVEX && chance(15) && (row.map != .one || row.byte != 0x90)
    }
    if changesSize { e.prefixes.append(0x66) }
    let changesAddress = (hasMemory || row.rule == .loop) && chance(25)
    if changesAddress { e.prefixes.append(0x67) }
    if !row.isVEX {
      if isString(row.rule) && chance(60) { e.prefixes.append(chance(50) ? 0xF3 : 0xF2) }
      if row.prefix == .pF3 { e.prefixes.append(0xF3) }
      if row.prefix == .pF2 { e.prefixes.append(0xF2) }
      if isMemory, row.attribute == .lockable || row.attribute == .exchange || row.rule == .cmpxchgWide, chance(30) {
        e.prefixes.append(0xF0)
      }
    }
    if hasMemory && chance(35) { e.prefixes.append(pick([0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x64, 0x65] as [UInt8])) }
    if chance(50) { e.prefixes.shuffle(using: &self) }

    let reg = UInt8(below(8)), rm = UInt8(below(8))
    let narrow = is16 != changesAddress
    var modRMBytes: [UInt8] = []
    if row.form == .exact {
      modRMBytes = [row.exact]
    } else if forms.memory || forms.register {
      let field = row.digit ?? reg
      if !isMemory {
        modRMBytes = [0xC0 | field << 3 | rm]
      } else {
        let mod = UInt8(below(3))
        if narrow && !row.hasVSIB {
          modRMBytes = [mod << 6 | field << 3 | rm]
          e.displacementBytes = mod == 1 ? 1 : (mod == 2 || rm == 6 ? 2 : 0)
        } else if row.hasVSIB || chance(45) {
          let base = UInt8(below(8))
          modRMBytes = [mod << 6 | field << 3 | 4, UInt8(below(4)) << 6 | UInt8(below(8)) << 3 | base]
          e.displacementBytes = mod == 1 ? 1 : (mod == 2 || base == 5 ? 4 : 0)
        } else {
          let base = rm == 4 ? 3 : rm
          modRMBytes = [mod << 6 | field << 3 | base]
          e.displacementBytes = mod == 1 ? 1 : (mod == 2 || base == 5 ? 4 : 0)
        }
      }
    }
    switch e.displacementBytes {
    case 0: break
    case 1: e.displacement = Int32(Int8(truncatingIfNeeded: next()))
    case 2: e.displacement = Int32(Int16(truncatingIfNeeded: next()))
    default: e.displacement = Int32(truncatingIfNeeded: next()) >> Int32(below(2) * 8)
    }

    let (wide, long) = widths(row)
    if row.isVEX {
      // Without R, X and B, and with vvvv below 8, the bytes are not LES or LDS.
      let map = row.vexMap, tail = ((row.usesVvvv ? ~UInt8(below(8)) : 15) & 15) << 3 | (long ? 4 : 0) | row.vexPrefix
      e.head = map == 1 && !wide && chance(70) ? [0xC5, 0x80 | tail] : [0xC4, 0xE0 | map, (wide ? 0x80 : 0) | tail]
    } else {
      e.head += row.escape
    }
    e.head.append(row.form == .plus ? row.byte & 0xF8 | rm : row.byte)
    e.head += modRMBytes
    let immediates = row.immediateBytes(
      operandSize: is16 != changesSize ? 2 : 4, wide: false, addressSize: narrow ? 2 : 4)
    e.immediate = immediate(immediates)
    return e
  }
}

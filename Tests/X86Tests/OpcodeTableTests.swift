// SPDX-License-Identifier: Apache-2.0
// The tables against themselves: no two rows claim one encoding, and each row is what the decoder finds for the
// shortest encoding that can be made from it.

import Testing

@testable import X86

/// Encodings made from a row.
enum MinimalEncoding {
  /// One encoding for each of the row's forms (memory, register), for the mode in which it exists.
  static func all(of row: Opcode, code: CodeSize) -> [[UInt8]] {
    modRMs(of: row).map { modRM in
      var bytes: [UInt8] = []
      let isVEX = row.map == .vex0F || row.map == .vex0F38 || row.map == .vex0F3A
      let prefix: UInt8 =
        switch row.prefix {
        case .any, .none: 0
        case .p66: 1
        case .pF3: 2
        case .pF2: 3
        }
      if isVEX {
        let shape = RowShape(row)
        let isWide = shape.forbidden & RowShape.w0 != 0, is256 = shape.forbidden & RowShape.l0 != 0
        bytes = [0xC4, 0xE0 | (row.map.rawValue - OpcodeMap.vex0F.rawValue + 1)]
        bytes.append((isWide ? 0x80 : 0) | 0x78 | (is256 ? 4 : 0) | prefix)
      } else {
        bytes = [[], [0x66], [0xF3], [0xF2]][Int(prefix)]
        bytes += [[], [0x0F], [0x0F, 0x38], [0x0F, 0x3A]][Int(row.map.rawValue)]
      }
      bytes.append(row.byte)
      if let modRM {
        bytes.append(modRM)
        if modRM == 0x14 { bytes.append(0x08) }  // xmm2, [rax+xmm1], xmm0
      }
      let operandSize = prefix == 1 && !isVEX ? 2 : 4
      for operand in [row.operand1, row.operand2, row.operand3, row.operand4] {
        let count =
          switch operand {
          case .Ib, .Ibs, .Ib2, .Jb, .Lx: 1
          case .Iw: 2
          case .Iz, .Jz, .Iv: operandSize
          case .Ap: operandSize + 2
          case .Ob, .Ov: code.bits == 64 ? 8 : 4
          default: 0
          }
        bytes += [UInt8](repeating: 0x11, count: count)
      }
      return bytes
    }
  }

  private static func modRMs(of row: Opcode) -> [UInt8?] {
    let hasVSIB = RowShape(row).hasVSIB
    let reg = { (first: Form) in (row.form.rawValue - first.rawValue) << 3 }
    switch row.form {
    case .plain, .plus: return [nil]
    case .modRM: return [0x03, 0xC3]
    case .memory: return [hasVSIB ? 0x14 : 0x03]
    case .register: return [0xC3]
    case .exact: return [row.exact]
    case .ext0, .ext1, .ext2, .ext3, .ext4, .ext5, .ext6, .ext7: return [3 | reg(.ext0), 0xC3 | reg(.ext0)]
    case .mem0, .mem1, .mem2, .mem3, .mem4, .mem5, .mem6, .mem7: return [3 | reg(.mem0)]
    case .reg0, .reg1, .reg2, .reg3, .reg4, .reg5, .reg6, .reg7: return [0xC3 | reg(.reg0)]
    }
  }
}

@Suite struct OpcodeTableTests {
  let table = OpcodeTable.shared

  @Test("no two rows claim the same encoding")
  func overlaps() {
    for (a, b) in table.overlaps { Issue.record("\(table[a].name) and \(table[b].name): rows \(a), \(b)") }
  }

  @Test("each row is found by the shortest encodings made from it, and no byte less")
  func everyRowDecodes() {
    let decoder = Decoder()
    for number in 1..<UInt16(table.count) {
      let row = table[number]
      let code: CodeSize = row.attribute == .notIn64 ? .code32 : .code64
      for bytes in MinimalEncoding.all(of: row, code: code) {
        // 90 is the plain row.
        if row.form == .plus && row.byte == 0x90 { continue }
        guard case .complete(let i) = decoder.decode(bytes.span, code: code) else {
          Issue.record("\(row.name): \(bytes.hex) is incomplete")
          continue
        }
        #expect(i.row == number, "\(row.name): \(bytes.hex) is \(table[i.row].name)")
        #expect(Int(i.length) == bytes.count, "\(row.name): \(bytes.hex)")
        #expect(!InstructionFormatter().text(i).isEmpty)
        for count in 0..<bytes.count {
          let result = decoder.decode(bytes.span.extracting(..<count), code: code)
          guard case .needsMore = result else {
            Issue.record("\(row.name): \(bytes.hex) is complete after \(count)")
            continue
          }
        }
      }
    }
    print("\(table.count - 1) rows")
  }

  @Test("fields that must go together do")
  func consistency() {
    for number in 1..<UInt16(table.count) {
      let row = table[number]
      if row.attribute == .lockable || row.attribute == .exchange {
        #expect(row.access == .readWrite, "\(row.name)")
      }
      if row.rule == .jcc { #expect(row.flags == .condition, "\(row.name)") }
      if row.rule == .avx { #expect(row.map.rawValue >= OpcodeMap.vex0F.rawValue, "\(row.name)") }
      if row.operand1 == .none { #expect(row.access == .none, "\(row.name)") }
      #expect(row.flags.undefined & ~row.flags.writesMaybe == 0, "\(row.name)")
      #expect(row.flags.writes & ~row.flags.writesMaybe == 0, "\(row.name)")
    }
  }
}

extension [UInt8] {
  /// `48 89 D8`.
  var hex: String { map { ($0 < 16 ? "0" : "") + String($0, radix: 16, uppercase: true) }.joined(separator: " ") }
}

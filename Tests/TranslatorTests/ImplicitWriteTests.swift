// SPDX-License-Identifier: Apache-2.0
// Registers that an instruction writes without naming them: the translator reads them from the opcode rows, the checker
// has a list of its own, and both say the same. (That the processor agrees is for the differential tests.)

import Testing
import X86

@testable import Translator

struct ImplicitWriteTests {
  @Test("the checker's list and the rows agree") func agreement() {
    let table = OpcodeTable.shared
    var rows = 0
    for number in 1..<UInt16(table.count) {
      let row = table[number]
      let encoding = HostEncoding(row)
      guard row.rule.traits.contains(.writesNamed), row.attribute != .notIn64, encoding.action != .refuse else {
        continue
      }
      let planned = RowTraits(row).unnamedWrites
      #expect(encoding.hidden == planned, "\(row.name) \(row.map) \(row.byte) \(row.form)")
      rows += planned != 0 ? 1 : 0
    }
    #expect(rows >= 30)
  }

  @Test("only rows whose rule emits the instruction say it") func rules() {
    let table = OpcodeTable.shared
    for number in 1..<UInt16(table.count) where table[number].implicit != .none {
      #expect(table[number].rule.traits.contains(.writesNamed), "\(table[number].name)")
    }
  }
}

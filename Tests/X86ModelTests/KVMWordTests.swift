// SPDX-License-Identifier: Apache-2.0
// The words of KVM's CPUID leaf as people write them.

import Testing
import X86

@Suite struct KVMWordTests {
  @Test(
    arguments: [
      ("default", 0x0100_FEFB), ("all", 0x0103_FEFB), ("none", 0), ("0x9", 9), ("clocksource", 1),
      ("pv-eoi,steal-time", 0x60),
      ("default,no-async-pf", 0x0100_FEEB), ("no-pv-eoi", 0x0100_FEBB), ("0x1000000,pv-unhalt", 0x0100_0080),
      ("all,none,clocksource2", 8), ("default,hc-map-gpa-range", 0x0101_FEFB),
    ] as [(String, UInt32)])
  func lists(text: String, word: UInt32) throws {
    #expect(try KVMFeatures(list: text).rawValue == word)
  }

  @Test(arguments: ["", "eoi", "0x", "9", "pv-eoi,", "no-", "PV-EOI", "0x100000000", "no-0x1"])
  func unknown(text: String) {
    do {
      let word = try KVMFeatures(list: text)
      Issue.record("\(text) became \(word)")
    } catch {
      if case .notOffered = error { Issue.record("\(error)") }
    }
  }

  @Test(arguments: [("0x4", 4), ("0x105", 0x104), ("default,0x80000000", 0x8000_0000)] as [(String, UInt32)])
  func notOffered(text: String, bits: UInt32) {
    #expect(throws: KVMWordError.notOffered(bits)) { try KVMFeatures(list: text) }
  }

  @Test func everyBitHasItsName() throws {
    for (name, bit) in KVMFeatures.names {
      #expect(try KVMFeatures(list: name) == bit)
      #expect(bit.rawValue.nonzeroBitCount == 1)
    }
    #expect(KVMFeatures.names.reduce(into: KVMFeatures()) { $0.formUnion($1.bit) } == .implemented)
    #expect(try KVMHints(list: "realtime") == .realtime && KVMHints(list: "default") == [])
  }
}

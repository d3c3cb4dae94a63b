// SPDX-License-Identifier: Apache-2.0
// The judgement of native against translated results, with results written down: those of the vendor that this host is
// not are here too, and wrong ones that must be refused.

import Testing
import X86

@testable import Translator

/// A recorded case: what it is, and where it began. Outcomes begin as copies.
private struct Record {
  var facts = CaseFacts()
  var input = Outcome()

  init(_ kind: CaseFacts.Kind, size: Int) {
    facts.kind = kind
    facts.rip = 0x3000
    facts.next = 0x3004
    facts.size = size
    facts.privilege = 3
    input.rip = facts.rip
    input.rflags = 0x202
    input.registers = (0..<16).map { 0x1111 * UInt64($0) }
    input.controlWord = 0x37F
    input.mxcsr = 0x1F80
    input.image[4] = 0xFF
    input.image[512] = 7
    for offset in 32..<160 { input.image[offset] = UInt8(offset) }
  }

  /// #PF of a store.
  func pageFault(at address: UInt64) -> Outcome {
    var outcome = input
    outcome.vector = 14
    outcome.errorCode = 6
    outcome.cr2 = address
    return outcome
  }

  /// It completed: the HLT behind it is what ended it.
  var complete: Outcome {
    var outcome = input
    outcome.rip = facts.next
    outcome.vector = 13
    return outcome
  }

  func problem(_ vendor: HostVendor, native: Outcome, translated: Outcome, masked: Outcome? = nil) -> String? {
    #expect(vendor.wantsMaskedRun(facts, native: native, translated: translated) == (masked != nil))
    let expected = vendor.expectation(facts, input: input, native: native, masked: masked)
    return expected.difference(translated, from: input, Tolerance(), privilege: facts.privilege)
  }
}

@Suite struct VendorTests {
  @Test("an MMX store that faults: Intel has set TOP to 0") func topOfFaultingStore() {
    var record = Record(.mmxStore, size: 8)
    record.input.statusWord = 0x5A00  // TOP = 3
    let engine = record.pageFault(at: 0x2000_91A7)
    var intel = engine
    intel.top = 0
    for number in 0..<8 {
      // R0 first.
      for byte in 0..<16 { intel.image[32 + (number + 3) % 8 * 16 + byte] = engine.image[32 + number * 16 + byte] }
    }
    #expect(record.problem(.intel, native: intel, translated: engine) == nil)
    #expect(record.problem(.amd, native: engine, translated: engine) == nil)
    #expect(record.problem(.amd, native: intel, translated: engine)?.contains("FSW") == true)
    // The engine must not do it, nor anything else to the status word or a register.
    #expect(record.problem(.intel, native: intel, translated: intel)?.contains("FSW") == true)
    var wrong = engine
    wrong.statusWord ^= 0x100
    #expect(record.problem(.intel, native: intel, translated: wrong)?.contains("FSW") == true)
    wrong = engine
    wrong.image[33] ^= 1
    #expect(record.problem(.intel, native: intel, translated: wrong)?.contains("ST/MM0") == true)
    // Only a fault, and only of such a store.
    #expect(record.problem(.intel, native: record.complete, translated: engine)?.contains("ended") == true)
    record.facts.kind = .other
    #expect(record.problem(.intel, native: intel, translated: engine)?.contains("FSW") == true)
  }

  @Test("VCVTPS2PH that faults: Intel has the conversion's flags in MXCSR") func flagsOfFaultingConversion() {
    let record = Record(.halfStore, size: 16)
    let engine = record.pageFault(at: 0x2000_5D75)
    var intel = engine
    intel.mxcsr = 0x1FB8
    #expect(record.problem(.intel, native: intel, translated: engine) == nil)
    #expect(record.problem(.amd, native: engine, translated: engine) == nil)
    #expect(record.problem(.amd, native: intel, translated: engine)?.contains("MXCSR") == true)
    #expect(record.problem(.intel, native: intel, translated: intel)?.contains("MXCSR") == true)
    // ZE, or a mask: nothing that the conversion does.
    intel.mxcsr = 0x1F84
    #expect(record.problem(.intel, native: intel, translated: engine)?.contains("MXCSR") == true)
    intel.mxcsr = 0x1F00
    #expect(record.problem(.intel, native: intel, translated: engine)?.contains("MXCSR") == true)
    // A fault elsewhere.
    intel = engine
    intel.cr2 += 4096
    #expect(record.problem(.intel, native: intel, translated: engine)?.contains("CR2") == true)
  }

  @Test("VCVTPS2PH with an unmasked exception: on Intel #XM comes before the fault") func exceptionOfConversion() {
    var record = Record(.halfStore, size: 8)
    record.input.mxcsr = 0x1B80  // OE is not masked.
    let engine = record.pageFault(at: 0x2000_5D75)
    var intel = record.input
    intel.vector = 19
    intel.mxcsr = 0x1B88
    // What the processor does with all masked.
    var masked = engine
    masked.mxcsr = 0x1FA8
    #expect(record.problem(.intel, native: intel, translated: engine, masked: masked) == nil)
    #expect(record.problem(.amd, native: engine, translated: engine) == nil)
    #expect(record.problem(.amd, native: intel, translated: engine)?.contains("ended") == true)
    // The operand was there after all, or it faults elsewhere.
    var other = record.complete
    other.mxcsr = 0x1FA8
    #expect(record.problem(.intel, native: intel, translated: engine, masked: other)?.contains("ended") == true)
    other = masked
    other.cr2 += 4096
    #expect(record.problem(.intel, native: intel, translated: engine, masked: other)?.contains("CR2") == true)
    // No exception that is not masked.
    other = intel
    other.mxcsr = 0x1BA0
    #expect(record.problem(.intel, native: other, translated: engine, masked: masked)?.contains("ended") == true)
    // The engine's flags are those from before.
    other = engine
    other.mxcsr = 0x1B88
    #expect(record.problem(.intel, native: intel, translated: other, masked: masked)?.contains("MXCSR") == true)
  }

  @Test("an x87 store with an unmasked exception: Intel leaves memory alone, and does not fault on it")
  func pendingException() {
    var record = Record(.x87Store, size: 4)
    record.facts.address = 0x2000_5377
    record.input.controlWord = 0x37E  // IE is not masked.
    record.input.operand = [1, 2, 3, 4]
    let engine = record.pageFault(at: 0x2000_5377)
    var intel = record.complete
    intel.statusWord = 0x8081
    var masked = engine
    masked.controlWord = 0x37F
    #expect(record.problem(.intel, native: intel, translated: engine, masked: masked) == nil)
    #expect(record.problem(.amd, native: engine, translated: engine) == nil)
    #expect(record.problem(.amd, native: intel, translated: engine)?.contains("ended") == true)
    // The engine does either: what the processor does, where it is allowed to.
    #expect(record.problem(.intel, native: intel, translated: intel) == nil)
    // The operand was there after all.
    #expect(
      record.problem(.intel, native: intel, translated: engine, masked: record.complete)?.contains("ended") == true)
    // The exception was pending before, or is masked, or there is none.
    for status in [0x81, 0x8082, 1] as [UInt16] {
      var wrong = record
      if status == 0x81 { wrong.input.statusWord = 0x81 }
      var native = intel
      native.statusWord = status
      #expect(wrong.problem(.intel, native: native, translated: engine, masked: masked)?.contains("ended") == true)
    }
    // It stored.
    var stored = intel
    stored.operand[0] = 9
    #expect(record.problem(.intel, native: stored, translated: engine, masked: masked)?.contains("ended") == true)
    // The engine popped, or stored, or reports another address.
    var wrong = engine
    wrong.statusWord = 0x0800
    #expect(record.problem(.intel, native: intel, translated: wrong, masked: masked)?.contains("FSW") == true)
    wrong = engine
    wrong.operand[3] = 0
    #expect(record.problem(.intel, native: intel, translated: wrong, masked: masked)?.contains("operand") == true)
    wrong = engine
    wrong.cr2 += 4
    #expect(record.problem(.intel, native: intel, translated: wrong, masked: masked)?.contains("CR2") == true)
  }

  @Test("ten bytes whose last two fault: Intel has stored the first eight", arguments: [false, true])
  func partOfStore(isDecimal: Bool) {
    var record = Record(.x87Store, size: 10)
    record.facts.address = 0x2000_6FF8
    record.facts.isDecimal = isDecimal
    record.input.operand = [17, 17, 17, 17, 17, 17, 17, 17, nil, nil]
    let engine = record.pageFault(at: 0x2000_7000)
    func intel(_ bytes: [UInt8]) -> Outcome {
      var outcome = engine
      outcome.operand = bytes + [nil, nil]
      return outcome
    }
    let stored = intel(isDecimal ? [0x21, 0x43, 0x65, 0x87, 0x09, 0, 0, 0] : Array(record.input.image[32..<40]))
    let indefinite = intel([0, 0, 0, 0, 0, 0, 0, 0xC0])
    #expect(record.problem(.intel, native: stored, translated: engine) == nil)
    #expect(record.problem(.intel, native: indefinite, translated: engine) == nil)
    #expect(record.problem(.amd, native: engine, translated: engine) == nil)
    #expect(record.problem(.amd, native: stored, translated: engine)?.contains("operand") == true)
    // The engine stores nothing, whatever the processor does.
    #expect(record.problem(.intel, native: stored, translated: stored)?.contains("operand") == true)
    #expect(record.problem(.intel, native: engine, translated: stored)?.contains("operand") == true)
    // Something else was stored, or the first eight fault, or an empty register was stored.
    let noise = intel([0xAB, 0x43, 0x65, 0x87, 0x09, 0, 0, 0])
    #expect(record.problem(.intel, native: noise, translated: engine)?.contains("operand") == true)
    var early = stored
    early.cr2 = 0x2000_6FFF
    #expect(record.problem(.intel, native: early, translated: engine)?.contains("CR2") == true)
    record.input.image[4] = 0xFE
    let empty = record.pageFault(at: 0x2000_7000)
    var native = stored
    native.image[4] = 0xFE
    #expect(record.problem(.intel, native: native, translated: empty)?.contains("operand") == true)
  }

  @Test("PUSH of a segment register: Intel writes two bytes of four, AMD all") func halfPush() {
    var record = Record(.segmentPush, size: 4)
    record.input.operand = [1, 2, 3, 4]
    var engine = record.complete
    engine.operand = [0x2B, 0, 3, 4]
    var amd = engine
    amd.operand = [0x2B, 0, 0, 0]
    #expect(record.problem(.intel, native: engine, translated: engine) == nil)
    #expect(record.problem(.amd, native: amd, translated: engine) == nil)
    #expect(record.problem(.intel, native: amd, translated: engine)?.contains("operand") == true)
    #expect(record.problem(.amd, native: amd, translated: amd)?.contains("operand") == true)
    #expect(record.problem(.amd, native: record.complete, translated: engine)?.contains("operand") == true)
  }

  @Test("BOUND and strings: the vendors' results are not exchangeable", arguments: HostVendor.allCases)
  func exactOnBoth(vendor: HostVendor) {
    // BOUND, index below the lower bound, second half absent: #BR on Intel, #PF on AMD.
    let record = Record(.other, size: 8)
    let fault = record.pageFault(at: 0x2000_7000)
    var range = record.input
    range.vector = 5
    #expect(record.problem(vendor, native: range, translated: fault)?.contains("ended") == true)
    #expect(record.problem(vendor, native: fault, translated: range)?.contains("ended") == true)
    // 67 F3 A4 with ECX = 0: RCX extended, or as it was.
    var extended = record.complete
    extended.registers[1] = 0
    var kept = record.complete
    kept.registers[1] = 0xFE37_20CC_0000_0000
    #expect(record.problem(vendor, native: extended, translated: kept)?.contains("rcx") == true)
    #expect(record.problem(vendor, native: kept, translated: extended)?.contains("rcx") == true)
  }

  @Test("MOVSXD of a word: AMD reads four bytes, so MOV runs there") func wordOfMOVSXD() throws {
    let decoder = Decoder()
    for (bytes, other) in [
      ([0x66, 0x63, 0x81, 0xD7, 0x6C, 0xC8, 0xFF], [0x66, 0x8B, 0x81, 0xD7, 0x6C, 0xC8, 0xFF]),
      ([0x67, 0x66, 0x43, 0x63, 0x04, 0x63], [0x67, 0x66, 0x43, 0x8B, 0x04, 0x63]),
      ([0x63, 0x01], [0x63, 0x01]), ([0x66, 0x48, 0x63, 0x01], [0x66, 0x48, 0x63, 0x01]),
      ([0x66, 0x8B, 0x43, 0x63], [0x66, 0x8B, 0x43, 0x63]),
    ] as [([UInt8], [UInt8])] {
      let padded = bytes + [UInt8](repeating: 0xF4, count: 16)
      guard case .complete(let i) = decoder.decode(padded.span, code: .code64) else {
        Issue.record("not an instruction: \(bytes)")
        continue
      }
      let row = OpcodeTable.shared[i.row]
      #expect(Int(i.length) == bytes.count)
      #expect(HostVendor.intel.nativeBytes(bytes, i, row) == bytes)
      #expect(HostVendor.amd.nativeBytes(bytes, i, row) == other)
    }
  }
}

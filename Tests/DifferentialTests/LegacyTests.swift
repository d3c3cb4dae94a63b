// SPDX-License-Identifier: Apache-2.0
// Every row of the opcode table in 16- and 32-bit code, alone: the host CPU runs the same bytes in a code segment of
// the same size.

import CHost
import CNative
import Testing
import X86

@testable import Translator

extension Bench {
  /// Runs a case on both sides; nil if they agree.
  func run(_ c: Case, _ segments: LegacySegments, written: inout [LegacySegment?]) throws -> String? {
    try arena.store(c.bytes, at: c.code)
    defer { try? arena.store([UInt8](repeating: 0xF4, count: c.bytes.count), at: c.code) }
    try markCode(c)
    Effort.trace(describe(c) + registersText + " \(segments.registers)")
    let facts = unsafe CaseFacts(c, rip: input.pointee.rip)
    let before = operand(facts, native: true)
    runNative(segments, written: &written)
    let loadsSegment = LegacyGenerator.loadsSegment(c.row)
    if loadsSegment { try writeLDT(segments) }
    if let problem = runTranslated(segments, privilege: c.privilege) {
      _ = memoryDifference()
      return problem
    }
    narrowRegisters()
    let ip = unsafe input.pointee.rip
    let faulted = unsafe native.pointee.rip == ip
    var tolerance = Tolerance()
    tolerance.flags = Tolerance.rflags(faulted ? c.row.flags.writesMaybe : undefinedFlags(c))
    if c.row.flags == .random { tolerance.registers = 1 << UInt16(c.instruction.rm) }
    if c.size >= 14 { tolerance.operandBytes = UInt64(c.size) }
    let rule = c.row.rule
    // Operands that the processor moves in parts, or checks for alignment and limit in either order.
    tolerance.eitherOperand =
      [.cmps, .movs, .enter, .pushAll, .bound, .gather, .maskMove].contains(rule) || c.size >= 10 || loadsSegment
    tolerance.vectors = faulted && rule == .gather
    if loadsSegment {
      if let found = segmentDifference() { return found }
      // A null selector leaves the base on AMD's processors and clears it on Intel's.
      unsafe translated.pointee.fs_base = native.pointee.fs_base
      unsafe translated.pointee.gs_base = native.pointee.gs_base
    }
    if faulted && rule == .popAll { tolerance.registers = 0xFF }
    if faulted && (rule == .enter || rule == .pushAll) { _ = memoryDifference() }
    if !faulted { ignorePointers(c) }
    let found = difference(facts, before: before, tolerance, narrow: true) { runNative(segments, written: &written) }
    if let found {
      _ = memoryDifference()
      return found
    }
    if let found = memoryDifference(around: c.touched) { return found }
    cases += 1
    if let problem = refusal() { return problem }
    return cases % 64 == 0 ? memoryDifference().map { "stray store: " + $0 } : nil
  }
}

extension Bench {
  /// What a load of a segment register left: selectors, bases of FS and GS, or the exception's error code.
  private func segmentDifference() -> String? {
    let vector = unsafe native.pointee.vector
    if [10, 11, 12, 13].contains(vector), unsafe native.pointee.error_code != translated.pointee.error_code {
      return
        unsafe "error code: native \(hex(native.pointee.error_code)) translated \(hex(translated.pointee.error_code))"
    }
    if let found = selectorDifference() { return found }
    for (register, host) in unsafe [(SegmentRegister.fs, native.pointee.fs_base), (.gs, native.pointee.gs_base)]
    where cpu.page[register].selector > 3 && cpu.page[register].base != host {
      return "base of \(register): native \(hex(host)) translated \(hex(cpu.page[register].base))"
    }
    return nil
  }
}

extension DifferentialTests {
  @Test(
    "rows in 16- and 32-bit code",
    .enabled(if: cnative_can_run_legacy() == 0, "this host runs no 16- and 32-bit code segments"),
    arguments: LegacyMode.allCases) func legacyRows(mode: LegacyMode) throws
  {
    try Bench.use { try legacyRows($0, mode) }
  }

  private func legacyRows(_ bench: Bench, _ mode: LegacyMode) throws {
    print("seed of \(#function): \(Effort.seed)")
    LegacySegments.writeOthers()
    let table = OpcodeTable.shared
    var failures = Failures()
    var cases = 0, rows = 0, comparable = 0
    var written = [LegacySegment?](repeating: nil, count: 6)
    for number in 1..<UInt16(table.count) where LegacyGenerator.isComparable(table[number]) {
      let row = table[number]
      comparable += 1
      var generator = LegacyGenerator(bench, mode: mode, seed: Effort.seed &* 0x1_0005 &+ UInt64(number))
      var done = 0, tries = 0
      let wanted = 50 * Effort.factor
      while done < wanted && tries < wanted * 10 {
        tries += 1
        guard let c = generator.makeCase(number) else { continue }
        done += 1
        if let problem = try bench.run(c, generator.segments, written: &written) {
          failures.add(
            "\(row.name) \(row.map) \(hex(row.byte)) \(row.form)",
            "\(describe(c)): \(problem) \(bench.registersText) \(generator.segments.registers)")
        }
      }
      cases += done
      if done > 0 { rows += 1 } else { print("row \(number) \(row.name): no case could be made") }
    }
    print("\(mode) rows: \(rows) of \(comparable) comparable, \(cases) cases, \(failures.total) failures")
    #expect(failures.total == 0, "seed \(Effort.seed): \(failures.summary())")
  }
}

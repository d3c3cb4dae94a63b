// SPDX-License-Identifier: Apache-2.0
// Every row of the opcode table, alone: the host CPU is the oracle.

import CHost
import CNative
import Engine
import GuestMemory
import Host
import Testing
import X86

@testable import Translator

/// All differential tests: one after the other, for they share linear addresses and a signal handler.
@Suite(
  .serialized, .enabled(if: cnative_can_run() != 0, "the host's kernel forbids WRFSBASE, so nothing can run natively"))
struct DifferentialTests {}

/// Collects failures: the first few of each kind are shown.
struct Failures {
  private var shown: [String: Int] = [:]
  private(set) var total = 0
  private(set) var kinds: [String] = []

  mutating func add(_ kind: String, _ text: @autoclosure () -> String) {
    total += 1
    let count = shown[kind, default: 0]
    shown[kind] = count + 1
    if count == 0 { kinds.append(kind) }
    if count < 2 { print("FAIL \(kind): \(text())") }
  }

  func summary() -> String { kinds.map { "\($0) (\(shown[$0]!))" }.joined(separator: ", ") }
}

extension Bench {
  /// Runs a case on both sides; nil if they agree.
  func run(_ c: Case) throws -> String? {
    try arena.store(c.bytes, at: c.code)
    defer { try? arena.store([UInt8](repeating: 0xF4, count: c.bytes.count), at: c.code) }
    try markCode(c)
    Effort.trace(describe(c) + registersText)
    let facts = CaseFacts(c, rip: c.code)
    let before = operand(facts, native: true)
    arena.storeNative(HostVendor.here.nativeBytes(c.bytes, c.instruction, c.row), at: c.code)
    runNative()
    noteWrites(c)
    if let problem = runTranslated(privilege: c.privilege) {
      _ = memoryDifference()
      return problem
    }
    var tolerance = Tolerance()
    let faulted = unsafe native.pointee.rip == c.code
    // Where it faulted, flags that the instruction overwrites may be stale (rule 10).
    tolerance.flags = Tolerance.rflags(faulted ? c.row.flags.writesMaybe : undefinedFlags(c))
    if c.row.flags == .random { tolerance.registers = 1 << UInt16(c.instruction.rm) }
    if c.size >= 14 { tolerance.operandBytes = UInt64(c.size) }
    let rule = c.row.rule
    // ENTER's order of stores is the processor's.
    tolerance.eitherOperand =
      rule == .cmps || rule == .movs || rule == .enter || rule == .gather || rule == .maskMove
      // A bad header, or the page behind the one it is in.
      || rule == .restoreState
    tolerance.vectors = faulted && rule == .gather
    // ENTER may have pushed before it faults.
    if faulted && rule == .enter { _ = memoryDifference() }
    ignorePointers(c)
    if let found = difference(facts, before: before, tolerance, runAgain: { runNative() }) {
      _ = memoryDifference()
      return found
    }
    if let found = memoryDifference(around: c.touched) { return found }
    if let problem = deviceProblem(c) { return problem }
    cases += 1
    if let problem = refusal() { return problem }
    return cases % 64 == 0 ? memoryDifference().map { "stray store: " + $0 } : nil
  }

  /// Notes which registers the host's processor has written, and which of them the row does not say.
  private func noteWrites(_ c: Case) {
    guard c.row.rule.traits.contains(.writesNamed) else { return }
    let said = RowTraits(c.row).writtenRegisters(c.instruction)
    let written = (0..<16).reduce(UInt16(0)) { bits, number in
      bits | (unsafe Bench.register(native, number) == self[number] ? 0 : 1 << UInt16(number))
    }
    writesSeen[c.instruction.row, default: 0] |= written
    if written & ~said != 0 { unsaidWrites[c.instruction.row] = written & ~said }
  }

  /// A MOV of an aligned operand is one access of its size to a device.
  func deviceProblem(_ c: Case) -> String? {
    guard c.row.map == .one, (0x88...0x8B).contains(c.row.byte), let target = c.target, arena.kind(target) == .device,
      target % UInt64(c.size) == 0, let physical = arena.physical(target)
    else { return nil }
    let size = UInt8(c.size)
    if c.row.byte >= 0x8A {
      return deviceAccesses == [.mmioRead(address: physical, size: size)] ? nil : "devices saw \(deviceAccesses)"
    }
    let mask = c.size == 8 ? UInt64.max : (1 << UInt64(c.size * 8)) - 1
    let value = unsafe arena.native(target & ~7).load(as: UInt64.self) >> ((target & 7) * 8) & mask
    return deviceAccesses == [.mmioWrite(address: physical, size: size, value: value)]
      ? nil : "devices saw \(deviceAccesses)"
  }

  /// The processor stores its x87 instruction and operand pointers, or leaves memory alone; the engine stores zeroes.
  func ignorePointers(_ c: Case) {
    guard c.row.rule == .saveState, let target = c.target, unsafe native.pointee.rip != c.code else { return }
    let range: Range<UInt64> =
      switch c.size {
      case 14, 94: 6..<14
      case 28, 108: 12..<28
      default: 6..<24
      }
    for offset in range { arena.synchronize(byte: target + offset) }
  }

  /// If the case touches the page that should hold code, makes the translator see code there.
  func markCode(_ c: Case) throws {
    for address in c.touched where arena.kind(address) == .code || arena.kind(address &+ UInt64(c.size)) == .code {
      let page = arena.kind(address) == .code ? address & ~0xFFF : (address &+ UInt64(c.size)) & ~0xFFF
      let frame = arena.physical(page)!
      guard unsafe arena.memory.pageFlags[Int(frame >> 12)] & 1 == 0 else { return }
      // HLT at its end, executed once.
      try arena.store([0xF4], at: page + 0xFFF)
      cpu.page[\.rip] = page + 0xFFF
      cpu.page.rflags = 2
      resetPrivilege()
      _ = cpu.run()
      return
    }
  }

  /// Flags that the manual does not define for this case.
  func undefinedFlags(_ c: Case) -> UInt8 {
    let effect = c.row.flags
    let i = c.instruction
    let size = c.row.operand1 == .Eb ? 1 : Int(i.operandSize)
    switch effect {
    case .shift, .rotate, .rotateCarry, .doubleShift:
      let operand = [c.row.operand2, c.row.operand3].contains(.CL) ? self[1] : i.immediate
      let count = Int(operand & (size == 8 ? 63 : 31))
      if count == 0 { return 0 }
      if effect == .doubleShift && count > size * 8 { return ArithmeticFlags.all }
      var undefined = effect.undefined
      if count == 1 { undefined &= ~ArithmeticFlags.of }
      if effect == .shift && count >= size * 8 { undefined |= ArithmeticFlags.cf }
      return undefined
    default: return effect.undefined
    }
  }
}

extension DifferentialTests {
  @Test func rows() throws { try Bench.use { try rows($0, cases: 200) } }

  /// What is translated again because the checker refused it: with a check for each access, or for Swift.
  @Test("rows in the forms that follow a refusal", arguments: [BlockForm.simple, .helper])
  func rowsInOtherForms(form: BlockForm) throws {
    try Bench.use { bench in try bench.using(form) { try rows(bench, cases: 10) } }
  }

  private func rows(_ bench: Bench, cases most: Int) throws {
    print("seed of \(#function): \(Effort.seed)")
    let table = OpcodeTable.shared
    var failures = Failures()
    var cases = 0, rowsTested = 0, comparable = 0
    for number in 1..<UInt16(table.count) {
      let row = table[number]
      guard Generator.isComparable(row) else { continue }
      comparable += 1
      var generator = Generator(bench, seed: Effort.seed &* 0x1_0001 &+ UInt64(number))
      var done = 0, tries = 0
      let wanted = most * Effort.factor
      while done < wanted && tries < wanted * 8 {
        tries += 1
        guard let c = generator.makeCase(number) else { continue }
        done += 1
        if let problem = try bench.run(c) {
          failures.add("\(row.name) \(row.map) \(hex(row.byte)) \(row.form)", "\(describe(c)): \(problem)")
        }
      }
      cases += done
      if done > 0 { rowsTested += 1 } else { print("row \(number) \(row.name): no case could be made") }
    }
    print(
      "rows: \(rowsTested) of \(comparable) comparable (\(table.count - 1) in all), \(cases) cases, \(bench.blocksChecked) blocks checked, \(failures.total) failures"
    )
    #expect(failures.total == 0, "seed \(Effort.seed): \(failures.summary())")
    for (number, registers) in bench.unsaidWrites {
      Issue.record("\(table[number].name) writes registers \(String(registers, radix: 2)) that its row does not say")
    }
    // Ten cases may well leave a register as it was.
    for (number, registers) in bench.writesSeen where most >= 100 {
      let unseen = UInt16(RowTraits(table[number]).unnamedWrites) & ~registers
      #expect(unseen == 0, "\(table[number].name) never writes registers \(String(unseen, radix: 2))")
    }
  }
}

extension Bench {
  /// The input's registers, for people.
  var registersText: String {
    let state = unsafe input.pointee
    let registers = (0..<16).map { " r\($0)=" + hex(self[$0]) }.joined()
    return registers + " fs=\(hex(state.fs_base)) gs=\(hex(state.gs_base)) flags=\(hex(state.rflags))"
  }
}

extension DifferentialTests {
  /// Rows that the model does not have: nothing of them is executed, whatever the host would make of them.
  @Test func undefinedRows() throws { try Bench.use(undefinedRows) }

  private func undefinedRows(_ bench: Bench) throws {
    print("seed of \(#function): \(Effort.seed)")
    let table = OpcodeTable.shared
    var rows = 0
    for number in 1..<UInt16(table.count) where table[number].rule == .undefined && table[number].attribute != .notIn64
    {
      var generator = Generator(bench, seed: Effort.seed &+ UInt64(number))
      var done = 0
      for _ in 0..<100 where done < 5 {
        var encoding = generator.random.encode(table[number])
        encoding.displacement = 0
        let code = Arena.codeBase + 0x1000
        guard let i = generator.decode(encoding, code: code), i.row == number else { continue }
        done += 1
        generator.randomizeState(unmasked: false)
        unsafe bench.input.pointee.rip = code
        try bench.arena.store(encoding.bytes, at: code)
        let problem = bench.runTranslated(privilege: done % 2 * 3)
        try bench.arena.store([UInt8](repeating: 0xF4, count: encoding.bytes.count), at: code)
        #expect(problem == nil)
        let end = unsafe (bench.translated.pointee.vector, bench.translated.pointee.rip)
        #expect(end == (6, code), "\(table[number].name) \(encoding.bytes.map { String($0, radix: 16) })")
      }
      rows += done > 0 ? 1 : 0
    }
    print("undefined rows: \(rows)")
  }
}

func describe(_ c: Case) -> String {
  let bytes = c.bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
  let place = c.target.map { " operand \(hex($0))+\(c.size)" } ?? ""
  return "\(bytes) at \(hex(c.code))\(place) CPL \(c.privilege)"
}

// SPDX-License-Identifier: Apache-2.0
// Random programs on both sides.

import CNative
import GuestMemory
import Host
import Testing
import X86

@testable import Translator

extension Bench {
  /// Runs a program from a random state on both sides, twice: the second time its blocks are there and linked.
  /// `segments`: those of 32-bit code.
  func run(_ program: Program, _ generator: inout Generator, _ segments: LegacySegments? = nil) throws -> String? {
    for piece in program.pieces { try arena.store(piece.bytes, at: piece.address) }
    defer {
      for piece in program.pieces {
        try? arena.store([UInt8](repeating: 0xF4, count: piece.bytes.count), at: piece.address)
      }
    }
    generator.randomizeState(unmasked: false)
    self[3] = ProgramWriter.dataLow
    self[4] = ProgramWriter.stack
    self[14] = ProgramWriter.dataHigh
    if segments != nil { self[5] = ProgramWriter.secondData }
    var written = [LegacySegment?](repeating: nil, count: 6)
    unsafe input.pointee.rip = program.start
    let privilege = generator.random.chance(50) ? 3 : 0
    for round in 0..<2 {
      Effort.trace("program at \(hex(program.start))" + registersText)
      if let segments {
        runNative(segments, written: &written)
        if let problem = runTranslated(segments, privilege: privilege) { return problem }
        narrowRegisters()
      } else {
        runNative()
        if let problem = runTranslated(privilege: privilege) { return problem }
      }
      var tolerance = Tolerance()
      tolerance.flags = Tolerance.rflags(program.undefined)
      // Where something faulted flags may be stale (rule 10).
      if unsafe native.pointee.rip != program.end { tolerance.flags = Tolerance.rflags(ArithmeticFlags.all) }
      if let found = difference(tolerance, privilege: privilege) {
        _ = memoryDifference()
        return "round \(round): \(found)"
      }
      if let found = memoryDifference(around: [ProgramWriter.dataLow, ProgramWriter.dataHigh, ProgramWriter.stack]) {
        return "round \(round): \(found)"
      }
    }
    if let problem = refusal() { return problem }
    return nil
  }

  /// The program as text for a disassembler.
  func text(_ program: Program) -> String {
    program.pieces.sorted { $0.address < $1.address }.map { piece in
      "\n    \(hex(piece.address)): "
        + piece.bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
    }.joined()
  }
}

extension DifferentialTests {
  @Test("random programs of 64 bits")
  func sequences() throws { try Bench.use { try sequences($0, false, count: 12_000) } }

  @Test(
    "random programs of 32 bits", .enabled(if: cnative_can_run_legacy() == 0, "this host runs no 32-bit code segments"))
  func sequences32() throws { try Bench.use { try sequences($0, true, count: 12_000) } }

  @Test("random programs of 64 bits in the forms that follow a refusal", arguments: [BlockForm.simple, .helper])
  func sequencesInOtherForms(form: BlockForm) throws {
    try Bench.use { bench in try bench.using(form) { try sequences(bench, false, count: 1000) } }
  }

  @Test(
    "random programs of 32 bits in the forms that follow a refusal",
    .enabled(if: cnative_can_run_legacy() == 0, "this host runs no 32-bit code segments"),
    arguments: [BlockForm.simple, .helper])
  func sequences32InOtherForms(form: BlockForm) throws {
    try Bench.use { bench in try bench.using(form) { try sequences(bench, true, count: 1000) } }
  }

  private func sequences(_ bench: Bench, _ is32: Bool, count most: Int) throws {
    print("seed of \(#function): \(Effort.seed)")
    let segments = is32 ? LegacySegments(.flat32) : nil
    var failures = Failures()
    let count = most * Effort.factor
    var complete = 0
    for number in 0..<count {
      let seed = Effort.seed &* 0x1_0003 &+ UInt64(number)
      var writer = ProgramWriter(seed: seed, is32: is32)
      var generator = Generator(bench, seed: seed ^ 0x5555)
      let program = writer.write()
      if let problem = try bench.run(program, &generator, segments) {
        failures.add(problem.prefix { $0 != ":" }.description, "number \(number): \(problem)\(bench.text(program))")
      }
      if unsafe bench.native.pointee.rip == program.end || program.faults { complete += 1 }
    }
    print("programs of \(is32 ? 32 : 64) bits: \(count), \(complete) ran to their end, \(failures.total) failures")
    #expect(complete > count * 9 / 10)
    #expect(failures.total == 0, "seed \(Effort.seed): \(failures.total) programs")
  }
}

// SPDX-License-Identifier: Apache-2.0
// Displacements near their limits: what shares a check must be what the processor would have accessed.

import CHost
import CNative
import GuestMemory
import Testing
import X86

@testable import Translator

extension Bench {
  /// Whether the host's processor raises #GP for an offset that is not canonical although the linear address is, as AMD's
  /// family 25 model 1 does. The manuals ask it of the linear address alone (SDM volume 1, 3.3.7.1), and the engine does
  /// what they say.
  fileprivate func mindsOffsets() throws -> Bool {
    let base: UInt64 = 0xFFFF_8000_0000_0000, start = Arena.codeBase
    try arena.store([0x64, 0x48, 0x8B, 0x07, 0xF4], at: start)  // mov %fs:(%rdi), %rax; hlt
    defer { try? arena.store([UInt8](repeating: 0xF4, count: 4), at: start) }
    self[7] = Arena.low.base + 0x1800 &- base
    unsafe input.pointee.fs_base = base
    unsafe input.pointee.rip = start
    runNative()
    return unsafe native.pointee.rip == start
  }

  /// Runs it on both sides, three times: cold, linked, and from empty tables.
  fileprivate func run(
    _ program: LimitProgram, _ generator: inout Generator, _ segments: LegacySegments?,
    _ written: inout [LegacySegment?]
  ) throws -> String? {
    let start = Arena.codeBase + UInt64(generator.random.below(0x6000))
    try arena.store(program.bytes, at: start)
    defer { try? arena.store([UInt8](repeating: 0xF4, count: program.bytes.count), at: start) }
    generator.randomizeState(unmasked: true)
    for (number, value) in program.registers { self[number] = value }
    unsafe input.pointee.fs_base = program.bases.fs
    unsafe input.pointee.gs_base = program.bases.gs
    unsafe input.pointee.rip = start
    let end = start + UInt64(program.bytes.count) - 1
    let privilege = generator.random.chance(50) ? 3 : 0
    for round in 0..<3 {
      Effort.trace("limits at \(hex(start))" + registersText)
      let problem: String?
      if let segments {
        runNative(segments, written: &written)
        problem = runTranslated(segments, privilege: privilege)
        narrowRegisters()
      } else {
        runNative()
        problem = runTranslated(privilege: privilege)
      }
      if let problem { return problem }
      var tolerance = Tolerance()
      tolerance.operandBytes = 8
      if unsafe native.pointee.rip != end { tolerance.flags = Tolerance.rflags(ArithmeticFlags.all) }
      if let found = difference(tolerance, privilege: privilege) {
        _ = memoryDifference()
        return "round \(round): \(found)"
      }
      if let found = memoryDifference(around: program.touched) { return "round \(round): \(found)" }
      if round == 1 { unsafe chost_flush_all(cpu.page.pointer) }
    }
    return refusal()
  }
}

extension DifferentialTests {
  @Test("displacements near their limits, registers that move, accesses that need not happen")
  func limits() throws { try Bench.use { try limits($0, false) } }

  @Test(
    "the same in 32 bits", .enabled(if: cnative_can_run_legacy() == 0, "this host runs no 32-bit code segments"))
  func limits32() throws { try Bench.use { try limits($0, true) } }

  private func limits(_ bench: Bench, _ is32: Bool) throws {
    print("seed of \(#function): \(Effort.seed)")
    let segments = is32 ? LegacySegments(.flat32) : nil
    var written = [LegacySegment?](repeating: nil, count: 6)
    var failures = Failures()
    var counts: [LimitProgram.Feature: Int] = [:]
    let count = 8_000 * Effort.factor
    let mindsOffsets = try bench.mindsOffsets()
    var complete = 0, hot = 0
    for number in 0..<count {
      let seed = Effort.seed &* 0x1_0007 &+ UInt64(number)
      var writer = LimitWriter(seed: seed, is32: is32, mindsOffsets: mindsOffsets)
      var generator = Generator(bench, seed: seed ^ 0x3333)
      let program = writer.write()
      for feature in program.features { counts[feature, default: 0] += 1 }
      if bench.translation.cache.hotCode.isEverything { hot += 1 }
      if let problem = try bench.run(program, &generator, segments, &written) {
        let bytes = program.bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
        failures.add(
          problem.prefix { $0 != ":" }.description,
          "number \(number): \(problem)\n    \(bytes)\n    \(program.registers.mapValues { hex($0) })")
      }
      if unsafe bench.native.pointee.rip == bench.input.pointee.rip &+ UInt64(program.bytes.count) &- 1 {
        complete += 1
      }
    }
    let text = LimitProgram.Feature.allCases.map { "\($0.rawValue) \(counts[$0] ?? 0)" }.joined(separator: ", ")
    print("limits, \(is32 ? 32 : 64) bits: \(count) programs, \(complete) to their end, \(hot) hot; \(text)")
    let notIn32: Set<LimitProgram.Feature> = [.stackFar, .segmentBase, .emptyMask, .notCanonical, .farConstant]
    for feature in LimitProgram.Feature.allCases where !is32 || !notIn32.contains(feature) {
      #expect(counts[feature] ?? 0 >= count / 50, "too few: \(feature.rawValue)")
    }
    #expect(complete > count / 2 && hot > count / 4)
    #expect(failures.total == 0, "seed \(Effort.seed): \(failures.total) programs: \(failures.summary())")
  }
}

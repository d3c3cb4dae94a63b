// SPDX-License-Identifier: Apache-2.0
// The programs of the fuzz target lguest-steps, the same ones each time: code of levels 1 and 3 under lguest, whose
// traps, stacks, gates and segments must come to the same with the light helpers and without.

import TestSupport
import Testing

@testable import FuzzTargets

@Suite("Programs of steps under lguest") struct LguestStepsTests {
  @Test("light helpers and Swift come to the same") func same() throws {
    let seed = TestSeed.of("lguest-steps", fixed: 20_070_308)
    var random = SeededGenerator(seed: seed)
    var coverage = LguestExecution.Coverage()
    for number in 0..<20 {
      var input = FuzzInput((0..<4096).map { _ in UInt8(truncatingIfNeeded: random.next() >> 32) })
      do { try LguestExecution.runSteps(&input, patience: 200_000_000, &coverage) } catch {
        Issue.record("seed \(seed), input \(number): \(error)")
      }
    }
    print("lguest-steps: \(coverage)")
    // Of those that were met with this seed, less a few that take too long beside much other work.
    let isLoaded = TestLimit.isLoaded
    func expect(_ count: Int?, _ least: Int, _ what: String) {
      #expect(count ?? 0 >= (isLoaded ? 1 : least), "\(what)")
    }
    expect(coverage.programs, 60, "programs")
    expect(coverage.userPrograms, 15, "programs that begin at level 3")
    for call in ["setStack", "loadIDTEntry", "loadTLS", "loadGDTEntry"] { expect(coverage.calls[call], 5, call) }
    for vector in [UInt8(3), 6, 13, 14, 0x80] { expect(coverage.handled[vector], 10, "handler of \(vector)") }
    for vector in [UInt8(6), 8, 13, 31] { expect(coverage.traps[vector], 10, "trap \(vector) to the host") }
  }
}

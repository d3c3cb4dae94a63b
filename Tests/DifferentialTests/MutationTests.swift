// SPDX-License-Identifier: Apache-2.0
// A mutation test for the checker. Blocks that the translator emits, one thing in each changed: of the mutants that
// reach what they may not, the checker refuses at least 99 %.
//
// What a mutant reaches is not the checker's to say. MutantMachine executes it, in many situations, with its own idea
// of the tables and stubs; the unchanged block must be harmless there in every one of them.
//
// What may be accepted although the machine calls it dangerous, and why:
// - A branch to the middle of an instruction: in cold code, or in hot code that nobody comes to otherwise, because a
//   jump ends in front of it. The checker follows each path as it will be executed, and judges what the bytes mean
//   on it. Executed from there, none of them does anything else that is dangerous.
// Nothing else: an access outside the windows, above all, is refused every time.

import CHost
import Host
import TestSupport
import Testing
import X86

@testable import Translator

/// What has come of mutants of one kind.
private struct MutantCounts {
  var made = 0, dangerous = 0, accepted = 0, harmlessRefused = 0
}

@Suite struct MutationTests {
  @Test("mutants of emitted code that get out are refused") func mutants() throws {
    // One mutant in a million has shown something new: the same ones each time, others in long runs.
    let seed = TestSeed.of("mutants", fixed: Effort.isLong ? nil : 859_765_884)
    let sources = try MutantSources(seed: seed)
    var survey = MutantSurvey(sources.cache, seed: seed)
    let rounds = 60 * Effort.factor
    for round in 0..<rounds {
      for (number, flavour) in MutantFlavour.all.enumerated() {
        let programs = MutantProgram.allCases
        try sources.translate(flavour, programs[(round + number) % programs.count])
        survey.take(flavour)
      }
    }
    survey.report()
    #expect(survey.problems == 0, "seed \(seed): blocks that are refused or dangerous as they were emitted")
    #expect(survey.blocks > rounds * 12)
    #expect(survey.dangerous >= 20_000 * Effort.factor)
    for kind in MutantKind.allCases {
      #expect(survey.dangerous(kind) >= 50, "too few dangerous mutants: \(kind.rawValue)")
    }
    #expect(survey.accepted * 100 <= survey.dangerous, "seed \(seed)")
    #expect(survey.unexplained == 0, "seed \(seed)")
    #expect(survey.disagreements == 0, "seed \(seed): usual forms and single instructions are judged differently")
  }
}

/// Makes mutants of every block of a cache and has them judged on both sides.
private struct MutantSurvey {
  private let cache: CodeCache
  private let checker = BlockChecker()
  private let stepwise = BlockChecker(isStepwise: true)
  private let decoder = Decoder()
  private var mutator: Mutator
  private let pattern: [UInt64]
  private static let runs = 32
  private static let perBlock = 28

  private var counts = [MutantKind: MutantCounts](
    uniqueKeysWithValues: MutantKind.allCases.map { ($0, MutantCounts()) })
  private var dangers: [MutantDanger: (seen: Int, accepted: Int)] = [:]
  private var shown: [String: Int] = [:]
  private(set) var blocks = 0
  private(set) var problems = 0
  /// Code in usual forms that is judged otherwise instruction by instruction.
  private(set) var disagreements = 0
  private var instructions = 0, unreached = 0

  init(_ cache: CodeCache, seed: UInt64) {
    self.cache = cache
    mutator = Mutator(random: Random(seed: seed ^ 0x77))
    var random = Random(seed: seed ^ 0x99)
    pattern = (0..<MutantPage.granules).map { _ in random.next() }
  }

  var dangerous: Int { counts.values.reduce(0) { $0 + $1.dangerous } }
  var accepted: Int { counts.values.reduce(0) { $0 + $1.accepted } }
  /// Accepted for no reason that is known.
  var unexplained: Int { dangers.reduce(0) { $0 + ($1.key == .middle ? 0 : $1.value.accepted) } }
  func dangerous(_ kind: MutantKind) -> Int { counts[kind]?.dangerous ?? 0 }

  mutating func take(_ flavour: MutantFlavour) {
    var live: [Block] = []
    cache.forEachLiveBlock { live.append($0) }
    for block in live { take(block, flavour) }
  }

  private mutating func take(_ block: Block, _ flavour: MutantFlavour) {
    let checked = cache.checkedBlock(block)
    let code = unsafe MutantCode(checked, memory: cache.code.writable, decoder: decoder)
    let machine = MutantMachine(code, pattern: pattern)
    blocks += 1
    if (stepwise.check(checked).problem == nil) != (checker.check(checked).problem == nil) { disagreements += 1 }
    if let problem = checker.check(checked).problem { return note("refused: \(problem.rawValue)", code, flavour) }
    if !code.isComplete { return note("not decoded", code, flavour) }
    // Which runs come by which instruction.
    let base = mutator.random.next() & ~7
    var reached = [UInt32](repeating: 0, count: code.steps.count)
    for number in 0..<MutantSurvey.runs {
      let run = MutantRun(seed: seed(base, number))
      let danger = machine.start(run) { place in
        if let step = code.number(at: place) { reached[step] |= 1 << UInt32(number) }
      }
      if let danger {
        return note("dangerous: \(danger.rawValue) at \(hex(machine.place))", code, flavour)
      }
    }
    instructions += code.steps.count
    unreached += reached.count { $0 == 0 }
    let kinds = MutantKind.allCases
    for number in 0..<MutantSurvey.perBlock {
      let kind = kinds[number % kinds.count]
      for _ in 0..<6 {
        let step = mutator.random.below(code.steps.count)
        guard reached[step] != 0, let mutant = mutator.mutant(kind, of: code, step) else { continue }
        judge(mutant, code, machine, reached[step], base, flavour)
        break
      }
    }
  }

  private func seed(_ base: UInt64, _ number: Int) -> UInt64 {
    MutantMachine.mix(base, UInt64(number) >> 3) & ~7 | UInt64(number & 7)
  }

  private mutating func note(_ what: String, _ code: MutantCode, _ flavour: MutantFlavour) {
    problems += 1
    if problems <= 5 { print("EMITTED CODE \(what) (\(flavour.name))\n\(text(code))") }
  }

  // MARK: Judging

  private mutating func judge(
    _ mutant: Mutant, _ code: MutantCode, _ machine: MutantMachine, _ reached: UInt32, _ base: UInt64,
    _ flavour: MutantFlavour
  ) {
    let before = code.steps[code.number(at: mutant.place)!]
    code.change(mutant.bytes, at: mutant.place)
    defer { code.restore() }
    let problem = checker.check(code.block).problem
    if (stepwise.check(code.block).problem == nil) != (problem == nil) { disagreements += 1 }
    var danger = danger(mutant, machine, reached, base)
    if danger == .middle && problem == nil {
      danger = self.danger(mutant, machine, reached, base, goesOn: true) ?? danger
    }
    var count = counts[mutant.kind] ?? MutantCounts()
    count.made += 1
    if let danger {
      count.dangerous += 1
      dangers[danger, default: (0, 0)].seen += 1
      if problem == nil {
        count.accepted += 1
        dangers[danger, default: (0, 0)].accepted += 1
        show(mutant, danger, before, code, flavour)
      }
    } else if problem != nil {
      count.harmlessRefused += 1
    }
    counts[mutant.kind] = count
  }

  private func danger(
    _ mutant: Mutant, _ machine: MutantMachine, _ reached: UInt32, _ base: UInt64, goesOn: Bool = false
  ) -> MutantDanger? {
    var seeds: [UInt64] = []
    for number in 0..<MutantSurvey.runs where reached >> UInt32(number) & 1 != 0 { seeds.append(seed(base, number)) }
    for seed in seeds.prefix(6) {
      if let danger = machine.start(MutantRun(seed: seed, goesOn: goesOn), { _ in }) { return danger }
    }
    for variant in 0..<8 {
      let run = MutantRun(seed: seeds[variant % seeds.count], near: mutant.place, variant: variant, goesOn: goesOn)
      if let danger = machine.start(run, { _ in }) { return danger }
    }
    return nil
  }

  // MARK: Telling

  private mutating func show(
    _ mutant: Mutant, _ danger: MutantDanger, _ before: HostStep, _ code: MutantCode, _ flavour: MutantFlavour
  ) {
    let kind = "\(mutant.kind.rawValue): \(danger.rawValue)"
    shown[kind, default: 0] += 1
    guard shown[kind]! <= 2 else { return }
    func digits(_ bytes: [UInt8]) -> String {
      bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
    }
    print(
      "ACCEPTED \(kind) (\(flavour.name)) at \(hex(mutant.place)), was \(before.row.name), is \(digits(mutant.bytes))\n"
        + text(code))
  }

  private func text(_ code: MutantCode) -> String {
    var lines = ""
    for half in [code.block.hot, code.block.cold] {
      lines += "  \(hex(half.lowerBound)):"
      for byte in code.bytes(half) { lines += " " + (byte < 16 ? "0" : "") + String(byte, radix: 16) }
      lines += "\n"
    }
    return lines
      + "  poll \(hex(code.block.pollEntry)) plain \(hex(code.block.plainEntry)) mode \(hex(code.block.mode)) stubs "
      + "\(code.block.stubs) edges \(code.edges.map { "\(hex($0.end)) \($0.kind)" })"
  }

  func report() {
    print("mutants: \(blocks) blocks of \(instructions) instructions, \(unreached) of them not reached")
    for kind in MutantKind.allCases {
      let c = counts[kind]!
      print(
        "  \(kind.rawValue): \(c.made) made, \(c.dangerous) dangerous, \(c.accepted) of them accepted; "
          + "\(c.harmlessRefused) of \(c.made - c.dangerous) others refused")
    }
    for danger in MutantDanger.allCases {
      let c = dangers[danger] ?? (0, 0)
      print("  \(danger.rawValue): \(c.seen), \(c.accepted) accepted")
    }
    print("  all: \(counts.values.reduce(0) { $0 + $1.made }) made, \(dangerous) dangerous, \(accepted) accepted")
  }
}

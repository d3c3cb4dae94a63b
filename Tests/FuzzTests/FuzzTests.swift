// SPDX-License-Identifier: Apache-2.0
// Every fuzz target for a few seconds, and every input that was once wrong. LGUEST_FUZZ_SECONDS makes it longer,
// LGUEST_FUZZ_TARGET names one target, LGUEST_TEST_SEED repeats a run, LGUEST_FUZZ_CRASHES is the directory for inputs;
// scripts/fuzz sets them. LGUEST_FUZZ_INPUT names a file to be fed to the target once.

import Foundation
import FuzzTargets
import SystemPackage
import TestSupport
import Testing

@Suite("Fuzz targets", .serialized, .timeLimit(.minutes(6000))) struct FuzzTests {
  private static let environment = ProcessInfo.processInfo.environment
  private static let seconds = environment["LGUEST_FUZZ_SECONDS"].flatMap(Double.init) ?? 4
  private static let folder = FilePath(environment["LGUEST_FUZZ_CRASHES"] ?? NSTemporaryDirectory())
  private static let input = environment["LGUEST_FUZZ_INPUT"]
  private static let targets: [FuzzTarget] = {
    guard let name = environment["LGUEST_FUZZ_TARGET"] else { return FuzzTarget.all }
    return FuzzTarget.all.filter { $0.name == name }
  }()

  /// Inputs that were wrong once, and some that are good, by target.
  private static let cases = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .appending(path: "FuzzTargets/Cases")

  @Test("random inputs", .enabled(if: input == nil), arguments: targets) func random(target: FuzzTarget) throws {
    let seed = TestSeed.of("fuzz \(target.name)")
    var run = FuzzRun(target, seed: seed, in: FuzzTests.folder)
    let outcome = try run.run(seconds: FuzzTests.seconds)
    let (time, slowest) = ((outcome.seconds * 10).rounded() / 10, (outcome.slowest * 1000).rounded() / 1000)
    print("fuzz \(target.name): \(outcome.inputs) inputs in \(time) s, the slowest \(slowest) s, seed \(seed)")
    if let failure = outcome.failure { Issue.record("\(target.name): \(failure); the input is \(outcome.file ?? "")") }
    // Beside other work a file may take seconds to be written.
    #expect(outcome.inputs >= (TestLimit.isLoaded ? 1 : Int(FuzzTests.seconds * 2)))
  }

  @Test("what was wrong once", .enabled(if: input == nil), arguments: targets) func cases(target: FuzzTarget) throws {
    let folder = FuzzTests.cases.appending(path: target.name)
    for name in ((try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []).sorted() {
      let bytes = [UInt8](try Data(contentsOf: folder.appending(path: name)))
      // Where threads take part, once is luck.
      for _ in 0..<3 {
        TestLimit.watched("\(target.name), case \(name)") {
          do { try target.run(bytes) } catch { Issue.record("\(target.name), case \(name): \(error)") }
        }
      }
    }
    // What a target does with nothing and with little is a case as well.
    for bytes in [[], [0], [UInt8](repeating: 0xFF, count: 64)] + target.samples() { try target.run(bytes) }
  }

  @Test("one input", .enabled(if: input != nil), arguments: targets) func one(target: FuzzTarget) throws {
    let bytes = [UInt8](try Data(contentsOf: URL(filePath: try #require(FuzzTests.input))))
    for _ in 0..<20 { try TestLimit.watched(target.name) { try target.run(bytes) } }
  }

  @Test("every case belongs to a target") func names() throws {
    let names = Set(FuzzTarget.all.map(\.name))
    #expect(names.count == FuzzTarget.all.count)
    for name in try FileManager.default.contentsOfDirectory(atPath: FuzzTests.cases.path) {
      #expect(names.contains(name), "\(name)")
    }
  }
}

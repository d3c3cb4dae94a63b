// SPDX-License-Identifier: Apache-2.0
// What the checker costs: it judges every block before it runs, and has a budget. Measured on the blocks of random
// programs, which are longer than a kernel's.

import CHost
import CNative
import Glibc
import Testing

@testable import Translator

extension DifferentialTests {
  @Test("what judging a block costs") func checkerCost() throws { try Bench.use(checkerCost) }

  private func checkerCost(_ bench: Bench) throws {
    let cache = bench.translation.cache
    // The bench forgets everything now and then.
    for number in 0..<800 where cache.blockCount < 1500 {
      var writer = ProgramWriter(seed: Effort.seed &+ UInt64(number), is32: false)
      var generator = Generator(bench, seed: UInt64(number))
      _ = try bench.run(writer.write(), &generator)
    }
    var blocks: [CheckedBlock] = []
    var bytes = 0, guestInstructions = 0
    // Linked ones are other than what was judged.
    for index in 0..<Int32(cache.blockCount) {
      let block = cache[index]
      let edges = block.firstEdge..<block.firstEdge + block.edgeCount
      if edges.contains(where: { cache.edge(UInt32($0)).target >= 0 }) || !block.isLive { continue }
      blocks.append(cache.checkedBlock(block))
      bytes += Int(block.hotCount + block.coldCount)
      guestInstructions += Int(block.instructions)
    }
    let checker = try #require(cache.checker)
    var least = UInt64.max
    for _ in 0..<20 {
      let start = threadTime()
      for block in blocks where checker.check(block).problem != nil { Issue.record("refused") }
      least = min(least, threadTime() - start)
    }
    let count = UInt64(max(blocks.count, 1))
    print(
      "checker: \(blocks.count) blocks of \(bytes / Int(count)) bytes and \(guestInstructions / Int(count)) instructions, "
        + "\(least / count) ns each, \(least * 100 / UInt64(max(bytes, 1))) ns for 100 bytes")
    #expect(blocks.count > 200)
    // Three times the budget, for hosts that are slower or busy.
    #expect(least * 100 / UInt64(max(bytes, 1)) < 1800)
  }

  private func threadTime() -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Eight vCPUs on two host threads that exit, spin or sleep without end: every one goes on, and none that could run waits
// long for a thread.

import Foundation
import Testing

extension SystemTests {
  @Suite(
    "More vCPUs than threads", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct CrowdTests {
    /// How long a vCPU that could run may be without a thread, in ns.
    private static let longestWait = 50_000_000
    /// A host with other things to do keeps our threads waiting too, sometimes for longer than that.
    private static let attempts = 8

    /// Runs the guest and returns the longest wait of any vCPU in ns.
    private func run(_ work: String, _ options: [String]) throws -> Int {
      let json = Guest.temporaryPath()
      let result = try Guest.run(
        [
          "run", "--machine", "testdev", "--kernel", "\(try #require(Guest.guests))/processors/crowd", "--memory",
          "64M",
          "--cpus", "8", "--host-threads", "2", "--timeout", "30s", "--append", work, "--json", json,
        ] + options, limit: 40, expecting: 1)
      #expect(result.output.hasSuffix("all passed\n"), "\(work) \(options): \(result.output.suffix(500))")
      let object = try Guest.json(json)
      let vcpus = try #require(object["vcpuCounters"] as? [[String: Any]])
      let waits = try vcpus.map { try #require($0["longestWaitNanoseconds"] as? Int) }
      let longest = try #require(waits.max())
      #expect((object["counters"] as? [String: Any])?["longestWaitNanoseconds"] as? Int == longest)
      #expect(waits.count == 8 && waits.allSatisfy { $0 > 0 })
      return longest
    }

    @Test(
      "none waits long for a thread, whatever the others do",
      arguments: ["hypercalls", "ports", "pauses", "loops", "sleeps", "yields"])
    func waits(work: String) throws {
      var longest = Int.max
      for _ in 0..<CrowdTests.attempts where longest > CrowdTests.longestWait {
        longest = min(longest, try run(work, []))
      }
      #expect(longest <= CrowdTests.longestWait)
    }

    @Test(
      "they meet, and call while one of them changes the instruction", arguments: ["intel", "amd"],
      ["emulate", "patch"])
    func meetings(vendor: String, policy: String) throws {
      for _ in 0..<3 { _ = try run("meetings", ["--cpu-vendor", vendor, "--hypercall-insn", policy]) }
    }
  }
}

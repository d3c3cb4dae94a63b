// SPDX-License-Identifier: Apache-2.0
// The conformance guests of the hypercall interfaces, under every option that changes what they must see.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Hypercall guests", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct HypercallGuestTests {
    /// Runs a guest that is told by the last word of its command line what to expect.
    private func run(_ name: String, _ expectation: String, _ options: [String]) throws -> Finished {
      let kernel = "\(try #require(Guest.guests))/conformance/\(name)"
      let result = try Guest.run(
        [
          "run", "--machine", "testdev", "--kernel", kernel, "--memory", "64M", "--timeout", "60s", "--append",
          expectation,
        ]
          + options, limit: 70, expecting: 1)
      let lines = result.output.split(separator: "\n")
      #expect(lines.last == "all passed" && lines.count > 5, "\(options): \(lines.suffix(3))")
      for line in lines where line.hasPrefix("FAIL") { Issue.record("\(options): \(line)") }
      return result
    }

    @Test(
      "the other vendor's instruction under every policy", arguments: ["intel", "amd"],
      ["native", "emulate", "patch", "fault"])
    func policies(vendor: String, policy: String) throws {
      for more in [[], ["--exact-flags", "--single-instruction"]] {
        let json = Guest.temporaryPath()
        _ = try run(
          "kvm-hypercall", policy, ["--cpu-vendor", vendor, "--hypercall-insn", policy, "--json", json] + more)
        let counters = try #require(try Guest.json(json)["counters"] as? [String: Any])
        // A thousand times by one loop, and a few more.
        for (name, its) in [("Emulated", "emulate"), ("Patched", "patch")] {
          let count = try #require(counters["hypercalls\(name)"] as? Int)
          #expect(policy == its ? count > 1000 : count == 0, "\(name): \(count)")
        }
      }
    }

    @Test(
      "the interfaces of 2007 and today's", arguments: ["intel", "amd"], ["2007", "refactored", "modern"])
    func interfaces(vendor: String, interface: String) throws {
      for guest in ["kvm-2007", "legacy-kvm-2007"] {
        for more in [[], ["--exact-flags", "--single-instruction"]] {
          let result = try run(guest, interface, ["--cpu-vendor", vendor, "--kvm-api", interface, "-v"] + more)
          #expect(
            result.errors.contains(
              "para_state_gpa 0x300000, guest version 1, size 24, hypercall_gpa 0x310000: para guest successfully registered"
            )
              == (interface == "2007"))
        }
      }
    }

    /// Minutes of fuzzing under `scripts/test --long`.
    private static let minutes =
      ProcessInfo.processInfo.environment["LGUEST_TEST_FUZZ_MINUTES"].flatMap(Double.init) ?? 10

    @Test("garbage for hypercalls, registers and patching does the host no harm") func fuzz() throws {
      let end = Date() + (Guest.isLong ? HypercallGuestTests.minutes * 60 : 0)
      var runs = 0
      var random = SeededGenerator("garbage for hypercalls")
      repeat {
        for vendor in ["intel", "amd"] {
          for options in [
            ["--hypercall-insn", "native"], ["--hypercall-insn", "emulate"], ["--hypercall-insn", "patch"],
            ["--hypercall-insn", "fault"], ["--kvm-api", "2007"], ["--kvm-api", "refactored"],
          ] {
            let seed = "\(UInt32.random(in: 1...UInt32.max, using: &random))"
            let arguments = [
              "run", "--machine", "testdev", "--kernel", "\(try #require(Guest.guests))/fuzz/hypercalls", "--memory",
              "64M",
              "--timeout", "60s", "--cpu-vendor", vendor, "--append", seed,
            ]
            let result = try Guest.run(arguments + options, limit: 70, expecting: 1)
            #expect(
              result.output.hasSuffix("all passed\n"),
              "seed \(seed), \(vendor) \(options): \(result.output.suffix(300))")
            runs += 1
          }
        }
      } while Date() < end
      print("\(runs) runs of garbage")
    }
  }
}

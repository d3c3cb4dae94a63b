// SPDX-License-Identifier: Apache-2.0
// Real kernels on several vCPUs, as many as host threads and more: all of them come up, nothing stalls, and an ordinary
// user space works.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Several vCPUs", .serialized,
    .enabled(if: Guest.canBoot, "no kernel or initramfs in the cache; run scripts/test once without --offline"))
  struct ProcessorsTests {
    private func expectCalm(_ result: Finished, cpus: Int) {
      #expect(result.fact("cpus") == "\(cpus)")
      #expect(result.fact("complaints") == "0")
      #expect(result.fact("mitigations") == "0")
      #expect(result.fact("clocksource") == "kvm-clock")
      #expect(cpus == 1 || result.output.contains("Brought up 1 node, \(cpus) CPU"))
    }

    @Test("a kernel brings them up and powers off", arguments: [1, 2, 4, 8]) func powerOff(cpus: Int) throws {
      let result = try Guest.run(
        Guest.boot(Guest.kernel, "poweroff", "--cpus", "\(cpus)", "--timeout", "90s"), limit: 100, expecting: 0)
      expectCalm(result, cpus: cpus)
    }

    @Test("more than host threads", arguments: [2, 4]) func crowded(cpus: Int) throws {
      let result = try Guest.run(
        Guest.boot(Guest.kernel, "poweroff", "--cpus", "\(cpus)", "--host-threads", "1", "--timeout", "90s"),
        limit: 100,
        expecting: 0)
      expectCalm(result, cpus: cpus)
    }

    @Test("a processor goes and comes back") func hotplug() throws {
      let result = try Guest.run(
        Guest.boot(Guest.kernel, "hotplug", "--cpus", "2", "--timeout", "90s"), limit: 100, expecting: 0)
      for round in 1...5 { #expect(result.fact("hotplug\(round)") == "1 2") }
    }

    @Test("a kernel finds them at the mailbox") func mailbox() throws {
      let result = try Guest.run(
        Guest.boot(Guest.kernel, "poweroff", "--cpus", "4", "--processor-start", "mailbox", "--timeout", "90s"),
        limit: 100,
        expecting: 0)
      expectCalm(result, cpus: 4)
    }

    @Test(
      "an i386 kernel", .enabled(if: Guest.initrd386 != nil, "no i386 initramfs in the cache"),
      arguments: [("686-pae", 2), ("686-pae", 8)])
    func i386(flavour: String, cpus: Int) throws {
      let result = try Guest.run(
        [
          "run", "--kernel", #require(Guest.kernel386(flavour)), "--initrd", #require(Guest.initrd386), "--append",
          "lguest.do=poweroff", "--timeout", "90s", "--cpus", "\(cpus)",
        ], limit: 100, expecting: 0)
      expectCalm(result, cpus: cpus)
    }

    @Test(
      "a user space with threads, futexes, signals, fork and code that is made as it runs",
      .enabled(if: Guest.userSpace != nil, "no user space in the cache"), arguments: [2, 4])
    func userSpace(cpus: Int) throws {
      let result = try Guest.run(
        [
          "run", "--kernel", #require(Guest.kernel), "--initrd", #require(Guest.userSpace), "--memory", "1G", "--cpus",
          "\(cpus)", "--append", "quiet lguest.checks=small", "--timeout", "240s",
        ], limit: 250, expecting: 0)
      let lines = result.output.split(whereSeparator: \.isNewline)
      let failed = lines.filter { $0.hasPrefix("FAIL ") }
      #expect(failed.isEmpty, "\(failed.joined(separator: "; "))\n\(result.output.suffix(4000))")
      #expect(lines.filter { $0.hasPrefix("ok ") }.count >= UserSpaceTests.names.count)
      #expect(lines.contains("complaints 0") && lines.contains("end checks"))
    }

    // A kernel whose vCPUs wait for threads: it leaves flushes to us, kicks who waits for a lock, and yields to whom it
    // calls.
    @Test(
      "eight on two host threads help each other", .enabled(if: Guest.userSpace != nil, "no user space in the cache"))
    func overcommitted() throws {
      // Chance decides whether a vCPU waits for a thread at the moment when another wants something of it: run again
      // until each has happened. Kicks are rare, one run in six: who spins for a lock gives up its thread long before it
      // would sleep.
      var missing: Set = [
        "tlbFlushesSkipped", "yields", "interruptsEndedInMemory", "stealNanoseconds", "IPIs by hypercall",
      ]
      if Guest.isLong { missing.insert("kicks") }
      for _ in 0..<(Guest.isLong ? 60 : 8) where !missing.isEmpty {
        let json = Guest.temporaryPath()
        let result = try Guest.run(
          [
            "run", "--kernel", #require(Guest.kernel), "--initrd", #require(Guest.userSpace), "--cpus", "8",
            "--host-threads",
            "2", "--append", "quiet lguest.checks=stress,parallel", "--timeout", "120s", "--json", json,
          ], limit: 130, expecting: 0)
        let lines = result.output.split(whereSeparator: \.isNewline)
        try #require(lines.filter { $0.hasPrefix("ok ") }.count == 2, "\(result.output.suffix(4000))")
        #expect(lines.contains("complaints 0") && lines.contains("end checks"))
        let object = try Guest.json(json)
        var counters = try #require(object["counters"] as? [String: Any])
        // KVM_HC_SEND_IPI is number 10. Linux sends by it to some vCPUs, and by the local APIC to one or to all.
        counters["IPIs by hypercall"] = (counters["hypercallsByNumber"] as? [String: Int])?["10"]
        missing = missing.filter { counters[$0] as? Int ?? 0 == 0 }
        let vcpus = try #require(object["vcpuCounters"] as? [[String: Any]])
        for name in ["tlbFlushesSkipped", "stealNanoseconds"] {
          #expect(vcpus.reduce(0) { $0 + ($1[name] as? Int ?? 0) } == counters[name] as? Int, "\(name)")
        }
        // Eight that all work, on two threads.
        #expect(vcpus.count == 8 && vcpus.allSatisfy { ($0["stealNanoseconds"] as? Int ?? 0) > 10_000_000 })
      }
      #expect(missing.isEmpty)
    }

    @Test(
      "threads on several vCPUs, for minutes", .enabled(if: Guest.isLong),
      .enabled(if: Guest.userSpace != nil, "no user space in the cache"), arguments: [2, 4, 8])
    func long(cpus: Int) throws {
      let result = try Guest.run(
        [
          "run", "--kernel", #require(Guest.kernel), "--initrd", #require(Guest.userSpace), "--cpus", "\(cpus)",
          "--append",
          "quiet lguest.checks=parallel-long,stress lguest.seconds=20", "--timeout", "400s",
        ], limit: 420, expecting: 0)
      let lines = result.output.split(whereSeparator: \.isNewline)
      #expect(lines.filter { $0.hasPrefix("ok ") }.count == 2, "\(result.output.suffix(4000))")
      #expect(lines.contains("complaints 0") && lines.contains("end checks"))
    }

    @Test("a time limit holds with every vCPU spinning") func limit() throws {
      let limit = TestLimit.scaled(10)
      let result = try Guest.run(
        Guest.boot(Guest.kernel, "spin", "--cpus", "4", "--timeout", "\(limit)s"), limit: 40, expecting: 124)
      #expect(result.output.contains("fact begin spin") && result.seconds < limit + TestLimit.scaled(5))
    }
  }
}

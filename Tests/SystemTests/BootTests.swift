// SPDX-License-Identifier: Apache-2.0
// Real Debian kernels from power-on to their end, in every way a run can end.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Boots", .serialized,
    .enabled(if: Guest.canBoot, "no kernel or initramfs in the cache; run scripts/test once without --offline"))
  struct BootTests {
    @Test("a kernel reaches user space and powers off", arguments: ["cloud", "generic"])
    func powerOff(flavour: String) throws {
      let kernel = flavour == "cloud" ? Guest.kernel : Guest.genericKernel
      let json = Guest.temporaryPath()
      let result = try Guest.run(
        Guest.boot(kernel, "poweroff", "--timeout", "90s", "--stats", "--json", json), limit: 100, expecting: 0)
      #expect(result.fact("uname")?.hasPrefix("Linux ") == true)
      #expect(result.fact("hypervisor") == "Hypervisor detected: KVM")
      #expect(result.fact("clocksource") == "kvm-clock")
      #expect(result.fact("complaints") == "0")
      #expect(result.fact("mitigations") == "0")
      #expect(result.errors.contains("lguest: hypercalls"))
      // The memory-type registers are as firmware leaves them, so that the kernel uses its page-attribute table.
      #expect(
        result.output.contains("x86/PAT: Configuration [0-7]: WB  WC") && !result.output.contains("MTRRs disabled"))
      let object = try Guest.json(json)
      #expect(object["cause"] as? String == "poweroff")
      let times = object["times"] as? [String: Any]
      #expect(times?["userSpaceSeconds"] is Double)
      #expect((object["counters"] as? [String: Any])?["exits"] as? Int ?? 0 > 0)
    }

    @Test("a kernel that unpacks itself", arguments: ["linux64", "linux32"])
    func entry(entry: String) throws {
      let result = try Guest.run(
        Guest.boot(Guest.kernel, "poweroff", "--timeout", "90s", "--entry", entry), limit: 100, expecting: 0)
      #expect(result.fact("complaints") == "0" && result.fact("clocksource") == "kvm-clock")
    }

    @Test("a kernel unpacked by the host is where it prefers to be, or at random")
    func placement() throws {
      func text(_ words: String) throws -> UInt64 {
        let result = try Guest.run(
          Guest.boot(Guest.kernel, "poweroff \(words)", "--timeout", "90s"), limit: 100, expecting: 0)
        return try #require(UInt64(result.fact("text") ?? "", radix: 16))
      }
      #expect(try text("nokaslr") == 0xFFFF_FFFF_8100_0000)
      let places = try [text(""), text(""), text("")]
      // About 480 places: the same three times once in 200,000 runs.
      #expect(Set(places).count > 1)
      #expect(places.allSatisfy { $0 & 0x1F_FFFF == 0 && $0 >= 0xFFFF_FFFF_8100_0000 && $0 < 0xFFFF_FFFF_C000_0000 })
    }

    @Test("a kernel that uses SMAP and PCIDs") func protections() throws {
      try protections(#require(Guest.kernel), #require(Guest.initrd))
    }

    @Test(
      "an i386 kernel that uses SMAP and PCIDs",
      .enabled(if: Guest.kernel386("686-pae") != nil && Guest.initrd386 != nil, "no i386 kernel in the cache"))
    func protections386() throws {
      try protections(#require(Guest.kernel386("686-pae")), #require(Guest.initrd386))
    }

    private func protections(_ kernel: String, _ initrd: String) throws {
      let result = try Guest.run(
        [
          "run", "--kernel", kernel, "--initrd", initrd, "--append", "lguest.do=poweroff", "--timeout", "90s",
          "--cpu-features", "smap,pcid",
        ], limit: 100, expecting: 0)
      #expect(result.fact("complaints") == "0" && result.fact("mitigations") == "0")
    }

    // 32-bit kernels: two-level paging without PAE, three-level with it; the bzImage's 32-bit entry.
    @Test(
      "an i386 kernel reaches user space and powers off",
      .enabled(if: Guest.initrd386 != nil, "no i386 initramfs in the cache"),
      arguments: ["686-pae", "686"])
    func powerOff386(flavour: String) throws {
      let json = Guest.temporaryPath()
      let result = try Guest.run(
        [
          "run", "--kernel", #require(Guest.kernel386(flavour)), "--initrd", #require(Guest.initrd386), "--append",
          "lguest.do=poweroff", "--timeout", "90s", "--json", json,
        ], limit: 100, expecting: 0)
      #expect(
        result.fact("uname")?.contains("-\(flavour) ") == true && result.fact("uname")?.contains(" i686 ") == true)
      #expect(result.fact("hypervisor") == "Hypervisor detected: KVM")
      #expect(result.fact("clocksource") == "kvm-clock")
      #expect(result.fact("complaints") == "0")
      #expect(result.fact("mitigations") == "0")
      #expect(try Guest.json(json)["cause"] as? String == "poweroff")
    }

    @Test("a reboot ends the run") func reboot() throws {
      let json = Guest.temporaryPath()
      try Guest.run(Guest.boot(Guest.kernel, "reboot", "--timeout", "60s", "--json", json), limit: 70, expecting: 0)
      #expect(try Guest.json(json)["cause"] as? String == "reset")
    }

    @Test(
      "a panic is 255 with its reason and the last words",
      arguments: [
        ("rdinit=/nonexistent init=/nonexistent", "VFS: Unable to mount root fs"),
        ("lguest.do=panic", "sysrq triggered crash"),
      ])
    func panic(append: String, reason: String) throws {
      let kernel = try #require(Guest.kernel)
      let initrd = try #require(Guest.initrd)
      let json = Guest.temporaryPath()
      let result = try Guest.run(
        ["run", "--kernel", kernel, "--initrd", initrd, "--append", append, "--timeout", "60s", "--json", json],
        limit: 70, expecting: 255)
      #expect(result.errors.contains("lguest: | ") && result.errors.contains("panicked: \(reason)"))
      let object = try Guest.json(json)
      #expect((object["detail"] as? String)?.hasPrefix(reason) == true)
      #expect(object["cause"] as? String == "panic")
      #expect(object["processorState"] is String)
    }

    @Test("no initrd is a panic") func noInitrd() throws {
      try Guest.run(["run", "--kernel", #require(Guest.kernel), "--timeout", "60s"], limit: 70, expecting: 255)
    }

    @Test("time limits end a run within five seconds", arguments: ["spin", "sleep"])
    func timeout(action: String) throws {
      let json = Guest.temporaryPath()
      // Long enough to get there.
      let limit = TestLimit.scaled(10)
      let result = try Guest.run(
        Guest.boot(Guest.kernel, action, "--timeout", "\(limit)s", "--json", json), limit: 40, expecting: 124)
      #expect(result.output.contains("fact begin \(action)"))
      #expect(result.seconds >= limit - 0.1 && result.seconds < limit + TestLimit.scaled(5))
      #expect(try Guest.json(json)["cause"] as? String == "timeout")
    }

    @Test("the boot limit ends a boot that does not get there") func bootTimeout() throws {
      let json = Guest.temporaryPath()
      let result = try Guest.run(
        Guest.boot(Guest.kernel, "sleep", "--boot-timeout", "50ms", "--json", json), limit: 20, expecting: 124)
      #expect(result.seconds < 0.05 + TestLimit.scaled(5))
      #expect(try Guest.json(json)["cause"] as? String == "boot-timeout")
    }

    @Test("signals end a run cleanly", arguments: [(SIGTERM, 143), (SIGINT, 130), (SIGHUP, 129)] as [(Int32, Int32)])
    func signals(signal: Int32, status: Int32) throws {
      let json = Guest.temporaryPath()
      let running = try Guest.Running(
        Guest.boot(Guest.kernel, "spin", "--timeout", "60s", "--json", json), limit: 70, name: "signal\(signal)")
      #expect(running.waitForOutput("fact begin spin", seconds: 45))
      running.send(signal)
      #expect(running.finish(expecting: status).status == status)
      #expect(try Guest.json(json)["cause"] as? String == "interrupted")
    }

    @Test("a signal at any moment ends a run cleanly", arguments: [20, 60, 150, 400, 1000])
    func earlySignals(milliseconds: Int) throws {
      let running = try Guest.Running(
        Guest.boot(Guest.kernel, "spin", "--timeout", "60s"), limit: 70, name: "early\(milliseconds)")
      Thread.sleep(forTimeInterval: Double(milliseconds) / 1000)
      running.send(SIGTERM)
      let result = running.finish(expecting: 143)
      // Before the signals are blocked, the default action ends the process, which a shell reports as 143 too.
      #expect(result.status == 143 || result.status == 1000 + SIGTERM)
      #expect(result.seconds < 1 + TestLimit.scaled(5))
    }

    // The cloud kernel has no /dev/port.
    @Test("the guest ends the run with a status", arguments: [(0, 1), (3, 7), (42, 85)] as [(Int, Int32)])
    func debugExit(code: Int, status: Int32) throws {
      try Guest.run(
        Guest.boot(Guest.genericKernel, "exit-\(code)", "--debug-exit", "--timeout", "60s"), limit: 70,
        expecting: status)
    }

    @Test("what is typed reaches the guest, and its end too") func input() throws {
      let result = try Guest.run(
        // The driver clears the port when it opens it, and with it what was typed before.
        Guest.boot(Guest.kernel, "echo", "--timeout", "60s"), input: "this may be lost\nhello\n", limit: 70,
        expecting: 0)
      #expect(result.output.contains("hello"))
    }

    @Test("--cmdline replaces the command line") func cmdline() throws {
      let result = try Guest.run(
        [
          "run", "--kernel", #require(Guest.kernel), "--initrd", #require(Guest.initrd), "--timeout", "60s",
          "--cmdline", "console=ttyS0 reboot=a,panic_warm quiet",
        ], limit: 70, expecting: 0)
      #expect(!result.output.contains("Command line:"))
      #expect(result.fact("uname") != nil)
    }

    @Test("an idle guest costs next to nothing") func idle() throws {
      let running = try Guest.Running(
        Guest.boot(Guest.kernel, "sleep", "--timeout", "90s"), limit: 100, name: "idle")
      #expect(running.waitForOutput("fact begin sleep", seconds: 45))
      // At most 2 % of a processor: once is enough, as work left from the boot and other programs in the caches only
      // add.
      var ticks = Int.max
      for _ in 0..<15 where ticks >= 4 {
        let before = try cpuTicks(running.process.processIdentifier)
        Thread.sleep(forTimeInterval: 2)
        ticks = try cpuTicks(running.process.processIdentifier) - before
      }
      running.send(SIGTERM)
      _ = running.finish(expecting: 143)
      #expect(ticks < 4, "\(ticks) ticks in 2 s")
    }

    /// CPU time of a process, user and system, in hundredths of a second.
    private func cpuTicks(_ process: Int32) throws -> Int {
      let text = try String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)
      let fields = try #require(text.split(separator: ")").last).split(separator: " ")
      return try #require(Int(fields[11])) + #require(Int(fields[12]))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Ring-1 guests of lguest's interface: the project's own, in the layouts of three eras, and kernels that are given.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Guests of lguest's interface", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct LguestGuestTests {
    private static let eras = ["23", "24", "25", "30", "31", "35", "311", "40"]

    private func run(
      _ era: String, _ words: String, _ more: [String] = [], input: String? = nil, expecting: Int32
    ) throws -> Finished {
      try Guest.run(
        Ring1Guest.arguments(era, ["--cmdline", words] + more), input: input, limit: 40, expecting: expecting)
    }

    @Test(
      "hypercalls, traps, interrupts, pages, devices and a program", arguments: eras, [[], ["--single-instruction"]])
    func everything(era: String, more: [String]) throws {
      let result = try run(era, "all", more, expecting: 0)
      #expect(result.output == "written by a driver\nall passed\n" && result.errorLines.isEmpty, "\(result)")
    }

    @Test("what is typed comes by buffers that are bound") func typed() throws {
      let result = try run("23", "all typed", input: "ping\n", expecting: 0)
      #expect(result.output == "written by a driver\nall passed\n", "\(result)")
    }

    @Test("a disk: its first sector is read, its second written and read back", arguments: eras)
    func disk(era: String) throws {
      let path = Guest.temporaryPath()
      let image = Data([UInt8(ascii: "s")]) + Data(count: 510) + Data([UInt8(ascii: "e")]) + Data(count: 7 * 512)
      try image.write(to: URL(filePath: path))
      defer { try? FileManager.default.removeItem(atPath: path) }
      let result = try run(era, "all", ["--disk", path], expecting: 0)
      #expect(result.output == "written by a driver\nall passed\n" && result.errorLines.isEmpty, "\(result)")
      let pattern = Data((0..<512).map { UInt8(truncatingIfNeeded: $0 * 3 + 1) })
      #expect(try Data(contentsOf: URL(filePath: path)) == image.prefix(512) + pattern + Data(count: 6 * 512))
    }

    @Test("frames by buffers: two guests of Linux 2.6.23, of which one sends back what the other sends")
    func frames() throws {
      let socket = Guest.temporaryPath()
      let alone = try run("23", "all", ["--net", "listen:\(socket)"], expecting: 0)
      #expect(alone.output.hasSuffix("all passed\n"), "\(alone)")
      let echo = try Guest.Running(
        [
          "run", "--abi", "lguest", "--kernel", "\(try #require(Guest.guests))/lguest/ring1-23", "--memory", "32M",
          "--cmdline", "echo", "--timeout", "60s", "--net", "listen:\(socket)",
        ], limit: 70, name: "lguest-echo")
      #expect(echo.waitForOutput("waiting", seconds: 20))
      let path = Guest.temporaryPath()
      try (Data("s".utf8) + Data(count: 510) + Data("e".utf8) + Data(count: 512)).write(to: URL(filePath: path))
      defer { try? FileManager.default.removeItem(atPath: path) }
      // One that sends, and one after it, with a disk beside the network.
      for more in [[], ["--disk", path]] {
        let result = try run("23", "all frames", ["--net", "socket:\(socket)"] + more, expecting: 0)
        #expect(result.output == "written by a driver\nall passed\n", "\(result)")
      }
      echo.send(SIGTERM)
      let result = echo.finish(expecting: 143)
      #expect(!result.output.contains("FAIL"), "\(result)")
    }

    @Test("Linux 2.6.23 has places for fifteen disks and networks") func places() throws {
      let path = Guest.temporaryPath()
      try (Data("s".utf8) + Data(count: 510) + Data("e".utf8) + Data(count: 512)).write(to: URL(filePath: path))
      defer { try? FileManager.default.removeItem(atPath: path) }
      let result = try run(
        "23", "all", (0..<16).flatMap { _ in ["--disk", "\(path):ro"] }, expecting: 255)
      #expect(
        result.errorLines.count == 1 && result.errors.contains("16 disks and networks: a guest of Linux 2.6.23 has 15"),
        "\(result)")
    }

    @Test(
      "what kills a guest",
      arguments: [
        ("before-init", "hypercall 10 before LGUEST_INIT"), ("bad-init", "bad guest page at 0xfffff000"),
        ("init-twice", "second LGUEST_INIT"), ("call-99", "Bad hypercall 99"), ("idt-index", "Setting idt entry 256"),
        ("idt-type", "bad IDT type 5"), ("gdt-index", "too large GDT index 32"),
        ("stack-level", "bad stack segment 104"), ("stack-pages", "bad stack pages 3"),
        ("set-pte", "attempt to set pte into Switcher pages"), ("set-pgd", "attempt to set pgd 1024"),
        ("tls", "bad address 0xfffffff0"), ("no-gate", "unhandled trap 13"), ("ring", "Bad hypercall 99"),
        ("stack-nowhere", "unhandled trap 6"), ("call-of-others", "Bad hypercall 17"),
        ("silent-fault", "unhandled trap 6"), ("set-pmd", "Bad hypercall 13"),
      ])
    func killed(sin: String, reason: String) throws {
      let json = Guest.temporaryPath()
      let result = try run("40", sin, ["--json", json], expecting: 255)
      #expect(result.errorLines.count == 1 && result.errors.contains("the guest was killed: \(reason)"), "\(result)")
      let object = try Guest.json(json)
      #expect(object["cause"] as? String == "killed")
      #expect((object["detail"] as? String)?.hasPrefix(reason) == true)
    }

    @Test("hypercalls are counted by the names of their era", arguments: [("23", "SEND_DMA"), ("40", "SET_PMD")])
    func names(era: String, thirteenth: String) throws {
      let json = Guest.temporaryPath()
      let word = era == "23" ? "all" : "set-pmd"
      let result = try run(era, word, ["--stats", "--json", json], expecting: era == "23" ? 0 : 255)
      let counters = try #require(try Guest.json(json)["counters"] as? [String: Any])
      let names = try #require(counters["hypercallNames"] as? [String: String])
      #expect(names["13"] == thirteenth && names["1"] == "LGUEST_INIT")
      #expect(Set(names.keys) == Set(try #require(counters["hypercallsByNumber"] as? [String: Any]).keys))
      #expect(result.errors.contains("  number 13 (\(thirteenth)) "), "\(result.errors)")
    }

    @Test("stat shows hypercalls by name while the guest runs") func stat() throws {
      let guest = try Ring1Guest.startWaiting(name: "lguest-stat")
      let pid = "\(guest.process.processIdentifier)"
      let table = try Guest.run(["stat", pid], expecting: 0).output
      #expect(table.contains("  number 0 (FLUSH_ASYNC) ") && table.contains("  number 1 (LGUEST_INIT) "), "\(table)")
      let text = try Guest.run(["stat", pid, "--json"], expecting: 0).output
      let look = try #require(JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
      let vcpu = try #require((look["vcpus"] as? [[String: Any]])?.first)
      #expect((vcpu["hypercallNames"] as? [String: String])?["0"] == "FLUSH_ASYNC", "\(text)")
      guest.send(SIGTERM)
      _ = guest.finish(expecting: 143)
    }

    @Test("a panic is told by its text; with --no-reboot a restart ends the run") func shutdown() throws {
      let panic = try run("311", "panic", expecting: 255)
      #expect(panic.errors.hasPrefix("lguest: the guest kernel panicked: no root today\n"))
      let json = Guest.temporaryPath()
      _ = try run("40", "restart", ["--no-reboot", "--json", json], expecting: 0)
      #expect(try Guest.json(json)["cause"] as? String == "reset")
    }

    @Test("the three techniques of a hypercall, and what their counters say") func techniques() throws {
      let result = try Guest.run(["bench", "hypercall", "--abi", "lguest", "--json"], limit: 60, expecting: 0)
      let rows = try #require(try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [[String: Any]])
      #expect(rows.map { $0["technique"] as? String } == ["direct", "emulated", "patched"])
      #expect(rows.map { $0["invalidOpcodes"] as? Int } == [0, 12000, 1])
      #expect(rows.map { $0["rewrites"] as? Int } == [0, 0, 1])
      #expect(rows.allSatisfy { ($0["calls"] as? Int) == 12000 && ($0["cycles"] as? [Double])?.count == 5 })
    }

    @Test("a restart boots again in the same run, until its time is over") func restart() throws {
      let json = Guest.temporaryPath()
      let result = try run("40", "restart", ["--json", json, "--timeout", "1s"], expecting: 124)
      let lines = result.output.split(separator: "\n")
      let counters = try #require(try Guest.json(json)["counters"] as? [String: Any])
      let restarts = try #require(counters["restarts"] as? Int)
      #expect(lines.count >= 2 && lines.allSatisfy { $0 == "once more" }, "\(result)")
      #expect((lines.count - 1...lines.count).contains(restarts) && !result.errors.contains("first hypercall"))
    }

    @Test("--abi auto goes by the note; inspect tells who can be started so") func auto() throws {
      let guests = try #require(Guest.guests)
      let own = "\(guests)/lguest/ring1-311", other = "\(guests)/hello"
      let result = try Guest.run(
        ["run", "--kernel", own, "--cmdline", "all", "--timeout", "30s"], limit: 40, expecting: 0)
      #expect(result.output.hasSuffix("all passed\n"), "\(result)")
      let text = try Guest.run(["inspect", own], expecting: 0).output
      #expect(text.contains("lguest: possible (--abi lguest), the default for it"), "\(text)")
      #expect(!(try Guest.run(["inspect", other], expecting: 0).output).contains("lguest:"))
      for (path, expected) in [(own, true), (other, false)] {
        let report =
          try JSONSerialization.jsonObject(
            with: Data(Guest.run(["inspect", path, "--json"], expecting: 0).output.utf8)) as? [String: Any]
        #expect(report?["lguest"] as? Bool == expected && report?["lguestDefault"] as? Bool == expected)
      }
    }

    /// Its decompressor runs; the kernel has no entry for lguest.
    @Test(
      "a kernel without lguest's guest side ends with a line that says so",
      .enabled(if: Guest.kernel386("686") != nil, "no 686 kernel in the cache"))
    func foreign() throws {
      let kernel = try #require(Guest.kernel386("686"))
      #expect(!(try Guest.run(["inspect", kernel], expecting: 0).output).contains("lguest:"))
      let result = try Guest.run(
        ["run", "--abi", "lguest", "--kernel", kernel, "--timeout", "60s"], limit: 70, expecting: 255)
      #expect(
        result.errorLines.count == 1 && result.errors.contains("never made lguest's first hypercall"), "\(result)")
    }

    @Test("a kernel that makes no hypercall ends with a line that says so", arguments: ["silent", "silent-fault"])
    func silent(word: String) throws {
      let more = word == "silent" ? ["--timeout", "1s"] : []
      let result = try run("40", word, more, expecting: word == "silent" ? 124 : 255)
      #expect(result.errors.contains("the kernel never made lguest's first hypercall"), "\(result)")
    }

    @Test("a restart begins in each way of starting", arguments: ["23", "24", "311"])
    func restarts(era: String) throws {
      let result = try run(era, "restart", ["--timeout", "1s"], expecting: 124)
      #expect(result.output.hasPrefix("once more\nonce more\n") && !result.output.contains("FAIL"), "\(result)")
    }

    @Test("refusals are one line") func refusals() throws {
      for (more, status, text) in [
        (["--cpus", "2"], 125, "ask for 1"), (["--memory", "801M"], 69, "ask for at most 800M"),
      ] as [([String], Int32, String)] {
        let kernel = "\(try #require(Guest.guests))/lguest/ring1-40"
        let result = try Guest.run(
          ["run", "--abi", "lguest", "--kernel", kernel, "--timeout", "5s"] + more, limit: 10, expecting: status)
        #expect(result.errors.contains(text) && result.output.isEmpty, "\(result)")
      }
      let foreign = try Guest.run(
        ["run", "--abi", "lguest", "--kernel", "\(try #require(Guest.guests))/hello", "--timeout", "5s"], limit: 10,
        expecting: 69)
      #expect(foreign.errorLines.count == 1 && foreign.errors.contains("is no 32-bit Linux kernel"))
    }

    /// Of Linux 3.11 and older it says on its early console what it is, and panics for want of a root.
    @Test(
      "RealLguestKernels: a kernel without a root panics and says so",
      .enabled(if: !Ring1Guest.kernels.isEmpty, Ring1Guest.missing), arguments: Ring1Guest.kernels)
    func real(kernel: String) throws {
      let result = try Guest.run(
        ["run", "--abi", "lguest", "--kernel", kernel, "--memory", "64M", "--timeout", "60s"], limit: 70, expecting: 255
      )
      #expect(result.output.contains("Booting paravirtualized kernel on lguest"))
      #expect(result.errors.contains("the guest kernel panicked: VFS: Unable to mount root fs"))
    }
  }
}

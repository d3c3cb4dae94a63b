// SPDX-License-Identifier: Apache-2.0
// A real kernel with a shell that counts, moved between processes and vendors as a person would do it: no tick is lost, no
// clock goes back, the kernel stays calm.

import Foundation
import Testing

extension SystemTests {
  @Suite(
    "Moves by command", .serialized,
    .enabled(if: Guest.canBoot, "no kernel or initramfs in the cache; run scripts/test once without --offline"))
  struct MoveCommandTests {
    private static let ticks = 200
    /// As many as the test waits for in each process. The rest is for the time until it has been saved.
    private static let stage = 10
    /// For the kernel's command line: what its first program is to do.
    private static let script = """
      mount -t proc p /proc; i=0; while [ $i -lt \(ticks) ]; do echo tick $i $(cut -d' ' -f1 /proc/uptime); i=$((i+1)); \
      usleep 40000; done; echo fact calm $(dmesg | grep -v grep | grep -c -E 'WARNING:|BUG:|unchecked MSR|stall|lockup|unstable|Call Trace'); \
      echo fact processors $(grep -c ^processor /proc/cpuinfo); poweroff -f
      """

    private func start(cpus: Int, _ more: String..., name: String) throws -> Guest.Running {
      try Guest.Running(
        [
          "run", "--kernel", #require(Guest.kernel), "--initrd", #require(Guest.initrd), "--cpus", "\(cpus)", "--memory", "1G",
          "--append", "quiet rdinit=/bin/sh -- -c \"\(MoveCommandTests.script)\"", "--timeout", "120s",
        ] + more, limit: 130, name: name)
    }

    private func withFile(_ body: (String) throws -> Void) rethrows {
      let file = FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString).saved").path
      defer { try? FileManager.default.removeItem(atPath: file) }
      try body(file)
    }

    @Test("a kernel that counts goes from process to process", arguments: [1, 4]) func journey(cpus: Int) throws {
      try withFile { file in
        var output = ""
        var run = try start(cpus: cpus, "--hypercall-insn", "emulate", name: "journey")
        for move in 1...4 {
          #expect(run.waitForOutput("tick ", count: MoveCommandTests.stage, seconds: 100))
          try Guest.run(["save", "\(run.process.processIdentifier)", file], expecting: 0)
          let result = run.finish(expecting: 0)
          #expect(result.errors.contains("the machine was saved"))
          output += result.output
          run = try Guest.Running(
            [
              "restore", file, "--cpu-vendor", move % 2 == 1 ? "amd" : "intel", "--timeout", "120s", "--stats", "--tty", "never",
            ], limit: 130, name: "journey")
        }
        let last = run.finish(expecting: 0)
        output += last.output
        let lines = output.split(whereSeparator: \.isNewline).map(String.init)
        let ticks = lines.filter { $0.hasPrefix("tick ") }.map { $0.split(separator: " ") }
        #expect(ticks.map { Int($0[1]) } == Array(0..<MoveCommandTests.ticks))
        let times = ticks.compactMap { Double($0[2]) }
        #expect(times.count == ticks.count && zip(times, times.dropFirst()).allSatisfy { $0 <= $1 })
        #expect(lines.contains("fact calm 0") && lines.contains("fact processors \(cpus)"))
      }
    }

    @Test("kept, paused, resumed; restored twice from one file") func kept() throws {
      try withFile { file in
        let run = try start(cpus: 2, name: "kept")
        #expect(run.waitForOutput("tick ", count: MoveCommandTests.stage, seconds: 100))
        let pid = "\(run.process.processIdentifier)"
        try Guest.run(["pause", pid], expecting: 0)
        try Guest.run(["save", pid, file, "--keep"], expecting: 0)
        try Guest.run(["resume", pid], expecting: 0)
        for _ in 0..<2 {
          let restored = try Guest.run(["restore", file, "--timeout", "100s"], limit: 110, expecting: 0)
          #expect(restored.output.contains("tick \(MoveCommandTests.ticks - 1) ") && restored.fact("calm") == "0")
          #expect(!restored.output.contains("tick 1 "))
        }
        let result = run.finish(expecting: 0)
        #expect(result.fact("calm") == "0" && result.output.contains("tick \(MoveCommandTests.ticks - 1) "))
      }
    }

    @Test("refusals are one line and status 69") func refusals() throws {
      try withFile { file in
        try Data("no machine".utf8).write(to: URL(filePath: file))
        for arguments in [["restore", file], ["restore", "/nonexistent"], ["save", "1", file], ["pause", "1"], ["resume", "1"]] {
          let result = try Guest.run(arguments, expecting: 69)
          #expect(result.errorLines.count == 1 && result.output.isEmpty, "\(arguments): \(result.errors)")
        }
        try Guest.run(["save", "x", file], expecting: 125)
        try Guest.run(["restore"], expecting: 125)
      }
    }
  }
}

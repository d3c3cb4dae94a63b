// SPDX-License-Identifier: Apache-2.0
// A real kernel with a shell that counts, moved between processes and vendors as a person would do it: no tick is lost,
// no clock goes back, the kernel stays calm.

import Foundation
import TestSupport
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

    private func start(
      cpus: Int, _ more: String..., kernel: String? = Guest.kernel, initrd: String? = Guest.initrd,
      script: String = MoveCommandTests.script, name: String
    ) throws -> Guest.Running {
      try Guest.Running(
        [
          "run", "--kernel", #require(kernel), "--initrd", #require(initrd), "--cpus", "\(cpus)",
          "--append", "quiet rdinit=/bin/sh -- -c \"\(script)\"", "--timeout", "120s",
        ] + more, limit: 130, name: name)
    }

    private func withFile(_ body: (String) throws -> Void) rethrows {
      let file = FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString).saved").path
      defer { try? FileManager.default.removeItem(atPath: file) }
      try body(file)
    }

    @Test("a kernel that counts goes from process to process", arguments: [1, 4]) func journey(cpus: Int) throws {
      try journey(cpus: cpus, kernel: Guest.kernel, initrd: Guest.initrd)
    }

    @Test(
      "a 32-bit kernel as well",
      .enabled(if: Guest.kernel386("686-pae") != nil && Guest.initrd386 != nil, "no i386 kernel in the cache"))
    func journey386() throws {
      try journey(cpus: 2, kernel: Guest.kernel386("686-pae"), initrd: Guest.initrd386)
    }

    private func journey(cpus: Int, kernel: String?, initrd: String?) throws {
      try withFile { file in
        var output = ""
        var run = try start(
          cpus: cpus, "--memory", "1G", "--hypercall-insn", "emulate", kernel: kernel, initrd: initrd, name: "journey")
        for move in 1...4 {
          #expect(run.waitForOutput("tick ", count: MoveCommandTests.stage, seconds: 100))
          try Guest.run(["save", "\(run.process.processIdentifier)", file], expecting: 0)
          let result = run.finish(expecting: 0)
          #expect(result.errors.contains("the machine was saved"))
          output += result.output
          run = try Guest.Running(
            [
              "restore", file, "--cpu-vendor", move % 2 == 1 ? "amd" : "intel", "--timeout", "120s", "--stats", "--tty",
              "never",
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

    /// A program with memory that is touched now and then only.
    private static let summingScript = """
      mount -t proc p /proc; (i=0; while [ $i -lt 50 ]; do echo sum $i; i=$((i+1)); usleep 100000; done) | awk \
      'BEGIN { for (i = 0; i < 20000; i++) a[i] = i * 7 } \
      { if (NR % 5 == 1) { s = 0; for (i = 0; i < 20000; i++) s += a[i] } print $0, s; fflush() }'; \
      echo fact calm $(dmesg | grep -v grep | grep -c -E 'WARNING:|BUG:|stall|Call Trace|segfault'); poweroff -f
      """

    @Test("pages that are away are saved; a restored guest can lose them too") func slow() throws {
      try withFile { file in
        let json = Guest.temporaryPath()
        let slow = ["--slow-memory", "1ms"]
        var run = try start(
          cpus: 2, "--memory", "256M", slow[0], slow[1], script: MoveCommandTests.summingScript, name: "slow")
        var output = ""
        for more in [slow + ["--json", json], []] {
          #expect(run.waitForOutput("sum ", count: 12, seconds: 100))
          try Guest.run(["save", "\(run.process.processIdentifier)", file], expecting: 0)
          output += run.finish(expecting: 0).output
          run = try Guest.Running(
            ["restore", file, "--timeout", "120s", "--tty", "never"] + more, limit: 130, name: "slow")
        }
        output += run.finish(expecting: 0).output
        let lines = output.split(whereSeparator: \.isNewline).map(String.init)
        #expect(lines.filter { $0.hasPrefix("sum ") } == (0..<50).map { "sum \($0) 1399930000" })
        #expect(lines.contains("fact calm 0"))
        let counters = try #require(Guest.json(json)["counters"] as? [String: Any])
        #expect(counters["pagesEvicted"] as? Int ?? 0 > 100 && counters["pagesNotPresent"] as? Int ?? 0 > 20)
      }
    }

    @Test("kept, paused, resumed; restored twice from one file") func kept() throws {
      try withFile { file in
        let run = try start(cpus: 2, "--memory", "1G", name: "kept")
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
        try refuseForgeries(of: file)
      }
    }

    /// Bits of the first vCPU's state that no machine has set like that, by their place in the section.
    private static let forgeries: [(offset: Int, flips: UInt8, name: String)] = [
      (136, 0x02, "RFLAGS"), (308, 0x01, "CR0"), (339, 0x80, "CR4"), (397, 0x10, "EFER"), (484, 0xE0, "XCR0"),
      (526, 0x01, "MXCSR"), (1012, 0x08, "XSTATE_BV"), (1027, 0x80, "XCOMP_BV"),
    ]

    /// Changes a saved machine, repairs the sums, and sees the command refuse it; then changes it back.
    private func refuseForgeries(of file: String) throws {
      let handle = try FileHandle(forUpdating: URL(filePath: file))
      func bytes(_ offset: UInt64, _ count: Int) throws -> [UInt8] {
        try handle.seek(toOffset: offset)
        return Array(try #require(try handle.read(upToCount: count)))
      }
      func write(_ bytes: [UInt8], _ offset: UInt64) throws {
        try handle.seek(toOffset: offset)
        try handle.write(contentsOf: bytes)
      }
      func number(_ bytes: ArraySlice<UInt8>) -> UInt64 { bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
      func little(_ sum: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: sum >> UInt32(8 * $0)) } }
      let header = try bytes(0, 4096)
      // docs/save-file.md: entries of 40 bytes from 40 on.
      let entry = try #require(
        stride(from: 40, to: 4040, by: 40).first { header[$0..<$0 + 10].elementsEqual("processors".utf8) })
      let offset = number(header[entry + 24..<entry + 32])
      let section = try bytes(offset, Int(number(header[entry + 32..<entry + 40])))
      for forgery in MoveCommandTests.forgeries {
        var (newHeader, newSection) = (header, section)
        newSection[forgery.offset] ^= forgery.flips
        newHeader.replaceSubrange(entry + 20..<entry + 24, with: little(MoveCommandTests.crc32c(newSection)))
        newHeader.replaceSubrange(4092..<4096, with: little(MoveCommandTests.crc32c(newHeader.dropLast(4))))
        try write(newSection, offset)
        try write(newHeader, 0)
        let result = try Guest.run(["restore", file, "--timeout", "5s"], limit: 30, expecting: 69)
        let line = result.errorLines.first ?? ""
        #expect(result.errorLines.count == 1 && result.output.isEmpty)
        #expect(
          line.contains(file) && line.contains("section processors: impossible vCPU 0 \(forgery.name) "), "\(line)")
      }
      try write(section, offset)
      try write(header, 0)
      try Guest.run(["restore", file, "--timeout", "1s"], limit: 30, expecting: 124)
    }

    /// Castagnoli's polynomial, bit by bit.
    private static func crc32c(_ bytes: some Sequence<UInt8>) -> UInt32 {
      ~bytes.reduce(UInt32.max) { sum, byte in
        (0..<8).reduce(sum ^ UInt32(byte)) { sum, _ in sum >> 1 ^ (sum & 1 != 0 ? 0x82F6_3B78 : 0) }
      }
    }

    /// What the test machine's scratch port and memory hold, and its debug exit, through /dev/port and /dev/mem.
    private static let testDeviceScript = """
      mkdir -p /dev; mount -t devtmpfs d /dev; printf 'Zeit' | dd of=/dev/port bs=4 seek=56 conv=notrunc 2>/dev/null; \
      devmem 0xff000010 32 0x600df00d; i=0; while [ $i -lt 60 ]; do echo tick $i; i=$((i+1)); usleep 40000; done; \
      echo fact port $(dd if=/dev/port bs=4 skip=56 count=1 2>/dev/null); echo fact memory $(devmem 0xff000010 32); \
      printf '\\025' | dd of=/dev/port bs=1 seek=244 conv=notrunc; poweroff -f
      """

    @Test("the test machine keeps its devices", .enabled(if: Guest.genericKernel != nil, "no kernel with /dev/port"))
    func testMachine() throws {
      try withFile { file in
        let run = try start(
          cpus: 1, "--memory", "512M", "--machine", "testdev", kernel: Guest.genericKernel,
          script: MoveCommandTests.testDeviceScript, name: "testMachine")
        #expect(run.waitForOutput("tick 10", seconds: 100))
        try Guest.run(["save", "\(run.process.processIdentifier)", file], expecting: 0)
        #expect(!run.finish(expecting: 0).output.contains("fact"))
        let restored = try Guest.run(["restore", file, "--timeout", "100s"], limit: 110, expecting: 0x15 << 1 | 1)
        #expect(restored.fact("port") == "Zeit" && restored.fact("memory") == "0x600DF00D")
      }
    }

    /// Fills three quarters of a small guest with what nobody can guess, and sums it until the end.
    private static let fillScript = """
      mkdir -p /m /dev; mount -t devtmpfs d /dev; mount -t tmpfs -o size=90% m /m; dd if=/dev/urandom of=/m/f bs=1M \
      count=\(fullMegabytes) 2>/dev/null; i=0; while [ $i -lt 8 ]; do echo sum $(md5sum /m/f); i=$((i+1)); done; poweroff -f
      """
    private static let fullMegabytes = 150

    /// The sums a guest has told.
    private func sums(_ output: String) -> [Substring] {
      output.split(whereSeparator: \.isNewline).filter { $0.hasPrefix("sum ") && $0.hasSuffix(" /m/f") }
    }

    @Test("a full guest has every byte; a save that is cut short leaves nothing") func full() throws {
      let directory = Guest.temporaryPath()
      try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
      defer { try? FileManager.default.removeItem(atPath: directory) }
      func names() throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: directory).sorted() }
      let (file, cut) = ("\(directory)/file", "\(directory)/cut")
      try FileManager.default.createDirectory(atPath: cut, withIntermediateDirectories: false)
      let run = try start(cpus: 1, "--memory", "224M", script: MoveCommandTests.fillScript, name: "full")
      let pid = "\(run.process.processIdentifier)"
      #expect(run.waitForOutput("/m/f", seconds: 100))
      // The guest would end before it is killed.
      try Guest.run(["pause", pid], expecting: 0)
      #expect(try Guest.run(["save", pid, cut], expecting: 69).errorLines.count == 1)
      #expect(try names() == ["cut"] && FileManager.default.contentsOfDirectory(atPath: cut).isEmpty)
      try Guest.run(["save", pid, file, "--keep"], expecting: 0)
      let blocks = try #require(attributes(file).map { Int($0.st_blocks) * 512 })
      #expect(blocks > MoveCommandTests.fullMegabytes << 20)

      let save = try Guest.Running(["save", pid, "\(cut)/file"], limit: 60, name: "full")
      #expect(waitForOpenFile(below: cut, by: pid))
      run.send(SIGKILL)
      let first = run.finish(expecting: 1009)
      _ = save.finish(expecting: 69)
      #expect(try FileManager.default.contentsOfDirectory(atPath: cut).isEmpty)

      let restored = try Guest.run(["restore", file, "--timeout", "100s"], limit: 110, expecting: 0)
      let all = sums(first.output).prefix(1) + sums(restored.output)
      #expect(all.count > 2 && Set(all).count == 1)
      let ended = try Guest.Running(["restore", file, "--timeout", "100s"], limit: 110, name: "full")
      #expect(ended.waitForOutput("/m/f", seconds: 100))
      ended.send(SIGTERM)
      #expect(ended.finish(expecting: 143).status == 143)
    }

    private func attributes(_ path: String) -> stat? {
      var status = stat()
      return unsafe stat(path, &status) == 0 ? status : nil
    }

    /// Waits until a process has a file open in a directory, with a name or without.
    private func waitForOpenFile(below directory: String, by process: String) -> Bool {
      let deadline = Date() + TestLimit.scaled(20)
      while Date() < deadline {
        for name in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/fd")) ?? [] {
          let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(process)/fd/\(name)")
          if target?.hasPrefix(directory + "/") == true { return true }
        }
      }
      return false
    }

    @Test("refusals are one line and status 69") func refusals() throws {
      try withFile { file in
        try Data("no machine".utf8).write(to: URL(filePath: file))
        for arguments in [
          ["restore", file], ["restore", "/nonexistent"], ["save", "1", file], ["pause", "1"], ["resume", "1"],
        ] {
          let result = try Guest.run(arguments, expecting: 69)
          #expect(result.errorLines.count == 1 && result.output.isEmpty, "\(arguments): \(result.errors)")
        }
        try Guest.run(["save", "x", file], expecting: 125)
        try Guest.run(["restore"], expecting: 125)
      }
    }
  }
}

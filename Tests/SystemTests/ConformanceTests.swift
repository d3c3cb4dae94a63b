// SPDX-License-Identifier: Apache-2.0
// The guests of Guests/conformance on the test machine: every expectation of the manual holds, and where QEMU's TCG
// runs the same guest, it says the same or is wrong by the section of the manual that the log names.

import Foundation
import Testing

extension SystemTests {
  @Suite(
    "Conformance", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct ConformanceTests {
    static let names: [String] = {
      guard let guests = Guest.guests,
        let names = try? FileManager.default.contentsOfDirectory(atPath: "\(guests)/conformance")
      else { return [] }
      return names.sorted()
    }()

    private static let emulator = "/usr/bin/qemu-system-x86_64"
    static var hasEmulator: Bool { FileManager.default.isExecutableFile(atPath: emulator) }

    private static let everyFeature = ["--cpu-features", "smap,pcid"]

    private func log(_ name: String, _ more: [String] = []) throws -> [Substring] {
      let kernel = "\(try #require(Guest.guests))/conformance/\(name)"
      let result = try Guest.run(
        ["run", "--machine", "testdev", "--kernel", kernel, "--memory", "64M", "--timeout", "60s"] + more, limit: 70,
        expecting: 1)
      return result.output.split(separator: "\n")
    }

    @Test("the manual's expectations hold", arguments: ConformanceTests.names) func conformance(name: String) throws {
      for options in [[], ["--exact-flags", "--single-instruction"], ConformanceTests.everyFeature] {
        let lines = try log(name, options)
        #expect(lines.last == "all passed", "\(lines.suffix(3))")
        for line in lines where line.hasPrefix("FAIL") { Issue.record("\(options): \(line)") }
      }
    }

    @Test(
      "the first difference between two runs, by instruction",
      .enabled(
        if: ConformanceTests.hasEmulator && FileManager.default.isExecutableFile(atPath: "/usr/bin/python3"),
        "qemu-system-x86_64 or python3 is not installed"))
    func firstDifference() throws {
      let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()
      let process = Process()
      process.executableURL = root.appending(path: "scripts/first-difference")
      process.arguments = [
        "--count", "3", "--lguest", Guest.executable, "\(try #require(Guest.guests))/conformance/legacy",
      ]
      let pipe = Pipe()
      process.standardOutput = pipe
      process.standardInput = FileHandle.nullDevice
      try process.run()
      let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      // The two loaders leave different registers, and CPUID names different hypervisors: both are noticed.
      #expect(process.terminationStatus == 1 && text.contains("bx: lguest 0x4b4d564b, TCG 0x54474354"), "\(text)")
    }

    /// Lines that both sides print: not those that TCG is not even asked.
    private func comparable(_ lines: [Substring]) -> [Substring] {
      lines.filter { !$0.hasSuffix("]") && !$0.hasPrefix("all passed") && !$0.hasPrefix("failed ") }
    }

    @Test(
      "TCG says the same, or what it says is against the manual",
      .enabled(if: ConformanceTests.hasEmulator, "qemu-system-x86_64 is not installed"),
      .enabled(if: Guest.model == nil, "TCG has all that it can, and the guests here have not"),
      // TCG is no KVM: it is not asked what KVM does.
      arguments: ConformanceTests.names.filter { !$0.contains("kvm") })
    func comparison(name: String) throws {
      let process = Process()
      process.executableURL = URL(filePath: "/usr/bin/timeout")
      process.arguments =
        [
          "60", ConformanceTests.emulator, "-accel", "tcg", "-cpu", "max", "-m", "64", "-kernel",
          "\(try #require(Guest.guests))/conformance/\(name)", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
          "-device", "pc-testdev", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
        ]
      let pipe = Pipe()
      process.standardOutput = pipe
      process.standardInput = FileHandle.nullDevice
      process.standardError = FileHandle.nullDevice
      try process.run()
      let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      #expect(process.terminationStatus & 1 == 1 && process.terminationStatus < 4, "it did not get to its end")
      let theirs = comparable(text.split(whereSeparator: \.isNewline)),
        ours = comparable(try log(name, ConformanceTests.everyFeature))
      #expect(theirs.count == ours.count)
      var section: Substring = ""
      var differences = 0
      for (their, our) in zip(theirs, ours) {
        if our.hasPrefix("-- ") { section = our.dropFirst(3) }
        guard their != our else { continue }
        differences += 1
        let isTheirs = their.hasPrefix("FAIL ") && our.hasPrefix("PASS ") && !section.isEmpty
        #expect(isTheirs, "\(section): TCG has '\(their)', lguest '\(our)'")
      }
      print("\(name): \(ours.count) lines, TCG differs from the manual in \(differences)")
    }
  }
}

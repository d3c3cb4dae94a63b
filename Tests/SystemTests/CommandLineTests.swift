// SPDX-License-Identifier: Apache-2.0
// What the command says and how it ends when there is nothing to boot: usage errors, bad files, help, version, doctor.

import Foundation
import Testing

extension SystemTests {
  @Suite("Command line", .serialized, .enabled(if: Guest.hasExecutable, "the executable is not built"))
  struct CommandLineTests {
    @Test(
      "a wrong command line is one line and 125",
      arguments: [
        ["run"], ["run", "--kernel"], ["run", "--kernel", ""], ["run", "--bogus"], ["bogus"],
        ["run", "--kernel", "x", "extra"],
        ["run", "--kernel", "x", "--append", "a", "--cmdline", "b"], ["run", "--kernel", "x", "--memory", "nonsense"],
        ["run", "--kernel", "x", "--memory", "-1"], ["run", "--kernel", "x", "--cpu-model", "pentium"],
        ["run", "--kernel", "x", "--cpu-features", "smap,x"], ["run", "--kernel", "x", "--memory", "1.5G"],
        ["run", "--kernel", "x", "--memory", "99999999999999999999G"], ["run", "--kernel", "x", "--memory", ""],
        ["run", "--kernel", "x", "--timeout", "soon"], ["run", "--kernel", "x", "--boot-timeout", "-1s"],
        ["run", "--kernel", "x", "--entry", "sideways"], ["run", "--kernel", "x", "--tty", "maybe"],
        ["run", "--kernel", "x", "--cpus", "0"], ["run", "--kernel", "x", "--cpus", "65"],
        ["run", "--kernel", "x", "--memory", "0"], ["run", "--kernel", "x", "--memory", "1M"],
        ["run", "--kernel", "x", "--memory", "65537K"], ["run", "--kernel", "x", "--memory", "1073741825"],
        ["run", "--kernel", "x", "--slow-memory", "0"], ["run", "--kernel", "x", "--slow-memory", "9999h"],
        ["run", "--kernel", "x", "--host-threads", "0"], ["run", "--kernel", "x", "--append", "a\nb"],
        ["run", "--kernel", "x", "--cpu-features", ""], ["run", "--kernel", "x", "--cpu-features", ","],
        ["run", "--kernel", "x", "--json", ""], ["run", "--kernel", "x", "--json="],
        ["run", "--kernel", "x", "--trace", ""], ["run", "--kernel", "x", "--histogram", ""],
        ["restore", "x", "--json", ""], ["restore", "x", "--slow-memory", "0"], ["inspect", ""],
        ["run", "--kernel", "x", "--engine", "kvm"], ["inspect"], ["inspect", "a", "b"], ["doctor", "extra"],
      ])
    func usage(arguments: [String]) throws {
      let result = try Guest.run(arguments, expecting: 125)
      #expect(result.errorLines.count == 1, "\(result.errors)")
      #expect(result.errors.hasPrefix("lguest: "))
      #expect(result.output.isEmpty)
    }

    @Test("a wrong command line still leaves its JSON") func usageJSON() throws {
      let path = Guest.temporaryPath()
      try Guest.run(["run", "--memory", "x", "--json", path], expecting: 125)
      let object = try Guest.json(path)
      #expect(object["cause"] as? String == "usage")
      #expect(object["status"] as? Int == 125)
    }

    /// A file that is no kernel, and how it came to be.
    struct BadFile: Sendable, CustomTestStringConvertible {
      let testDescription: String
      let make: @Sendable (String) throws -> Void
    }

    static let badFiles: [BadFile] = [
      BadFile(testDescription: "missing") { _ in },
      BadFile(testDescription: "empty") { try Data().write(to: URL(filePath: $0)) },
      BadFile(testDescription: "directory") {
        try FileManager.default.createDirectory(atPath: $0, withIntermediateDirectories: false)
      },
      BadFile(testDescription: "text") { try Data("not a kernel\n".utf8).write(to: URL(filePath: $0)) },
      BadFile(testDescription: "one byte") { try Data([0x4D]).write(to: URL(filePath: $0)) },
      BadFile(testDescription: "zeroes") { try Data(count: 1 << 20).write(to: URL(filePath: $0)) },
      BadFile(testDescription: "truncated kernel") { path in
        if let kernel = Guest.kernel {
          try Data(contentsOf: URL(filePath: kernel)).prefix(100_000).write(to: URL(filePath: path))
        } else {
          try Data(count: 100).write(to: URL(filePath: path))
        }
      },
      BadFile(testDescription: "kernel without its last byte") { path in
        if let kernel = Guest.kernel {
          try Data(contentsOf: URL(filePath: kernel)).dropLast().write(to: URL(filePath: path))
        } else {
          try Data(count: 100).write(to: URL(filePath: path))
        }
      },
      BadFile(testDescription: "ARM64 Image") { path in
        var image = Data(count: 4096)
        image.replaceSubrange(0x38..<0x3C, with: [0x41, 0x52, 0x4D, 0x64])  // "ARMd"
        try image.write(to: URL(filePath: path))
      },
      BadFile(testDescription: "ELF of another architecture") { try elf(machine: 183).write(to: URL(filePath: $0)) },
      BadFile(testDescription: "ELF that ends in its header") {
        try elf(machine: 62).prefix(40).write(to: URL(filePath: $0))
      },
      BadFile(testDescription: "a program of this host") {
        try FileManager.default.copyItem(atPath: "/bin/true", toPath: $0)
      },
    ]

    /// An ELF header with nothing behind it.
    private static func elf(machine: UInt8) -> Data {
      var header = Data(count: 64)
      header.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1])
      header[16] = 2
      header[18] = machine
      return header
    }

    @Test("a file that is no kernel is one line and 69", arguments: badFiles)
    func badKernel(file: BadFile) throws {
      let path = Guest.temporaryPath()
      let json = Guest.temporaryPath()
      defer { try? FileManager.default.removeItem(atPath: path) }
      try file.make(path)
      for arguments in [["run", "--kernel", path, "--json", json], ["inspect", path]] {
        let result = try Guest.run(arguments, expecting: 69)
        #expect(result.errorLines.count == 1, "\(result.errors)")
        #expect(result.errors.hasPrefix("lguest: "))
        #expect(result.errors.contains(path), "the message does not say which file: \(result.errors)")
        #expect(result.output.isEmpty)
      }
      let object = try Guest.json(json)
      #expect(object["cause"] as? String == "cannot-start")
      #expect(object["status"] as? Int == 69)
    }

    @Test("memory that this host does not have is one line and 69") func badMemory() throws {
      let result = try Guest.run(["run", "--kernel", Guest.kernel ?? "/bin/true", "--memory", "8000T"], expecting: 69)
      #expect(result.errorLines.count == 1, "\(result.errors)")
    }

    @Test("an initrd that cannot be is one line and 69") func badInitrd() throws {
      let large = Guest.temporaryPath()
      defer { try? FileManager.default.removeItem(atPath: large) }
      #expect(FileManager.default.createFile(atPath: large, contents: Data([1])))
      let handle = try #require(FileHandle(forWritingAtPath: large))
      try handle.truncate(atOffset: 200 << 20)
      try handle.close()
      for path in ["/nowhere/initrd", "/", large] {
        let arguments = ["run", "--kernel", Guest.kernel ?? "/bin/true", "--initrd", path, "--memory", "128M"]
        let result = try Guest.run(arguments, expecting: 69)
        #expect(result.errorLines.count == 1, "\(result.errors)")
        #expect(result.errors.contains("initrd"))
      }
    }

    @Test("the JSON file is refused before the run") func badJSON() throws {
      let result = try Guest.run(["run", "--kernel", "/bin/true", "--json", "/nowhere/at/all"], expecting: 69)
      #expect(result.errorLines.count == 1, "\(result.errors)")
    }

    @Test(
      "what a command says and cannot write is one line and 69",
      arguments: [
        ["--help"], ["--version"], ["run", "--help"], ["doctor"], ["doctor", "--json"], ["ps"], ["ps", "--json"],
      ])
    func fullOutput(arguments: [String]) throws {
      let result = try Guest.run(shell: "\"$0\" \"$@\" > /dev/full", arguments)
      #expect(result.status == 69 && result.lines.count == 1, "\(result)")
      #expect(result.lines.first?.contains("No space left") == true)
      let closed = try Guest.run(shell: "\"$0\" \"$@\" >&-", arguments)
      #expect(closed.status == 69 && closed.lines.count == 1, "\(closed)")
      // A reader that goes away has what it wanted.
      let pipe = try Guest.run(shell: "{ \"$0\" \"$@\"; echo $? >&2; } | true", arguments)
      #expect(pipe.lines == ["0"], "\(pipe)")
    }

    @Test("version and help") func version() throws {
      let version = try Guest.run(["--version"], expecting: 0)
      #expect(version.output.wholeMatch(of: /lguest \d+\.\d+\.\d+ \([0-9a-z-]+\)\n/) != nil)
      if let commit = Guest.commit { #expect(version.output.contains("(\(commit))")) }
      for arguments in [["--help"], ["run", "--help"], ["inspect", "--help"], ["doctor", "--help"]] {
        let help = try Guest.run(arguments, expecting: 0)
        #expect(help.output.contains("USAGE: lguest"))
        #expect(help.errors.isEmpty)
      }
    }

    @Test("doctor") func doctor() throws {
      let text = try Guest.run(["doctor"], expecting: 0)
      #expect(text.output.contains("/dev/kvm"))
      #expect(text.output.contains("translator"))
      let json = try Guest.run(["doctor", "--json"], expecting: 0)
      let object = try #require(JSONSerialization.jsonObject(with: Data(json.output.utf8)) as? [String: Any])
      #expect(object["ready"] as? Bool == true)
      #expect((object["kvm"] as? [String: Any])?["used"] as? Bool == false)
    }

    @Test("inspect knows a Debian kernel", .enabled(if: Guest.kernel != nil, "no kernel in the cache"))
    func inspect() throws {
      let kernel = try #require(Guest.kernel)
      let text = try Guest.run(["inspect", kernel], expecting: 0)
      #expect(text.output.contains("6.1."))
      let json = try Guest.run(["inspect", kernel, "--json"], expecting: 0)
      #expect(try JSONSerialization.jsonObject(with: Data(json.output.utf8)) is [String: Any])
    }
  }
}

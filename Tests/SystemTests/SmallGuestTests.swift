// SPDX-License-Identifier: Apache-2.0
// Endings that no stock kernel is needed for: the small guests of Guests/, each of which does one thing.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Small guests", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct SmallGuestTests {
    private func arguments(_ name: String, _ more: [String]) throws -> [String] {
      ["run", "--kernel", "\(try #require(Guest.guests))/\(name)", "--memory", "32M"] + more
    }

    @Test(
      "a guest's end has its status and its cause",
      arguments: [
        ("hello", [], 0, "reset"), ("warm-reset", [], 255, "panic"), ("triple-fault", [], 255, "triple-fault"),
        ("triple-fault-pvh", ["--entry", "pvh"], 255, "triple-fault"),
        ("spin", ["--timeout", "200ms"], 124, "timeout"),
        ("spin", ["--boot-timeout", "200ms"], 124, "boot-timeout"),
      ] as [(String, [String], Int32, String)])
    func endings(name: String, options: [String], status: Int32, cause: String) throws {
      let json = Guest.temporaryPath()
      let result = try Guest.run(arguments(name, options + ["--json", json]), limit: 20, expecting: status)
      #expect(result.output == (name == "hello" ? "hello from a guest\n" : ""))
      #expect(result.errorLines.allSatisfy { $0.hasPrefix("lguest: ") })
      #expect(result.errors.contains("lguest: RIP ") == (status != 0))
      let object = try Guest.json(json)
      #expect(object["cause"] as? String == cause)
      #expect(object["status"] as? Int == Int(status))
      #expect(object["schemaVersion"] as? Int == 1)
    }

    @Test("every member of the JSON object is documented") func documented() throws {
      let json = Guest.temporaryPath()
      try Guest.run(arguments("triple-fault", ["--json", json]), expecting: 255)
      let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()
      let page = try String(contentsOf: root.appending(path: "docs/json.md"), encoding: .utf8)
      let object = try Guest.json(json)
      for name in object.keys { #expect(page.contains("`\(name)`") || page.contains("`\(name)."), "\(name)") }
      for name in try #require(object["times"] as? [String: Any]).keys { #expect(page.contains("`times.\(name)`")) }
      for name in try #require(object["counters"] as? [String: Any]).keys {
        #expect(page.contains("`\(name)`"), "\(name)")
      }
    }

    @Test(
      "what a run was to write and cannot is one line, and no success",
      arguments: [
        "\"$0\" \"$@\" --json /dev/full", "\"$0\" \"$@\" --trace /dev/full", "\"$0\" \"$@\" --histogram /dev/full",
        "\"$0\" \"$@\" > /dev/full",
      ])
    func fullFiles(script: String) throws {
      let result = try Guest.run(shell: script, arguments("hello", []))
      let lost = result.lines.filter { $0.contains("cannot write") && $0.contains("No space left") }
      #expect(lost.count == 1, "\(result)")
      // A guest that is not done when its console is lost is hung up.
      #expect(result.status == 69 && result.lines.count == 1 || script.contains(">") && result.status == 129)
    }

    @Test("a guest's own end matters more than what cannot be written") func fullFilesAndEnd() throws {
      let script = "\"$0\" \"$@\" --json /dev/full --histogram /dev/full"
      let result = try Guest.run(shell: script, arguments("triple-fault", []))
      #expect(result.status == 255, "\(result)")
      #expect(result.lines.filter { $0.contains("cannot write") }.count == 2, "\(result)")
    }

    @Test("a full pipe and a reader that goes away end the run") func closedOutput() throws {
      let shell = Process()
      shell.executableURL = URL(filePath: "/bin/sh")
      // `head` leaves after one line; the guest has nothing more to say, so only the hang-up ends the run.
      shell.arguments =
        [
          "-c", "{ \"$0\" \"$@\" 2>/dev/null; echo $? >&2; } | true",
          Guest.executable,
        ] + (try arguments("spin", ["--timeout", "20s"]))
      let errors = Pipe()
      shell.standardError = errors
      let started = Date()
      try shell.run()
      let text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      shell.waitUntilExit()
      #expect(text.contains("129"), "\(text)")
      #expect(Date().timeIntervalSince(started) < 6)
    }

    @Test("a terminal is raw for the run, obeys Ctrl-A x, and is given back") func terminal() throws {
      let (main, other) = try #require(Guest.terminal())
      defer {
        close(main)
        close(other)
      }
      var before = termios(), during = termios(), after = termios()
      let opened = unsafe tcgetattr(other, &before)
      #expect(opened == 0)
      let process = Process()
      process.executableURL = URL(filePath: Guest.executable)
      process.arguments = try arguments("spin", ["--timeout", "20s"])
      let end = FileHandle(fileDescriptor: other, closeOnDealloc: false)
      process.standardInput = end
      process.standardOutput = end
      process.standardError = FileHandle.nullDevice
      try process.run()
      let deadline = Date() + TestLimit.scaled(10)
      repeat {
        Thread.sleep(forTimeInterval: 0.02)
        _ = unsafe tcgetattr(other, &during)
      } while during.c_lflag & UInt32(ICANON) != 0 && Date() < deadline
      #expect(during.c_lflag & UInt32(ICANON | ECHO | ISIG) == 0)
      let typed = unsafe write(main, "\u{1}x", 2)
      #expect(typed == 2)
      process.waitUntilExit()
      #expect(process.terminationStatus == 130)
      _ = unsafe tcgetattr(other, &after)
      #expect(after.c_lflag == before.c_lflag && after.c_iflag == before.c_iflag && after.c_oflag == before.c_oflag)
    }
  }
}

extension Guest {
  /// A new terminal that controls nobody: its main side and its other.
  static func terminal() -> (main: Int32, other: Int32)? {
    let unlock: UInt = 0x4004_5431, numberOf: UInt = 0x8004_5430  // TIOCSPTLCK, TIOCGPTN
    let main = unsafe open("/dev/ptmx", O_RDWR | O_NOCTTY)
    var isLocked: CInt = 0, number: CInt = 0
    guard main >= 0, unsafe ioctl(main, unlock, &isLocked) == 0, unsafe ioctl(main, numberOf, &number) == 0 else {
      return nil
    }
    let other = unsafe open("/dev/pts/\(number)", O_RDWR | O_NOCTTY)
    return other >= 0 ? (main, other) : nil
  }
}

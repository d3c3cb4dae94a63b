// SPDX-License-Identifier: Apache-2.0
// Signals to a run: each that ends a process ends a run, with the JSON object, a line, the control socket removed and the
// terminal given back.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Signals", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct SignalTests {
    private func arguments(_ guest: String, _ more: [String] = []) throws -> [String] {
      ["run", "--kernel", "\(try #require(Guest.guests))/\(guest)", "--memory", "32M", "--cpus", "1"] + more
    }

    /// Waits until a run's guest may run, whose threads are all there then.
    private func waitForGuest(_ process: Int32) -> Bool {
      TestLimit.wait(seconds: 20) {
        let tasks = "/proc/\(process)/task"
        return ((try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []).contains { task in
          (try? String(contentsOfFile: "\(tasks)/\(task)/comm", encoding: .utf8)) == "lguest-vcpu0\n"
        }
      }
    }

    /// Starts a run from a shell, whose commands see it as `"$@"`.
    private func start(_ arguments: [String], by commands: String) throws -> Process {
      let process = Process()
      process.executableURL = URL(filePath: "/bin/bash")
      process.arguments = ["-c", commands, "bash", Guest.executable] + arguments
      process.standardError = FileHandle.nullDevice
      try process.run()
      return process
    }

    private func hasSocket(_ process: Int32) -> Bool {
      let session = ProcessInfo.processInfo.environment["XDG_RUNTIME_DIR"].map { ["\($0)/lguest"] } ?? []
      return (["/tmp/lguest-\(getuid())"] + session).contains {
        FileManager.default.fileExists(atPath: "\($0)/\(process).socket")
      }
    }

    @Test(
      "a signal that would end a process ends a run, and all is told",
      arguments: [
        (3, "SIGQUIT"), (10, "SIGUSR1"), (12, "SIGUSR2"), (14, "SIGALRM"), (16, "SIGSTKFLT"), (24, "SIGXCPU"),
        (25, "SIGXFSZ"), (26, "SIGVTALRM"), (27, "SIGPROF"), (29, "SIGIO"), (30, "SIGPWR"), (34, "SIGRTMIN"),
        (64, "SIGRTMIN+30"),
      ] as [(Int32, String)])
    func ends(signal: Int32, name: String) throws {
      let json = Guest.temporaryPath()
      let run = try Guest.Running(
        arguments("spin", ["--timeout", "30s", "--json", json]), limit: 40, name: "signal\(signal)")
      let process = run.process.processIdentifier
      #expect(waitForGuest(process) && hasSocket(process))
      run.send(signal)
      let result = run.finish(expecting: 128 + signal)
      #expect(result.status == 128 + signal && result.errors == "lguest: ended by \(name)\n", "\(result.errors)")
      #expect(!hasSocket(process))
      let object = try Guest.json(json)
      #expect(object["cause"] as? String == "interrupted" && object["status"] as? Int32 == 128 + signal)
    }

    @Test("a signal that was ignored at the start stays so") func ignored() throws {
      let json = Guest.temporaryPath()
      let process = try start(
        arguments("spin", ["--timeout", "30s", "--json", json]), by: "trap '' HUP QUIT USR1; exec \"$@\"")
      #expect(waitForGuest(process.processIdentifier))
      for signal in [SIGHUP, SIGQUIT, SIGUSR1] { kill(process.processIdentifier, signal) }
      Thread.sleep(forTimeInterval: 0.2)
      #expect(process.isRunning)
      kill(process.processIdentifier, SIGTERM)
      process.waitUntilExit()
      #expect(process.terminationReason == .exit && process.terminationStatus == 143)
      #expect(try Guest.json(json)["status"] as? Int == 143)
    }

    @Test("the terminal is given back") func terminal() throws {
      let (main, other) = try #require(Guest.terminal())
      defer {
        close(main)
        close(other)
      }
      var before = termios(), during = termios(), after = termios()
      _ = unsafe tcgetattr(other, &before)
      let process = Process()
      process.executableURL = URL(filePath: Guest.executable)
      process.arguments = try arguments("spin", ["--timeout", "20s"])
      let end = FileHandle(fileDescriptor: other, closeOnDealloc: false)
      (process.standardInput, process.standardOutput) = (end, end)
      process.standardError = FileHandle.nullDevice
      try process.run()
      #expect(waitForGuest(process.processIdentifier))
      _ = unsafe tcgetattr(other, &during)
      #expect(during.c_lflag & UInt32(ICANON) == 0)
      kill(process.processIdentifier, SIGUSR2)
      process.waitUntilExit()
      #expect(process.terminationReason == .exit && process.terminationStatus == 128 + SIGUSR2)
      _ = unsafe tcgetattr(other, &after)
      #expect(after.c_lflag == before.c_lflag && after.c_iflag == before.c_iflag)
    }

    @Test("a console beyond the limit on the size of files ends a run as SIGXFSZ would") func fileSize() throws {
      let (json, output) = (Guest.temporaryPath(), Guest.temporaryPath())
      defer { try? FileManager.default.removeItem(atPath: output) }
      #expect(FileManager.default.createFile(atPath: output, contents: nil))
      // Memory is files too, which the limit must leave room for.
      let gigabytes: UInt64 = 256
      let file = try #require(FileHandle(forWritingAtPath: output))
      try file.truncate(atOffset: gigabytes << 30)
      let process = try start(
        arguments("hello", ["--timeout", "20s", "--json", json]),
        by: "ulimit -f \(gigabytes << 20); exec \"$@\" >> '\(output)'")
      process.waitUntilExit()
      #expect(process.terminationReason == .exit && process.terminationStatus == 128 + SIGXFSZ)
      #expect(try Guest.json(json)["cause"] as? String == "interrupted")
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// The sandbox of a run from outside: which threads have one, and what becomes of a thread of each kind that asks for
// what it gave up. The tests make real threads of real runs do that (CTracer), since no code of theirs would.

import CTracer
import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Sandbox of a run", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct SandboxCommandTests {
    /// Threads by the names that ps shows, and what the last words call them.
    static let kinds = [
      ("lguest", "console"), ("lguest-signals", "signals"), ("lguest-watch", "watchdog"), ("lguest-machine", "machine"),
      ("lguest-control", "control"), ("lguest-watchdog", "watchdog"), ("lguest-timers", "timers"),
      ("lguest-store", "store"), ("lguest-vcpu0", "vcpu"),
    ]

    private static func field(_ name: String, of task: String) -> String? {
      let text = (try? String(contentsOfFile: "\(task)/status", encoding: .utf8)) ?? ""
      return text.split(separator: "\n").first { $0.hasPrefix(name + ":") }.map {
        $0.dropFirst(name.count + 1).trimmingCharacters(in: .whitespaces)
      }
    }

    /// The threads of a process, by name.
    private static func threads(of process: Int32) -> [(name: String, directory: String, number: Int32)] {
      let directory = "/proc/\(process)/task"
      return ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []).compactMap { task in
        guard let number = Int32(task), let name = field("Name", of: "\(directory)/\(task)") else { return nil }
        return (name, "\(directory)/\(task)", number)
      }
    }

    /// The process that names files.
    private static func keeper(of process: Int32) -> Int32? {
      let path = "/proc/\(process)/task/\(process)/children"
      return (try? String(contentsOfFile: path, encoding: .utf8))?.split(separator: " ").first.flatMap { Int32($0) }
    }

    /// How many filters a task has, this one's own not counted: the tests may run in a sandbox themselves.
    private static func filters(of task: String) -> Int {
      let own = field("Seccomp_filters", of: "/proc/self").flatMap { Int($0) } ?? 0
      return (field("Seccomp_filters", of: task).flatMap { Int($0) } ?? 0) - own
    }

    /// Whether this host lets a run be confined at all.
    static let isOffered: Bool = {
      let text = try? Guest.run(["doctor", "--json"], expecting: 0).output
      let report = text.flatMap { try? JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any] }
      return (report?["sandbox"] as? [String: Any])?["systemCallFilter"] as? Bool ?? false
    }()

    /// A run of a guest that spins, once all its threads are confined.
    private static func start(_ more: [String] = [], filtered: Bool = true) throws -> Guest.Running {
      let kernel = "\(try #require(Guest.guests))/spin"
      let run = try Guest.Running(
        ["run", "--kernel", kernel, "--memory", "32M", "--cpus", "1", "--slow-memory", "10ms", "--timeout", "60s"]
          + more,
        limit: 70, name: "sandbox")
      let process = run.process.processIdentifier
      let isReady = TestLimit.wait(seconds: 20) {
        let threads = threads(of: process)
        return kinds.allSatisfy { kind in threads.contains { $0.name == kind.0 } }
          && (!filtered || threads.allSatisfy { filters(of: $0.directory) == 1 })
      }
      #expect(isReady, "threads: \(threads(of: process).map { ($0.name, filters(of: $0.directory)) })")
      return run
    }

    @Test(
      "every thread is confined before the guest runs, and so is the process that names files",
      .enabled(if: SandboxCommandTests.isOffered, "this host takes no filters"))
    func every() throws {
      let run = try SandboxCommandTests.start(["--json", Guest.temporaryPath()])
      let process = run.process.processIdentifier
      for thread in SandboxCommandTests.threads(of: process) {
        #expect(SandboxCommandTests.field("Seccomp", of: thread.directory) == "2", "\(thread.name)")
        #expect(SandboxCommandTests.field("NoNewPrivs", of: thread.directory) == "1", "\(thread.name)")
        #expect(
          SandboxCommandTests.kinds.contains { $0.0 == thread.name }, "a thread that no kind is of: \(thread.name)")
      }
      let keeper = try #require(SandboxCommandTests.keeper(of: process))
      #expect(SandboxCommandTests.field("Name", of: "/proc/\(keeper)") == "lguest-names")
      #expect(SandboxCommandTests.filters(of: "/proc/\(keeper)") == 1)
      // Nothing of the run but its socket, the JSON file, and the directories of both.
      let open = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(keeper)/fd")
      #expect(open.count == 4, "\(open)")
      run.send(SIGTERM)
      #expect(run.finish(expecting: 143).errors == "lguest: terminated\n")
      // It has ended, and process 1, whose child it is now, takes note of that when it will.
      #expect(TestLimit.wait(seconds: 20) { !FileManager.default.fileExists(atPath: "/proc/\(keeper)") })
    }

    @Test("--no-sandbox says so, and is obeyed") func off() throws {
      let json = Guest.temporaryPath()
      let run = try SandboxCommandTests.start(["--no-sandbox", "--json", json], filtered: false)
      let process = run.process.processIdentifier
      for thread in SandboxCommandTests.threads(of: process) {
        #expect(SandboxCommandTests.filters(of: thread.directory) == 0, "\(thread.name)")
      }
      #expect(SandboxCommandTests.keeper(of: process) == nil)
      run.send(SIGINT)
      let result = run.finish(expecting: 130)
      #expect(result.errorLines.count == 2 && result.errorLines[0].hasPrefix("lguest: --no-sandbox: "))
      #expect(try Guest.json(json)["cause"] as? String == "interrupted")
    }

    @Test("where the host takes no filters the run says so and goes on") func refused() throws {
      let (output, json) = (Guest.temporaryPath(), Guest.temporaryPath())
      defer { try? FileManager.default.removeItem(atPath: output) }
      #expect(FileManager.default.createFile(atPath: output, contents: nil))
      let file = try #require(FileHandle(forWritingAtPath: output))
      let arguments = [
        Guest.executable, "run", "--kernel", "\(try #require(Guest.guests))/hello", "--memory", "32M", "--json", json,
      ]
      var strings = unsafe arguments.map { unsafe strdup($0) } + [nil]
      let status = unsafe ctracer_run_without_filters(Guest.executable, &strings, file.fileDescriptor)
      unsafe strings.forEach { unsafe free($0) }
      let text = try String(contentsOfFile: output, encoding: .utf8)
      #expect(status == 0 && text.contains("hello from a guest"), "\(status) \(text)")
      let lines = text.split(separator: "\n").filter { $0.hasPrefix("lguest: ") }
      #expect(lines.count == 1 && lines.first?.contains("does not filter system calls") == true, "\(text)")
      #expect(try Guest.json(json)["cause"] as? String == "reset")
    }

    struct Attempt: Sendable, CustomTestStringConvertible {
      let name: String
      let number: Int
      var arguments: [Int] = []
      var testDescription: String { name }
    }

    /// Each is refused to every kind of thread. A path of address 0 would fail, if it were looked at.
    static let attempts = [
      Attempt(name: "openat", number: 257, arguments: [-100, 0, 0]),
      Attempt(name: "execve", number: 59),
      Attempt(name: "connect", number: 42, arguments: [1]),
      Attempt(name: "mmap", number: 9, arguments: [0, 4096, 7, 0x22, -1]),
      Attempt(name: "kill", number: 62, arguments: [1, 0]),
    ]

    /// For one kind is enough: the rules are the same.
    static let moreAttempts = [
      Attempt(name: "mprotect", number: 10, arguments: [0, 4096, 5]),
      Attempt(name: "ioctl", number: 16, arguments: [0, 0x5412]),
      Attempt(name: "clone3", number: 435),
      Attempt(name: "ptrace", number: 101),
      Attempt(name: "io_uring_setup", number: 425),
      Attempt(name: "rename", number: 82),
      // By the numbers of x32.
      Attempt(name: "of an unknown number", number: 0x4000_0000),
    ]

    /// Makes the thread of a name do something; nil if the host forbids that.
    private func make(_ name: String, of process: Int32, _ attempt: Attempt) throws -> Bool {
      let threads = SandboxCommandTests.threads(of: process)
      let thread = try #require(threads.first { $0.name == name }, "\(name)")
      let asleep = try #require(threads.first { $0.name == "lguest-control" })
      let arguments = attempt.arguments + [Int](repeating: 0, count: 6 - attempt.arguments.count)
      let error = unsafe ctracer_call([thread.number, asleep.number], attempt.number, arguments)
      if error == -EPERM || error == -ENOSYS { return false }
      #expect(error == 0)
      return true
    }

    private func refuse(_ thread: (String, String), _ attempt: Attempt) throws {
      let json = Guest.temporaryPath()
      let run = try SandboxCommandTests.start(["--json", json])
      guard try make(thread.0, of: run.process.processIdentifier, attempt) else {
        run.send(SIGKILL)
        _ = run.finish(expecting: 1009)
        try Test.cancel("this host does not let a process trace its children")
      }
      let result = run.finish(expecting: 70)
      #expect(result.status == 70)
      #expect(result.errorLines.count == 1 && result.errors.hasPrefix("\r\nlguest: internal error: "))
      let words = "made the system call \(attempt.name) in its thread '\(thread.1)', which its sandbox forbids"
      #expect(result.errors.contains(words), "\(result.errors)")
      let object = try Guest.json(json)
      #expect(object["cause"] as? String == "internal" && object["status"] as? Int == 70)
      #expect((object["detail"] as? String)?.contains(words) == true)
    }

    @Test(
      "what a thread gave up ends the run with 70 and the call's name",
      .enabled(if: SandboxCommandTests.isOffered, "this host takes no filters"), arguments: kinds)
    func thread(name: String, kind: String) throws {
      for attempt in SandboxCommandTests.attempts { try refuse((name, kind), attempt) }
    }

    @Test(
      "and so does every other way out", .enabled(if: SandboxCommandTests.isOffered, "this host takes no filters"),
      arguments: moreAttempts)
    func others(attempt: Attempt) throws {
      try refuse(("lguest-vcpu0", "vcpu"), attempt)
    }

    @Test(
      "malloc's question is answered, and the run goes on",
      .enabled(if: SandboxCommandTests.isOffered, "this host takes no filters"))
    func malloc() throws {
      let run = try SandboxCommandTests.start()
      let process = run.process.processIdentifier
      // The C library's own string, where the run has it.
      let question = Data("/proc/sys/vm/overcommit_memory\0".utf8)
      // Not by String(contentsOfFile:), which reads only the first 4 KiB of a file that tells no size.
      let table = try #require(FileHandle(forReadingAtPath: "/proc/\(process)/maps")).readDataToEndOfFile()
      let maps = String(decoding: table, as: UTF8.self).split(separator: "\n").map { $0.split(separator: " ") }
      var address: Int?
      for line in maps where line.count == 6 && line[5].contains("/libc") {
        guard let library = try? Data(contentsOf: URL(filePath: String(line[5]))),
          let place = library.range(of: question)?.lowerBound, let offset = Int(line[2], radix: 16)
        else { continue }
        let ends = line[0].split(separator: "-").compactMap { Int($0, radix: 16) }
        guard ends.count == 2, (offset..<offset + ends[1] - ends[0]).contains(place) else { continue }
        address = ends[0] + place - offset
      }
      guard let address else {
        run.send(SIGKILL)
        _ = run.finish(expecting: 1009)
        try Test.cancel("this C library does not ask")
      }
      // The thread that waits for connections: its poll(2) seems to have failed.
      let attempt = Attempt(name: "openat", number: 257, arguments: [-100, address, 0x80000])
      _ = try make("lguest-control", of: process, attempt)
      // It answers still.
      #expect(try Guest.run(["stat", "\(process)", "--json"], expecting: 0).output.contains("vcpus"))
      run.send(SIGTERM)
      #expect(run.finish(expecting: 143).errors == "lguest: terminated\n")
    }

    @Test(
      "the process that names files is confined too",
      .enabled(if: SandboxCommandTests.isOffered, "this host takes no filters"))
    func names() throws {
      let json = Guest.temporaryPath()
      let run = try SandboxCommandTests.start(["--json", json])
      let keeper = try #require(SandboxCommandTests.keeper(of: run.process.processIdentifier))
      let arguments = [Int](repeating: 0, count: 6)
      let error = unsafe ctracer_call([keeper, keeper], 257, arguments)
      // Not this process's child: some hosts forbid tracing it.
      if error == 0 {
        // It has lost its memory some time before it is a zombie or gone.
        let hasEnded = TestLimit.wait(seconds: 10) {
          SandboxCommandTests.field("State", of: "/proc/\(keeper)").map { $0.hasPrefix("Z") || $0.hasPrefix("X") }
            ?? true
        }
        #expect(hasEnded)
      }
      run.send(SIGTERM)
      let result = run.finish(expecting: 143)
      #expect(FileManager.default.fileExists(atPath: json) == (error != 0))
      #expect(result.errors.contains("cannot write '\(json)'") == (error == 0))
      try? FileManager.default.removeItem(atPath: json)
    }

    @Test(
      "a refusal gives the terminal back", .enabled(if: SandboxCommandTests.isOffered, "this host takes no filters"))
    func terminal() throws {
      let (main, other) = try #require(Guest.terminal())
      defer {
        close(main)
        close(other)
      }
      func isRaw() -> Bool {
        var settings = termios()
        return unsafe tcgetattr(other, &settings) == 0 && settings.c_lflag & UInt32(ICANON | ECHO) == 0
      }
      for (name, _) in [("lguest-vcpu0", ""), ("lguest-control", ""), ("lguest", "")] {
        #expect(!isRaw())
        let process = Process()
        process.executableURL = URL(filePath: Guest.executable)
        process.arguments = [
          "run", "--kernel", "\(try #require(Guest.guests))/spin", "--memory", "32M", "--cpus", "1", "--timeout", "20s",
        ]
        let end = FileHandle(fileDescriptor: other, closeOnDealloc: false)
        (process.standardInput, process.standardOutput, process.standardError) = (end, end, FileHandle.nullDevice)
        try process.run()
        let number = process.processIdentifier
        func isReady() -> Bool {
          let threads = SandboxCommandTests.threads(of: number)
          return isRaw() && threads.contains { $0.name == "lguest-vcpu0" }
            && threads.allSatisfy { SandboxCommandTests.filters(of: $0.directory) == 1 }
        }
        _ = TestLimit.wait(seconds: 10, until: isReady)
        guard try make(name, of: number, SandboxCommandTests.attempts[0]) else {
          process.terminate()
          try Test.cancel("this host does not let a process trace its children")
        }
        process.waitUntilExit()
        #expect(process.terminationStatus == 70 && !isRaw(), "\(name)")
      }
    }
  }
}

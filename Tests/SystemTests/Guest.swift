// SPDX-License-Identifier: Apache-2.0
// Drives the built executable as a person or a script would: arguments in, streams and status out, a limit on every
// run.

import Foundation
import TestSupport
import Testing

/// What a run of the executable left.
struct Finished: Sendable {
  var status: Int32
  var output: String
  var errors: String
  var seconds: Double

  var errorLines: [Substring] { errors.split(separator: "\n") }

  /// The guest's line `fact NAME VALUE`.
  func fact(_ name: String) -> String? {
    // A serial line ends in CR LF, which is one Character.
    for line in output.split(whereSeparator: \.isNewline) where line.hasPrefix("fact \(name) ") {
      return String(line.dropFirst("fact \(name) ".count))
    }
    return nil
  }
}

/// The executable, the kernels and where failures leave their consoles, from the environment that scripts/test sets.
enum Guest {
  private static func variable(_ name: String) -> String? { ProcessInfo.processInfo.environment[name] }

  static var executable: String {
    variable("LGUEST_TEST_EXECUTABLE")
      ?? Bundle.main.bundleURL.deletingLastPathComponent().appending(path: "lguest").path
  }
  static var kernel: String? { variable("LGUEST_TEST_KERNEL") }
  static var genericKernel: String? { variable("LGUEST_TEST_GENERIC_KERNEL") }
  static var initrd: String? { variable("LGUEST_TEST_INITRD") }
  /// Debian's kernels for i386 by flavour, and the initramfs with a 32-bit busybox.
  static func kernel386(_ flavour: String) -> String? {
    variable(flavour == "686" ? "LGUEST_TEST_KERNEL_686" : "LGUEST_TEST_KERNEL_686_PAE")
  }
  static var initrd386: String? { variable("LGUEST_TEST_INITRD_I386") }
  /// Where scripts/build-guests put the small guests of Guests/.
  static var guests: String? { variable("LGUEST_TEST_GUESTS") }
  static var userSpace: String? { variable("LGUEST_TEST_USERSPACE") }
  static var userSpace386: String? { variable("LGUEST_TEST_USERSPACE_I386") }
  static var fullUserSpace: String? { variable("LGUEST_TEST_USERSPACE_FULL") }
  /// A module of the kernel, by its path in the kernel's source.
  static func module(_ path: String) -> String? {
    guard let kernel else { return nil }
    // ROOT/boot/vmlinuz-RELEASE, ROOT/lib/modules/RELEASE.
    let file = URL(filePath: kernel).resolvingSymlinksInPath()
    let release = file.lastPathComponent.replacing("vmlinuz-", with: "")
    let module = file.deletingLastPathComponent().deletingLastPathComponent().appending(
      path: "lib/modules/\(release)/kernel/\(path)"
    ).path
    return FileManager.default.isReadableFile(atPath: module) ? module : nil
  }
  static var commit: String? { variable("LGUEST_TEST_COMMIT") }
  /// What every guest sees whose test does not say otherwise: LGUEST_TEST_CPU_MODEL, or all that the host has.
  static var model: String? { variable("LGUEST_TEST_CPU_MODEL") }
  static var isLong: Bool { variable("LGUEST_TEST_LONG") != nil }
  static var hasExecutable: Bool { FileManager.default.isExecutableFile(atPath: executable) }
  static var canBoot: Bool { hasExecutable && kernel != nil && initrd != nil }

  /// A process of the executable, with its output kept as it comes.
  final class Running {
    let process = Process()
    private let directory: URL
    private let started = ContinuousClock.now
    private let name: String
    /// Where the run writes its counters.
    private var json: String?

    /// Signals that this process ignores, as under nohup(1), are not ignored by what it starts.
    private static let handlesSignals: Void = {
      for number in [SIGHUP, SIGINT, SIGQUIT] {
        let before = signal(number, SIG_IGN)
        if unsafe unsafeBitCast(before, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self) {
          _ = signal(number) { _ in }
        } else {
          _ = signal(number, before)
        }
      }
    }()

    /// - Parameter limit: Seconds, on an idle host, after which the process is killed and the test fails.
    init(_ arguments: [String], input: String? = nil, limit: Double = 30, name: String) throws {
      _ = Running.handlesSignals
      self.name = name
      directory = FileManager.default.temporaryDirectory.appending(path: "lguest-test-\(UUID().uuidString)")
      try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
      let files = ["in", "out", "err"].map { directory.appending(path: $0) }
      try Data((input ?? "").utf8).write(to: files[0])
      try Data().write(to: files[1])
      try Data().write(to: files[2])
      process.executableURL = URL(filePath: Guest.executable)
      var arguments = arguments
      if let model = Guest.model, arguments.first == "run", !arguments.contains("--cpu-model") {
        arguments.insert(contentsOf: ["--cpu-model", model], at: 1)
      }
      if arguments.first == "run", !arguments.contains("--json"), !arguments.contains("--unchecked") {
        arguments.insert(contentsOf: ["--json", directory.appending(path: "json").path], at: 1)
      }
      if let option = arguments.firstIndex(of: "--json"), option + 1 < arguments.count { json = arguments[option + 1] }
      process.arguments = arguments
      process.standardInput = try FileHandle(forReadingFrom: files[0])
      process.standardOutput = try FileHandle(forWritingTo: files[1])
      process.standardError = try FileHandle(forWritingTo: files[2])
      try process.run()
      let process = process
      DispatchQueue.global().asyncAfter(deadline: .now() + TestLimit.scaled(limit)) {
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
      }
    }

    private func text(_ name: String) -> String {
      String(decoding: (try? Data(contentsOf: directory.appending(path: name))) ?? Data(), as: UTF8.self)
    }

    /// Waits until the guest has written something, so many times, at most `seconds` of an idle host.
    func waitForOutput(_ text: String, count: Int = 1, seconds: Double) -> Bool {
      func isThere() -> Bool { self.text("out").ranges(of: text).count >= count }
      let deadline = ContinuousClock.now + .seconds(TestLimit.scaled(seconds))
      while ContinuousClock.now < deadline {
        if isThere() { return true }
        if !process.isRunning { return isThere() }
        Thread.sleep(forTimeInterval: 0.05)
      }
      return false
    }

    /// No guest makes translated code that its checker refuses, or that faults where nothing may.
    private func checkCounters() {
      guard let json, let data = FileManager.default.contents(atPath: json),
        let root = try? JSONSerialization.jsonObject(with: data) as? [String: Any],
        let counters = root["counters"] as? [String: Any], let blocks = counters["blocksTranslated"] as? Int
      else { return }
      #expect(counters["blocksChecked"] as? Int == blocks)
      #expect(counters["blocksRefused"] as? Int == 0 && counters["softFaults"] as? Int == 0)
    }

    func send(_ signal: Int32) { kill(process.processIdentifier, signal) }

    /// Waits for the end and cleans up. The console is kept when `expected` is not the status.
    func finish(expecting expected: Int32) -> Finished {
      process.waitUntilExit()
      let result = Finished(
        status: process.terminationReason == .exit ? process.terminationStatus : 1000 + process.terminationStatus,
        output: text("out"), errors: text("err"), seconds: (ContinuousClock.now - started) / .seconds(1))
      if result.status != expected, let logs = Guest.variable("LGUEST_TEST_LOGS") {
        let log =
          "lguest \(process.arguments?.joined(separator: " ") ?? "")\nstatus \(result.status), expected \(expected), "
          + "\(result.seconds) s\n--- stderr\n\(result.errors)\n--- console\n\(result.output)"
        try? log.write(toFile: "\(logs)/\(name)-\(process.processIdentifier).log", atomically: true, encoding: .utf8)
      }
      checkCounters()
      try? FileManager.default.removeItem(at: directory)
      return result
    }
  }

  /// Runs the executable to its end and checks the status.
  @discardableResult
  static func run(
    _ arguments: [String], input: String? = nil, limit: Double = 30, expecting expected: Int32, name: String = #function
  ) throws -> Finished {
    let plain = name.filter { $0.isLetter || $0.isNumber }
    let result = try Running(arguments, input: input, limit: limit, name: plain).finish(expecting: expected)
    #expect(result.status == expected, "\(arguments.joined(separator: " ")): \(result.errors)")
    return result
  }

  /// What a shell's line with the executable and its arguments as `$0` and `$@` left: its status, and lines on stderr.
  static func run(shell script: String, _ arguments: [String]) throws -> (status: Int32, lines: [Substring]) {
    let shell = Process()
    shell.executableURL = URL(filePath: "/bin/sh")
    shell.arguments = ["-c", script, executable] + arguments
    let errors = Pipe()
    shell.standardInput = FileHandle.nullDevice
    shell.standardError = errors
    try shell.run()
    let text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    shell.waitUntilExit()
    return (shell.terminationStatus, text.split(separator: "\n"))
  }

  /// Arguments of a console run of a kernel with the test initramfs.
  static func boot(_ kernel: String?, _ action: String, _ more: String...) throws -> [String] {
    ["run", "--kernel", try #require(kernel), "--initrd", try #require(initrd), "--append", "lguest.do=\(action)"]
      + more
  }

  /// The object a run wrote with `--json`.
  static func json(_ path: String) throws -> [String: Any] {
    defer { try? FileManager.default.removeItem(atPath: path) }
    let object = try JSONSerialization.jsonObject(with: Data(contentsOf: URL(filePath: path)))
    return try #require(object as? [String: Any])
  }

  /// A cpio archive, as the kernel unpacks it (Linux Documentation/driver-api/early-userspace/buffer-format.rst), of
  /// executable files from the host.
  static func archive(_ files: [String: String]) throws -> Data {
    func entry(_ name: String, _ mode: Int, _ content: Data) -> Data {
      func padded(_ data: Data) -> Data { data + Data(count: (4 - data.count % 4) % 4) }
      let fields = [0, mode, 0, 0, 1, 0, content.count, 0, 0, 0, 0, name.utf8.count + 1, 0]
      let head =
        "070701"
        + fields.map { String(repeating: "0", count: 8 - String($0, radix: 16).count) + String($0, radix: 16) }.joined()
      return padded(Data((head + name + "\0").utf8)) + padded(content)
    }
    return try files.sorted { $0.key < $1.key }.reduce(Data()) { archive, file in
      try archive + entry(file.key, 0o100755, Data(contentsOf: URL(filePath: file.value)))
    } + entry("TRAILER!!!", 0, Data())
  }

  static func temporaryPath() -> String {
    FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString)").path
  }
}

/// Everything that drives the executable, one at a time: guests are timed and CPUs are few.
@Suite("System", .serialized) struct SystemTests {}

// SPDX-License-Identifier: Apache-2.0
// Targets that read text of strangers: lines over the control socket, command lines, JSON.

import Foundation
import Host
import SystemPackage

@testable import Lguest

#if !LGUEST_WITHOUT_COMMAND
  import ArgumentParser
  @testable import LguestCommand
#endif

/// JSON.
enum JSONText {
  static let words: [[UInt8]] = [
    "{", "}", "[", "]", "\"", ":", ",", "\\u00e9", "\\ud83d\\ude00", "\\n", "true", "false", "null", "-1", "1e9", "0.5",
    "18446744073709551615", "-9223372036854775808", "1e400",
  ].map { Array($0.utf8) }

  static func samples() -> [[UInt8]] {
    [
      "null", "[1,[2,{\"a\":null}],true]", "{\"a\":\"\\n\\\"\\\\ é\",\"b\":[false,-1.5e3]}", "18446744073709551615",
      "\"\\u0041\\ud83d\\ude00\\/\\b\"", "{\"verb\":\"save\",\"keep\":true}",
    ].map { Array($0.utf8) }
  }

  static func run(_ input: inout FuzzInput) throws {
    guard let value = JSONParser.value(String(decoding: input.rest(), as: UTF8.self)) else { return }
    for indented in [false, true] {
      let text = value.text(indented: indented)
      guard let again = JSONParser.value(text) else { throw FuzzFailure("not read again: \(text)") }
      // A number may be written more shortly the first time.
      let second = again.text(indented: indented)
      if JSONParser.value(second)?.text(indented: indented) != second { throw FuzzFailure("\(text) becomes \(second)") }
    }
  }
}

/// The control socket.
enum ControlRequests {
  private final class Subject: @unchecked Sendable {
    let directory: FilePath
    let listener: LocalListener
    let server: ControlServer
    let file: InputFile

    init() throws {
      directory = FilePath(NSTemporaryDirectory()).appending("lguest-fuzz-\(UUID().uuidString)")
      try LocalSocket.makePrivateDirectory(directory)
      listener = try LocalListener(at: directory.appending("s"))
      server = ControlServer(VirtualMachine(configuration: .init(kernel: "/nonexistent")), listener) {}
      file = try InputFile("saved")
    }
  }

  private static let subject = Result { try Subject() }

  static let words: [[UInt8]] =
    JSONText.words
    + ["\n", "\"verb\":", "\"status\"", "\"stat\"", "\"pause\"", "\"resume\"", "\"save\"", "\"finish\"", "\"keep\":"]
    .map {
      Array($0.utf8)
    }

  static func samples() -> [[UInt8]] {
    [
      "{\"verb\":\"status\"}", "{\"verb\":\"stat\"}\n{\"verb\":\"pause\"}", "{\"verb\":\"save\",\"keep\":true}",
      "{\"verb\":\"save\"}\n{\"verb\":\"finish\"}", "{\"verb\":\"resume\",\"a\":[1]}", "{\"verb\":1}",
    ].flatMap { text in [0, 1, 3].map { [UInt8($0)] + Array(text.utf8) } }
  }

  static func run(_ input: inout FuzzInput) throws {
    let subject = try subject.get()
    let how = input.byte()
    let bytes = input.rest()
    if how % 8 == 7 { return try converse(bytes, pieces: Int(how / 8) + 1, subject) }
    var conversation = ControlServer.Conversation()
    for line in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).prefix(20) {
      if how % 2 == 1, conversation.file == nil { conversation.file = try .open(subject.file.path, .writeOnly) }
      let answer = subject.server.reply(to: String(decoding: line, as: UTF8.self), &conversation)
      let text = answer.text(indented: false)
      guard !text.contains("\n"), let again = JSONParser.value(text), case .bool(let isDone)? = again["ok"] else {
        throw FuzzFailure("an answer that is none: \(text)")
      }
      guard
        isDone || again["error"]?.stringValue.map({ !$0.isEmpty && !$0.contains("\n") && $0.utf8.count < 500 }) == true
      else { throw FuzzFailure("a refusal that is no line: \(text)") }
    }
    try conversation.file?.close()
  }

  /// The same over a connection, in pieces.
  private static func converse(_ bytes: [UInt8], pieces: Int, _ subject: Subject) throws {
    var client: LocalConnection? = try LocalConnection(to: subject.listener.path)
    guard let server = subject.listener.accept(milliseconds: 10_000) else { throw FuzzFailure("nobody is accepted") }
    let length = max(bytes.count / pieces, 1)
    for begin in stride(from: 0, to: bytes.count, by: length) {
      _ = client?.send(Array(bytes[begin..<min(begin + length, bytes.count)]))
    }
    client?.close()
    client = nil
    subject.server.converse(over: server)
  }
}

/// Command lines, of ours and of kernels.
enum CommandLines {
  static let words: [[UInt8]] = [
    "\nrun", "\nps", "\nstat", "\nsave", "\nrestore", "\npause", "\nresume", "\ninspect", "\ndoctor", "\ntour",
    "\nbench",
    "\n--kernel", "\n--initrd", "\n--append", "\n--cmdline", "\n--memory", "\n--cpus", "\n--timeout",
    "\n--boot-timeout",
    "\n--json", "\n--verbose", "\n--no-sandbox", "\n--tty", "\n--entry", "\n--cpu-model", "\n--cpu-features",
    "\n--cpu-vendor", "\n--hypercall-insn", "\n--kvm-api", "\n--kvm-features", "\n--kvm-hints", "\n--machine",
    "\n--help",
    "\n--version", "\n--", "\nx86-64-v2", "\nauto", "\namd", "\n512M", "\n18446744073709551615G", "\n1.5h", "\n0x20",
    "\nno-clocksource2", "\n-", "\n=",
  ].map { Array($0.utf8) }

  static func samples() -> [[UInt8]] {
    [
      "run\n--kernel\nvmlinuz\n--memory\n512M\n--cpus\n4\n--timeout\n1.5m",
      "restore\nfile\n--cpu-vendor\namd\n--timeout=2h",
      "run\n--kernel=k\n--kvm-features=none,clocksource2,no-pv-eoi\n--kvm-hints\nrealtime", "inspect\nvmlinuz\n--json",
      "save\n4711\nfile\n--keep", "stat\n1\n--interval\n5s", "bench\nhypercall\n--count\n100", "run\n--help",
      "--version",
    ].map { Array($0.utf8) }
  }

  static func run(_ input: inout FuzzInput) throws {
    // The system hands over no zero bytes.
    let text = String(decoding: input.rest().filter { $0 != 0 }, as: UTF8.self)
    let words = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    #if !LGUEST_WITHOUT_COMMAND
      try parse(words)
    #endif
    // Refusals show what was typed as it was typed; the command's own line ends where that does.
    for word in words where !word.unicodeScalars.contains(where: { $0.value < 0x20 }) { try quantities(word) }
    try kernels(text)
  }

  #if !LGUEST_WITHOUT_COMMAND
    private static func parse(_ words: [String]) throws {
      do {
        let command = try LguestCommand.parseAsRoot(words)
        if let run = command as? RunCommand { _ = run.console.session }
      } catch {
        let message = LguestCommand.message(for: error)
        _ = LguestCommand.fullMessage(for: error)
        if LguestCommand.exitCode(for: error) != .success, message.isEmpty {
          throw FuzzFailure("a refusal without a word: \(words)")
        }
      }
    }
  #endif

  private static func quantities(_ word: String) throws {
    do throws(QuantityError) {
      let bytes = try ByteSize.parse(word)
      if try ByteSize.parse(ByteSize.text(bytes)) != bytes { throw QuantityError(description: "") }
    } catch { try check(error.description) }
    do throws(QuantityError) { _ = try TimeLimit.parse(word) } catch { try check(error.description) }
    do throws(ConfigurationError) { _ = try VirtualMachine.Configuration.features(word) } catch {
      try check(error.description)
    }
    do throws(ConfigurationError) { _ = try VirtualMachine.Configuration.hints(word) } catch {
      try check(error.description)
    }
  }

  private static func kernels(_ text: String) throws {
    var configuration = VirtualMachine.Configuration(kernel: "/proc/self/exe")
    configuration.memorySize = 64 << 20
    for line in [VirtualMachine.Configuration.CommandLine.appending(text), .complete(text)] {
      configuration.commandLine = line
      _ = line.multibootText(kernel: configuration.kernel)
      do throws(ConfigurationError) { try configuration.validate() } catch {
        if error.description.contains("\n") { throw FuzzFailure("a refusal of more than a line: \(error)") }
      }
    }
  }

  private static func check(_ line: String) throws {
    if line.isEmpty || line.contains("\n") { throw FuzzFailure("a refusal that is no line: \(line)") }
  }
}

// SPDX-License-Identifier: Apache-2.0
// A machine that is saved over the control socket: whoever asks has opened the file, and says when it has its name.

import Foundation
import Host
import Synchronization
import SystemPackage
import Testing

@testable import Lguest

@Suite("Saving over the control socket", .timeLimit(.minutes(10))) struct ControlSaveTests {
  private final class Console: Sendable {
    private let bytes = Mutex<[UInt8]>([])
    func put(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
    var last: UInt8? { bytes.withLock { $0.last } }
  }

  /// A run of a guest that writes what it reads.
  private final class Run: Sendable {
    let machine: VirtualMachine
    let console = Console()
    let result = Mutex<RunResult?>(nil)

    init(_ configuration: VirtualMachine.Configuration) {
      var configuration = configuration
      let console = console
      configuration.consoleOutput = { console.put($0) }
      machine = VirtualMachine(configuration: configuration)
    }

    func start() {
      Thread { [self] in
        let ended = try? machine.run()
        result.withLock { $0 = ended }
      }.start()
    }

    /// Waits until something holds; false after `seconds`.
    func wait(_ seconds: Double = 30, until body: () -> Bool) -> Bool {
      let deadline = Date() + seconds
      while Date() < deadline {
        if body() { return true }
        Thread.sleep(forTimeInterval: 0.002)
      }
      return body()
    }

    /// Types a letter and waits until the guest has written it.
    func echoes(_ letter: Unicode.Scalar, within seconds: Double = 30) -> Bool {
      machine.consoleInput.put([UInt8(ascii: letter)])
      return wait(seconds) { console.last == UInt8(ascii: letter) }
    }
  }

  private func withRun(_ body: (Run, LocalConnection, FilePath) throws -> Void) throws {
    let directory = FilePath("/tmp/lguest-test-\(UUID().uuidString)")
    try LocalSocket.makePrivateDirectory(directory)
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    let listener = try LocalListener(at: directory.appending("s"))
    defer { listener.close() }
    try TinyGuest.echo.withFile { file in
      var configuration = VirtualMachine.Configuration(kernel: file)
      configuration.memorySize = 64 << 20
      configuration.timeout = .seconds(60)
      let run = Run(configuration)
      run.start()
      defer { run.machine.requestStop(.interrupted(.terminate)) }
      #expect(run.echoes("a"))
      let client = try LocalConnection(to: listener.path)
      let accepted = try #require(listener.accept(milliseconds: 5000))
      let server = ControlServer(run.machine, listener) {}
      Thread { server.converse(over: accepted) }.start()
      try body(run, client, directory.appending("saved"))
      run.machine.requestStop(.interrupted(.terminate))
      #expect(run.wait { run.result.withLock { $0 != nil } })
    }
  }

  private func ask(_ line: inout ControlLine, _ text: [(String, JSON)], _ file: FileDescriptor? = nil) -> JSON? {
    guard line.send(.object(text.map { (key: $0.0, value: $0.1) }), with: file) else { return nil }
    return line.next(milliseconds: 30_000).flatMap { JSONParser.value($0) }
  }

  private func isRefused(_ answer: JSON?) -> Bool {
    if case .bool(false)? = answer?["ok"] { answer?["error"]?.stringValue != nil } else { false }
  }

  private func isDone(_ answer: JSON?) -> Bool {
    if case .bool(true)? = answer?["ok"] { true } else { false }
  }

  @Test("without a descriptor nothing is saved, and nothing is finished that was not") func refusals() throws {
    try withRun { run, client, path in
      var line = ControlLine(client)
      #expect(isRefused(ask(&line, [("verb", "save")])))
      #expect(isRefused(ask(&line, [("verb", "save"), ("file", .string(path.string))])))
      #expect(isRefused(ask(&line, [("verb", "finish")])))
      // One that cannot be written to; the machine goes on.
      let null = try FileDescriptor.open(FilePath("/dev/null"), .readOnly)
      defer { try? null.close() }
      #expect(isRefused(ask(&line, [("verb", "save")], null)))
      #expect(run.echoes("b"))
      // One with content, and one in which everything goes to the end.
      let old = path.removingLastComponent().appending("old")
      for (content, options) in [("old", []), ("", [.append])] as [(String, FileDescriptor.OpenOptions)] {
        try content.write(toFile: old.string, atomically: false, encoding: .utf8)
        let file = try FileDescriptor.open(old, .readWrite, options: options)
        defer { try? file.close() }
        #expect(isRefused(ask(&line, [("verb", "save")], file)))
        #expect(run.echoes("b"))
      }
      // One that came with a request that has no use for it.
      #expect(isDone(ask(&line, [("verb", "status")], null)))
      #expect(isRefused(ask(&line, [("verb", "save")])))
      #expect(!FileManager.default.fileExists(atPath: path.string))
    }
  }

  @Test("a machine that was saved goes on when nobody says that its file has a name") func abandoned() throws {
    try withRun { run, client, path in
      let file = try ReplacementFile(path)
      var line = ControlLine(client)
      #expect(isDone(ask(&line, [("verb", "save")], file.output.descriptor)))
      #expect(!run.echoes("b", within: 0.2))
      client.close()
      #expect(run.wait { run.console.last == UInt8(ascii: "b") })
      #expect(run.result.withLock { $0 == nil })
    }
  }

  @Test("what was asked by somebody who has given up is not done") func givenUp() throws {
    try withRun { run, _, path in
      let listener = try LocalListener(at: path.removingLastComponent().appending("t"))
      defer { listener.close() }
      do {
        let client = try LocalConnection(to: listener.path)
        #expect(client.send(Array("{\"verb\":\"pause\"}\n".utf8)))
      }
      let accepted = try #require(listener.accept(milliseconds: 5000))
      ControlServer(run.machine, listener) {}.converse(over: accepted)
      #expect(run.echoes("b"))
    }
  }

  @Test("finished, it has ended, and goes on elsewhere") func finished() throws {
    try withRun { run, client, path in
      let file = try ReplacementFile(path)
      var line = ControlLine(client)
      #expect(isDone(ask(&line, [("verb", "save")], file.output.descriptor)))
      try file.commit()
      #expect(isDone(ask(&line, [("verb", "finish")])))
      #expect(run.wait { run.result.withLock { $0?.ending == .saved } })
      let restored = try Run(VirtualMachine.Configuration(restoring: path))
      restored.start()
      defer { restored.machine.requestStop(.interrupted(.terminate)) }
      #expect(restored.echoes("z"))
    }
  }

  @Test("kept, it goes on at once") func kept() throws {
    try withRun { run, client, path in
      let file = try ReplacementFile(path)
      var line = ControlLine(client)
      #expect(isDone(ask(&line, [("verb", "save"), ("keep", true)], file.output.descriptor)))
      #expect(run.echoes("b"))
      #expect(isRefused(ask(&line, [("verb", "finish")])))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// `lguest ps` and `lguest stat` beside a run, and what a run leaves of its control socket.

import Foundation
import Host
import SystemPackage
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Control socket", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct ControlCommandTests {
    private func start(_ more: [String] = []) throws -> (run: Guest.Running, pid: String) {
      let kernel = "\(try #require(Guest.guests))/spin"
      let run = try Guest.Running(
        ["run", "--kernel", kernel, "--memory", "32M", "--timeout", "100s"] + more, limit: 110, name: "control")
      let pid = "\(run.process.processIdentifier)"
      let deadline = Date() + TestLimit.scaled(20)
      while Date() < deadline, try status(of: pid)?["hasStarted"] as? Bool != true {
        Thread.sleep(forTimeInterval: 0.05)
      }
      return (run, pid)
    }

    private func list() throws -> [[String: Any]] {
      let text = try Guest.run(["ps", "--json"], expecting: 0).output
      return try #require(JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]])
    }

    private func status(of pid: String) throws -> [String: Any]? {
      try list().first { "\($0["pid"] ?? 0)" == pid }
    }

    @Test("a run is listed while it runs, with its counters, and not afterwards") func run() throws {
      let (run, pid) = try start(["--cpus", "2"])
      let status = try #require(try status(of: pid))
      #expect(status["vcpus"] as? Int == 2 && status["memoryBytes"] as? Int == 32 << 20)
      #expect(try Guest.run(["ps"], expecting: 0).output.contains("\(pid) "))
      let text = try Guest.run(["stat", pid, "--json"], expecting: 0).output
      let look = try #require(JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
      let vcpus = try #require(look["vcpus"] as? [[String: Any]])
      #expect(
        vcpus.count == 2
          && vcpus.allSatisfy { $0["exitsByReason"] is [String: Any] && $0["registers"] is [String: Any] })
      #expect(vcpus.allSatisfy { $0["tlbFlushesSkipped"] as? Int == 0 && $0["stealNanoseconds"] is Int })
      // Asking kicks the vCPU that spins, so that there is an exit to be seen, and its cycles from then on.
      // On a busy host they may not come by in time.
      var table = ""
      for _ in 0..<20 where !table.contains("  kicked ") {
        table = try Guest.run(["stat", pid, "--count", "3", "--interval", "100ms"], expecting: 0).output
      }
      #expect(table.contains("  kicked ") && table.contains("vCPU 1") && table.contains("cycles each"))
      #expect(table.contains("TLB flushes skipped") && table.contains("steal time, us"))
      run.send(SIGTERM)
      #expect(run.finish(expecting: 143).status == 143)
      #expect(try self.status(of: pid) == nil)
      #expect(try Guest.run(["stat", pid], expecting: 69).errors.contains("lguest ps lists them"))
    }

    @Test("what a killed run leaves is removed on sight") func killed() throws {
      let (run, pid) = try start()
      let directories =
        ["/tmp/lguest-\(getuid())"]
        + (ProcessInfo.processInfo.environment["XDG_RUNTIME_DIR"].map { ["\($0)/lguest"] } ?? [])
      func sockets() -> [String] {
        directories.map { "\($0)/\(pid).socket" }.filter { FileManager.default.fileExists(atPath: $0) }
      }
      let path = try #require(sockets().first)
      let modes = try [path, (path as NSString).deletingLastPathComponent].map {
        try FileManager.default.attributesOfItem(atPath: $0)[.posixPermissions] as? Int
      }
      #expect(modes == [0o600, 0o700])
      run.send(SIGKILL)
      _ = run.finish(expecting: 1009)
      #expect(sockets() == [path])
      #expect(try status(of: pid) == nil)
      #expect(sockets().isEmpty)
    }

    /// Asks all there is to ask of a run that cannot answer, at once, beside one that can.
    private func checkSilence(of pid: String, beside other: String) throws {
      let file = Guest.temporaryPath()
      let begin = Date()
      let asking = try [["stat", pid], ["pause", pid], ["resume", pid], ["save", pid, file]].map {
        try Guest.Running($0, limit: 20, name: "silence")
      }
      let list = try list()
      let row = list.first { "\($0["pid"] ?? 0)" == pid }
      #expect(row?["answers"] as? Bool == false && row?["vcpus"] == nil)
      #expect(list.contains { "\($0["pid"] ?? 0)" == other && $0["vcpus"] as? Int != nil })
      for asked in asking {
        let result = asked.finish(expecting: 69)
        #expect(result.status == 69 && result.errorLines.count == 1, "\(result.status) \(result.errors)")
        #expect(result.errors.contains("process \(pid) does not answer"), "\(result.errors)")
      }
      #expect(Date().timeIntervalSince(begin) < TestLimit.scaled(8))
      #expect(!FileManager.default.fileExists(atPath: file))
    }

    @Test("a run that is stopped is listed so, and keeps nobody waiting") func stopped() throws {
      let (other, otherPID) = try start()
      let (run, pid) = try start()
      run.send(SIGSTOP)
      try checkSilence(of: pid, beside: otherPID)
      // Whoever gave up has not been heard.
      run.send(SIGCONT)
      #expect(TestLimit.wait(seconds: 20) { (try? self.status(of: pid))??["vcpus"] != nil })
      for ending in [run, other] {
        ending.send(SIGTERM)
        #expect(ending.finish(expecting: 143).status == 143)
      }
    }

    @Test("nor does one for which as many wait as may") func full() throws {
      let (other, otherPID) = try start()
      let (run, pid) = try start()
      run.send(SIGSTOP)
      let session = ProcessInfo.processInfo.environment["XDG_RUNTIME_DIR"].map { ["\($0)/lguest"] } ?? []
      let path = (session + ["/tmp/lguest-\(getuid())"]).map { "\($0)/\(pid).socket" }
        .first { FileManager.default.fileExists(atPath: $0) }
      var waiting: [LocalConnection] = []
      while let path, waiting.count < 1000, let connection = try? LocalConnection(to: FilePath(path)) {
        waiting.append(connection)
      }
      #expect((16..<1000).contains(waiting.count))
      try checkSilence(of: pid, beside: otherPID)
      let text = try Guest.run(["ps"], expecting: 0).output
      #expect(text.split(separator: "\n").contains { $0.contains("\(pid) ") && $0.hasSuffix("  does not answer") })
      run.send(SIGKILL)
      _ = run.finish(expecting: 1009)
      other.send(SIGTERM)
      #expect(other.finish(expecting: 143).status == 143)
    }

    @Test("nonsense is refused in one line") func nonsense() throws {
      #expect(try Guest.run(["stat", "999999999"], expecting: 69).errorLines.count == 1)
      try Guest.run(["stat", "0"], expecting: 125)
      try Guest.run(["stat", "--count", "0"], expecting: 125)
    }
  }
}

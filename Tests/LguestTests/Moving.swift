// SPDX-License-Identifier: Apache-2.0
// Guests that work and can be saved at it, for the tests of moves and of files of saved machines.

import Foundation
import Synchronization
import SystemPackage
import TestSupport

@testable import Lguest

/// Guests that move.
enum Moving {
  /// Tests/GuestCode/moving.S for so many vCPUs and rounds.
  static func guest(cpus: UInt32, rounds: UInt32) -> TinyGuest {
    var program = GuestProgram("moving")
    for (index, value) in [cpus, rounds].enumerated() { program.store(value, at: "moving_parameters", index: index) }
    return TinyGuest(code: program.bytes)
  }

  /// What it writes at its end, but for the flags.
  static func sum(cpus: UInt64, rounds: Int) -> String {
    var total: UInt64 = 0
    for cpu in 0..<cpus {
      var sum: UInt64 = 0
      for word in 0..<UInt64(65536) {
        var value = word &+ cpu
        for _ in 0..<rounds { value = value &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407 }
        sum = (sum << 1 | sum >> 63) ^ value
      }
      total ^= sum
    }
    let text = String(total, radix: 16)
    return String(repeating: "0", count: 16 - text.count) + text
  }

  /// A path that nobody uses, removed after `body`.
  static func withPath<Result>(_ body: (FilePath) throws -> Result) rethrows -> Result {
    let url = FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString).saved")
    defer { try? FileManager.default.removeItem(at: url) }
    return try body(FilePath(url.path))
  }

  /// The guest's console. The guest writes a letter a round and waits while it is taken, so it can be slowed down.
  final class Sink: Sendable {
    private let bytes = Mutex<[UInt8]>([])
    /// From so many bytes on each takes 5 ms: the guest must not come to its end before what the test does to it is
    /// done, however busy the host is.
    let isSlowFrom = Atomic<Int>(.max)
    func put(_ byte: UInt8) {
      let count = bytes.withLock {
        $0.append(byte)
        return $0.count
      }
      if count >= isSlowFrom.load(ordering: .relaxed) { usleep(5000) }
    }
    var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }
    var count: Int { bytes.withLock { $0.count } }
  }

  static func configuration(_ file: FilePath, cpus: Int, _ sink: Sink) -> VirtualMachine.Configuration {
    var configuration = VirtualMachine.Configuration(kernel: file)
    configuration.memorySize = 64 << 20
    configuration.cpuCount = cpus
    configuration.processorStart = .mailbox
    configuration.foreignHypercall = .patch
    configuration.timeout = .seconds(100)
    configuration.debugExit = true
    configuration.consoleOutput = { sink.put($0) }
    return configuration
  }

  /// Runs a machine and does something else once the guest has written so many bytes more.
  static func run(
    _ machine: VirtualMachine, after count: Int, _ sink: Sink, _ body: @escaping @Sendable (VirtualMachine) -> Void
  ) throws -> RunResult {
    let target = sink.count + count
    sink.isSlowFrom.store(target, ordering: .relaxed)
    let beside = Thread {
      while sink.count < target, machine.stopRequested == nil { Thread.sleep(forTimeInterval: 0.001) }
      body(machine)
      sink.isSlowFrom.store(.max, ordering: .relaxed)
    }
    beside.start()
    return try machine.run()
  }

  /// A small machine, saved.
  static func save(to path: FilePath, cpus: Int = 1) throws {
    let sink = Sink()
    try guest(cpus: UInt32(cpus), rounds: 1_000_000).withFile { file in
      let result = try run(VirtualMachine(configuration: configuration(file, cpus: cpus, sink)), after: 2, sink) {
        do { try $0.save(to: path) } catch { $0.requestStop(.internal) }
      }
      guard result.ending == .saved else { throw MoveError("not saved: \(result.ending)") }
    }
  }
}

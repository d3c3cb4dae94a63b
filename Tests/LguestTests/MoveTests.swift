// SPDX-License-Identifier: Apache-2.0
// Machines that are paused, saved and restored while they work, between vendors and back, and the files in between:
// nothing is lost, no clock goes back, and a bad file is refused in a line.

import Foundation
import GuestCode
import Paravirt
import Synchronization
import SystemPackage
import TestSupport
import Testing

@testable import Lguest

@Suite("Moves", .timeLimit(.minutes(10))) struct MoveTests {
  @Test("nothing is lost, no clock goes back, calls heal", arguments: [1, 4])
  func journey(cpus: Int) throws {
    let rounds = 3000
    let sink = Moving.Sink()
    try Moving.withPath { path in
      let first = try Moving.guest(cpus: UInt32(cpus), rounds: UInt32(rounds)).withFile { file in
        try Moving.run(VirtualMachine(configuration: Moving.configuration(file, cpus: cpus, sink)), after: 10, sink) {
          do { try $0.save(to: path) } catch { $0.requestStop(.internal) }
        }
      }
      #expect(first.ending == .saved)
      var patched: [UInt64] = []
      for move in 0..<6 {
        let isLast = move == 5
        let machine = try VirtualMachine.restore(path) {
          $0.cpuVendor = move % 2 == 0 ? .amd : .intel
          $0.timeout = .seconds(100)
          $0.start = .now
          $0.consoleOutput = { sink.put($0) }
        }
        let result = try Moving.run(machine, after: isLast ? 1_000_000 : 10, sink) {
          if isLast { return }
          do { try $0.save(to: path) } catch { $0.requestStop(.internal) }
        }
        #expect(result.ending == (isLast ? .debugExit(0x2A) : .saved), "move \(move): \(result.detail ?? "")")
        patched.append(result.statistics.hypercallsPatched)
        #expect(result.statistics.hypercallsEmulated == 0)
      }
      // One call site, found foreign after each move; vCPUs may meet there.
      for count in patched { #expect((1...UInt64(cpus)).contains(count)) }
      let lines = sink.text.split(separator: "\n")
      // A letter of the vendor for each round: GenuineIntel and AuthenticAMD took turns.
      let vendors = lines.first.map { $0.reduce(into: "") { if $0.last != $1 { $0.append($1) } } }
      #expect(lines.first?.count == rounds && vendors == "GAGAGAG")
      // kvmclock's flags: the guest was stopped, and the clock is stable.
      #expect(lines.last.map(String.init) == Moving.sum(cpus: UInt64(cpus), rounds: rounds) + " 3")
    }
  }

  @Test("saved and kept, paused and resumed", arguments: [1, 2]) func kept(cpus: Int) throws {
    let rounds = 5000
    let sink = Moving.Sink()
    try Moving.withPath { path in
      let stood = Mutex<[Int]>([])
      let result = try Moving.guest(cpus: UInt32(cpus), rounds: UInt32(rounds)).withFile { file in
        try Moving.run(VirtualMachine(configuration: Moving.configuration(file, cpus: cpus, sink)), after: 5, sink) {
          machine in
          do {
            for _ in 0..<3 {
              try machine.pause()
              try machine.pause()
              let before = sink.count
              Thread.sleep(forTimeInterval: 0.05)
              stood.withLock { $0.append(sink.count - before) }
              try machine.resume()
              Thread.sleep(forTimeInterval: 0.01)
            }
            try machine.save(to: path, keeping: true)
          } catch { machine.requestStop(.internal) }
        }
      }
      #expect(result.ending == .debugExit(0x2A) && stood.withLock { $0 } == [0, 0, 0])
      #expect(
        sink.text.split(separator: "\n").last.map(String.init) == Moving.sum(cpus: UInt64(cpus), rounds: rounds) + " 3")
      // The same file twice, the second time with an other vendor.
      for vendor in [VirtualMachine.Configuration.CPUVendor.intel, .amd] {
        let again = Moving.Sink()
        let machine = try VirtualMachine.restore(path) {
          $0.cpuVendor = vendor
          $0.timeout = .seconds(100)
          $0.consoleOutput = { again.put($0) }
        }
        #expect(try machine.run().ending == .debugExit(0x2A))
        #expect(again.text.split(separator: "\n").last == sink.text.split(separator: "\n").last)
      }
    }
  }

  @Test("a halted guest is saved; nothing to pause before and after") func halted() throws {
    try Moving.withPath { path in
      let sink = Moving.Sink()
      try TinyGuest.halt.withFile { file in
        let machine = VirtualMachine(configuration: Moving.configuration(file, cpus: 1, sink))
        #expect(throws: MoveError.self) { try machine.pause() }
        let result = try Moving.run(machine, after: 0, sink) { machine in
          while machine.stopRequested == nil, machine.sampleStatistics()?.first?[.halt] ?? 0 == 0 {
            Thread.sleep(forTimeInterval: 0.005)
          }
          do { try machine.save(to: path) } catch { machine.requestStop(.internal) }
        }
        #expect(result.ending == .saved)
        #expect(throws: MoveError.self) { try machine.save(to: path) }
      }
      let restored = try VirtualMachine.restore(path) { $0.timeout = .milliseconds(300) }
      let result = try restored.run()
      #expect(result.ending == .timeout && result.statistics[.halt] == 0)
    }
  }

  @Test("what cannot be written leaves the machine running and no file") func unwritable() throws {
    let sink = Moving.Sink()
    let failure = Mutex("")
    let result = try Moving.guest(cpus: 1, rounds: 2000).withFile { file in
      try Moving.run(VirtualMachine(configuration: Moving.configuration(file, cpus: 1, sink)), after: 2, sink) {
        machine in
        do { try machine.save(to: "/nonexistent/file") } catch { failure.withLock { $0 = "\(error)" } }
      }
    }
    #expect(result.ending == .debugExit(0x2A) && failure.withLock { $0 }.contains("/nonexistent/file"))
  }
}

@Suite("Saved files", .timeLimit(.minutes(10))) struct SaveFileTests {
  /// Whether opening the file and checking its RAM succeed; the line of the refusal otherwise.
  private static func refusal(_ path: FilePath) -> String? {
    do throws(ConfigurationError) {
      let file = try SaveFile(path)
      _ = try file.configuration
      _ = try file.clock
      _ = try file.makeMemory(nil)
      return nil
    } catch { return error.description }
  }

  @Test("truncated anywhere, it is refused") func truncation() throws {
    try Moving.withPath { path in
      try Moving.save(to: path)
      #expect(SaveFileTests.refusal(path) == nil)
      let header = try SaveFile(path).header
      let url = URL(filePath: path.string)
      let handle = try FileHandle(forUpdating: url)
      var lengths: Set<UInt64> = [0, 1, 8, 4095, 4096, header.memoryOffset + header.memoryByteCount]
      for entry in header.entries {
        lengths.formUnion([entry.offset, entry.offset + 1, entry.offset + entry.byteCount - 1])
      }
      // Nothing is put back: from the end to the beginning.
      for length in lengths.sorted().reversed() {
        try handle.truncate(atOffset: length)
        let line = try #require(SaveFileTests.refusal(path), "\(length)")
        #expect(!line.contains("\n") && (line.contains("truncated") || line.contains("not a saved machine")), "\(line)")
      }
    }
  }

  @Test("with a bit changed anywhere, it is refused") func bitFlips() throws {
    try Moving.withPath { path in
      try Moving.save(to: path)
      let header = try SaveFile(path).header
      let handle = try FileHandle(forUpdating: URL(filePath: path.string))
      let size = header.fileByteCount
      let memoryEnd = header.memoryOffset + header.memoryByteCount
      var places: [UInt64] = Array(0..<80) + [2000, 4095, 4096, memoryEnd - 1, memoryEnd, size - 1]
      for entry in header.entries where entry.byteCount > 0 { places.append(entry.offset + entry.byteCount / 2) }
      // The guest's code, its regions, and pages that are holes.
      places += [header.memoryOffset + 1 << 20, header.memoryOffset + 16 << 20, header.memoryOffset + 40 << 20]
      var random = SeededGenerator("bits of a saved file")
      for _ in 0..<40 { places.append(UInt64.random(in: 0..<size, using: &random)) }
      for place in places {
        try handle.seek(toOffset: place)
        let byte = try #require(try handle.read(upToCount: 1)?.first)
        try handle.seek(toOffset: place)
        try handle.write(contentsOf: [byte ^ 1 << UInt8.random(in: 0..<8, using: &random)])
        let line = try #require(SaveFileTests.refusal(path), "\(place)")
        #expect(!line.contains("\n") && line.contains(path.string), "\(place): \(line)")
        try handle.seek(toOffset: place)
        try handle.write(contentsOf: [byte])
      }
      #expect(SaveFileTests.refusal(path) == nil)
    }
  }

  @Test("a newer file, another file, no file") func others() throws {
    var header = SaveFileHeader()
    header.version = SaveFileHeader.version + 1
    try Moving.withPath { path in
      try Data(header.encoded()).write(to: URL(filePath: path.string))
      #expect(SaveFileTests.refusal(path)?.contains("newer") == true)
      try Data("#!/bin/sh\n".utf8).write(to: URL(filePath: path.string))
      #expect(SaveFileTests.refusal(path)?.contains("not a saved machine") == true)
    }
    #expect(SaveFileTests.refusal("/nonexistent")?.contains("/nonexistent") == true)
    #expect(SaveFileTests.refusal("/tmp")?.contains("directory") == true)
  }

  @Test("what the guest would notice cannot be changed") func changes() throws {
    try Moving.withPath { path in
      try Moving.save(to: path)
      for change: (inout VirtualMachine.Configuration) -> Void in [
        { $0.cpuCount = 2 }, { $0.memorySize = 128 << 20 }, { $0.cpuModel = "x86-64-v4" }, { $0.kvmAPI = .year2007 },
        { $0.machine = .testdev },
      ] {
        let machine = try VirtualMachine.restore(path, adjust: change)
        #expect(throws: ConfigurationError.self) { try machine.validate() }
      }
    }
  }

  @Test("only its user may read a saved machine, and nothing else is left") func permissions() throws {
    try Moving.withPath { path in
      try Moving.save(to: path)
      let attributes = try FileManager.default.attributesOfItem(atPath: path.string)
      #expect(attributes[.posixPermissions] as? Int == 0o600)
      let name = try #require(path.lastComponent?.string)
      let names = try FileManager.default.contentsOfDirectory(atPath: path.removingLastComponent().string)
      #expect(names.filter { $0.hasPrefix(name) } == [name])
    }
  }

  @Test("the rate of the time-stamp counter must be the host's") func rate() throws {
    var saved = SavedConfiguration()
    saved.timestampKilohertz = 2_000_000
    #expect(throws: ConfigurationError.self) { try saved.counter(host: #require(.init(kilohertz: 2_100_000))) }
    #expect(try saved.counter(host: #require(.init(kilohertz: 2_000_100))).kilohertz == 2_000_000)
  }
}

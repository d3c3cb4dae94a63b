// SPDX-License-Identifier: Apache-2.0
// Guests of lguest's interface that are saved at their work and go on in another process: the project's own in every era,
// with a disk, and across a restart.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Moves of lguest's guests", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct LguestMoveTests {
    /// What the guest says once a round, and how many rounds there are.
    private static let round = "written by a driver\n"
    private static let rounds = 120

    private func start(_ era: String, _ word: String, _ more: [String] = []) throws -> Guest.Running {
      try Guest.Running(
        Ring1Guest.arguments(era, ["--cmdline", word] + more), limit: 40, name: "lguest-move")
    }

    private func restore(_ file: String, _ more: [String] = []) throws -> Guest.Running {
      try Guest.Running(["restore", file, "--timeout", "30s"] + more, limit: 40, name: "lguest-move")
    }

    /// Saves a run that has said something so many times, and ends it.
    ///
    /// - Returns: what it wrote.
    private func save(_ run: Guest.Running, to file: String, after count: Int, of text: String = round) throws -> String
    {
      #expect(run.waitForOutput(text, count: count, seconds: 60))
      _ = try Guest.run(["save", "\(run.process.processIdentifier)", file], expecting: 0)
      let result = run.finish(expecting: 0)
      #expect(result.errors.contains("the machine was saved"), "\(result)")
      return result.output
    }

    private func withFile(_ body: (String) throws -> Void) rethrows {
      let file = Guest.temporaryPath()
      defer { try? FileManager.default.removeItem(atPath: file) }
      try body(file)
    }

    @Test("a guest goes from process to process", arguments: ["23", "24", "25", "30", "31", "35", "311", "40"])
    func journey(era: String) throws {
      try withFile { file in
        var output = try save(start(era, "moving"), to: file, after: 20)
        output += try save(restore(file), to: file, after: 20)
        output += try restore(file).finish(expecting: 0).output
        // No round is lost or done twice, and every check of each holds.
        #expect(
          output == String(repeating: LguestMoveTests.round, count: LguestMoveTests.rounds) + "all passed\n",
          "\(output)")
      }
    }

    @Test("a restart after a move begins as it did at first", arguments: ["23", "311"]) func restart(era: String) throws
    {
      try withFile { file in
        let before = try save(start(era, "again"), to: file, after: 5)
        #expect(before.hasPrefix("begin\n") && !before.contains("FAIL"), "\(before)")
        let run = try restore(file)
        #expect(run.waitForOutput("begin\n", count: 2, seconds: 60))
        run.send(SIGTERM)
        let after = run.finish(expecting: 143)
        #expect(!after.output.contains("FAIL"), "\(after)")
        let ended = try save(start(era, "again", ["--no-reboot"]), to: file, after: 5)
        #expect(ended.hasPrefix("begin\n"))
        let last = try restore(file).finish(expecting: 0)
        #expect(!last.output.contains("begin") && !last.output.contains("FAIL"), "\(last)")
      }
    }

    /// A first sector as the guest expects it.
    private func withDisk(_ body: (String) throws -> Void) throws {
      try withFile { image in
        var bytes = Data(count: 1 << 20)
        (bytes[0], bytes[511]) = (UInt8(ascii: "s"), UInt8(ascii: "e"))
        try bytes.write(to: URL(filePath: image))
        try body(image)
      }
    }

    @Test("a disk is named by whoever restores, and is the one of that time", arguments: ["311", "40"])
    func disks(era: String) throws {
      try withDisk { image in
        try withFile { file in
          var output = try save(start(era, "moving", ["--disk", image]), to: file, after: 20)
          func refuse(_ more: [String], _ text: String) throws {
            let result = try Guest.run(["restore", file, "--timeout", "20s"] + more, limit: 30, expecting: 69)
            #expect(result.errorLines.count == 1 && result.errors.contains(text) && result.output.isEmpty, "\(result)")
          }
          try refuse([], "the saved machine has 1 disk, and 0 were named; they were '\(image)'; name")
          try refuse(["--disk", image, "--disk", image], "and 2 were named")
          try refuse(["--disk", "/nowhere"], "cannot read disk '/nowhere'")
          let copy = file + ".disk"
          defer { try? FileManager.default.removeItem(atPath: copy) }
          try (Data(contentsOf: URL(filePath: image)) + Data(count: 512)).write(to: URL(filePath: copy))
          try refuse(["--disk", copy], "has 1049088 bytes, and the saved machine's had 1048576")
          output += try save(restore(file, ["--disk", image]), to: file, after: 20)
          try FileManager.default.removeItem(atPath: copy)
          try FileManager.default.copyItem(atPath: image, toPath: copy)
          let date = try FileManager.default.attributesOfItem(atPath: image)[.modificationDate]
          try FileManager.default.setAttributes([.modificationDate: try #require(date)], ofItemAtPath: copy)
          let handle = try FileHandle(forUpdating: URL(filePath: image))
          try handle.write(contentsOf: Data("s".utf8))
          try handle.close()
          try refuse(["--disk", image], "has been written since the machine was saved")
          let link = file + ".link"
          defer { try? FileManager.default.removeItem(atPath: link) }
          try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: image)
          try refuse(["--disk", link], "has been written since the machine was saved")
          output += try restore(file, ["--disk", copy]).finish(expecting: 0).output
          #expect(
            output == String(repeating: LguestMoveTests.round, count: LguestMoveTests.rounds) + "all passed\n",
            "\(output)")
        }
      }
    }

    @Test("a machine with a network is not saved, and goes on") func network() throws {
      let socket = Guest.temporaryPath()
      let run = try Ring1Guest.startWaiting(["--net", "listen:\(socket)"], name: "lguest-move")
      let refused = try Guest.run(["save", "\(run.process.processIdentifier)", Guest.temporaryPath()], expecting: 69)
      #expect(
        refused.errorLines.count == 1 && refused.errors.contains("a machine with a network cannot be saved"),
        "\(refused)")
      #expect(run.process.isRunning)
      run.send(SIGTERM)
      _ = run.finish(expecting: 143)
    }
  }
}

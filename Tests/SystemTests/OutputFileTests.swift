// SPDX-License-Identifier: Apache-2.0
// Files that a run writes and that are there already: a FIFO is written to if somebody reads it, and not waited for long.

import Foundation
import Testing

extension SystemTests {
  @Suite(
    "Output files", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct OutputFileTests {
    private func withPipe(_ body: (String) throws -> Void) throws {
      let path = Guest.temporaryPath()
      let made = unsafe mkfifo(path, 0o600)
      #expect(made == 0)
      defer { try? FileManager.default.removeItem(atPath: path) }
      try body(path)
    }

    private func arguments() throws -> [String] {
      ["run", "--kernel", "\(try #require(Guest.guests))/hello", "--memory", "32M", "--timeout", "10s"]
    }

    @Test("a FIFO that nobody reads is refused in a line", arguments: ["--json", "--trace", "--histogram"])
    func nobody(option: String) throws {
      try withPipe { path in
        let result = try Guest.run(arguments() + [option, path], limit: 10, expecting: 69)
        #expect(result.errorLines.count == 1 && result.errors.contains(path), "\(result.errors)")
        #expect(result.errors.contains("nobody reads"))
      }
    }

    @Test("a reader may come a little later") func late() throws {
      try withPipe { path in
        let reader = Process()
        reader.executableURL = URL(filePath: "/bin/sh")
        reader.arguments = ["-c", "sleep 0.3; exec cat \"$0\"", path]
        let output = Pipe()
        reader.standardOutput = output
        try reader.run()
        try Guest.run(arguments() + ["--json", path], limit: 10, expecting: 0)
        let object = try JSONSerialization.jsonObject(with: output.fileHandleForReading.readDataToEndOfFile())
        #expect((object as? [String: Any])?["cause"] as? String == "reset")
        reader.waitUntilExit()
      }
    }

    @Test("a wrong command line does not wait long either") func usage() throws {
      try withPipe { path in
        let result = try Guest.run(["run", "--bogus", "--json", path], limit: 10, expecting: 125)
        #expect(result.errorLines.count == 2 && result.errors.contains("nobody reads"), "\(result.errors)")
      }
    }

    @Test("one that is read gets the object") func reader() throws {
      try withPipe { path in
        let reader = unsafe open(path, O_RDONLY | O_NONBLOCK)
        defer { close(reader) }
        try Guest.run(arguments() + ["--json", path], limit: 10, expecting: 0)
        let file = FileHandle(fileDescriptor: reader, closeOnDealloc: false)
        let object = try JSONSerialization.jsonObject(with: file.readDataToEndOfFile()) as? [String: Any]
        #expect(object?["cause"] as? String == "reset")
      }
    }
  }
}

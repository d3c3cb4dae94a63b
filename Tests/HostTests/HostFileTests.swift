// SPDX-License-Identifier: Apache-2.0
// Files of the host's: what can be opened as what, and reads beyond their ends.

import Host
import SystemPackage
import Testing

@Suite("Host files")
struct HostFileTests {
  @Test("Files: what cannot be a kernel or disk is refused in one line")
  func files() throws {
    for (path, word) in [("/", "directory"), ("/dev/null", "regular"), ("/nonexistent", "check the path")] {
      do throws(HostError) {
        _ = try HostFile(FilePath(path), role: "kernel image")
        Issue.record("\(path) was opened")
      } catch {
        #expect(error.description.contains(word) && error.description.contains("kernel image \(path)"))
        #expect(!error.description.contains("\n"))
      }
    }
    let file = try HostFile("/proc/self/exe", role: "program")
    #expect(throws: HostError.self) { try file.bytes(at: Int.max, count: 1) }
    #expect(throws: HostError.self) { try file.bytes(at: 0, count: Int.max) }
  }
}

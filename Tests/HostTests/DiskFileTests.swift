// SPDX-License-Identifier: Apache-2.0
// Disk images: reading, writing, locks, and files that are none.

import Foundation
import Host
import SystemPackage
import Testing

@Suite("Disk images") struct DiskFileTests {
  private func withImage(_ bytes: [UInt8], _ body: (FilePath) throws -> Void) throws {
    let file = FileManager.default.temporaryDirectory.appending(path: "lguest-disk-\(UUID().uuidString)")
    try Data(bytes).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    try body(FilePath(file.path))
  }

  @Test("bytes go to their places and come back") func bytes() throws {
    try withImage([UInt8](repeating: 1, count: 5000)) { path in
      do {
        let disk = try DiskFile(path, isReadOnly: false)
        #expect(disk.byteCount == 5000 && !disk.isReadOnly)
        #expect(disk.write([2, 3, 4], at: 4096) && disk.flush())
        #expect(disk.bytes(at: 4095, count: 5) == [1, 2, 3, 4, 1])
        // Beyond the end there is nothing, and no address is so large that it is somewhere else.
        #expect(disk.bytes(at: 4999, count: 2) == nil && disk.bytes(at: .max, count: 1) == nil)
        #expect(disk.bytes(at: UInt64(Int64.max), count: 1) == nil && !disk.write([1], at: .max))
        #expect(disk.bytes(at: 0, count: 0) == [])
        let handle = try #require(FileHandle(forWritingAtPath: path.string))
        try handle.truncate(atOffset: 100)
        #expect(disk.bytes(at: 64, count: 64) == nil && disk.bytes(at: 0, count: 100) != nil)
      }
      let disk = try DiskFile(path, isReadOnly: true)
      #expect(!disk.write([9], at: 0) && disk.flush() && disk.bytes(at: 0, count: 1) == [1])
    }
  }

  @Test("one machine writes, or several read") func locks() throws {
    func refusal(_ path: FilePath, isReadOnly: Bool) -> String? {
      do throws(HostError) {
        _ = try DiskFile(path, isReadOnly: isReadOnly)
        return nil
      } catch { return error.description }
    }
    try withImage([UInt8](repeating: 0, count: 512)) { path in
      do {
        let writer = try DiskFile(path, isReadOnly: false)
        for isReadOnly in [true, false] {
          let text = try #require(refusal(path, isReadOnly: isReadOnly))
          #expect(text.contains("another machine uses it") && !text.contains("\n"))
        }
        #expect(!writer.isReadOnly)
      }
      let reader = try DiskFile(path, isReadOnly: true)
      #expect(refusal(path, isReadOnly: true) == nil && refusal(path, isReadOnly: false) != nil && reader.isReadOnly)
    }
  }

  @Test("what is no disk image is refused in a line", arguments: ["/", "/dev/null", "/nowhere/at/all", ""])
  func refusals(path: String) {
    let error = #expect(throws: HostError.self) { try DiskFile(FilePath(path), isReadOnly: true) }
    #expect(error.map { $0.description.contains("disk") && !$0.description.contains("\n") } == true)
  }
}

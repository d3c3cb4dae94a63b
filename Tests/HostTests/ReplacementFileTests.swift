// SPDX-License-Identifier: Apache-2.0
// A file that replaces another: it is there when it is complete and not before, and one that was given up leaves
// nothing.

import Foundation
import SystemPackage
import Testing

@testable import Host

@Suite("Files that replace others") struct ReplacementFileTests {
  /// Does something with an empty directory.
  private func withDirectory(_ body: (FilePath) throws -> Void) throws {
    let url = FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: false)
    defer { try? FileManager.default.removeItem(at: url) }
    try body(FilePath(url.path))
  }

  private func names(in directory: FilePath) throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: directory.string).sorted()
  }

  private func text(_ path: FilePath) -> String? { HostFile.text(path) }

  @Test("it appears whole, replaces the old one, and who has that open keeps it", arguments: [true, false])
  func commit(canBeNameless: Bool) throws {
    try withDirectory { directory in
      let path = directory.appending("file")
      for content in ["first", "second, longer"] {
        let old = try? HostFile(path, role: "old")
        let file = try ReplacementFile(path, canBeNameless: canBeNameless)
        try file.output.setSize(content.utf8.count)
        try file.output.write(Array(content.utf8), at: 0)
        #expect(text(path) == (content == "first" ? nil : "first"))
        try file.commit()
        #expect(text(path) == content && text(directory.appending("file")) == content)
        if let old { #expect(try old.bytes(at: 0, count: old.byteCount) == Array("first".utf8)) }
      }
      #expect(try names(in: directory) == ["file"])
      let mode = try FileManager.default.attributesOfItem(atPath: path.string)[.posixPermissions] as? Int
      #expect(mode == 0o600)
    }
  }

  @Test("one that was given up leaves nothing", arguments: [true, false]) func abandoned(canBeNameless: Bool) throws {
    try withDirectory { directory in
      do {
        let file = try ReplacementFile(directory.appending("file"), canBeNameless: canBeNameless)
        try file.output.write([1, 2, 3], at: 4096)
        // Less than nothing: refused as a full disk refuses a write.
        #expect(throws: HostError.self) { try file.output.setSize(-1) }
      }
      #expect(try names(in: directory).isEmpty)
    }
  }

  @Test("one that cannot have its name leaves nothing", arguments: [true, false]) func refused(canBeNameless: Bool)
    throws
  {
    try withDirectory { directory in
      let path = directory.appending("directory")
      do {
        let file = try ReplacementFile(path, canBeNameless: canBeNameless)
        try file.output.write([1, 2, 3], at: 0)
        try FileManager.default.createDirectory(atPath: path.string, withIntermediateDirectories: false)
        #expect(throws: HostError.self) { try file.commit() }
      }
      // Nor does it replace what is no regular file.
      for other in [path, "/dev/null"] {
        #expect(throws: HostError.self) { try ReplacementFile(other, canBeNameless: canBeNameless) }
      }
      #expect(try names(in: directory) == ["directory"])
      #expect(throws: HostError.self) {
        try ReplacementFile(directory.appending("none/file"), canBeNameless: canBeNameless)
      }
    }
  }

  @Test("links are followed, to what is there and to what is not", arguments: [true, false])
  func links(canBeNameless: Bool) throws {
    try withDirectory { directory in
      let link = directory.appending("link"), loop = directory.appending("loop")
      try FileManager.default.createSymbolicLink(atPath: link.string, withDestinationPath: "second")
      try FileManager.default.createSymbolicLink(
        atPath: directory.appending("second").string, withDestinationPath: directory.appending("file").string)
      try FileManager.default.createSymbolicLink(atPath: loop.string, withDestinationPath: "loop")
      for content in ["first", "other"] {
        let file = try ReplacementFile(link, canBeNameless: canBeNameless)
        try file.output.write(Array(content.utf8), at: 0)
        try file.commit()
        #expect(text(directory.appending("file")) == content && text(link) == content)
      }
      #expect(try FileManager.default.destinationOfSymbolicLink(atPath: link.string) == "second")
      #expect(throws: HostError.self) { try ReplacementFile(loop, canBeNameless: canBeNameless) }
      #expect(try names(in: directory) == ["file", "link", "loop", "second"])
    }
  }

  @Test("what a process has open, as /dev/stdout, is not replaced") func openFile() throws {
    try withDirectory { directory in
      let path = directory.appending("file"), link = directory.appending("link")
      try Data("kept".utf8).write(to: URL(filePath: path.string))
      let open = try FileDescriptor.open(path, .readOnly)
      defer { try? open.close() }
      try FileManager.default.createSymbolicLink(
        atPath: link.string, withDestinationPath: "/proc/self/fd/\(open.rawValue)")
      #expect(ReplacementFile.isOpenFile(link) && !ReplacementFile.isOpenFile(path))
      #expect(throws: HostError.self) { try ReplacementFile(link) }
      #expect(text(path) == "kept")
    }
  }

  /// /dev/shm is a tmpfs, which has nameless files.
  @Test(
    "nobody sees it before it is complete, so that nothing is left of a process that was killed",
    .enabled(if: FileManager.default.isWritableFile(atPath: "/dev/shm"), "no /dev/shm"))
  func nameless() throws {
    let directory = FilePath("/dev/shm/lguest-\(UUID().uuidString)")
    try FileManager.default.createDirectory(atPath: directory.string, withIntermediateDirectories: false)
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    let file = try ReplacementFile(directory.appending("file"))
    try file.output.write([1, 2, 3], at: 0)
    #expect(try names(in: directory).isEmpty)
    try file.commit()
    #expect(try names(in: directory) == ["file"])
  }
}

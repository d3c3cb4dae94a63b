// SPDX-License-Identifier: Apache-2.0
// Files that get their names, and lose them, by the process that keeps the right to do that.

import Foundation
import SystemPackage
import Testing

@testable import Host

@Suite("Names by another process") struct NameKeeperTests {
  @Test("a file gets its name when that is asked for, and another loses it", arguments: [true, false], [true, false])
  func jobs(isSeparate: Bool, canBeNameless: Bool) throws {
    let url = FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: false)
    defer { try? FileManager.default.removeItem(at: url) }
    let directory = FilePath(url.path)
    func names() throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: url.path).sorted() }
    for name in ["new", "old"] { try Data("before".utf8).write(to: url.appending(path: name)) }

    let file = try ReplacementFile(
      directory.appending("new"), permissions: FilePermissions(rawValue: 0o644), canBeNameless: canBeNameless)
    let keeper = try NameKeeper(
      [.remove(directory.appending("old")), .name(file), .remove(directory.appending("none"))], filter: nil,
      isSeparate: isSeparate)
    #expect((keeper.process != nil) == isSeparate)
    try file.output.write(Array("after".utf8), at: 0)
    #expect(HostFile.text(directory.appending("new")) == "before")
    #expect(keeper.perform(1) == nil && HostFile.text(directory.appending("new")) == "after")
    #expect(keeper.perform(0) == nil)
    #expect(try names() == ["new"])
    #expect(keeper.perform(0) == .noSuchFileOrDirectory && keeper.perform(2) == .noSuchFileOrDirectory)
    keeper.end()
    if isSeparate { #expect(keeper.perform(1) == .brokenPipe) }
  }

  @Test("where there is no directory, there is no keeper") func refused() {
    #expect(throws: HostError.self) {
      try NameKeeper([.remove("/nonexistent/file")], filter: nil, isSeparate: false)
    }
  }
}

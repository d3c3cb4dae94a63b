// SPDX-License-Identifier: Apache-2.0
// The archive writer: its bytes, and what cpio makes of them.

import Foundation
import Lguest
import SystemPackage
import Testing

private let cpio =
  ["/usr/bin/cpio", "/bin/cpio"].first { FileManager.default.isExecutableFile(atPath: $0) }
  ?? ProcessInfo.processInfo.environment["LGUEST_TEST_CPIO"]

private func sample() -> Initramfs {
  var archive = Initramfs()
  archive.directory("/dev")
  archive.characterDevice("dev/console", major: 5, minor: 1)
  archive.blockDevice("dev/vda", major: 254, minor: 0, mode: 0o660)
  archive.file("init", [UInt8]("#!/bin/sh\n".utf8), mode: 0o755)
  archive.symbolicLink("sbin", to: "usr/sbin")
  archive.file("odd", [1, 2, 3])
  archive.file("empty", [])
  return archive
}

@Suite("Initial RAM disk archives")
struct InitramfsTests {
  @Test("Entries are as the format says")
  func layout() {
    let bytes = sample().bytes
    #expect(bytes.count % 512 == 0)
    var names: [String] = []
    var offset = 0
    while true {
      func word(_ n: Int) -> Int {
        Int(String(decoding: bytes[offset + 6 + 8 * n..<offset + 14 + 8 * n], as: UTF8.self), radix: 16) ?? -1
      }
      #expect(String(decoding: bytes[offset..<offset + 6], as: UTF8.self) == "070701")
      let nameCount = word(11)
      let name = String(decoding: bytes[offset + 110..<offset + 110 + nameCount - 1], as: UTF8.self)
      #expect(bytes[offset + 110 + nameCount - 1] == 0)
      names.append(name)
      let data = (offset + 110 + nameCount + 3) & ~3
      switch name {
      case "dev": #expect(word(1) == 0o040755 && word(4) == 2)
      case "dev/console": #expect(word(1) == 0o020600 && word(9) == 5 && word(10) == 1)
      case "dev/vda": #expect(word(1) == 0o060660 && word(9) == 254 && word(10) == 0)
      case "init": #expect(word(1) == 0o100755 && word(6) == 10 && bytes[data] == 0x23)
      case "sbin":
        #expect(word(1) == 0o120777 && String(decoding: bytes[data..<data + word(6)], as: UTF8.self) == "usr/sbin")
      default: break
      }
      offset = (data + word(6) + 3) & ~3
      if name == "TRAILER!!!" { break }
    }
    #expect(names == ["dev", "dev/console", "dev/vda", "init", "sbin", "odd", "empty", "TRAILER!!!"])
  }

  @Test("Equal contents give equal bytes")
  func reproducible() { #expect(sample().bytes == sample().bytes) }

  @Test("cpio lists it", .enabled(if: cpio != nil, "install cpio, or set LGUEST_TEST_CPIO to one"))
  func listing() throws {
    let scratch = try Scratch()
    let archive = try scratch.write(sample().bytes)
    let process = Process()
    process.executableURL = URL(fileURLWithPath: cpio!)
    process.arguments = ["-itv", "--numeric-uid-gid", "--quiet"]
    process.standardInput = try FileHandle(forReadingFrom: URL(fileURLWithPath: archive.string))
    let output = Pipe()
    process.standardOutput = output
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    let lines = text.split(separator: "\n").map { $0.split(separator: " ", omittingEmptySubsequences: true) }
    #expect(
      lines.map { $0[0] } == [
        "drwxr-xr-x", "crw-------", "brw-rw----", "-rwxr-xr-x", "lrwxrwxrwx", "-rw-r--r--", "-rw-r--r--",
      ])
    #expect(text.contains("sbin -> usr/sbin") && text.contains("dev/console"))
  }
}

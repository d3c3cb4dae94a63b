// SPDX-License-Identifier: Apache-2.0
// The lines of the control socket, and JSON from strangers.

import Foundation
import Host
import SystemPackage
import TestSupport
import Testing

@testable import Lguest

@Suite("JSON from text") struct JSONParserTests {
  @Test(
    "what was written is read",
    arguments: [
      "null", "true", "[]", "{}", "0", "-1", "18446744073709551615", "1.5", "\"\"", "[1,[2,{\"a\":null}]]",
      "{\"a\":\"\\n\\\"\\\\ é \u{1F600}\",\"b\":[false]}",
    ])
  func roundTrip(text: String) throws {
    #expect(try #require(JSONParser.value(text)).text(indented: false) == text)
  }

  @Test func escapes() {
    #expect(JSONParser.value(#""\u0041\ud83d\ude00\/\b""#)?.stringValue == "A\u{1F600}/\u{8}")
    #expect(JSONParser.value(" { \"a\" : [ 1 , 2 ] } ")?["a"]?.elements?.count == 2)
    #expect(JSONParser.value("-9e2")?.numberValue == -900)
  }

  @Test(
    "what is not JSON is nothing",
    arguments: [
      "", " ", "nul", "tru e", "[1,]", "[1", "{\"a\"}", "{a:1}", "{\"a\":1,}", "01", "+1", "1.", ".5", "1e", "--1",
      "\"", "\"\u{1}\"",
      #""\u12""#, #""\ud800""#, #""\udc00\ud800""#, #""\x""#, "1 2", "[}", "NaN", "\u{0}",
    ])
  func malformed(text: String) { #expect(JSONParser.value(text) == nil) }

  @Test("depth has a limit") func depth() {
    #expect(JSONParser.value(String(repeating: "[", count: 31) + String(repeating: "]", count: 31)) != nil)
    #expect(JSONParser.value(String(repeating: "[", count: 100_000)) == nil)
  }

  @Test("a number has a limit") func longNumber() {
    #expect(JSONParser.value(String(repeating: "1", count: JSONParser.longestNumber))?.numberValue != nil)
    #expect(JSONParser.value(String(repeating: "1", count: JSONParser.longestNumber + 1)) == nil)
    #expect(JSONParser.value(String(repeating: "9", count: 1_000_000)) == nil)
  }
}

@Suite("Control socket") struct ControlTests {
  private func directory() throws -> FilePath {
    let path = FilePath("/tmp/lguest-test-\(UUID().uuidString)")
    try LocalSocket.makePrivateDirectory(path)
    return path
  }

  @Test("a line goes there and back, in pieces and several at once") func lines() throws {
    let directory = try directory()
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    let listener = try LocalListener(at: directory.appending("s"))
    let client = try LocalConnection(to: listener.path)
    let server = try #require(listener.accept(milliseconds: 1000))
    #expect(server.peer?.user == LocalSocket.user && client.peer?.process == LocalSocket.process)
    var line = ControlLine(server)
    #expect(client.send(Array("{\"ve".utf8)))
    #expect(line.next(milliseconds: 50) == nil)
    #expect(client.send(Array("rb\":1}\nsecond\nthi".utf8)))
    #expect(line.next(milliseconds: 1000) == "{\"verb\":1}")
    #expect(line.next(milliseconds: 1000) == "second")
    #expect(line.next(milliseconds: 50) == nil)
    #expect(client.receive(milliseconds: 10) == nil)
    listener.close()
    #expect(listener.accept(milliseconds: 1000) == nil && !FileManager.default.fileExists(atPath: listener.path.string))
    #expect(throws: HostError.self) { _ = try LocalConnection(to: listener.path) }
  }

  @Test("where as many wait as may, nobody else does for long") func full() throws {
    let directory = try directory()
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    let listener = try LocalListener(at: directory.appending("s"))
    defer { listener.close() }
    var waiting: [LocalConnection] = []
    let begin = ContinuousClock.now
    #expect(throws: HostError.self) {
      for _ in 0..<1000 { waiting.append(try LocalConnection(to: listener.path, milliseconds: 100)) }
    }
    #expect((16..<1000).contains(waiting.count) && ContinuousClock.now - begin < .seconds(10))
    #expect(listener.accept(milliseconds: 0) != nil)
    waiting.append(try LocalConnection(to: listener.path))
  }

  @Test("a line that comes byte by byte has no more time than another") func slowLine() throws {
    let directory = try directory()
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    let listener = try LocalListener(at: directory.appending("s"))
    let client = try LocalConnection(to: listener.path)
    let server = try #require(listener.accept(milliseconds: 1000))
    let thread = try HostThread(name: "test-slow") {
      for _ in 0..<200 {
        guard client.send([0x20]) else { return }
        usleep(10_000)
      }
    }
    var line = ControlLine(server)
    let begin = ContinuousClock.now
    #expect(line.next(milliseconds: 100) == nil)
    // Each byte comes in time; all of them take two seconds.
    #expect(ContinuousClock.now - begin < .milliseconds(1500))
    thread.join()
    listener.close()
  }

  @Test("requests that make no sense are refused in a line, and nothing is written") func requests() throws {
    let directory = try directory()
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    let listener = try LocalListener(at: directory.appending("s"))
    defer { listener.close() }
    let server = ControlServer(VirtualMachine(configuration: .init(kernel: "/nonexistent")), listener) {}
    var conversation = ControlServer.Conversation()
    let path = "/tmp/lguest-test-\(UUID().uuidString)"
    for text in [
      "", "{}", "[]", "1", "{\"verb\":1}", "{\"verb\":null}", "{\"verb\":\"\"}", "{\"verb\":\"save\"}",
      "{\"verb\":\"save\",\"file\":1e300}", "{\"verb\":\"save\",\"file\":\"relative\"}",
      "{\"verb\":\"save\",\"file\":\"\"}", "{\"verb\":\"save\",\"file\":\"\(path)\\u0000.txt\"}",
      "{\"verb\":\"save\",\"file\":\"\(path)\",\"keep\":18446744073709551616}", "{\"verb\":\"stat\",\"stat\":[{}]}",
      "{\"verb\":\"\(String(repeating: "x", count: 100_000))\"}", "{\"verb\":\"pause\"}", "{\"verb\":\"resume\"}",
    ] {
      let answer = server.reply(to: text, &conversation)
      guard case .bool(false)? = answer["ok"] else {
        Issue.record("\(text): \(answer.text())")
        continue
      }
      let line = try #require(answer["error"]?.stringValue)
      #expect(!line.isEmpty && line.utf8.count < 500 && !line.contains("\n"), "\(text.prefix(100)): \(line)")
    }
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test("a directory that others may enter is not used") func openDirectory() throws {
    let directory = try directory()
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    try LocalSocket.makePrivateDirectory(directory)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: directory.string)
    #expect(throws: HostError.self) { try LocalSocket.makePrivateDirectory(directory) }
    let link = directory.string + "-link"
    try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: directory.string)
    defer { try? FileManager.default.removeItem(atPath: link) }
    #expect(throws: HostError.self) { try LocalSocket.makePrivateDirectory(FilePath(link)) }
    #expect(throws: HostError.self) { try LocalListener(at: FilePath("/tmp/" + String(repeating: "x", count: 200))) }
  }

  @Test("the vCPU hands its counters over when asked") func sample() throws {
    let sample = StatisticsSample()
    let thread = try HostThread(name: "test-vcpu") {
      var statistics = Statistics()
      for _ in 0..<3 {
        if !TestLimit.spin(until: { sample.isAsked }) { return }
        statistics.interrupts &+= 1
        sample.publish(statistics)
      }
    }
    // Asked again until the thread has come by: on a busy host that may take longer than `take` waits.
    var last: UInt64 = 0
    for _ in 0..<10_000 where last < 3 {
      let next = sample.take(ring: {}).interrupts
      try #require((last...3).contains(next))
      last = next
    }
    try #require(last == 3)
    thread.join()
    // Nobody comes by any more: the last is what there is.
    #expect(sample.take(ring: {}).interrupts == 3)
  }
}

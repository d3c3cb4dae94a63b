// SPDX-License-Identifier: Apache-2.0
// Links of frames: what a stream of bytes is taken for, peers that come, are slow and go.

import Foundation
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite("Links of frames") struct FrameSocketTests {
  @Test("a length and bytes, however they arrive", arguments: [1, 3, 4, 5, 1000]) func assembler(pieces: Int) {
    let frames: [[UInt8]] = [[1], [], [UInt8](repeating: 7, count: 300), [9, 8, 7]]
    let stream = frames.flatMap(FrameAssembler.packed)
    #expect(stream.prefix(5) == [0, 0, 0, 1, 1])
    var assembler = FrameAssembler(longest: 300)
    var (found, start) = ([[UInt8]](), 0)
    while start < stream.count {
      assembler.put(stream[start..<min(start + pieces, stream.count)])
      start += pieces
      while case .frame(let frame) = assembler.next() { found.append(frame) }
    }
    #expect(found == frames && assembler.next() == .nothing)
  }

  @Test("a length that no frame has") func nonsense() {
    for length: [UInt8] in [[0xFF, 0xFF, 0xFF, 0xFF], [0, 0, 1, 45], [0x80, 0, 0, 0]] {
      var assembler = FrameAssembler(longest: 300)
      assembler.put(length)
      #expect(assembler.next() == .nonsense)
    }
  }

  private func path() -> FilePath {
    FilePath(FileManager.default.temporaryDirectory.appending(path: "lguest-link-\(UUID().uuidString.prefix(8))").path)
  }

  /// The next frame, waited for.
  private func next(_ socket: FrameSocket) -> [UInt8]? {
    var frame: [UInt8]?
    _ = TestLimit.wait(seconds: 10) {
      frame = socket.receive()
      if frame == nil { socket.wait(wantsFrames: true, milliseconds: 50) }
      return frame != nil
    }
    return frame
  }

  @Test("two ends; one goes, and the next comes") func link() throws {
    let path = path()
    let here = try FrameSocket(listeningAt: path, longest: 1600)
    defer { here.close(removing: true) }
    #expect(!here.isConnected && !here.send([1, 2, 3]))
    for round in UInt8(0)..<2 {
      let there = try FrameSocket(connectingTo: path, longest: 1600)
      #expect(there.send([round, 1]) && there.send([round, 2]))
      #expect(next(here) == [round, 1] && next(here) == [round, 2])
      #expect(
        here.send([UInt8](repeating: round, count: 1600)) && !here.send([])
          && !here.send([UInt8](repeating: 0, count: 1601)))
      #expect(next(there) == [UInt8](repeating: round, count: 1600))
      there.close(removing: false)
      #expect(TestLimit.wait(seconds: 10) { here.receive() == nil && !here.isConnected })
    }
    // Nobody can have the same place.
    #expect(throws: HostError.self) { try FrameSocket(listeningAt: path, longest: 1600) }
  }

  @Test("a peer that does not read costs frames, and nobody waits") func slow() throws {
    let path = path()
    let here = try FrameSocket(listeningAt: path, longest: 1600)
    defer { here.close(removing: true) }
    let there = try FrameSocket(connectingTo: path, longest: 1600)
    #expect(
      TestLimit.wait(seconds: 10) {
        here.wait(wantsFrames: true, milliseconds: 50)
        return here.isConnected
      })
    let frame = [UInt8](repeating: 5, count: 1500)
    let began = ContinuousClock.now
    let sent = (0..<2000).count { _ in here.send(frame) }
    #expect(sent > 50 && sent < 2000 && ContinuousClock.now - began < .seconds(TestLimit.scaled(5)))
    // Whole frames arrive, as many as were not lost.
    var arrived = 0
    #expect(
      TestLimit.wait(seconds: 20) {
        here.wait(wantsFrames: false, milliseconds: 0)
        while let next = there.receive() {
          if next == frame { arrived += 1 }
        }
        return arrived == sent
      }, "\(arrived) of \(sent)")
    #expect(here.send(frame) && next(there) == frame)
  }

  @Test("a peer that sends nonsense is left, and a socket that nobody answers at is replaced") func leaving() throws {
    let path = path()
    let here = try FrameSocket(listeningAt: path, longest: 1600)
    let peer = try LocalConnection(to: path)
    #expect(peer.send([0, 0, 0, 1, 42, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3]))
    #expect(next(here) == [42])
    #expect(TestLimit.wait(seconds: 10) { here.receive() == nil && !here.isConnected })
    // As after kill -9: the file is there.
    let left = self.path()
    do { _ = try LocalListener(at: left) }
    let again = try FrameSocket(listeningAt: left, longest: 1600)
    #expect(FileManager.default.fileExists(atPath: left.string))
    again.close(removing: true)
    here.close(removing: true)
    #expect(!FileManager.default.fileExists(atPath: left.string))
    #expect(throws: HostError.self) { try FrameSocket(connectingTo: left, longest: 1600) }
  }

  /// What the refusal says, in one line.
  private func refusal(_ make: () throws -> FrameSocket) -> String {
    do {
      try make().close(removing: false)
      return "no refusal"
    } catch { return "\(error)" }
  }

  @Test("what is in the way is told with what to do, and left alone") func refusals() throws {
    let directory = path()
    try FileManager.default.createDirectory(atPath: directory.string, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: directory.string) }
    let (file, used) = (directory.appending("file"), directory.appending("used"))
    let link = directory.appending("link"), left = directory.appending("left")
    try Data("precious".utf8).write(to: URL(filePath: file.string))
    let here = try FrameSocket(listeningAt: used, longest: 1600)
    defer { here.close(removing: true) }
    do { _ = try LocalListener(at: left) }
    try FileManager.default.createSymbolicLink(atPath: link.string, withDestinationPath: file.string)
    /// So many bytes.
    func place(of count: Int) -> FilePath {
      directory.appending(String(repeating: "x", count: count - directory.string.utf8.count - 1))
    }
    for (path, listening, connecting) in [
      (used, "somebody waits there already; end that, connect to it or give another path", "no refusal"),
      (file, "a file is there that is no socket; remove it or give another path", "it is no socket; check the path"),
      (link, "a file is there that is no socket; remove it or give another path", "it is no socket; check the path"),
      (directory, "it is a directory; give the path of a socket to make in it", "it is a directory; check the path"),
      (
        directory.appending("a/b"), "No such file or directory; make its directory first, or check the path",
        "No such file or directory; start what is to wait there first, or check the path"
      ),
      (
        place(of: 108), "its path is longer than 107 bytes; give a shorter one",
        "its path is longer than 107 bytes; give a shorter one"
      ),
      (
        "/sys/lguest-test", "give a path in a directory where you may make files",
        "No such file or directory; start what is to wait there first, or check the path"
      ),
    ] as [(FilePath, String, String)] {
      let listened = refusal { try FrameSocket(listeningAt: path, longest: 1600) }
      #expect(listened.hasSuffix(listening) && listened.contains(path.string), "\(listened)")
      let connected = refusal { try FrameSocket(connectingTo: path, longest: 1600) }
      #expect(connected.hasSuffix(connecting), "\(connected)")
    }
    #expect(
      refusal { try FrameSocket(connectingTo: left, longest: 1600) }
        == "cannot connect to socket \(left): nobody waits there; start what is to wait there first")
    #expect(try String(contentsOfFile: file.string, encoding: .utf8) == "precious")
    #expect(try FileManager.default.destinationOfSymbolicLink(atPath: link.string) == file.string)
    #expect(refusal { try FrameSocket(listeningAt: place(of: 107), longest: 1600) } == "no refusal")
  }

  @Test("whoever rings ends a wait") func ring() throws {
    let path = path()
    let socket = try FrameSocket(listeningAt: path, longest: 1600)
    defer { socket.close(removing: true) }
    let isOver = Atomic(false)
    let thread = try HostThread(name: "rung") {
      socket.wait(wantsFrames: true)
      isOver.store(true, ordering: .releasing)
    }
    Thread.sleep(forTimeInterval: 0.05)
    let wasOver = isOver.load(ordering: .acquiring)
    #expect(!wasOver)
    socket.ring()
    #expect(TestLimit.wait(seconds: 10) { isOver.load(ordering: .acquiring) })
    thread.join()
  }
}

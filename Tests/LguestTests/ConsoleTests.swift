// SPDX-License-Identifier: Apache-2.0
// The console's memory and its queue.

import Testing

@testable import Lguest

@Suite struct ConsoleTests {
  private func tail(_ text: String) -> ConsoleTail {
    var tail = ConsoleTail()
    for byte in text.utf8 { tail.append(byte) }
    return tail
  }

  @Test("the last forty lines, oldest first") func lastLines() {
    let text = (0..<100).map { "line \($0)\r\n" }.joined()
    #expect(tail(text).text == (60..<100).map { "line \($0)" })
    #expect(tail(text + "login: ").text == (61..<100).map { "line \($0)" } + ["login: "])
    #expect(tail("").text == [])
    #expect(tail("one").text == ["one"])
    #expect(tail("one\n\ntwo\n").text == ["one", "", "two"])
  }

  @Test("long lines are cut, controls replaced") func hostile() {
    #expect(tail(String(repeating: "x", count: 5000)).text == [String(repeating: "x", count: ConsoleTail.lineLength)])
    #expect(tail("\u{1B}[2J\n").text == ["\u{FFFD}[2J"])
  }

  @Test(arguments: [
    ("[    1.0] Kernel panic - not syncing: VFS\n", true), ("Kernel Kernel panic - not syncing", true),
    ("Kernel panic - not\nsyncing", false), ("kernel panic - not syncing", false),
    ("Kernel panic - not syncinKernel panic - not syncing", true),
  ])
  func panic(text: String, isPanic: Bool) { #expect(tail(text).sawPanic == isPanic) }

  @Test("the reason of a panic outlives the lines kept") func panicReason() {
    let more = String(repeating: "trace\n", count: 100)
    #expect(tail("[    1.0] Kernel panic - not syncing: VFS: no root\r\n" + more).panicReason == "VFS: no root")
    #expect(tail("Kernel panic - not syncing: one\nKernel panic - not syncing: two\n").panicReason == "one")
    #expect(tail("Kernel panic - not syncing: half a l").panicReason == nil)
  }

  @Test(arguments: [
    ("[    0.5] Run /init as init process\r\n", true), ("Run /sbin/init as init process\n", true),
    ("Run /init\n as init process\n", false), ("init process", false), ("RunRun /x as  as init process", true),
  ])
  func userSpace(text: String, began: Bool) { #expect(tail(text).sawUserSpace == began) }

  @Test("input is bounded, ordered and wakes") func input() {
    let input = ConsoleInput()
    #expect(input.put([UInt8](repeating: 1, count: ConsoleInput.capacity - 1)) == ConsoleInput.capacity - 1)
    #expect(input.put([2, 3]) == 1)
    #expect(input.room == 0)
    var last: UInt8?
    while let byte = input.take() { last = byte }
    #expect(last == 2)
    #expect(input.isEmpty)
  }
}

// SPDX-License-Identifier: Apache-2.0
// The JSON encoder against Foundation's reader, and the shape of what `--json` writes.

import Foundation
import Testing

@testable import Lguest

@Suite struct JSONTests {
  private func read(_ json: JSON, indented: Bool) throws -> NSDictionary {
    let object = try JSONSerialization.jsonObject(with: Data(json.text(indented: indented).utf8))
    return try #require(object as? NSDictionary)
  }

  @Test("every kind of value survives", arguments: [true, false]) func values(indented: Bool) throws {
    let hostile = "quote \" backslash \\ newline \n tab \t bell \u{7} del \u{7F} c1 \u{9B} é 🦊 \u{2028}"
    let json: JSON = [
      "text": .string(hostile), "empty": [], "none": [:], "list": [1, -2, nil, true], "big": .unsigned(.max),
      "small": .integer(.min), "number": .double(0.1), "nan": .double(.nan), "nested": ["a": ["b": false]],
    ]
    let object = try read(json, indented: indented)
    #expect(object["text"] as? String == hostile)
    #expect((object["big"] as? NSNumber)?.uint64Value == .max)
    #expect((object["small"] as? NSNumber)?.int64Value == .min)
    #expect(object["number"] as? Double == 0.1)
    #expect(object["nan"] is NSNull)
    #expect((object["list"] as? [Any])?.count == 4)
    #expect(((object["nested"] as? NSDictionary)?["a"] as? NSDictionary)?["b"] as? Bool == false)
  }

  @Test("no control character is written raw") func controls() {
    let text = JSON.string(String(String.UnicodeScalarView((0..<0xA0).compactMap { Unicode.Scalar($0) }))).text()
    #expect(!text.unicodeScalars.contains { $0.value < 0x20 || (0x7F...0x9F).contains($0.value) })
  }

  @Test("a result has the documented members") func result() throws {
    var result = RunResult(ending: .panic, engine: .translator, detail: "why")
    result.statistics.count(.hypercall)
    result.statistics.count(hypercall: 5)
    result.consoleTail = ["Kernel panic - not syncing"]
    let object = try read(result.json, indented: true)
    #expect(object["schemaVersion"] as? Int == 1)
    #expect(object["cause"] as? String == "panic")
    #expect(object["status"] as? Int == 255)
    #expect(object["engine"] as? String == "translator")
    for member in ["version", "commit", "times", "counters", "consoleTail", "processorState", "detail"] {
      #expect(object[member] != nil, "\(member)")
    }
    #expect((object["counters"] as? NSDictionary)?["hypercalls"] as? Int == 1)
  }

  @Test("hypercalls of lguest's interface have names, by number, in text and JSON") func names() throws {
    var (guest, sum) = (Statistics(), Statistics())
    guest.count(hypercall: 5, times: 2, name: "FLUSH_TLB")
    guest.count(hypercall: 20, times: 1)
    sum.add(guest)
    sum.add(guest)
    for statistics in [guest, sum] {
      let object = try read(statistics.json, indented: false)
      #expect(object["hypercallNames"] as? [String: String] == ["5": "FLUSH_TLB"])
      #expect(statistics.lines.contains { $0.hasPrefix("  number 5 (FLUSH_TLB) ") })
      #expect(statistics.lines.contains { $0.hasPrefix("  number 20 ") })
    }
    #expect(try read(Statistics().json, indented: false)["hypercallNames"] as? [String: String] == [:])
  }

  @Test("what a guest makes up does not grow without bound") func bounded() {
    var statistics = Statistics()
    for number in 0..<10_000 as Range<UInt64> {
      statistics.count(hypercall: number)
      statistics.count(unknown: "MSR \(number)")
    }
    #expect(statistics.hypercalls.count <= Statistics.unknownKinds + 1)
    #expect(statistics.unknown.count <= Statistics.unknownKinds + 1)
    #expect(statistics.hypercallTotal == 10_000)
    #expect(statistics.unknown.values.reduce(0, +) == 10_000)
    var sum = Statistics()
    sum.add(statistics)
    sum.add(statistics)
    #expect(sum.hypercallTotal == 20_000)
  }
}

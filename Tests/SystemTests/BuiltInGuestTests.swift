// SPDX-License-Identifier: Apache-2.0
// The commands that bring their own guests: the tour says what the mechanisms do, the benchmark what they cost.

import Foundation
import Testing

extension SystemTests {
  @Suite("Built-in guests", .serialized, .enabled(if: Guest.hasExecutable, "the executable is not built"))
  struct BuiltInGuestTests {
    @Test("the tour shows every mechanism") func tour() throws {
      let text = try Guest.run(["tour"], limit: 60, expecting: 0).output
      for part in [
        "names the hypervisor: \"KVMKVMKVM\".", "nothing, answers 0. Number 99, which nobody has, answers -1000",
        "The structure's version is 2 (even", "RAX is 19, and my memory says: \"Good day, newcomer!\"",
        "Before, its bytes are 0f 01 c1; the answer is -1000; after, they are 0f 01 c1.",
        "Before, its bytes are 0f 01 c1; the answer is -1000; after, they are 0f 01 d9.",
        "Exception 6 came: #UD", "six bytes that return -38, \"no such call\": b8 da ff ff ff c3.",
        "The host's result is 0, its version 1. The stub is now 0f 01 c1 c3 ff c3:",
        "The host's result is 0, its version 1. The stub is now 0f 01 d9 c3 ff c3:",
        "is answered by the host program: 42.", "Exception 13 came: #GP, the register is gone.",
        "10 of 16: lguest: a kernel of level 1 registers", "CS is 0x61: I run at level 1.",
        "SGDT says\n  0xffc00000. I may read it. Entry 12, my code segment, is 00cfbb000000ffff.",
        "The host counted 1 LGUEST_INIT, and ", "In the host's page entry 20 is 0000000000000000.",
        "Now it is 00cfb3000000ffff: the host made level 1 of level 0.", "The host counted 1 LOAD_GDT_ENTRY.",
        "and looked: it was 0, for the host", "it was 3: they were performed in order.",
        "It was 5: first the ring, then the call that is made.", "The status of these slots is ff ff ff ff:",
        "The host counted 5 LOAD_GDT_ENTRY, 4 of them from the ring, and 1 FLUSH_ASYNC.",
        "Before, its bytes are 0f 01 c1; after, they are cd 1f 90: INT 1Fh",
        "The host counted 1 #UD, 1 replacement and 3 calls.",
        "I execute INT 80h 1000 times. The handler has counted 1000.",
        "The host counted 10 traps that came to it, for 10 hypercalls; none of INT 80h is among them.",
        "  I begin: 2304 bytes, 288 entries decoded\n  nothing has changed: 0 bytes, 0 entries decoded\n",
        "  I changed a gate (IDT): 2048 bytes, 256 entries decoded\n",
        "  I changed a descriptor (GDT): 256 bytes, 32 entries decoded\n  nothing has changed: 0 bytes, 0 entries decoded\n",
        "  another guest was here: 2304 bytes, 288 entries decoded\n",
        "irq_pending is 0x200 now, and my handler has run 0 times.", "My handler has run 1 time, and irq_pending is 0.",
        "The host counted 1 interrupt delivered.",
      ] {
        #expect(text.contains(part), "\(part)")
      }
      #expect(!text.contains("not what was expected"))
    }

    private struct Row: Decodable {
      let technique: String
      let vcpus: Int
      let cycles: [Double]
      let ns: Double
      let cycles2009: [Int]?
    }

    private func measure(_ more: [String] = []) throws -> [Row] {
      let text = try Guest.run(["bench", "hypercall", "--json"] + more, limit: 120, expecting: 0).output
      return try JSONDecoder().decode([Row].self, from: Data(text.utf8))
    }

    @Test("the benchmark's figures are plausible, and its files are well formed") func bench() throws {
      let chart = Guest.temporaryPath()
      defer { try? FileManager.default.removeItem(atPath: chart) }
      let rows = try measure(["--svg", chart])
      let alone = Dictionary(uniqueKeysWithValues: rows.filter { $0.vcpus == 1 }.map { ($0.technique, $0) })
      #expect(
        Set(alone.keys) == ["native", "program", "emulated", "patchedFirst", "patched", "stub2007", "port", "mmio"])
      for row in rows { #expect(row.cycles.count == 5 && row.cycles.allSatisfy { $0 > 1 } && row.ns > 0, "\(row)") }
      #expect(alone["emulated"]?.cycles2009 == [3410, 3681, 3466, 3392, 3780])
      // The least of five: the machine that runs tests does other things as well.
      func least(_ technique: String) throws -> Double { try #require(alone[technique]?.cycles.min()) }
      #expect(try least("native") < least("emulated"))
      #expect(try least("patched") < least("patchedFirst"))
      #expect(try least("native") < least("program"))
      let document = try XMLDocumentCheck(String(contentsOfFile: chart, encoding: .utf8))
      #expect(document.depth == 0 && document.elements > 20)
    }

    @Test("the table has a row for each technique") func table() throws {
      let lines = try Guest.run(["bench", "hypercall"], limit: 120, expecting: 0).output.split(separator: "\n")
      #expect(lines.contains { $0.hasPrefix("native ") && $0.hasSuffix("2915 2789 2764 2721 2898") })
      #expect(lines.count >= 10)
    }

    @Test(
      "a native and a patched hypercall cost at most 150 cycles",
      .enabled(if: Guest.isLong, "measures; run scripts/test --long")) func target() throws
    {
      for technique in ["native", "patched"] {
        let row = try #require(try measure().first { $0.technique == technique })
        #expect(row.cycles.sorted()[2] <= 150, "\(row)")
      }
    }
  }
}

/// Whether a text is well-formed XML, as far as tags are concerned.
private struct XMLDocumentCheck {
  private(set) var depth = 0
  private(set) var elements = 0

  init(_ text: String) {
    for tag in text.matches(of: /<(\/?)\w+[^<>]*?(\/?)>/) {
      if tag.1.isEmpty { elements += 1 }
      if tag.2.isEmpty { depth += tag.1.isEmpty ? 1 : -1 }
    }
  }
}

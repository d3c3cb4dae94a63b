// SPDX-License-Identifier: Apache-2.0
// Sizes and times as people write them.

import Testing

@testable import Lguest

@Suite struct QuantityTests {
  @Test(arguments: [
    ("1G", UInt64(1) << 30), ("512M", 512 << 20), ("64k", 64 << 10), ("4096", 4096), ("0", 0), ("2T", 2 << 40),
  ])
  func sizes(text: String, bytes: UInt64) throws { #expect(try ByteSize.parse(text) == bytes) }

  @Test(arguments: [
    "", "G", "1.5G", "-1", "+1", "1GB", "1 G", "0x10", "12Q", "99999999999999999999", "18446744073709551615K", "١G",
  ])
  func nonsenseSizes(text: String) {
    #expect(throws: QuantityError.self) { try ByteSize.parse(text) }
  }

  @Test(arguments: [(UInt64(1) << 30, "1G"), (1536 << 20, "1536M"), (4097, "4097"), (0, "0")])
  func sizeText(bytes: UInt64, text: String) { #expect(ByteSize.text(bytes) == text) }

  @Test(arguments: [
    ("120", Duration.seconds(120)), ("90s", .seconds(90)), ("1500ms", .milliseconds(1500)), ("2m", .seconds(120)),
    ("1h", .seconds(3600)), ("0.5s", .milliseconds(500)),
  ])
  func limits(text: String, limit: Duration) throws { #expect(try TimeLimit.parse(text) == limit) }

  @Test(arguments: ["0", "0s", "0ms"])
  func noLimit(text: String) throws { #expect(try TimeLimit.parse(text) == nil) }

  @Test(arguments: ["", "s", "-1s", "1d", ".5s", "1.s", "1e3", "nan", "inf", "1s ", "1..2", "9999999999h"])
  func nonsenseLimits(text: String) {
    #expect(throws: QuantityError.self) { try TimeLimit.parse(text) }
  }

  @Test("an error is one line") func oneLine() {
    do {
      _ = try ByteSize.parse("12Q")
    } catch {
      #expect(!error.description.contains("\n"))
      #expect(error.description.contains("'12Q'"))
    }
  }

  @Test(arguments: [("2m", "2m"), ("90s", "90s"), ("1500ms", "1500ms"), ("0", "0"), ("60m", "1h")])
  func limitText(text: String, shortest: String) throws {
    #expect(TimeLimit.text(try TimeLimit.parse(text)) == shortest)
  }
}

// SPDX-License-Identifier: Apache-2.0
// String instructions by pages: results, exact registers at a page that needs the slow path, and flags.

import CHost
import Testing

@Suite("String instructions")
struct StringTests {
  /// Pages 0x10000..<0x20000 are RAM at the same addresses, but for 0x18000, which is not mapped.
  func machine(source: UInt64, destination: UInt64, count: UInt64, down: Bool = false) -> BareVCPU {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    for page: UInt64 in 0x10..<0x20 where page != 0x18 { vcpu.map(page << 12, page << 12 | 3) }
    vcpu[\.gpr.6] = source
    vcpu[\.gpr.7] = destination
    vcpu[\.gpr.1] = count
    vcpu[\.system_flags] = down ? 1 << 10 : 0
    return vcpu
  }

  @Test("REP MOVS stops exactly at the element that needs help", arguments: [UInt32(0), 1, 2, 3])
  func move(size: UInt32) {
    let bytes: UInt64 = 1 << UInt64(size)
    let vcpu = machine(source: 0x10100, destination: 0x16000, count: 0x4000 / bytes)
    for offset in UInt64(0)..<0x2000 { vcpu.store(UInt8(truncatingIfNeeded: offset &* 7), at: 0x10100 + offset) }
    #expect(vcpu.string(CHOST_STRING_MOVS, size: size, rep: 1) == 1)
    #expect(vcpu[\.gpr.7] == 0x18000 && vcpu[\.gpr.6] == 0x12100 && vcpu[\.gpr.1] == 0x2000 / bytes)
    for offset in UInt64(0)..<0x2000 {
      #expect(vcpu.load(0x16000 + offset, as: UInt8.self) == UInt8(truncatingIfNeeded: offset &* 7))
    }
  }

  @Test("A run goes on across pages only where the host's memory does")
  func pages() {
    let vcpu = machine(source: 0x10F01, destination: 0x16E02, count: 0x1300)
    vcpu.map(0x16000, 0x1A003)
    vcpu.map(0x17000, 0x1B003)
    vcpu.map(0x18000, 0x16003)
    for offset in UInt64(0)..<0x1300 { vcpu.store(UInt8(truncatingIfNeeded: offset &* 11), at: 0x10F01 + offset) }
    #expect(vcpu.string(CHOST_STRING_MOVS, size: 0, rep: 1) == 0)
    #expect(vcpu[\.gpr.7] == 0x18102 && vcpu[\.gpr.6] == 0x12201 && vcpu[\.gpr.1] == 0)
    for offset in UInt64(0)..<0x1300 {
      let place = offset < 0x11FE ? 0x1AE02 + offset : 0x16000 + offset - 0x11FE
      #expect(vcpu.load(place, as: UInt8.self) == UInt8(truncatingIfNeeded: offset &* 11))
    }
    #expect(vcpu.load(0x1AE01, as: UInt8.self) == 0 && vcpu.load(0x16102, as: UInt8.self) == 0)
  }

  @Test("Overlap repeats the pattern element by element, in either direction")
  func overlap() {
    let up = machine(source: 0x10000, destination: 0x10002, count: 100)
    up.store(0xBEEF as UInt16, at: 0x10000)
    #expect(up.string(CHOST_STRING_MOVS, size: 1, rep: 1) == 0)
    #expect((0...100).allSatisfy { up.load(0x10000 + 2 * $0, as: UInt16.self) == 0xBEEF })
    let down = machine(source: 0x11006, destination: 0x11004, count: 0x800, down: true)
    down.store(0xBEEF as UInt16, at: 0x11006)
    #expect(down.string(CHOST_STRING_MOVS, size: 1, rep: 1) == 0)
    #expect((0...0x800).allSatisfy { down.load(0x11006 - 2 * $0, as: UInt16.self) == 0xBEEF })
  }

  @Test("SCAS finds, CMPS tells, with the last comparison's flags")
  func compare() {
    let scan = machine(source: 0, destination: 0x10FFE, count: 100)
    scan[\.gpr.0] = 0x1FF
    scan.store(0xFF as UInt8, at: 0x11004)
    #expect(scan.string(CHOST_STRING_SCAS, size: 0, rep: 2) == 0)
    #expect(scan[\.gpr.7] == 0x11005 && scan[\.gpr.1] == 93)
    #expect(scan[\.flags] == 0x4600, "ZF PF")
    let equal = machine(source: 0x10000, destination: 0x12000, count: 2048)
    equal.store(0x8000_0000 as UInt32, at: 0x10010)
    equal.store(0x0000_0001 as UInt32, at: 0x12010)
    #expect(equal.string(CHOST_STRING_CMPS, size: 2, rep: 1) == 0)
    #expect(equal[\.gpr.1] == 2043 && equal[\.gpr.6] == 0x10014)
    #expect(equal[\.flags] == 0x1601, "OF AF PF")
  }

  @Test("A long repetition is resumed after a poll; a count of 0 does nothing")
  func bounds() {
    let vcpu = machine(source: 0, destination: 0x10000, count: 5000)
    vcpu[\.attention] = 1
    #expect(vcpu.string(CHOST_STRING_SCAS, size: 0, rep: 1) == 2, "AL and memory are 0: equal all the way")
    #expect(vcpu[\.gpr.1] == 904 && vcpu[\.gpr.7] == 0x11000)
    vcpu[\.attention] = 0
    #expect(vcpu.string(CHOST_STRING_SCAS, size: 0, rep: 1) == 0)
    vcpu[\.gpr.1] = 5000
    #expect(vcpu.string(CHOST_STRING_SCAS, size: 0, rep: 1) == 0, "nobody asked")
    vcpu[\.gpr.1] = 0
    vcpu[\.flags] = 0x1234
    #expect(vcpu.string(CHOST_STRING_SCAS, size: 0, rep: 1) == 0)
    #expect(vcpu[\.flags] == 0x1234)
  }

  @Test("Segments that are not flat are left to the slow path")
  func segmented() {
    let vcpu = machine(source: 0x10000, destination: 0x11000, count: 1)
    vcpu[\.mode] = UInt32(CHOST_MODE_PROTECTED | CHOST_MODE_SEGMENTED)
    #expect(vcpu.string(CHOST_STRING_MOVS, size: 0) == 1)
  }
}

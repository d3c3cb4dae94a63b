// SPDX-License-Identifier: Apache-2.0
// The page walk in its three formats: addresses, error codes, accessed and dirty bits.

import CHost
import Testing

/// Entries that no walk may use, with the table each is put in.
private let reservedEntries: [(UInt64, UInt64)] = [
  (0x1000, 0x2087),  // PS in a PML4E
  (0x2000, 0x4020_0087),  // address bits of a 1 GiB page
  (0x3000, 0x40_2087),  // of a 2 MiB page
  (0x4000, 0x10_0007 | 1 << 40),  // MAXPHYADDR
  (0x2000, 0x7F00_0007),  // a table where there is no RAM
]

@Suite("Page walk")
struct PageWalkTests {
  let linear: UInt64 = 0xFFFF_8000_1234_5678

  @Test("Without paging, linear is physical and 32 bits wide")
  func identity() {
    #expect(BareVCPU().translate(0x1_2345_6789).physical == 0x2345_6789)
  }

  @Test("A closed A20 gate cuts bit 20 off results and off addresses of tables")
  func a20() {
    let vcpu = BareVCPU()
    vcpu[\.address_cut] = 1 << 20
    #expect(vcpu.translate(0x31_2345).physical == 0x21_2345)
    vcpu.enterLongMode()
    vcpu.map(linear, 0x10_0007)
    #expect(vcpu.translate(linear).physical == 0x678)
    #expect(vcpu.fill(linear) == 0x678 && vcpu.hits(linear))
    // The root, at 0x1000, by an address with the bit.
    vcpu[\.cr3] |= 1 << 20
    #expect(vcpu.translate(linear, .write).physical == 0x678)
  }

  @Test("4-level: rights and error codes")
  func rights() {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    #expect(vcpu.fault(linear) == 0)
    #expect(vcpu.fault(linear, [.write, .user]) == 6)
    #expect(vcpu.fault(linear, .fetch) == 16)
    vcpu.map(linear, 0x10_0005)  // read-only, user
    #expect(vcpu.translate(linear, .user).physical == 0x10_0678)
    #expect(vcpu.fault(linear, .write) == 3)
    vcpu[\.cr0] &= ~(1 << 16)  // WP
    #expect(vcpu.fault(linear, .write) == nil)
    #expect(vcpu.fault(linear, [.write, .user]) == 7)
    vcpu.map(linear, 0x10_0003 | 1 << 63)  // supervisor, no-execute
    #expect(vcpu.fault(linear, .user) == 5)
    #expect(vcpu.fault(linear, .fetch) == 17)
    #expect(vcpu.fault(linear, .read) == nil)
    vcpu[\.efer] &= ~0x800  // bit 63 becomes reserved
    #expect(vcpu.fault(linear) == 9)
  }

  @Test("SMEP and SMAP")
  func supervisorProtection() {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    vcpu.map(linear, 0x10_0007)
    vcpu[\.cr4] |= 1 << 20 | 1 << 21
    #expect(vcpu.fault(linear, .fetch) == 17)
    #expect(vcpu.fault(linear, [.fetch, .user]) == nil)
    #expect(vcpu.fault(linear, .write) == 3)
    vcpu[\.system_flags] = 1 << 18
    #expect(vcpu.fault(linear, .write) == nil)
    #expect(vcpu.fault(linear, .implicit) == 1)
    #expect(vcpu.fill(linear) == 0x10_0678)
    #expect(!vcpu.hits(linear), "the right ends with CLAC, which flushes nothing")
  }

  @Test(
    "A table that has gone away is not read, at any level",
    arguments: zip([0x1000, 0x2000, 0x3000, 0x4000] as [UInt64], [39, 30, 21, 12] as [UInt64]))
  func absentTable(table: UInt64, shift: UInt64) {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    vcpu.map(linear, 0x10_0007)
    let entry = table + (linear >> shift & 511) * 8
    let before: UInt64 = vcpu.load(entry)
    vcpu.setPageFlags(UInt8(CHOST_PAGE_ABSENT), table)
    // Of a guest none of whose pages ever goes away, the flag is not looked at.
    #expect(vcpu.translate(linear).physical == 0x10_0678)
    vcpu.store(0 as UInt64, at: entry)
    vcpu[\.late_pages] = 1
    var physical: UInt64 = 0
    for access in [Access.read, [.write, .user], .fetch] {
      physical = 0
      let code = unsafe chost_translate(vcpu.cpu, linear, access.rawValue, &physical)
      #expect(code == UInt32(CHOST_TABLE_ABSENT) && physical == entry)
      let probed = unsafe chost_probe(vcpu.cpu, linear, access.rawValue, &physical)
      #expect(probed == UInt32(CHOST_TABLE_ABSENT) && physical == entry)
    }
    vcpu.flushAll()
    #expect(vcpu.fill(linear) == nil && !vcpu.hits(linear) && vcpu.lookup(linear) == 0)
    #expect(vcpu.load(entry, as: UInt64.self) == 0)
    vcpu.store(before, at: entry)
    vcpu.setPageFlags(0, table)
    #expect(vcpu.fill(linear, write: true) == 0x10_0678)
  }

  @Test("The same without and with PAE") func absentNarrowTable() {
    let vcpu = BareVCPU()
    vcpu[\.cr0] = 0x8001_0001
    vcpu[\.cr3] = 0x1000
    vcpu[\.late_pages] = 1
    vcpu.store(0x2007 as UInt32, at: 0x1000)
    vcpu.store(0x10_0007 as UInt32, at: 0x2000 + 4)
    for table in [0x1000, 0x2000] as [UInt64] {
      vcpu.setPageFlags(UInt8(CHOST_PAGE_ABSENT), table)
      var physical: UInt64 = 0
      #expect(unsafe chost_translate(vcpu.cpu, 0x1000, 0, &physical) == UInt32(CHOST_TABLE_ABSENT))
      #expect(physical == table + (table == 0x2000 ? 4 : 0))
      vcpu.setPageFlags(0, table)
    }
    #expect(vcpu.translate(0x1678).physical == 0x10_0678)
    vcpu[\.cr4] = 0x20
    vcpu[\.pdpte.0] = 0x3001
    vcpu.store(0x4007 as UInt64, at: 0x3000)
    vcpu.store(0x10_0007 as UInt64, at: 0x4000 + 8)
    vcpu.setPageFlags(UInt8(CHOST_PAGE_ABSENT), 0x4000)
    var physical: UInt64 = 0
    #expect(unsafe chost_translate(vcpu.cpu, 0x1000, 0, &physical) == UInt32(CHOST_TABLE_ABSENT))
    #expect(physical == 0x4008)
    vcpu.setPageFlags(0, 0x4000)
    #expect(vcpu.translate(0x1678).physical == 0x10_0678)
  }

  @Test("Code in a page that has gone away is not found") func absentCode() {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    vcpu.map(linear, 0x10_0007)
    vcpu.insertBlock(physical: 0x10_0678, 0x4444)
    vcpu[\.late_pages] = 1
    vcpu.setPageFlags(UInt8(CHOST_PAGE_ABSENT), 0x10_0000)
    #expect(vcpu.lookup(linear) == 0 && vcpu.jumpTarget(linear) == nil)
    vcpu.setPageFlags(0, 0x10_0000)
    #expect(vcpu.lookup(linear) == 0x4444 && vcpu.jumpTarget(linear) == 0x4444)
  }

  @Test("Accessed at every level, dirty at the last, nothing on a fault")
  func accessedAndDirty() {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    vcpu.map(linear, 0x10_0005)
    #expect(vcpu.fault(linear, .write) == 3)
    #expect(vcpu.load(vcpu.leaf(linear), as: UInt64.self) == 0x10_0005)
    #expect(vcpu.pageFlags(0x4000) == 0)
    vcpu.map(linear, 0x10_0007)
    #expect(vcpu.translate(linear).physical != nil)
    #expect(vcpu.load(0x1000 + (linear >> 39 & 511) * 8, as: UInt64.self) == 0x2027)
    #expect(vcpu.load(vcpu.leaf(linear), as: UInt64.self) == 0x10_0027)
    #expect(vcpu.translate(linear, .write).physical != nil)
    #expect(vcpu.load(vcpu.leaf(linear), as: UInt64.self) == 0x10_0067)
    #expect(vcpu.pageFlags(0x4000) == UInt8(CHOST_PAGE_DIRTY))
  }

  @Test("Reserved bits, and tables outside RAM", arguments: reservedEntries)
  func reserved(table: UInt64, entry: UInt64) {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    vcpu.map(0, 0x10_0007)
    #expect(vcpu.fault(0) == nil)
    vcpu.store(entry, at: table)
    #expect(vcpu.fault(0) == 9)
  }

  @Test("Large pages of 4-level paging")
  func large() {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    vcpu.map(linear, 0)
    vcpu.store(0x40_1087 as UInt64, at: 0x3000 + (linear >> 21 & 511) * 8)  // with PAT
    #expect(vcpu.translate(linear).physical == 0x40_0000 + linear & 0x1F_FFFF)
    vcpu.store(0x4000_0087 as UInt64, at: 0x2000 + (linear >> 30 & 511) * 8)
    #expect(vcpu.translate(linear).physical == 0x4000_0000 + linear & 0x3FFF_FFFF)
  }

  @Test("PAE paging")
  func pae() {
    let vcpu = BareVCPU()
    vcpu[\.cr0] = 0x8001_0001
    vcpu[\.cr4] = 0x20
    let linear: UInt64 = 0xC034_5678
    #expect(vcpu.fault(linear) == 0)
    vcpu[\.pdpte.3] = 0x2001
    vcpu.store(0x3007 as UInt64, at: 0x2000 + (linear >> 21 & 511) * 8)
    let leaf = 0x3000 + (linear >> 12 & 511) * 8
    vcpu.store(0x5007 as UInt64, at: leaf)
    #expect(vcpu.translate(linear, [.write, .user]).physical == 0x5678)
    #expect(vcpu.load(leaf, as: UInt64.self) == 0x5067)
    vcpu.store(0x5007 | 1 << 55 as UInt64, at: leaf)  // ignored by 4-level paging only
    #expect(vcpu.fault(linear) == 9)
  }

  @Test("32-bit paging with 4 MiB pages and PSE-36")
  func narrow() {
    let vcpu = BareVCPU()
    vcpu[\.cr0] = 0x8001_0001
    vcpu[\.cr3] = 0x1000
    let linear: UInt64 = 0xC034_5678
    let directory = 0x1000 + (linear >> 22) * 4
    let leaf = 0x2000 + (linear >> 12 & 1023) * 4
    vcpu.store(0x2007 as UInt32, at: directory)
    vcpu.store(0x9007 as UInt32, at: leaf)
    #expect(vcpu.translate(linear, .write).physical == 0x9678)
    #expect(vcpu.load(leaf, as: UInt32.self) == 0x9067)
    #expect(vcpu.load(leaf + 4, as: UInt32.self) == 0)
    vcpu[\.cr4] = 0x10
    vcpu.store(0x80_2087 as UInt32, at: directory)
    #expect(vcpu.translate(linear).physical == 0x1_0080_0000 + linear & 0x3F_FFFF)
    vcpu.store(0xA0_0087 as UInt32, at: directory)  // bit 21
    #expect(vcpu.fault(linear) == 9)
  }
}

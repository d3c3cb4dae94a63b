// SPDX-License-Identifier: Apache-2.0
// What light system instructions must look at before they do in three loads what Swift does in thirty.

import CHost
import Testing

@Suite("Light helpers") struct LightHelperTests {
  @Test("MOV CR3 with PAE reads the top entries where a closed A20 gate puts them") func a20() {
    for cut in [0, 1 << 20] as [UInt64] {
      let vcpu = BareVCPU()
      vcpu[\.cr0] = 0x8001_0001
      vcpu[\.cr4] = 0x20
      vcpu[\.mode] = UInt32(CHOST_MODE_PROTECTED | CHOST_MODE_CODE32 | CHOST_MODE_STACK32)
      vcpu[\.address_cut] = cut
      vcpu.store(0x5001 as UInt64, at: 0x2000)
      vcpu.store(0x6001 as UInt64, at: 0x10_2000)
      vcpu[\.scratch].0 = 0x10_2000
      #expect(unsafe chost_light_cr3(vcpu.cpu, 0) == UInt64(CHOST_LIGHT_CONTINUE))
      #expect(vcpu[\.pdpte].0 == (cut == 0 ? 0x6001 : 0x5001) && vcpu[\.cr3] == 0x10_2000)
    }
  }

  /// IRETQ to the same level, from a frame at 0x7FD8: RIP 0x9000, CS 8, RSP 0x8000, SS 16.
  private func machine() -> BareVCPU {
    let vcpu = BareVCPU()
    vcpu.enterLongMode()
    for page in UInt64(0)..<16 { vcpu.map(page << 12, page << 12 | 0x63) }
    // The tables are at 0x1000 to 0x4FFF, the GDT at 0x6000.
    vcpu.store(0x00AF_9B00_0000_FFFF as UInt64, at: 0x6008)
    vcpu.store(0x00CF_9300_0000_FFFF as UInt64, at: 0x6010)
    vcpu[\.gdtr].base = 0x6000
    vcpu[\.gdtr].limit = 23
    vcpu[\.segments].1 = chost_segment(base: 0, limit: 0xFFFF_FFFF, attributes: 0xA09B, selector: 8, pad: (0, 0, 0))
    vcpu[\.segments].2 = chost_segment(base: 0, limit: 0xFFFF_FFFF, attributes: 0xC093, selector: 16, pad: (0, 0, 0))
    for (index, value) in ([0x9000, 8, 2, 0x8000, 16] as [UInt64]).enumerated() {
      vcpu.store(value, at: 0x7FD8 + UInt64(index) * 8)
    }
    vcpu[\.gpr].4 = 0x7FD8
    return vcpu
  }

  @Test("IRET to the level it comes from believes no descriptor that it has not read") func iret() {
    let same = machine()
    #expect(unsafe chost_light_iret(same.cpu, 0) == UInt64(CHOST_LIGHT_LOOKUP))
    #expect(same[\.gpr].4 == 0x8000 && same[\.linear] == 0x9000)
    // Not present; 32-bit code; of level 3; no longer data; beyond the table.
    let changes: [(UInt64, UInt64)] = [
      (0x6008, 0x00AF_1B00_0000_FFFF), (0x6008, 0x00CF_9B00_0000_FFFF), (0x6008, 0x00AF_FB00_0000_FFFF),
      (0x6010, 0x00CF_1300_0000_FFFF), (0x6010, 0x00CF_9B00_0000_FFFF),
    ]
    for (address, descriptor) in changes {
      let vcpu = machine()
      vcpu.store(descriptor, at: address)
      #expect(unsafe chost_light_iret(vcpu.cpu, 0) == UInt64(CHOST_LIGHT_DECLINED))
      #expect(vcpu[\.gpr].4 == 0x7FD8)
    }
    let short = machine()
    short[\.gdtr].limit = 15
    #expect(unsafe chost_light_iret(short.cpu, 0) == UInt64(CHOST_LIGHT_DECLINED))
    // What an interrupt from level 3 has left in SS.
    let null = machine()
    null.store(0 as UInt64, at: 0x7FF8)
    null[\.segments].2 = chost_segment(base: 0, limit: 0, attributes: 1 << 16, selector: 0, pad: (0, 0, 0))
    #expect(unsafe chost_light_iret(null.cpu, 0) == UInt64(CHOST_LIGHT_LOOKUP))
  }
}

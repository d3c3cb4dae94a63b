// SPDX-License-Identifier: Apache-2.0
// XRSTOR's header, in place and across two pages, where Swift looks at it first.

import Engine
import Testing
import X86

@testable import Translator

@Suite("State images", .serialized) struct StateImageTests {
  /// Bytes of the header behind XSTATE_BV, and whether they may hold anything (SDM volume 1, 13.8.1).
  @Test(
    "bytes 23:8 of the header are reserved, those behind are not looked at",
    arguments: [(8, false), (15, false), (16, false), (23, false), (24, true), (63, true)])
  func header(byte: UInt64, isAllowed: Bool) throws {
    for offset in [UInt64(0), 0xFC0] {
      let guest = try KernelGuest()
      let image = KernelGuest.data + offset
      guest.load("first_xrstor")
      guest.poke(UInt32(0x1F80), at: image + 24)
      guest.poke(UInt64(7), at: image + 512)
      guest.poke(UInt8(1), at: image + 512 + byte)
      guest.start {
        $0[register: GPR.rbx] = image
        $0.cr4 |= CR4.osxsave
        $0.xcr0 = 7
      }
      if isAllowed {
        #expect(guest.cpu.run() == .halt && guest.frame() == nil)
      } else {
        let frame = guest.exception()
        #expect(frame?.vector == 13 && frame?.rip == KernelGuest.mark("first_xrstor.at", in: "first_xrstor"))
      }
    }
  }

  /// What a guest's CR0 and CR4 make of the instructions that load and store this state: the vector, or none.
  @Test(
    "EM, TS and OSFXSR",
    arguments: [
      // With EM, with TS, without OSFXSR (and so without AVX): SDM volume 2, each instruction's exceptions.
      ("state_fxsave", 7, 7, nil), ("state_fxrstor", 7, 7, nil), ("state_xsave", nil, 7, nil),
      ("state_xrstor", nil, 7, nil), ("state_ldmxcsr", 6, 7, 6), ("state_stmxcsr", 6, 7, 6),
      ("state_vldmxcsr", nil, 7, nil), ("state_vstmxcsr", nil, 7, nil), ("state_fldenv", 7, 7, nil),
    ] as [(String, UInt8?, UInt8?, UInt8?)])
  func control(name: String, em: UInt8?, ts: UInt8?, noFXSR: UInt8?) throws {
    for (cr0, cr4, vector) in [(0, 0, nil), (CR0.em, 0, em), (CR0.ts, 0, ts), (0, CR4.osfxsr, noFXSR)] {
      let guest = try KernelGuest()
      guest.load(name)
      guest.poke(UInt32(0x1F80), at: KernelGuest.data + 24)
      guest.start {
        $0.cr0 |= cr0
        $0.cr4 &= ~cr4
        $0.xcr0 = 7
        $0[register: GPR.rax] = 0
        $0[register: GPR.rdx] = 0
        $0[register: GPR.rbx] = KernelGuest.data
      }
      #expect(guest.exception()?.vector == vector, "CR0 \(cr0), without CR4 \(cr4)")
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Model-specific registers, the timestamp and CPUID as instructions see them.

import CHost
import Engine
import Testing

@testable import Translator
@testable import X86

@Suite struct MSRTests {
  @Test(
    "MSR validity",
    arguments: [
      (0xC000_0082, 1 << 47, false), (0xC000_0082, 0xFFFF_8000_0000_0000, true), (0x175, 1 << 63, false),
      (0x277, 0x0007_0406_0007_0406, true), (0x277, 0x0007_0406_0007_0402, false), (0x277, 8, false),
      (0x2FF, 0xC06, true), (0x2FF, 0x1000, false), (0x2FF, 2, false), (0x200, 0x8000_0006, true), (0x200, 3, false),
      (0x201, 0xFF_8000_0800, true), (0x201, 1 << 40, false), (0x250, 0x0606_0606_0606_0606, true),
      (0x26F, 0x0706, false),
      (0xFE, 0, false), (0xC000_0080, 0x901, true), (0xC000_0080, 0x1000, false), (0xC000_0103, 1 << 32, false),
      (0x1D9, 2, true), (0x1D9, 1 << 9, false), (0x17, 0, false), (0x8B, 0, true),
    ] as [(UInt32, UInt64, Bool)])
  func msrValidity(index: UInt32, value: UInt64, valid: Bool) {
    let guest = TestGuest()
    guest.enterLong()
    do throws(Fault) {
      #expect(try guest.processor.writeMSR(index, value))
      #expect(valid)
    } catch {
      #expect(!valid)
      #expect(error == .generalProtection())
    }
  }

  @Test("RDMSR and WRMSR of the machine's registers exit, and the answer finishes the instruction")
  func machineMSRs() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.setRegister(GPR.rcx, 0x4B56_4D01)
    guest.setRegister(GPR.rax, 0x1_2345_6789)
    guest.setRegister(GPR.rdx, 0xAB)
    #expect(
      try guest.execute(guest.instruction(0x30, length: 2), map: .x0F)
        == .exit(.msrWrite(index: 0x4B56_4D01, value: 0xAB_2345_6789)))
    #expect(guest.page[\.rip] == Place.kernelCode)
    guest.processor.completeWrite()
    #expect(guest.page[\.rip] == Place.kernelCode + 2)
    #expect(try guest.execute(guest.instruction(0x32, length: 2), map: .x0F) == .exit(.msrRead(index: 0x4B56_4D01)))
    try guest.processor.completeRead(0x1111_2222_3333_4444)
    #expect(guest.register(GPR.rax) == 0x3333_4444 && guest.register(GPR.rdx) == 0x1111_2222)
    #expect(guest.page[\.rip] == Place.kernelCode + 4)
  }

  @Test("TSC and TSC_ADJUST move together")
  func timestamp() throws {
    let guest = TestGuest()
    guest.enterLong()
    let processor = guest.processor
    _ = try processor.writeMSR(0x3B, 1 << 40)
    #expect(guest.page[\.tsc_offset] == 1 << 40)
    _ = try processor.writeMSR(0x10, 0)
    #expect(guest.state.tscAdjust == guest.page[\.tsc_offset])
    #expect(processor.timestampCounter < 1 << 36)
    guest.enterLong(privilege: 3)
    #expect(guest.fault(guest.instruction(0x31, length: 2), map: .x0F) == nil)
    guest.page[\.cr4] = guest.page[\.cr4] | CR4.tsd
    #expect(guest.fault(guest.instruction(0x31, length: 2), map: .x0F) == .generalProtection())
  }

  @Test("CPUID: dynamic bits and leaves outside the list")
  func cpuid() {
    let guest = TestGuest()
    guest.enterLong()
    #expect(guest.processor.cpuid(1, 0).ecx >> 27 & 1 == 0)
    guest.page[\.cr4] = guest.page[\.cr4] | CR4.osxsave
    #expect(guest.processor.cpuid(1, 0).ecx >> 27 & 1 == 1)
    #expect(guest.processor.cpuid(0xD, 0).ebx == 576)
    guest.page[\.xcr0] = 7
    #expect(guest.processor.cpuid(0xD, 0).ebx == 832)
    #expect(guest.processor.cpuid(0x20, 0).ecx == 832)  // the highest basic leaf
    #expect(guest.processor.cpuid(0x4000_0010, 0).eax == 0)
    #expect(guest.processor.cpuid(7, 1).ebx == 0)
  }
}

// SPDX-License-Identifier: Apache-2.0
// What Intel's and AMD's processors do differently and the engine does as the guest's CPUID says, whatever the host is.

import CHost
import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct VendorGuestTests {
  private static let junk: UInt64 = 0xAAAA_BBBB << 32
  private static let strings: [UInt8] = [0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF]

  private static func model(isAMD: Bool) -> CPUIDTable {
    CPUIDTable([
      isAMD
        ? .init(0, subleaf: nil, eax: 7, ebx: 0x6874_7541, ecx: 0x444D_4163, edx: 0x6974_6E65)
        : .init(0, subleaf: nil, eax: 7, ebx: 0x756E_6547, ecx: 0x6C65_746E, edx: 0x4965_6E69)
    ])
  }

  /// What RCX, RSI and RDI keep of their upper halves on Intel's processors before an element is done.
  private static func kept(_ opcode: UInt8, isAMD: Bool) -> [UInt64] {
    if isAMD { return [junk, junk, junk] }
    return switch opcode & 0xFE {
    case 0xA4: [0, 0, 0]
    case 0xAA: [0, junk, 0]
    default: [0, junk, junk]
    }
  }

  @Test("REP with 32-bit addresses and a count of zero", arguments: [false, true], [0xF2, 0xF3] as [UInt8])
  func zeroCount(isAMD: Bool, prefix: UInt8) throws {
    for opcode in VendorGuestTests.strings {
      let guest = try FlatGuest(isAMD: isAMD)
      try guest.load([0x67, prefix, opcode, 0xF4])
      var state = guest.cpu.state
      for number in [1, 6, 7] { state.registers[number] = VendorGuestTests.junk | (number == 1 ? 0 : 0x2_0000) }
      guest.cpu.state = state
      #expect(guest.cpu.run() == .halt)
      let kept = VendorGuestTests.kept(opcode, isAMD: isAMD)
      #expect(guest.cpu.state.rip == 0x10004)
      #expect(guest.cpu.state.registers[1] == kept[0], "\(opcode)")
      #expect(guest.cpu.state.registers[6] == kept[1] | 0x2_0000, "\(opcode)")
      #expect(guest.cpu.state.registers[7] == kept[2] | 0x2_0000, "\(opcode)")
    }
  }

  @Test("REP with 32-bit addresses whose first element faults", arguments: [false, true])
  func firstElementFaults(isAMD: Bool) {
    for opcode in VendorGuestTests.strings {
      let guest = TestGuest(cpuid: VendorGuestTests.model(isAMD: isAMD))
      guest.enterLong()
      let bad = Place.unmapped | VendorGuestTests.junk
      guest.setRegister(GPR.rcx, VendorGuestTests.junk | 5)
      guest.setRegister(GPR.rsi, bad)
      guest.setRegister(GPR.rdi, bad)
      let fault = guest.fault(
        guest.instruction(opcode, length: 3) {
          $0.addressSize = 4
          $0.repeatPrefix = 0xF3
        })
      #expect(fault?.vector == 14)
      let kept = VendorGuestTests.kept(opcode, isAMD: isAMD)
      #expect(guest.register(GPR.rcx) == kept[0] | 5, "\(opcode)")
      #expect(guest.register(GPR.rsi) == kept[1] | Place.unmapped, "\(opcode)")
      #expect(guest.register(GPR.rdi) == kept[2] | Place.unmapped, "\(opcode)")
    }
  }

  @Test("without REP, or with addresses of 64 bits, a fault changes nothing", arguments: [false, true])
  func otherFaults(isAMD: Bool) {
    for opcode in VendorGuestTests.strings {
      for isRepeated in [false, true] {
        let guest = TestGuest(cpuid: VendorGuestTests.model(isAMD: isAMD))
        guest.enterLong()
        let bad = isRepeated ? Place.unmapped : Place.unmapped | VendorGuestTests.junk
        guest.setRegister(GPR.rcx, VendorGuestTests.junk | 5)
        guest.setRegister(GPR.rsi, bad)
        guest.setRegister(GPR.rdi, bad)
        let fault = guest.fault(
          guest.instruction(opcode, length: 3) {
            $0.addressSize = isRepeated ? 8 : 4
            $0.repeatPrefix = isRepeated ? 0xF3 : 0
          })
        #expect(fault?.vector == 14)
        #expect(guest.register(GPR.rcx) == VendorGuestTests.junk | 5)
        #expect(guest.register(GPR.rsi) == bad && guest.register(GPR.rdi) == bad)
      }
    }
  }

  @Test("BOUND whose upper bound is beyond the limit", arguments: [false, true]) func bound(isAMD: Bool) {
    let guest = TestGuest(cpuid: VendorGuestTests.model(isAMD: isAMD))
    guest.enterProtected()
    guest.poke(Int32(-5), at: Place.data)
    guest.poke(Int32(5), at: Place.data + 4)
    var segment = guest.page[.ds]
    segment.limit = UInt32(Place.data) + 3
    guest.page[.ds] = segment
    guest.page.updateMode()
    let bound = guest.instruction(0x62, length: 6) { TestGuest.memory(&$0, Place.data, reg: 1) }
    guest.setRegister(GPR.rcx, 0xFFFF_FFFA)
    #expect(guest.fault(bound) == (isAMD ? .generalProtection() : .boundRange))
    guest.setRegister(GPR.rcx, 0)
    #expect(guest.fault(bound) == .generalProtection())
    segment.limit = UInt32(Place.data) + 2
    guest.page[.ds] = segment
    guest.page.updateMode()
    guest.setRegister(GPR.rcx, 0xFFFF_FFFA)
    #expect(guest.fault(bound) == .generalProtection())
  }

  @Test("MOVSXD of a word reads two bytes", arguments: [false, true]) func wordOfMOVSXD(isAMD: Bool) throws {
    let guest = try FlatGuest(isAMD: isAMD)
    // The last two bytes of what is mapped: a third would be #PF.
    try guest.memory.store(UInt64(0), at: GuestPhysical(0x3000 + 8))
    try guest.memory.store(UInt16(0x8765), at: GuestPhysical(0x1F_FFFE))
    try guest.load("first_movsxd")
    var state = guest.cpu.state
    state.registers[0] = .max
    state.registers[1] = .max
    state.registers[3] = 0x1F_FFFE
    guest.cpu.state = state
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu.state.registers[0] == 0xFFFF_FFFF_FFFF_8765)
    #expect(guest.cpu.state.registers[1] == 0xFFFF_FFFF_FFFF_FFFE)
  }
}

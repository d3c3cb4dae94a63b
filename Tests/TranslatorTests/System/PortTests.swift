// SPDX-License-Identifier: Apache-2.0
// IN, OUT and their strings: the permission bitmap, and elements one exit at a time.

import CHost
import Engine
import Testing

@testable import Translator
@testable import X86

@Suite struct PortTests {
  @Test("The I/O permission bitmap")
  func ports() throws {
    let guest = TestGuest()
    guest.enterProtected(privilege: 3)
    for index in UInt64(0)..<0x78 { guest.poke(UInt8(0xFF), at: Place.tss + 0x88 + index) }
    guest.poke(UInt8(0b1111_0011), at: Place.tss + 0x88 + 0x70 / 8)  // 72h and 73h
    guest.setRegister(GPR.rdx, 0x72)
    let byte = guest.instruction(0xEC)
    let word = guest.instruction(0xED) { $0.operandSize = 2 }
    let long = guest.instruction(0xED)
    #expect(try guest.execute(byte) == .exit(.portRead(port: 0x72, size: 1)))
    #expect(try guest.execute(word) == .exit(.portRead(port: 0x72, size: 2)))
    #expect(guest.fault(long) == .generalProtection())
    guest.setRegister(GPR.rdx, 0x3F8)
    #expect(guest.fault(byte) == .generalProtection())
    guest.page.rflags = RFLAGS.iopl | 2
    guest.setRegister(GPR.rax, 0x1234_5678)
    #expect(try guest.execute(byte) == .exit(.portRead(port: 0x3F8, size: 1)))
    try guest.processor.completeRead(0xFFAA)
    #expect(guest.register(GPR.rax) == 0x1234_56AA && guest.page[\.rip] == Place.userCode + 1)
    #expect(
      try guest.execute(guest.instruction(0xE7, length: 2) { $0.immediate = 0x80 })
        == .exit(.portWrite(port: 0x80, size: 4, value: 0x1234_56AA)))
    #expect(guest.page[\.rip] == Place.userCode + 3)
  }

  @Test("REP INSB stores elements one exit at a time")
  func inputString() throws {
    let guest = TestGuest()
    guest.enterLong()
    guest.setRegister(GPR.rdi, Place.data)
    guest.setRegister(GPR.rcx, 2)
    guest.setRegister(GPR.rdx, 0x1F0)
    let insb = guest.instruction(0x6C, length: 2) { $0.repeatPrefix = 0xF3 }
    for (index, value) in [0x41, 0x42].enumerated() {
      #expect(try guest.execute(insb) == .exit(.portRead(port: 0x1F0, size: 1)))
      try guest.processor.completeRead(UInt64(value))
      #expect(guest.page[\.rip] == Place.kernelCode + (index == 1 ? 2 : 0))
    }
    #expect(guest.peek(UInt16.self, at: Place.data) == 0x4241)
    #expect(guest.register(GPR.rcx) == 0 && guest.register(GPR.rdi) == Place.data + 2)
  }
}

// SPDX-License-Identifier: Apache-2.0
// The target of single system instructions: decoded forms with random operands, over random descriptor tables, in every
// mode, straight to the Swift code that executes them. What state they lead to must be one that a processor can have.

import CHost
import X86

@testable import Translator

/// One system instruction after the other.
enum SystemExecution {
  private static let oneByte: [UInt8] = [
    0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x50, 0x54, 0x58, 0x5C, 0x60, 0x61, 0x62, 0x63,
    0x68, 0x6A, 0x6C, 0x6D, 0x6E, 0x6F, 0x74, 0x8C, 0x8E, 0x8F, 0x9A, 0x9C, 0x9D, 0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5,
    0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0xC2, 0xC3, 0xC4, 0xC5, 0xC8, 0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE,
    0xCF, 0xD4, 0xD5, 0xD6, 0xD7, 0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xEB, 0xEC, 0xED,
    0xEE, 0xEF, 0xF1, 0xF4, 0xFA, 0xFB, 0xFC, 0xFD, 0xFF,
  ]
  private static let twoByte: [UInt8] = [
    0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35,
    0x84, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAE, 0xB2, 0xB4, 0xB5, 0xC7,
  ]

  private static func value(_ input: inout FuzzInput) -> UInt64 {
    input.chance(16) ? UInt64(input.byte()) << 3 : input.value(addresses: UInt64(TestGuest.size))
  }

  private static func enter(_ guest: TestGuest, _ mode: Int) {
    guest.page[\.cr4] = 0
    guest.page[\.efer] = 0
    guest.page.rflags = 2
    switch mode {
    case 0: guest.enterLong()
    case 1: guest.enterLong(privilege: 3)
    case 2: guest.enterProtected()
    case 3: guest.enterProtected(privilege: 3)
    case 4: guest.enterReal()
    default: guest.enterVirtual8086()
    }
  }

  /// A mode, with tables of which some are damaged.
  private static func begin(_ guest: TestGuest, _ mode: Int, _ input: inout FuzzInput) {
    enter(guest, mode)
    for vector in UInt8(0)..<64 {
      if guest.page.isLMA { guest.setLongGate(vector, access: 0xEE) } else { guest.setGate(vector, access: 0xEE) }
    }
    for _ in 0..<input.below(12) {
      let offset = input.chance(8) ? UInt64(input.word(UInt16.self) & 0xFFF) : UInt64(input.byte())
      guest.poke(input.byte(), at: input.choose([Place.gdt, Place.idt, Place.tss, Place.ldt]) + offset)
    }
    let flags = RFLAGS.iopl | RFLAGS.nt | RFLAGS.df | RFLAGS.arithmetic | RFLAGS.ac
    guest.page.rflags = guest.page.rflags | UInt64(input.word(UInt32.self)) & flags
    guest.page[\.star] = input.value()
    guest.page[\.sysenter_cs] = UInt64(input.byte())
    guest.page.updateMode()
  }

  private static func instruction(_ guest: TestGuest, _ two: Bool, _ input: inout FuzzInput) -> Instruction {
    let opcode = input.choose(two ? twoByte : oneByte)
    return guest.instruction(opcode, length: 1 + input.byte() % 15) {
      $0.hasModRM = true
      $0.modRM = input.byte()
      $0.reg = $0.modRM >> 3 & 7
      $0.rm = $0.modRM & 7
      if $0.isMemory {
        $0.base = input.byte() & 1 == 0 ? 0xFF : input.byte() & 15
        $0.index = input.byte() & 1 == 0 ? 0xFF : input.byte() & 15
        $0.scale = input.byte() & 3
        $0.displacement = Int32(truncatingIfNeeded: value(&input))
        $0.segment = input.byte() % 6
      } else if opcode == 0x8F || (two && [0xB2, 0xB4, 0xB5].contains(opcode)) || opcode == 0xC4 || opcode == 0xC5 {
        $0.modRM &= 0x3F
      }
      $0.segmentPrefix = input.byte() & 1 == 0 ? 0xFF : input.byte() % 6
      $0.repeatPrefix = input.choose([0, 0xF2, 0xF3])
      $0.operandSize = input.choose([2, 4, $0.code == .code64 ? 8 : 4])
      $0.rex = $0.operandSize == 8 ? 0x48 : 0
      $0.hasOperandSizePrefix = input.byte() & 1 == 0
      if input.chance(4) { $0.addressSize = $0.code == .code64 ? 4 : input.byte() & 1 == 0 ? 2 : 4 }
      $0.immediate = value(&input)
      $0.immediate2 = UInt16(input.byte())
    }
  }

  static func run(_ input: inout FuzzInput) throws {
    let guest = TestGuest()
    let mode = input.below(6)
    begin(guest, mode, &input)
    repeat {
      if input.chance(24) { begin(guest, mode, &input) }
      for _ in 0..<input.below(4) { guest.setRegister(input.byte() & 15, value(&input)) }
      if input.chance(4) { guest.poke(UInt64(input.word(UInt32.self)) & 0x00FF_00FF, at: Place.data) }
      if input.chance(2) { guest.setRegister(GPR.rsp, Place.kernelStack - UInt64(input.byte() & 63)) }
      if input.chance(4) {
        let rsp = guest.register(GPR.rsp) & 0xFF_FFF8
        if rsp < UInt64(TestGuest.size - 64) {
          for slot in UInt64(0)..<8 { guest.poke(input.word(UInt32.self) & 0xFFFF_00FF, at: rsp + slot * 4) }
        }
      }
      let two = input.chance(3)
      let instruction = instruction(guest, two, &input)
      do throws(Fault) {
        switch try guest.execute(instruction, map: two ? .x0F : .one) {
        case .done, .shutdown: break
        case .exit: try guest.processor.completeRead(input.value())
        }
      } catch {
        if guest.processor.deliver(error) == .shutdown { enter(guest, mode) }
      }
      if input.chance(16) { guest.processor.deliver(input.byte() % 70, kind: .external) }
      guest.state.completion = .none
      if guest.page.rflags & 2 == 0 { throw FuzzFailure("RFLAGS without bit 1 after \(instruction)") }
      if !guest.page.isProtected, guest.page.privilege != 0 { throw FuzzFailure("real mode at level 3") }
      // What a guest comes to by itself is no reason to refuse a saved machine.
      if let register = guest.processor.impossibleRegister(in: guest.processor.registers) {
        throw FuzzFailure("impossible \(register.name) \(String(register.value, radix: 16)) after \(instruction)")
      }
      _ = guest.processor.fetch(at: guest.page[\.rip])
    } while !input.isOver
  }
}

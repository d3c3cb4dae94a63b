// SPDX-License-Identifier: Apache-2.0
// A hostile guest cannot stop the process: random instructions with random registers over random descriptor
// tables, in every mode. Debug builds trap on every overflow, so surviving is the test; a few invariants besides.

import CHost
import TestSupport
import Testing

@testable import Translator
@testable import X86

struct SplitMix64: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}

@Suite struct FuzzTests {
  static let oneByte: [UInt8] = [
    0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x50, 0x54, 0x58, 0x5C, 0x60, 0x61, 0x62, 0x63,
    0x68, 0x6A, 0x6C, 0x6D, 0x6E, 0x6F, 0x74, 0x8C, 0x8E, 0x8F, 0x9A, 0x9C, 0x9D, 0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5,
    0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0xC2, 0xC3, 0xC4, 0xC5, 0xC8, 0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE,
    0xCF, 0xD4, 0xD5, 0xD6, 0xD7, 0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xEB, 0xEC, 0xED,
    0xEE, 0xEF, 0xF1, 0xF4, 0xFA, 0xFB, 0xFC, 0xFD, 0xFF,
  ]
  static let twoByte: [UInt8] = [
    0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35,
    0x84, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAE, 0xB2, 0xB4, 0xB5, 0xC7,
  ]

  static func value(_ random: inout SplitMix64) -> UInt64 {
    switch random.next() % 8 {
    case 0: random.next()
    case 1: random.next() % 16
    case 2: UInt64.max &- random.next() % 16
    case 3: (1 << 47) &- random.next() % 16
    case 4: 0x1_0000 &- random.next() % 16
    case 5: 0xFFFF_FFFF &- random.next() % 16
    default: random.next() % UInt64(TestGuest.size)
    }
  }

  static func enter(_ guest: TestGuest, _ mode: Int) {
    switch mode {
    case 0: guest.enterLong()
    case 1: guest.enterLong(privilege: 3)
    case 2: guest.enterProtected()
    case 3: guest.enterProtected(privilege: 3)
    case 4: guest.enterReal()
    default:
      guest.enterProtected(privilege: 3)
      guest.page[\.cr4] = CR4.vme
      guest.page.rflags = RFLAGS.vm | 2
      for register in [SegmentRegister.es, .cs, .ss, .ds, .fs, .gs] {
        guest.page[register] = .real(selector: 0x1000, attributes: 0xF3)
      }
      guest.page.updateMode()
    }
  }

  @Test("Random instructions, tables and registers", arguments: 0..<6, 1...2)
  func survive(mode: Int, seed: Int) {
    let fixed = UInt64(seed &* 8 &+ mode)
    var random = SplitMix64(
      state: TestSeed.of("system instructions, mode \(mode)", fixed: fixed) ^ (TestSeed.given == nil ? 0 : fixed << 32))
    let guest = TestGuest()
    for round in 0..<8000 {
      if round % 20 == 0 {
        guest.page[\.cr4] = 0
        guest.page[\.efer] = 0
        guest.page.rflags = 2
        Self.enter(guest, mode)
        for vector in UInt8(0)..<64 {
          if guest.page.isLMA {
            guest.setLongGate(vector, access: 0xEE, stack: random.next() % 9 / 8)
          } else {
            guest.setGate(vector, access: 0xEE)
          }
        }
        // Damage some descriptors, gates and TSS fields.
        for _ in 0..<(random.next() % 12) {
          let offset = random.next() % 8 == 0 ? random.next() % 0x1000 : random.next() % 0x100
          guest.poke(
            UInt8(truncatingIfNeeded: random.next()),
            at: [Place.gdt, Place.idt, Place.tss, Place.ldt][Int(random.next() % 4)] + offset)
        }
        guest.page.rflags =
          guest.page.rflags | random.next() & (RFLAGS.iopl | RFLAGS.nt | RFLAGS.df | RFLAGS.arithmetic | RFLAGS.ac)
        guest.page[\.star] = random.next()
        guest.page[\.sysenter_cs] = random.next() & 0xFF
        guest.page.updateMode()
      }
      for number in UInt8(0)..<16 where random.next() % 4 == 0 { guest.setRegister(number, Self.value(&random)) }
      if random.next() % 4 == 0 { guest.poke(random.next() & 0x0000_00FF_00FF_00FF, at: Place.data) }
      if random.next() % 2 == 0 { guest.setRegister(GPR.rsp, Place.kernelStack - random.next() % 64) }
      if random.next() % 4 == 0 {
        let rsp = guest.register(GPR.rsp) & 0xFF_FFF8
        if rsp < UInt64(TestGuest.size - 64) {
          for slot in UInt64(0)..<8 { guest.poke(random.next() & 0xFFFF_00FF, at: rsp + slot * 4) }
        }
      }
      let two = random.next() % 3 == 0
      let opcode = two ? Self.twoByte.randomElement(using: &random) : Self.oneByte.randomElement(using: &random)
      let instruction = guest.instruction(opcode ?? 0, length: UInt8(1 + random.next() % 15)) {
        $0.hasModRM = true
        $0.modRM = UInt8(truncatingIfNeeded: random.next())
        $0.reg = $0.modRM >> 3 & 7
        $0.rm = $0.modRM & 7
        if $0.isMemory {
          $0.base = random.next() % 2 == 0 ? 0xFF : UInt8(random.next() % 16)
          $0.index = random.next() % 2 == 0 ? 0xFF : UInt8(random.next() % 16)
          $0.scale = UInt8(random.next() % 4)
          $0.displacement = Int32(truncatingIfNeeded: Self.value(&random))
          $0.segment = UInt8(random.next() % 6)
        } else if opcode == 0x8F || (two && (opcode == 0xB2 || opcode == 0xB4 || opcode == 0xB5)) || opcode == 0xC4
          || opcode == 0xC5
        {
          $0.modRM &= 0x3F
        }
        $0.segmentPrefix = random.next() % 2 == 0 ? 0xFF : UInt8(random.next() % 6)
        $0.repeatPrefix = [0, 0xF2, 0xF3][Int(random.next() % 3)]
        $0.operandSize = [2, 4, $0.code == .code64 ? 8 : 4][Int(random.next() % 3)]
        $0.rex = $0.operandSize == 8 ? 0x48 : 0
        $0.hasOperandSizePrefix = random.next() % 2 == 0
        if random.next() % 4 == 0 { $0.addressSize = $0.code == .code64 ? 4 : random.next() % 2 == 0 ? 2 : 4 }
        $0.immediate = Self.value(&random)
        $0.immediate2 = UInt16(truncatingIfNeeded: random.next() & 0xFF)
      }
      do throws(Fault) {
        switch try guest.execute(instruction, map: two ? .x0F : .one) {
        case .done, .shutdown: break
        case .exit: try guest.processor.completeRead(random.next())
        }
      } catch {
        if guest.processor.deliver(error) == .shutdown {
          guest.page.rflags = 2
          Self.enter(guest, mode)
        }
      }
      if random.next() % 16 == 0 {
        guest.processor.deliver(UInt8(random.next() % 70), kind: .external)
      }
      guest.state.completion = .none
      #expect(guest.page.rflags & 2 != 0)
      #expect(guest.page.isProtected || guest.page.privilege == 0)
      // What a guest comes to by itself is no reason to refuse a saved machine.
      if let register = guest.processor.impossibleRegister(in: guest.processor.registers) {
        Issue.record("mode \(mode), seed \(seed), round \(round): impossible \(register) after \(instruction)")
        Self.enter(guest, mode)
      }
      _ = guest.processor.fetch(at: guest.page[\.rip])
    }
  }
}

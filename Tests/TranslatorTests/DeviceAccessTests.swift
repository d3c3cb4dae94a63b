// SPDX-License-Identifier: Apache-2.0
// Every operand form on a page that is a device's: which exits, in which order, of which sizes, and what comes out.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

/// One access and the exits it makes. Reads are answered with `answers` in turn.
struct DeviceCase: Sendable, CustomTestStringConvertible {
  let name: String
  let exits: [VCPUExit]
  var answers: [UInt64] = []
  var registers: [Int: UInt64] = [:]
  /// Registers afterwards.
  var results: [Int: UInt64] = [:]
  var testDescription: String { name }
}

@Suite("MMIO") struct DeviceAccessTests {
  static let device = KernelGuest.device
  static func read(_ offset: UInt64, _ size: UInt8) -> VCPUExit { .mmioRead(address: device + offset, size: size) }
  static func write(_ offset: UInt64, _ size: UInt8, _ value: UInt64) -> VCPUExit {
    .mmioWrite(address: device + offset, size: size, value: value)
  }

  static let cases: [DeviceCase] = [
    DeviceCase(name: "load1", exits: [read(1, 1)], answers: [0xAB], results: [0: 0x1122_3344_5566_77AB]),
    DeviceCase(name: "load2", exits: [read(2, 2)], answers: [0xABCD], results: [0: 0x1122_3344_5566_ABCD]),
    DeviceCase(name: "load4", exits: [read(4, 4)], answers: [0x8000_0001], results: [0: 0x8000_0001]),
    DeviceCase(name: "load8", exits: [read(8, 8)], answers: [0x1234], results: [0: 0x1234]),
    DeviceCase(name: "load4_odd", exits: [read(2, 2), read(4, 2)], answers: [1, 2], results: [0: 0x20001]),
    DeviceCase(name: "movzx", exits: [read(0, 1)], answers: [0xFF], results: [0: 0xFF]),
    DeviceCase(name: "movsx", exits: [read(0, 2)], answers: [0x8000], results: [0: 0xFFFF_FFFF_FFFF_8000]),
    DeviceCase(name: "store1", exits: [write(1, 1, 0x88)]), DeviceCase(name: "store2", exits: [write(2, 2, 0x7788)]),
    DeviceCase(name: "store4", exits: [write(4, 4, 0x5566_7788)]),
    DeviceCase(name: "store8", exits: [write(8, 8, 0x1122_3344_5566_7788)]),
    DeviceCase(name: "store_immediate", exits: [write(0, 4, 0x1234)]),
    DeviceCase(name: "add", exits: [read(0, 4), write(0, 4, 7)], answers: [5], registers: [0: 2]),
    DeviceCase(name: "add_from", exits: [read(0, 4)], answers: [5], registers: [0: 2], results: [0: 7]),
    DeviceCase(name: "or_locked", exits: [read(0, 4), write(0, 4, 0x13)], answers: [3]),
    DeviceCase(name: "xchg", exits: [read(0, 4), write(0, 4, 2)], answers: [5], registers: [0: 2], results: [0: 5]),
    DeviceCase(
      name: "cmpxchg", exits: [read(0, 4), write(0, 4, 9)], answers: [5], registers: [0: 5, 1: 9], results: [0: 5]),
    DeviceCase(name: "bts", exits: [read(0, 4), write(0, 4, 9)], answers: [1]),
    DeviceCase(name: "bts_far", exits: [read(8, 4), write(8, 4, 0x20)], answers: [0], registers: [0: 69]),
    DeviceCase(name: "cmp", exits: [read(0, 1)], answers: [5]),
    DeviceCase(name: "not", exits: [read(0, 2), write(0, 2, 0xFF0F)], answers: [0xF0]),
    DeviceCase(name: "movups_load", exits: [read(0, 8), read(8, 8)], answers: [1, 2]),
    DeviceCase(name: "movups_store", exits: [write(0, 8, 0), write(8, 8, 0)]),
    DeviceCase(name: "movq_store", exits: [write(0, 8, 0)]),
    DeviceCase(name: "fild", exits: [read(0, 4)], answers: [7]),
    DeviceCase(
      name: "movsd_from", exits: [read(4, 4)], answers: [0x77], registers: [6: device + 4, 7: KernelGuest.data],
      results: [6: device + 8, 7: KernelGuest.data + 4]),
    DeviceCase(
      name: "rep_movsb", exits: [read(0, 1), write(8, 1, 1), read(1, 1), write(9, 1, 2)], answers: [1, 2],
      registers: [1: 2, 6: device, 7: device + 8], results: [1: 0, 6: device + 2, 7: device + 10]),
    DeviceCase(name: "stosd", exits: [write(0, 4, 0x5566_7788)], registers: [7: device], results: [7: device + 4]),
    DeviceCase(
      name: "rep_stosw", exits: [write(0, 2, 0x7788), write(2, 2, 0x7788), write(4, 2, 0x7788)],
      registers: [1: 3, 7: device], results: [1: 0, 7: device + 6]),
    DeviceCase(
      name: "lodsb", exits: [read(0, 1)], answers: [0xAB], registers: [6: device],
      results: [0: 0x1122_3344_5566_77AB, 6: device + 1]),
    DeviceCase(name: "scasd", exits: [read(0, 4)], answers: [1], registers: [7: device], results: [7: device + 4]),
    DeviceCase(
      name: "cmpsb", exits: [read(0, 1), read(9, 1)], answers: [1, 1], registers: [6: device, 7: device + 9],
      results: [6: device + 1, 7: device + 10]),
    DeviceCase(name: "push_memory", exits: [read(0, 8)], answers: [0x99], results: [4: KernelGuest.stack - 8]),
    DeviceCase(name: "pop_memory", exits: [write(0, 8, 0x4242)], results: [4: KernelGuest.stack + 8]),
    DeviceCase(
      name: "push", exits: [write(0, 8, 0x1122_3344_5566_7788)], registers: [4: device + 8], results: [4: device]),
    DeviceCase(name: "pop", exits: [read(0, 8)], answers: [6], registers: [4: device], results: [0: 6, 4: device + 8]),
    DeviceCase(name: "popfq", exits: [read(0, 8)], answers: [0x8D7], registers: [4: device], results: [4: device + 8]),
    DeviceCase(name: "call_memory", exits: [read(0, 8)], answers: [0x30000], results: [4: KernelGuest.stack - 8]),
    DeviceCase(name: "jump_memory", exits: [read(0, 8)], answers: [0x30000], results: [4: KernelGuest.stack]),
    DeviceCase(name: "movabs", exits: [read(16, 1)], answers: [0xAB], results: [0: 0x1122_3344_5566_77AB]),
    DeviceCase(name: "lgdt", exits: [read(0, 2), read(2, 2), read(4, 4), read(8, 2)], answers: [0x7F, 0x5000, 0, 0]),
    DeviceCase(
      name: "sgdt", exits: [write(0, 2, 0x7F), write(2, 2, 0x5000), write(4, 4, 0), write(8, 2, 0)]),
    DeviceCase(
      name: "insd", exits: [.portRead(port: 0x60, size: 4), write(0, 4, 0x31)], answers: [0x31],
      registers: [2: 0x60, 7: device], results: [7: device + 4]),
    DeviceCase(
      name: "outsb", exits: [read(0, 1), .portWrite(port: 0x60, size: 1, value: 0x31)], answers: [0x31],
      registers: [2: 0x60, 6: device], results: [6: device + 1]),
    DeviceCase(name: "mov_sreg", exits: [write(0, 2, 0x18)]),
  ]

  @Test("Exits and results", arguments: cases) func access(_ item: DeviceCase) throws {
    let guest = try KernelGuest()
    guest.load("mmio_" + item.name)
    guest.load([0xF4], at: 0x30000)
    guest.poke(UInt64(0x4242), at: KernelGuest.stack)
    guest.start {
      $0.registers[0] = 0x1122_3344_5566_7788
      $0.registers[3] = Self.device
      for (number, value) in item.registers { $0.registers[number] = value }
    }
    var exits: [VCPUExit] = []
    var answers = item.answers[...]
    while exits.count < 20 {
      let exit = guest.cpu.run()
      if exit == .halt { break }
      exits.append(exit)
      #expect(!guest.cpu.canAcceptInterrupt)
      switch exit {
      case .mmioRead, .portRead: guest.cpu.completeRead(answers.popFirst() ?? 0)
      default: break
      }
    }
    #expect(exits == item.exits)
    #expect(guest.frame() == nil)
    for (number, value) in item.results { #expect(guest.cpu.state.registers[number] == value, "register \(number)") }
    if item.name == "push_memory" { #expect(guest.peek(UInt64.self, at: KernelGuest.stack - 8) == 0x99) }
    if item.name == "movsd_from" { #expect(guest.peek(UInt32.self, at: KernelGuest.data) == 0x77) }
  }
}

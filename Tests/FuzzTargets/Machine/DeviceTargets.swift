// SPDX-License-Identifier: Apache-2.0
// Targets that reach the machine without a guest: model-specific registers, and every device through ports and memory.
// Whatever state they are brought to is a state that can be saved, restored and saved again as the same bytes.

import Saving
import X86

@testable import Devices
@testable import Translator

/// RDMSR and WRMSR.
enum ModelSpecificRegisters {
  private static let known: [UInt32] = [
    0x10, 0x17, 0x1B, 0x3A, 0x3B, 0x79, 0x8B, 0xCE, 0xFE, 0x140, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x1A0, 0x1D9, 0x1FC,
    0x200, 0x201, 0x20F, 0x250, 0x258, 0x268, 0x26F, 0x277, 0x2FF, 0x6E0, 0xC000_0080, 0xC000_0081, 0xC000_0082,
    0xC000_0083, 0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103, 0xC001_0015, 0xC001_001F, 0xC001_1029,
  ]

  static func run(_ input: inout FuzzInput) throws {
    let guest = TestGuest()
    if input.chance(2) { guest.enterLong() } else { guest.enterProtected() }
    let fixture = Fixture(cpuCount: 2)
    repeat {
      let index: UInt32 =
        switch input.byte() % 8 {
        case 0: input.word()
        case 1: 0x200 + UInt32(input.byte() & 0x7F)
        case 2, 3: 0x800 + UInt32(input.byte() & 0x3F)
        default: input.choose(known)
        }
      let isWrite = input.chance(2)
      let value = isWrite ? input.value(addresses: 1 << 32) : 0
      if LocalAPIC.owns(msr: index) {
        let apic = fixture.apic(input.below(2))
        if isWrite { _ = apic.writeMSR(index, value) } else { _ = apic.readMSR(index) }
        if input.chance(4) { fixture.time.advance(UInt64(input.word(UInt32.self))) }
        if input.chance(4) { apic.expire(now: fixture.time.nanoseconds) }
        if input.chance(4) { _ = apic.acknowledge() }
        continue
      }
      do throws(Fault) {
        if isWrite {
          if try guest.processor.writeMSR(index, value), case .machine = try guest.processor.readMSR(index) {
            // The microcode's trigger can only be written.
            if index != 0x79 { throw FuzzFailureFault.machine }
          }
        } else {
          _ = try guest.processor.readMSR(index)
        }
      } catch {
        if error == FuzzFailureFault.machine {
          throw FuzzFailure("\(String(index, radix: 16)) is written and not read")
        }
      }
      if let register = guest.processor.impossibleRegister(in: guest.processor.registers) {
        throw FuzzFailure(
          "impossible \(register.name) after \(String(value, radix: 16)) to \(String(index, radix: 16))")
      }
    } while !input.isOver
    try PortsAndMemory.checkSaving(fixture) { Fixture(cpuCount: 2) }
  }

  /// A fault that no register raises.
  private enum FuzzFailureFault {
    static let machine = Fault.pageFault(0xDEAD, code: 0xDEAD)
  }
}

/// IN, OUT and accesses to addresses that are not RAM.
enum PortsAndMemory {
  private static let ports: [UInt64] =
    [
      0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x92, 0x600, 0x602,
      0x604, 0x605, 0x608, 0xCF8, 0xCF9, 0xCFC, 0xCFE, 0x510, 0x511, 0xF4, 0x80,
    ]
    + Array(0x3F8...0x3FF) + Array(0xE0...0xE3) + Array(0x2000...0x2017)

  static func run(_ input: inout FuzzInput) throws {
    let fixture = Fixture(cpuCount: 2, hasTestDevices: true)
    if input.chance(2) {
      fixture.enableX2APIC(0)
      fixture.enableX2APIC(1)
    }
    repeat {
      let apic = fixture.apic(input.below(2))
      let size = input.choose([1, 2, 4, 8] as [UInt8])
      switch input.byte() % 16 {
      case 0, 1, 2, 3, 4:
        fixture.platform.ports.write(port(&input), size: min(size, 4), value: input.value(addresses: 65536))
      case 5, 6: _ = fixture.platform.ports.read(port(&input), size: min(size, 4))
      case 7, 8: fixture.platform.mmio.write(address(&input), size: size, value: input.value(addresses: 65536))
      case 9: _ = fixture.platform.mmio.read(address(&input), size: size)
      case 10: fixture.ioapicWrite(UInt64(input.byte() & 0x3F), input.value(addresses: 1 << 20))
      case 11: apic.write(offset: UInt64(input.word(UInt16.self) & 0xFFF), size: size, value: input.value())
      case 12: _ = apic.read(offset: UInt64(input.word(UInt16.self) & 0xFFF), size: size)
      case 13: _ = apic.writeMSR(0x800 + UInt32(input.byte() & 0x3F), input.value(addresses: 1 << 20))
      case 14:
        switch input.byte() % 5 {
        case 0: apic.receive(vector: input.byte())
        case 1: _ = fixture.platform.serial.receive(input.take(Int(input.byte() & 31)))
        case 2: _ = apic.acknowledge()
        case 3: _ = apic.takeStartupEvent()
        default: _ = apic.takeNMI()
        }
      default:
        fixture.time.advance(input.chance(8) ? input.value() >> 8 : UInt64(input.word(UInt32.self)))
        if input.chance(4) { fixture.wall.advance(Int64(input.byte())) }
        for source in fixture.platform.deadlineSources { source.expire(now: fixture.time.nanoseconds) }
        for apic in fixture.platform.interrupts.localAPICs { apic.expire(now: fixture.time.nanoseconds) }
      }
    } while !input.isOver
    try checkSaving(fixture) { Fixture(cpuCount: 2, hasTestDevices: true) }
  }

  private static func port(_ input: inout FuzzInput) -> UInt64 {
    input.chance(16) ? UInt64(input.word(UInt16.self)) : input.choose(ports)
  }

  private static func address(_ input: inout FuzzInput) -> UInt64 {
    switch input.byte() % 4 {
    case 0: 0xFEC0_0000 + UInt64(input.byte())
    case 1: 0xFF00_0000 + UInt64(input.word(UInt16.self))
    case 2: 0xFEE0_0000 + UInt64(input.word(UInt16.self) & 0xFFF)
    default: input.value()
    }
  }

  /// What a guest comes to can be saved, restored by another machine, and saved again as the same bytes.
  static func checkSaving(_ fixture: Fixture, _ another: () -> Fixture) throws {
    let sections = try fixture.savedDevices()
    let other = another()
    other.time.advance(fixture.time.nanoseconds &- other.time.nanoseconds)
    other.wall.advance(fixture.wall.seconds - other.wall.seconds)
    for (saved, bytes) in zip(other.platform.savedDevices, sections) {
      var archive = StateArchive(restoring: bytes, at: fixture.time.nanoseconds)
      var device = saved.device
      do throws(SavedStateError) {
        try device.transfer(&archive)
        try archive.finish()
      } catch { throw FuzzFailure("\(saved.name) cannot be restored: \(error)") }
    }
    for (saved, (first, second)) in zip(other.platform.savedDevices, zip(sections, try other.savedDevices()))
    where first != second { throw FuzzFailure("\(saved.name) is saved otherwise after it was restored") }
  }
}

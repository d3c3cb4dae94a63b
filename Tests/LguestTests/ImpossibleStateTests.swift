// SPDX-License-Identifier: Apache-2.0
// What no machine can be in, field by field: each value here is refused, and the refusal names the register or the
// device's field.

import Foundation
import Testing

@testable import Lguest
@testable import Saving

@Suite("Impossible states", .timeLimit(.minutes(5))) struct ImpossibleStateTests {
  /// A field, where in it, and the bits of it that are changed.
  private struct Change: CustomStringConvertible {
    var section: String
    var field: String
    var element = 0
    var flips: UInt64
    /// What is refused, if that is not the field itself.
    var named: String?
    /// `flips` is the new value: what the old one is depends on the moment.
    var replaces = false
    var description: String { "\(field)[\(element)] \(replaces ? "=" : "^") 0x\(String(flips, radix: 16))" }
  }

  private static func vCPU(_ field: String, _ flips: UInt64, element: Int = 0, named: String? = nil) -> Change {
    Change(
      section: "processors", field: "vCPU 0 \(field)", element: element, flips: flips,
      named: named.map { "vCPU 0 \($0)" })
  }

  private static let notCanonical: UInt64 = 1 << 63
  private static let (cr0PE, cr0PG): (UInt64, UInt64) = (1, 1 << 31)

  /// Of a vCPU in the middle of a 64-bit program.
  private static let of64BitCode: [Change] = [
    vCPU("RFLAGS", 1 << 1), vCPU("RFLAGS", 1 << 3), vCPU("RFLAGS", 1 << 15), vCPU("RFLAGS", 1 << 22),
    vCPU("RFLAGS", 1 << 17), vCPU("RFLAGS", 1 << 63),
    vCPU("CR0", cr0PE), vCPU("CR0", 1 << 4), vCPU("CR0", 1 << 29), vCPU("CR0", 1 << 32), vCPU("CR0", 1 << 6),
    vCPU("CR0", cr0PG, named: "EFER"),
    vCPU("CR3", 1 << 46), vCPU("CR3", 1 << 63),
    vCPU("CR4", 1 << 5), vCPU("CR4", 1 << 13), vCPU("CR4", 1 << 15), vCPU("CR4", 1 << 22), vCPU("CR4", 1 << 32),
    vCPU("CR8", 16), vCPU("CR8", 1 << 63),
    vCPU("EFER", 1 << 8), vCPU("EFER", 1 << 10), vCPU("EFER", 1 << 12), vCPU("EFER", 1 << 1), vCPU("EFER", 1 << 40),
    vCPU("XCR0", 1), vCPU("XCR0", 2), vCPU("XCR0", 0xE0), vCPU("XCR0", 1 << 3), vCPU("XCR0", 1 << 9),
    vCPU("XCR0", 1 << 63),
    // MXCSR, XSTATE_BV, XCOMP_BV, and the rest of the header.
    vCPU("vector state", 1, element: 26, named: "MXCSR"), vCPU("vector state", 0x80, element: 27, named: "MXCSR"),
    vCPU("vector state", 8, element: 512, named: "XSTATE_BV"),
    vCPU("vector state", 2, element: 513, named: "XSTATE_BV"),
    vCPU("vector state", 0x80, element: 519, named: "XSTATE_BV"),
    vCPU("vector state", 1, element: 520, named: "XCOMP_BV"),
    vCPU("vector state", 0x80, element: 527, named: "XCOMP_BV"),
    vCPU("vector state", 1, element: 528, named: "reserved byte of the XSAVE header"),
    vCPU("vector state", 1, element: 575, named: "reserved byte of the XSAVE header"),
    vCPU("DR6", 1 << 4), vCPU("DR6", 1 << 12), vCPU("DR6", 1 << 32), vCPU("DR7", 1 << 10), vCPU("DR7", 1 << 12),
    vCPU("DR7", 1 << 32),
    vCPU("LSTAR", notCanonical), vCPU("CSTAR", notCanonical), vCPU("KERNEL_GS_BASE", notCanonical),
    vCPU("SYSENTER_ESP", notCanonical), vCPU("SYSENTER_EIP", 1 << 47), vCPU("SYSENTER_CS", 1 << 32),
    vCPU("SFMASK", 1 << 32), vCPU("TSC_AUX", 1 << 32), vCPU("PAT", 5), vCPU("PAT", 0x80 << 56),
    vCPU("FS base", notCanonical), vCPU("GS base", 1 << 47), vCPU("TR base", notCanonical),
    vCPU("LDTR base", notCanonical), vCPU("GDTR base", notCanonical), vCPU("IDTR base", 1 << 47),
    vCPU("CS base", 1 << 32), vCPU("SS base", 1 << 32), vCPU("DS base", 1 << 63), vCPU("ES base", 1 << 32),
    vCPU("CS limit", 1), vCPU("TR limit", 1 << 20),
    vCPU("CS attributes", 1 << 14), vCPU("CS attributes", 1 << 3), vCPU("CS attributes", 1 << 4),
    vCPU("CS attributes", 1 << 7), vCPU("CS attributes", 1), vCPU("CS attributes", 1 << 16),
    vCPU("CS attributes", 1 << 8), vCPU("CS attributes", 1 << 17), vCPU("CS attributes", 3 << 5),
    vCPU("SS attributes", 3 << 5, named: "CS attributes"), vCPU("SS attributes", 1 << 3),
    vCPU("SS attributes", 1 << 1), vCPU("SS attributes", 1 << 7), vCPU("SS attributes", 1 << 4),
    vCPU("TR attributes", 1 << 1), vCPU("TR attributes", 1 << 4), vCPU("TR attributes", 1 << 16),
    vCPU("LDTR attributes", 1), vCPU("LDTR attributes", 1 << 7), vCPU("TR selector", 4), vCPU("LDTR selector", 4),
    vCPU("kind of interrupt shadow", 3), vCPU("pending debug traps", 1 << 4), vCPU("pending debug traps", 1 << 63),
    vCPU("MISC_ENABLE", 1 << 1), vCPU("MCG_STATUS", 1), vCPU("DEBUGCTL", 4),
    vCPU("memory type register 0x2ff", 1 << 12), vCPU("memory type register 0x200", 3),
    vCPU("memory type register 0x26f", 1 << 1), vCPU("PDPTE 0", 3, named: "PDPTE 0"), vCPU("PDPTE 3", 1 << 63 | 1),
    vCPU("steal time register", 2), vCPU("steal time register", 0x20), vCPU("end of interrupt register", 2),
    vCPU("end of interrupt register", 1 << 40), vCPU("asynchronous page fault register", 0x10),
    vCPU("asynchronous page fault vector", 0x100), vCPU("asynchronous page fault counter", 1 << 20),
    vCPU("migration control", 1), vCPU("asynchronous page fault waiting tokens's length", 65),
    Change(section: "machine", field: "number of processors", flips: 3),  // of 3
    Change(section: "machine", field: "number of processors", flips: 64),
    Change(section: "machine", field: "extra CPU features", flips: 1 << 63),
    Change(section: "machine", field: "added CPU features", flips: 1),
    Change(section: "machine", field: "KVM features", flips: 1 << 2),
    Change(section: "machine", field: "KVM hints", flips: 2),
    Change(section: "machine", field: "CPU model", flips: 1),
    Change(section: "machine", field: "CPU vendor", flips: 0x80),
    Change(section: "machine", field: "kernel's path's length", flips: 1 << 13),
    Change(section: "local APICs", field: "APIC 0 base register", flips: 1 << 9),
    Change(section: "local APICs", field: "APIC 0 base register", flips: 1 << 63),
    Change(section: "local APICs", field: "APIC 0 requests vectors 0 to 31", flips: 1 << 15),
    Change(section: "local APICs", field: "APIC 0 services vectors 0 to 31", flips: 1),
    Change(section: "local APICs", field: "APIC 1 triggers vectors 0 to 31", flips: 2),
    Change(section: "local APICs", field: "APIC 0 spurious vector", flips: 1 << 10),
    Change(section: "local APICs", field: "APIC 0 destination format", flips: 1),
    Change(section: "local APICs", field: "APIC 0 logical destination", flips: 1),
    Change(section: "local APICs", field: "APIC 0 error status", flips: 1),
    Change(section: "local APICs", field: "APIC 0 interrupt command", flips: 1 << 12),
    Change(section: "local APICs", field: "APIC 0 timer vector", flips: 1 << 12),
    Change(section: "local APICs", field: "APIC 0 timer vector", flips: 1 << 18, named: "APIC 0 timer mode"),
    Change(section: "local APICs", field: "APIC 0 lint0 vector", flips: 1 << 14),
    Change(section: "local APICs", field: "APIC 0 error vector", flips: 1 << 8),
    Change(section: "local APICs", field: "APIC 0 timer divide configuration", flips: 4),
    Change(section: "local APICs", field: "APIC 0 timer deadline", flips: 1),
    Change(section: "local APICs", field: "APIC 0 timer expiry", flips: 1 << 60, replaces: true),
    Change(section: "local APICs", field: "APIC 0 wait for start-up", flips: 1),
    Change(section: "IOAPIC", field: "id", flips: 1), Change(section: "IOAPIC", field: "pins", flips: 1 << 24),
    Change(section: "IOAPIC", field: "redirection 5", flips: 1 << 12),
    Change(section: "IOAPIC", field: "redirection 5", flips: 1 << 14),
    Change(section: "IOAPIC", field: "redirection 23", flips: 1 << 17),
    Change(section: "8254", field: "channel 0 count", flips: 1 << 17),
    Change(section: "8254", field: "channel 0 mode", flips: 0x10),
    Change(section: "8254", field: "channel 0 access", flips: 3),
    Change(section: "8254", field: "channel 0 start", flips: 1 << 63),
    Change(section: "8254", field: "channel 1 gate", flips: 1),
    Change(section: "8254", field: "channel 0 deadline", flips: 1 << 60),
    Change(section: "8254", field: "channel 0 latched count's length", flips: 3),
    Change(section: "8259", field: "master's priority", flips: 8),
    Change(section: "8259", field: "slave's vector base", flips: 1),
    Change(section: "8259", field: "master's level triggers", flips: 1),
    Change(section: "8259", field: "master's initialisation", flips: 4),
    Change(section: "serial", field: "input's length", flips: 1 << 11),
    Change(section: "serial", field: "input shown", flips: 17), Change(section: "serial", field: "polls", flips: 0x20),
    Change(section: "serial", field: "interrupt enable", flips: 0x10),
    Change(section: "serial", field: "FIFO control", flips: 2),
    Change(section: "serial", field: "modem control", flips: 0x20),
    Change(section: "serial", field: "modem changes", flips: 0x10),
    Change(section: "RTC", field: "register number", flips: 0x80),
    Change(section: "RTC", field: "memory's length", flips: 1),
    Change(section: "RTC", field: "status A", flips: 0x80), Change(section: "RTC", field: "status C", flips: 1),
    Change(section: "RTC", field: "offset", flips: 1 << 62),
    Change(section: "RTC", field: "held time's presence", flips: 1),
    Change(section: "keyboard", field: "output buffer's presence", flips: 2),
    Change(section: "port 92", field: "reset bit", flips: 2), Change(section: "A20", field: "gate", flips: 2),
    Change(section: "ACPI", field: "enable register", flips: 2),
    Change(section: "ACPI", field: "control register", flips: 1),
    Change(section: "PCI", field: "address", flips: 1), Change(section: "PCI", field: "reset register", flips: 1),
    Change(section: "scratch memory", field: "memory's length", flips: 1 << 31),
    Change(section: "fw_cfg", field: "item", flips: 1), Change(section: "fw_cfg", field: "position", flips: 1 << 62),
  ]

  private static let ofPAE: [Change] = [
    vCPU("PDPTE 0", 1 << 1), vCPU("PDPTE 1", 1 << 63), vCPU("PDPTE 2", 1 << 46), vCPU("RIP", 1 << 32),
    vCPU("CR4", 1 << 17), vCPU("EFER", 1 << 8), vCPU("EFER", 1 << 10), vCPU("CS base", 1 << 33), vCPU("SS limit", 1),
    vCPU("DS attributes", 1 << 7), vCPU("ES attributes", 1), vCPU("FS attributes", 1 << 4),
  ]

  private static let ofRealMode: [Change] = [
    vCPU("RFLAGS", 1 << 17), vCPU("RIP", 1 << 40), vCPU("CR0", cr0PG), vCPU("CS base", 1 << 32),
    vCPU("SS attributes", 1 << 1), vCPU("SS attributes", 3 << 5, named: "CS attributes"),
    vCPU("CS attributes", 1 << 16), vCPU("EFER", 1 << 10),
  ]

  /// What its host knows: bits of gates and selectors, the ring's place, addresses, and what devices were told.
  private static let ofLguest: [Change] = [
    vCPU("era", 1 << 8), vCPU("layout of lguest_data", 1), vCPU("address of lguest_data", 1),
    vCPU("address of lguest_data", 1 << 40), vCPU("slot of the ring", 1 << 6), vCPU("gate 14", 1 << 47),
    vCPU("gate 31", 0x61 << 16 | 0x8E00 << 32), vCPU("gate 8", 0x8E00 << 32), vCPU("selector of the stack", 2),
    Change(section: "lguest", field: "slot 1 base address", flips: 1 << 20),
    Change(section: "lguest", field: "slot 1 interrupt status", flips: 4),
    Change(section: "lguest", field: "slot 1 queue 0 size", flips: 1),
    Change(section: "lguest start", field: "end of free memory", flips: 1 << 40),
    Change(section: "lguest start", field: "number of disks", flips: 1 << 5),
    Change(section: "first RAM", field: "piece 0 address", flips: 1 << 40),
  ]

  @Test("is refused by name", arguments: ForgeableMachine.Kind.available)
  func refused(_ kind: ForgeableMachine.Kind) throws {
    let machine = try ForgeableMachine(kind)
    let standing = try Standing(machine.path)
    let changes =
      switch kind {
      case .user64: ImpossibleStateTests.of64BitCode
      case .userPAE: ImpossibleStateTests.ofPAE
      case .real: ImpossibleStateTests.ofRealMode
      case .lguest: ImpossibleStateTests.ofLguest
      }
    for change in changes {
      let section = try #require(machine.sections.firstIndex { $0.name == change.section }, "\(change)")
      let found = machine.sections[section].fields.first { $0.name == change.field }
      let field = try #require(found, "\(change)")
      var bytes = machine.sections[section].bytes
      for index in 0..<field.elementSize {
        let place = field.offset + change.element * field.elementSize + index
        let byte = UInt8(truncatingIfNeeded: change.flips >> UInt64(index * 8))
        bytes[place] = change.replaces ? byte : bytes[place] ^ byte
      }
      let line = standing.refusal(change.section, bytes) ?? "accepted"
      #expect(
        line.contains("section \(change.section): impossible \(change.named ?? change.field)")
          || line.contains("section \(change.section): it ends before"), "\(change): \(line)")
    }
  }
}

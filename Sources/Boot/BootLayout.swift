// SPDX-License-Identifier: Apache-2.0
// Where boot data lies in the first MiB, and the memory map told to the kernel. One drawing for all protocols:
//
//   0x00500  GDT, IDT                    0x20000 - 0x2FFFF  command line
//   0x06000  PVH start information       0x9FC00 - 0x9FFFF  reserved (the BIOS data area's place)
//   0x07000  zero page                   0xE0000 - 0xFFFFF  reserved: ACPI tables
//   0x08FF0  initial stack, downwards    1 MiB ...          kernel; the initial RAM disk at the top of low RAM
//   0x09000 - 0x0EFFF  page tables       0xFEC00000 ...     IOAPIC and local APIC: reserved

import GuestMemory

/// Guest-physical addresses of boot data.
enum BootLayout {
  static let gdt: UInt64 = 0x500
  static let idt: UInt64 = 0x540
  static let startInfo: UInt64 = 0x6000
  static let zeroPage: UInt64 = 0x7000
  static let stackTop: UInt64 = 0x8FF0
  static let pageTables: UInt64 = 0x9000
  static let commandLine: UInt64 = 0x20000
  /// Room for the command line with its NUL.
  static let commandLineRoom = 0x10000
  static let lowMemoryEnd: UInt64 = 0x9FC00
  static let acpi: Range<UInt64> = 0xE0000..<0x100000
  static let kernelFloor: UInt64 = 0x10_0000
  /// The least memory a guest may have: what lies below, and something above it.
  static let minimumByteCount: UInt64 = 4 << 20
}

/// A range of the memory map as e820 and PVH tell it.
struct MemoryRange: Sendable, Equatable {
  /// The values of both formats.
  enum Kind: UInt32, Sendable {
    case ram = 1, reserved = 2
  }
  var start: UInt64
  var end: UInt64
  var kind: Kind

  /// The map of a guest, in ascending order.
  static func map(of memory: GuestMemory) -> [MemoryRange] {
    var map = [
      MemoryRange(start: 0, end: BootLayout.lowMemoryEnd, kind: .ram),
      MemoryRange(start: BootLayout.lowMemoryEnd, end: 0xA0000, kind: .reserved),
      MemoryRange(start: BootLayout.acpi.lowerBound, end: BootLayout.acpi.upperBound, kind: .reserved),
      MemoryRange(start: BootLayout.kernelFloor, end: memory.lowEnd, kind: .ram),
      MemoryRange(start: 0xFEC0_0000, end: 0xFEF0_0000, kind: .reserved),
    ]
    if memory.highEnd > GuestMemory.highStart {
      map.append(MemoryRange(start: GuestMemory.highStart, end: memory.highEnd, kind: .ram))
    }
    return map
  }
}

extension GuestMemory {
  /// Stores boot data at an address of the layout; the loader has checked that the guest has it.
  func place(_ bytes: [UInt8], at address: UInt64) throws(BootError) {
    do throws(MemoryError) { try copy(from: bytes, to: GuestPhysical(address)) } catch { throw BootError(error) }
  }

  /// Clears a range of RAM.
  func clear(_ address: GuestPhysical, count: Int) throws(BootError) {
    do throws(MemoryError) { try fill(address, count: count) } catch { throw BootError(error) }
  }
}

extension BootError {
  init(_ error: MemoryError) {
    self.init(.memory, "cannot place boot data: \(error)", remedy: "give the guest more memory")
  }
}

// SPDX-License-Identifier: Apache-2.0
// The eras of lguest's interface: what changed for a host from Linux 2.6.23 to 4.13. A guest does not say which it is of;
// it is known by where a call's first argument is and by what lies there when it registers struct lguest_data.

import X86

/// The eras, by the first Linux of each.
public enum LguestEra: Int, Sendable, CaseIterable, Comparable {
  case linux2_6_23, linux2_6_24, linux2_6_25, linux2_6_30, linux2_6_31, linux3_1, linux4_0

  public static func < (a: LguestEra, b: LguestEra) -> Bool { a.rawValue < b.rawValue }

  /// Where guests of an era look for devices.
  public enum DeviceBus: Sendable {
    /// A page of numbers behind RAM; data is sent and asked for by hypercalls that name buffers.
    case buffers
    /// A page behind RAM in which each device is a list of fields, each with a type and a length.
    case fields
    /// A page behind RAM in which each device is a record.
    case records
    /// PCI, by ports.
    case pci
  }

  /// How calls are made: what every call needs, and nothing that would have to be counted as it is copied.
  struct Convention: Sendable {
    /// The registers of the first three arguments, in order; the number is in EAX. A fourth came with PAE: the upper half
    /// of SET_PTE's entry, which is read from the guest's own table.
    let registers: InlineArray<3, UInt8>
    /// The word of a slot of the ring in which the call's number, and then each argument, is.
    let ring: InlineArray<4, Int>
    /// Whether calls in the ring are performed whenever the guest comes out, not only with the next call.
    var drainsAlways = false
  }

  /// What differs.
  struct Row: Sendable {
    let era: LguestEra
    let convention: Convention
    let layouts: [LguestDataLayout]
    /// Where the first page tables, if they are the host's, have all RAM: at 0, and at the kernel's address.
    let mapsIdentity: Bool, mapsKernel: Bool
    let devices: DeviceBus
  }

  private static let current: InlineArray<3, UInt8> = [GPR.rbx, GPR.rcx, GPR.rdx]
  private static let first: InlineArray<3, UInt8> = [GPR.rdx, GPR.rbx, GPR.rcx]
  private static let inOrder: InlineArray<4, Int> = [0, 1, 2, 3]

  /// By raw value. Who made the first tables of 2.6.30 is not known: theirs fit both.
  static let rows = [
    Row(
      era: .linux2_6_23, convention: Convention(registers: first, ring: inOrder, drainsAlways: true),
      layouts: [.from2_6_23, .from2_6_23WithTime], mapsIdentity: false, mapsKernel: true, devices: .buffers),
    Row(
      era: .linux2_6_24, convention: Convention(registers: first, ring: [0, 3, 1, 2]), layouts: [.from2_6_24],
      mapsIdentity: true, mapsKernel: false, devices: .fields),
    Row(
      era: .linux2_6_25, convention: Convention(registers: first, ring: [0, 3, 1, 2]), layouts: [.from2_6_24],
      mapsIdentity: true, mapsKernel: false, devices: .records),
    Row(
      era: .linux2_6_30, convention: Convention(registers: current, ring: inOrder), layouts: [.from2_6_24],
      mapsIdentity: true, mapsKernel: true, devices: .records),
    Row(
      era: .linux2_6_31, convention: Convention(registers: current, ring: inOrder), layouts: [.from2_6_31],
      mapsIdentity: true, mapsKernel: true, devices: .records),
    Row(
      era: .linux3_1, convention: Convention(registers: current, ring: inOrder), layouts: [.from3_1],
      mapsIdentity: false, mapsKernel: false, devices: .records),
    Row(
      era: .linux4_0, convention: Convention(registers: current, ring: inOrder), layouts: [.from4_0],
      mapsIdentity: false, mapsKernel: false, devices: .pci),
  ]

  var row: Row { LguestEra.rows[rawValue] }
  /// Where its guests look for devices.
  public var devices: DeviceBus { row.devices }

  /// What LGUEST_INIT registers: the newest era of which something fits. The second and third differ in their devices
  /// alone, and are told apart by the kernel's own name.
  ///
  /// - Parameters:
  ///   - kernel: RAM in which the kernel is.
  ///   - isWordStart: Whether the kernel began behind "GenuineLguest", as only those of the first era do.
  ///   - limit: The first linear address that is the host's.
  static func identify(
    _ registers: GeneralRegisters, _ memory: some GuestPhysicalWriter, kernel: Range<UInt64>, isWordStart: Bool,
    limit: UInt32
  ) -> (era: LguestEra, layout: LguestDataLayout, address: UInt64)? {
    for row in rows.reversed() where (row.era == .linux2_6_23) == isWordStart {
      let address = UInt64(UInt32(truncatingIfNeeded: registers[row.convention.registers[0]]))
      if let layout = row.layouts.first(where: { $0.fits(memory, address, limit: limit) }) {
        let isOlder = row.era == .linux2_6_25 && memory.has("Linux version 2.6.24", in: kernel)
        return (isOlder ? .linux2_6_24 : row.era, layout, address)
      }
    }
    return nil
  }
}

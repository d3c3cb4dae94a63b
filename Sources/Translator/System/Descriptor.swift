// SPDX-License-Identifier: Apache-2.0
// Segment and gate descriptors as they stand in memory (SDM volume 3, 3.4.5, 5.8.3 and 6.11), and reading them
// from the descriptor tables.

import CHost

/// Eight bytes of a descriptor table; system descriptors of IA-32e mode have eight more.
struct Descriptor {
  var low: UInt64
  var high: UInt64 = 0
  /// Linear address of the descriptor.
  var address: UInt64 = 0

  /// Access-rights word in the layout of `chost_segment.attributes`.
  var attributes: UInt32 { UInt32(truncatingIfNeeded: low >> 40 & 0xFF | low >> 40 & 0xF000) }
  var type: UInt8 { UInt8(truncatingIfNeeded: low >> 40 & 15) }
  var isCodeOrData: Bool { low >> 44 & 1 != 0 }
  var dpl: UInt8 { UInt8(truncatingIfNeeded: low >> 45 & 3) }
  var isPresent: Bool { low >> 47 & 1 != 0 }
  var isLong: Bool { low >> 53 & 1 != 0 }
  var isBig: Bool { low >> 54 & 1 != 0 }

  var isCode: Bool { isCodeOrData && type & 8 != 0 }
  var isConforming: Bool { isCode && type & 4 != 0 }
  var isReadable: Bool { isCodeOrData && (type & 8 == 0 || type & 2 != 0) }
  var isWritableData: Bool { isCodeOrData && type & 0xA == 2 }

  var base: UInt64 { (low >> 16 & 0xFF_FFFF) | (low >> 56) << 24 | high << 32 }
  var limit: UInt32 {
    let raw = UInt32(truncatingIfNeeded: low & 0xFFFF | low >> 32 & 0xF_0000)
    return low >> 55 & 1 != 0 ? raw << 12 | 0xFFF : raw
  }

  /// The segment register that loading this descriptor gives.
  func segment(_ selector: UInt16) -> chost_segment {
    var segment = chost_segment()
    segment.base = base
    segment.limit = limit
    segment.attributes = attributes
    segment.selector = selector
    return segment
  }

  // Gates.
  var gateSelector: UInt16 { UInt16(truncatingIfNeeded: low >> 16) }
  var gateOffset: UInt64 { (low & 0xFFFF) | (low >> 48) << 16 | high << 32 }
  var gateStackTable: UInt8 { UInt8(truncatingIfNeeded: low >> 32 & 7) }
  var gateParameters: UInt8 { UInt8(truncatingIfNeeded: low >> 32 & 31) }
}

/// Types of system descriptors.
enum SystemType {
  static let tss16: UInt8 = 1, ldt: UInt8 = 2, tss16Busy: UInt8 = 3, callGate16: UInt8 = 4, taskGate: UInt8 = 5
  static let interruptGate16: UInt8 = 6, trapGate16: UInt8 = 7
  /// 32-bit, and 64-bit in IA-32e mode.
  static let tss: UInt8 = 9, tssBusy: UInt8 = 11, callGate: UInt8 = 12, interruptGate: UInt8 = 14, trapGate: UInt8 = 15
}

/// Vectors whose error code is a selector.
enum SelectorFault: UInt8 {
  case invalidTSS = 10
  case notPresent = 11
  case stack = 12
  case protection = 13

  /// The fault for a selector; the RPL bits are the EXT and IDT bits of the error code and start out clear.
  func callAsFunction(_ selector: UInt16) -> Fault {
    Fault(vector: rawValue, errorCode: UInt32(selector & 0xFFFC))
  }
}

extension chost_segment {
  static func unusable(selector: UInt16, dpl: UInt8 = 0) -> chost_segment {
    var segment = chost_segment()
    segment.selector = selector
    segment.attributes = 0x10000 | UInt32(dpl & 3) << 5
    return segment
  }

  /// A segment as real-address and virtual-8086 mode make it.
  static func real(selector: UInt16, limit: UInt32 = 0xFFFF, attributes: UInt32) -> chost_segment {
    var segment = chost_segment()
    segment.selector = selector
    segment.base = UInt64(selector) << 4
    segment.limit = limit
    segment.attributes = attributes
    return segment
  }

  /// A flat 4 GiB segment, as SYSCALL and its relatives make it.
  static func flat(selector: UInt16, attributes: UInt32) -> chost_segment {
    var segment = chost_segment()
    segment.selector = selector
    segment.limit = 0xFFFF_FFFF
    segment.attributes = attributes
    return segment
  }
}

extension Processor {
  /// Whether a selector is null: index 0 of the GDT.
  static func isNull(_ selector: UInt16) -> Bool { selector & 0xFFFC == 0 }

  /// Reads the descriptor that a non-null selector names.
  ///
  /// - Throws: `fault` with the selector if it is outside its table, #PF.
  func descriptor(_ selector: UInt16, or fault: SelectorFault = .protection) throws(Fault) -> Descriptor {
    let index = UInt64(selector & 0xFFF8)
    var base: UInt64
    if selector & 4 != 0 {
      let table = page[.ldtr]
      guard !table.isUnusable, index &+ 7 <= UInt64(table.limit) else { throw fault(selector) }
      base = table.base
    } else {
      let table = page[\.gdtr]
      guard index &+ 7 <= UInt64(table.limit) else { throw fault(selector) }
      base = table.base
    }
    base &+= index
    return Descriptor(low: try read(UInt64.self, at: base, as: .implicit), address: base)
  }

  /// Adds the upper half that system descriptors have in IA-32e mode.
  func extend(_ descriptor: inout Descriptor, _ selector: UInt16, or fault: SelectorFault) throws(Fault) {
    guard page.isLMA else { return }
    let limit = selector & 4 != 0 ? page[.ldtr].limit : UInt32(page[\.gdtr].limit)
    guard UInt32(selector & 0xFFF8) &+ 15 <= limit else { throw fault(selector) }
    descriptor.high = try read(UInt64.self, at: descriptor.address &+ 8, as: .implicit)
    // The type field of the upper half must be zero (SDM volume 3, 5.8.3.1 and 7.2.3).
    guard descriptor.high >> 40 & 0x1F == 0 else { throw fault(selector) }
    descriptor.high &= 0xFFFF_FFFF
  }

  /// Sets the accessed bit of a code or data segment, in memory and in the copy.
  func markAccessed(_ descriptor: inout Descriptor) throws(Fault) {
    guard descriptor.isCodeOrData, descriptor.type & 1 == 0 else { return }
    try setBits(1, at: descriptor.address &+ 5, as: .implicit)
    descriptor.low |= 1 << 40
  }
}

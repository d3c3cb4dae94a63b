// SPDX-License-Identifier: Apache-2.0
// The names, layouts and reserved bits of the local APIC's registers, in both its forms. No behaviour.

/// A local APIC register. The index is the x2APIC MSR number minus 0x800, or the MMIO offset divided by 16
/// (SDM vol. 3, tables 11-1 and 11-6).
enum LocalAPICRegister: Equatable {
  case id, version, taskPriority, arbitrationPriority, processorPriority, endOfInterrupt, remoteRead
  case logicalDestination, destinationFormat, spuriousVector
  /// Word 0...7 of a 256-bit register.
  case inService(Int), triggerMode(Int), interruptRequest(Int)
  case errorStatus, interruptCommandLow, interruptCommandHigh
  case localVector(LocalVector)
  case initialCount, currentCount, divideConfiguration, selfInterrupt

  init?(index: UInt32) {
    switch index {
    case 0x02: self = .id
    case 0x03: self = .version
    case 0x08: self = .taskPriority
    case 0x09: self = .arbitrationPriority
    case 0x0A: self = .processorPriority
    case 0x0B: self = .endOfInterrupt
    case 0x0C: self = .remoteRead
    case 0x0D: self = .logicalDestination
    case 0x0E: self = .destinationFormat
    case 0x0F: self = .spuriousVector
    case 0x10...0x17: self = .inService(Int(index & 7))
    case 0x18...0x1F: self = .triggerMode(Int(index & 7))
    case 0x20...0x27: self = .interruptRequest(Int(index & 7))
    case 0x28: self = .errorStatus
    case 0x30: self = .interruptCommandLow
    case 0x31: self = .interruptCommandHigh
    case 0x32...0x37:
      guard let entry = LocalVector(rawValue: Int(index) - 0x32) else { return nil }
      self = .localVector(entry)
    case 0x38: self = .initialCount
    case 0x39: self = .currentCount
    case 0x3E: self = .divideConfiguration
    case 0x3F: self = .selfInterrupt
    default: return nil
    }
  }

  /// Whether RDMSR works in x2APIC mode; where not, #GP.
  var isReadableMSR: Bool {
    switch self {
    case .arbitrationPriority, .endOfInterrupt, .remoteRead, .destinationFormat, .interruptCommandHigh,
      .selfInterrupt:
      false
    default: true
    }
  }

  /// The bits of the interrupt command that WRMSR may set.
  static let commandBits: UInt64 = 0xFFFF_FFFF_000C_DFFF

  /// The bits WRMSR may set in x2APIC mode; nil for registers that cannot be written. Others are #GP.
  var writableMSRBits: UInt64? {
    switch self {
    case .taskPriority, .selfInterrupt: 0xFF
    case .endOfInterrupt, .errorStatus: 0
    case .spuriousVector: 0x3FF
    case .interruptCommandLow: Self.commandBits
    case .localVector(let entry): UInt64(entry.definedBits)
    case .initialCount: 0xFFFF_FFFF
    case .divideConfiguration: UInt64(LocalAPICTimer.divideBits)
    case .id, .version, .arbitrationPriority, .processorPriority, .remoteRead, .logicalDestination,
      .destinationFormat, .inService, .triggerMode, .interruptRequest, .interruptCommandHigh, .currentCount:
      nil
    }
  }
}

/// An entry of the local vector table, in register order (SDM vol. 3, figure 11-8).
enum LocalVector: Int, CaseIterable, Sendable {
  case timer = 0, thermal, performance, lint0, lint1, error

  static let masked: UInt32 = 1 << 16
  static let levelTriggered: UInt32 = 1 << 15
  static let remoteIRR: UInt32 = 1 << 14
  static let deliveryStatus: UInt32 = 1 << 12

  /// Every bit that is not reserved, the two read-only ones included.
  var definedBits: UInt32 {
    switch self {
    case .timer: 0x7_10FF
    case .thermal, .performance: 0x1_17FF
    case .lint0, .lint1: 0x1_F7FF
    case .error: 0x1_10FF
    }
  }

  var writableBits: UInt32 { definedBits & ~(Self.remoteIRR | Self.deliveryStatus) }
}

/// ESR bits (SDM vol. 3, 11.5.3).
enum LocalAPICError {
  static let sendIllegalVector: UInt32 = 1 << 5
  static let receiveIllegalVector: UInt32 = 1 << 6
  static let illegalRegister: UInt32 = 1 << 7
  static let all = sendIllegalVector | receiveIllegalVector | illegalRegister
}

/// IA32_APIC_BASE, MSR 0x1B (SDM vol. 3, 11.4.4 and 11.12.1).
enum APICBase {
  static let bootstrap: UInt64 = 1 << 8
  static let x2APIC: UInt64 = 1 << 10
  static let enabled: UInt64 = 1 << 11
  static let defaultAddress: UInt64 = 0xFEE0_0000
  /// Page number, for the 46 physical address bits this machine could ever claim.
  static let addressBits: UInt64 = 0x3FFF_FFFF_F000
}

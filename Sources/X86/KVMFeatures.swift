// SPDX-License-Identifier: Apache-2.0
// The words of KVM's CPUID leaf 0x40000001. They are here, and not with the code that keeps the promises
// (Paravirt), because the leaf is part of the table a CPU model builds. Names and numbers: Linux
// arch/x86/include/uapi/asm/kvm_para.h.

/// What KVM offers a guest: EAX of CPUID leaf 0x40000001.
public struct KVMFeatures: OptionSet, Sendable, Hashable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// kvmclock by MSRs 0x11 and 0x12.
  public static let clockSource = KVMFeatures(rawValue: 1 << 0)
  /// Delays by port 0x80 are pointless.
  public static let noIODelay = KVMFeatures(rawValue: 1 << 1)
  /// kvmclock by MSRs 0x4b564d00 and 0x4b564d01.
  public static let clockSource2 = KVMFeatures(rawValue: 1 << 3)
  public static let asyncPageFault = KVMFeatures(rawValue: 1 << 4)
  public static let stealTime = KVMFeatures(rawValue: 1 << 5)
  public static let endOfInterrupt = KVMFeatures(rawValue: 1 << 6)
  /// KICK_CPU ends a HLT.
  public static let unhalt = KVMFeatures(rawValue: 1 << 7)
  public static let tlbFlush = KVMFeatures(rawValue: 1 << 9)
  public static let asyncPageFaultExit = KVMFeatures(rawValue: 1 << 10)
  public static let sendIPI = KVMFeatures(rawValue: 1 << 11)
  public static let pollControl = KVMFeatures(rawValue: 1 << 12)
  public static let schedYield = KVMFeatures(rawValue: 1 << 13)
  public static let asyncPageFaultInterrupt = KVMFeatures(rawValue: 1 << 14)
  /// MSI addresses carry 15 bits of APIC id.
  public static let extendedDestinationID = KVMFeatures(rawValue: 1 << 15)
  public static let mapGuestRange = KVMFeatures(rawValue: 1 << 16)
  public static let migrationControl = KVMFeatures(rawValue: 1 << 17)
  /// The stable flag in the time structure means what it says.
  public static let stableClock = KVMFeatures(rawValue: 1 << 24)

  /// What this version keeps its word about, if it is offered. Batched page-table updates (bit 2) are long dead.
  public static let implemented: KVMFeatures = [
    .clockSource, .noIODelay, .clockSource2, .asyncPageFault, .stealTime, .endOfInterrupt, .unhalt, .tlbFlush,
    .asyncPageFaultExit, .sendIPI, .pollControl, .schedYield, .asyncPageFaultInterrupt, .extendedDestinationID,
    .mapGuestRange, .migrationControl, .stableClock,
  ]

  /// What is offered unless configured otherwise: what KVM itself offers, and extended destination ids, which VMMs add.
  /// Page encryption state and migration control are for encrypted guests.
  public static let standard = implemented.subtracting([.mapGuestRange, .migrationControl])
}

/// What a guest should expect of its host: EDX of CPUID leaf 0x40000001.
public struct KVMHints: OptionSet, Sendable, Hashable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// vCPUs are never descheduled for long.
  public static let realtime = KVMHints(rawValue: 1 << 0)

  public static let implemented: KVMHints = [.realtime]
  public static let standard: KVMHints = []
}

// SPDX-License-Identifier: Apache-2.0
// KVM's own model-specific registers, of one vCPU. What CPUID does not offer is not there: RDMSR and WRMSR
// raise #GP. Numbers and meaning: Linux Documentation/virt/kvm/x86/msr.rst.

public import Saving
import X86

/// The paravirtual registers of one vCPU and the structures it registered with them.
///
/// Used by the thread that runs the vCPU, while it is stopped.
public struct KVMModelSpecificRegisters<Memory: GuestPhysicalWriter> {
  public let features: KVMFeatures
  /// The last value written to either time register: guest-physical address and, in bit 0, enable.
  public private(set) var systemTime: UInt64 = 0
  /// What this vCPU's TSC is ahead of the VM's, because the guest wrote IA32_TSC; wraps.
  public private(set) var timestampOffset: UInt64 = 0
  public var stealTime: KVMStealTime<Memory>
  public var endOfInterrupt: KVMEndOfInterrupt<Memory>
  public var asyncPageFault: KVMAsyncPageFault<Memory>
  /// Whether the host may poll for a while before it lets a halted vCPU sleep. This one never does, so the guest that
  /// polls by itself and forbids it gets what it asks for.
  public private(set) var mayPoll = true
  /// Whether the guest agrees to be moved to another host. Only encrypted guests have a reason not to.
  public private(set) var mayMigrate = true
  private let clock: KVMClock
  private let memory: Memory
  private let isBootCPU: Bool
  private var seenGeneration: UInt32 = 0
  private var seenStops: UInt32 = 0

  /// - Parameter cpu: The vCPU's number; 0 is the boot CPU.
  public init(features: KVMFeatures, clock: KVMClock, memory: Memory, cpu: UInt32) {
    self.features = features
    self.clock = clock
    self.memory = memory
    isBootCPU = cpu == 0
    stealTime = KVMStealTime(memory: memory)
    endOfInterrupt = KVMEndOfInterrupt(memory: memory)
    asyncPageFault = KVMAsyncPageFault(features: features, memory: memory, cpu: cpu)
  }

  /// Whether RDMSR and WRMSR of this register are for `read` and `write`: 0x11, 0x12 and KVM's reserved range.
  public static func owns(_ index: UInt32) -> Bool {
    index == 0x11 || index == 0x12 || (0x4b56_4d00...0x4b56_4dff).contains(index)
  }

  /// Whether WRMSR of this register moves or forgets the end-of-interrupt byte: an offer is to be settled before.
  public static func movesEndOfInterrupt(_ index: UInt32) -> Bool { index == Register.endOfInterrupt.rawValue }

  private enum Register: UInt32 {
    case wallClock = 0x4b56_4d00, systemTime, asyncPageFault, stealTime, endOfInterrupt, pollControl
    case asyncPageFaultInterrupt, asyncPageFaultAcknowledge, migrationControl

    /// What has to be offered for the register to exist.
    var feature: KVMFeatures {
      switch self {
      case .wallClock, .systemTime: .clockSource2
      case .asyncPageFault: .asyncPageFault
      case .stealTime: .stealTime
      case .endOfInterrupt: .endOfInterrupt
      case .pollControl: .pollControl
      case .asyncPageFaultInterrupt, .asyncPageFaultAcknowledge: .asyncPageFaultInterrupt
      case .migrationControl: .migrationControl
      }
    }
  }

  /// The register behind a number, if CPUID offers it.
  private func register(_ index: UInt32) -> Register? {
    switch index {
    case 0x11: return features.contains(.clockSource) ? .wallClock : nil
    case 0x12: return features.contains(.clockSource) ? .systemTime : nil
    default:
      guard let register = Register(rawValue: index), features.contains(register.feature) else { return nil }
      return register
    }
  }

  /// RDMSR; `nil` is #GP(0).
  public func read(_ index: UInt32) -> UInt64? {
    switch register(index) {
    case .wallClock: clock.wallClockRegister
    case .systemTime: systemTime
    case .asyncPageFault: asyncPageFault.register
    case .stealTime: stealTime.register
    case .endOfInterrupt: endOfInterrupt.register
    case .pollControl: mayPoll ? 1 : 0
    case .asyncPageFaultInterrupt: asyncPageFault.interrupt
    case .asyncPageFaultAcknowledge: 0
    case .migrationControl: mayMigrate ? 1 : 0
    case nil: nil
    }
  }

  /// WRMSR at CPL 0; false is #GP(0). The structure is complete before this returns.
  ///
  /// - Parameter waited: How long the vCPU has waited so far while it could have run, in nanoseconds.
  public mutating func write(_ index: UInt32, _ value: UInt64, waited: UInt64 = 0) -> Bool {
    switch register(index) {
    case .wallClock:
      clock.setWallClock(value, in: memory)
    case .systemTime:
      if isBootCPU { clock.bootCPURegistered(withOldRegister: index == 0x12) }
      systemTime = value
      seenStops = clock.stopCount
      updateTime()
    case .asyncPageFault: return asyncPageFault.write(enable: value)
    case .stealTime: return stealTime.write(value, total: waited)
    case .endOfInterrupt: return endOfInterrupt.write(value)
    case .pollControl:
      guard value <= 1 else { return false }
      mayPoll = value == 1
    case .asyncPageFaultInterrupt: return asyncPageFault.write(interrupt: value)
    case .asyncPageFaultAcknowledge: asyncPageFault.acknowledge(value)
    case .migrationControl:
      guard value <= 1 else { return false }
      mayMigrate = value == 1
    case nil: return false
    }
    return true
  }

  /// Brings the time structure up to date if the VM's clock changed; to be called before guest code runs.
  ///
  /// Without a constant TSC call `updateTime` instead whenever the vCPU is scheduled.
  public mutating func synchronize() {
    if clock.generation != seenGeneration { updateTime() }
  }

  /// Writes the time structure, if the guest enabled one.
  public mutating func updateTime() {
    // Read before the content: a change in between is then seen again.
    seenGeneration = clock.generation
    let stops = clock.stopCount
    defer { seenStops = stops }
    guard systemTime & 1 != 0 else { return }
    clock.writeTime(
      to: memory, at: systemTime & ~1, timestampOffset: timestampOffset, stopped: stops != seenStops)
  }

  /// The guest wrote IA32_TSC or IA32_TSC_ADJUST, and this vCPU's TSC is now so far ahead of the VM's.
  public mutating func setTimestampOffset(_ offset: UInt64) {
    guard offset != timestampOffset else { return }
    timestampOffset = offset
    clock.timestampsDiffer()
    updateTime()
  }

  /// RESET or INIT: forgets the structures at once, since a new kernel may own that memory. The wall clock
  /// register is the VM's and stays; whether to poll and to migrate stays too.
  public mutating func reset() {
    systemTime = 0
    stealTime.reset()
    endOfInterrupt.reset()
    asyncPageFault.reset()
  }
}

extension KVMModelSpecificRegisters: SavedState {
  public mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&systemTime, "system time register")
    try requireFeature(systemTime == 0, [.clockSource, .clockSource2], "system time register", archive)
    try archive.transfer(&timestampOffset, "lead of the time-stamp counter")
    try archive.part("steal time") { archive throws(SavedStateError) in
      try stealTime.transfer(&archive)
      try requireFeature(stealTime.register == 0, .stealTime, "register", archive)
    }
    try archive.part("end of interrupt") { archive throws(SavedStateError) in
      try endOfInterrupt.transfer(&archive)
      try requireFeature(endOfInterrupt.register == 0, .endOfInterrupt, "register", archive)
    }
    try archive.part("asynchronous page fault") { archive throws(SavedStateError) in
      try asyncPageFault.transfer(&archive)
      try requireFeature(asyncPageFault.register == 0, .asyncPageFault, "register", archive)
      try requireFeature(asyncPageFault.interrupt == 0, .asyncPageFaultInterrupt, "vector", archive)
    }
    try archive.transfer(&mayPoll, "poll control")
    try requireFeature(mayPoll, .pollControl, "poll control", archive)
    try archive.transfer(&mayMigrate, "migration control")
    // A guest that does not agree to be moved is never saved.
    try archive.require(mayMigrate, "migration control")
  }

  /// A register that CPUID does not offer has the value it began with.
  private func requireFeature(
    _ isUntouched: Bool, _ any: KVMFeatures, _ name: String, _ archive: StateArchive
  ) throws(SavedStateError) {
    try archive.require(isUntouched || !features.isDisjoint(with: any), name)
  }
}

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
  private let clock: KVMClock
  private let memory: Memory
  private let isBootCPU: Bool
  private var seenGeneration: UInt32 = 0
  private var seenStops: UInt32 = 0

  public init(features: KVMFeatures, clock: KVMClock, memory: Memory, isBootCPU: Bool) {
    self.features = features
    self.clock = clock
    self.memory = memory
    self.isBootCPU = isBootCPU
  }

  /// Whether RDMSR and WRMSR of this register are for `read` and `write`: 0x11, 0x12 and KVM's reserved range.
  public static func owns(_ index: UInt32) -> Bool {
    index == 0x11 || index == 0x12 || (0x4b56_4d00...0x4b56_4dff).contains(index)
  }

  private enum Register {
    case wallClock, systemTime
  }

  /// The register behind a number, if CPUID offers it.
  private func register(_ index: UInt32) -> Register? {
    switch index {
    case 0x11 where features.contains(.clockSource): .wallClock
    case 0x12 where features.contains(.clockSource): .systemTime
    case 0x4b56_4d00 where features.contains(.clockSource2): .wallClock
    case 0x4b56_4d01 where features.contains(.clockSource2): .systemTime
    default: nil
    }
  }

  /// RDMSR; `nil` is #GP(0).
  public func read(_ index: UInt32) -> UInt64? {
    switch register(index) {
    case .wallClock: clock.wallClockRegister
    case .systemTime: systemTime
    case nil: nil
    }
  }

  /// WRMSR at CPL 0; false is #GP(0). The structure is complete before this returns.
  public mutating func write(_ index: UInt32, _ value: UInt64) -> Bool {
    switch register(index) {
    case .wallClock:
      clock.setWallClock(value, in: memory)
    case .systemTime:
      if isBootCPU { clock.bootCPURegistered(withOldRegister: index == 0x12) }
      systemTime = value
      seenStops = clock.stopCount
      updateTime()
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

  /// RESET or INIT: forgets the structure at once, since a new kernel may own that memory. The wall clock
  /// register is the VM's and stays.
  public mutating func reset() {
    systemTime = 0
  }
}

extension KVMModelSpecificRegisters: SavedState {
  public mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&systemTime)
    try archive.transfer(&timestampOffset)
  }
}

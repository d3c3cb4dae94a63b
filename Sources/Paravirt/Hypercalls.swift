// SPDX-License-Identifier: Apache-2.0
// KVM's hypercalls: number in RAX, arguments in RBX, RCX, RDX and RSI, result in RAX, nothing else changes.
// Every number gets an answer; most get "no such call". A new call is a case of `KVMHypercall`, an arm of
// `perform`, and the feature bit that announces it. Meaning: Linux Documentation/virt/kvm/x86/hypercalls.rst;
// numbers: include/uapi/linux/kvm_para.h.

import Engine
import X86

/// KVM's guest-to-host calls on x86. The raw value is the number in RAX.
public enum KVMHypercall: UInt64, Sendable, CaseIterable {
  case pollInterrupts = 1
  case mmuOperation = 2
  case kickCPU = 5
  case clockPairing = 9
  case sendIPI = 10
  case schedYield = 11
  case mapGuestRange = 12
}

extension KVMHypercall {
  /// The calls among the first sixteen numbers that have one answer, with it: interrupts are looked at by leaving the
  /// guest, which any poll does; what is not offered does not exist.
  public static func constantAnswers(features: KVMFeatures) -> [UInt64: Int32] {
    var answers: [UInt64: Int32] = [:]
    for number in UInt64(0)..<16 {
      switch KVMHypercall(rawValue: number) {
      case .pollInterrupts: answers[number] = 0
      case .clockPairing: break
      case .kickCPU where features.contains(.unhalt): break
      case .sendIPI where features.contains(.sendIPI): break
      case .schedYield where features.contains(.schedYield): break
      case .mapGuestRange where features.contains(.mapGuestRange): break
      default: answers[number] = -Int32(KVMStatus.noSuchCall.rawValue)
      }
    }
    return answers
  }
}

/// Why a hypercall failed. The raw value reaches RAX negated.
public enum KVMStatus: UInt64, Error, Sendable, CaseIterable {
  case notPermitted = 1
  case tooBig = 7
  case badAddress = 14
  case invalid = 22
  case notSupported = 95
  case noSuchCall = 1000

  /// What RAX holds.
  public var result: UInt64 { 0 &- rawValue }
}

/// The arguments of a hypercall, already cut to 32 bits if the caller was not 64-bit code.
public struct HypercallArguments: Sendable, Equatable {
  public var a0, a1, a2, a3: UInt64
  /// The caller ran 64-bit code (EFER.LMA and CS.L).
  public var isLong: Bool

  public init(_ a0: UInt64 = 0, _ a1: UInt64 = 0, _ a2: UInt64 = 0, _ a3: UInt64 = 0, isLong: Bool = true) {
    self.a0 = a0
    self.a1 = a1
    self.a2 = a2
    self.a3 = a3
    self.isLong = isLong
  }
}

/// What hypercalls need of the machine besides memory and clock.
public protocol HypercallMachine {
  /// Ends the current or next HLT of a vCPU, also with interrupts off. Unknown ids are ignored.
  func kick(apicID: UInt32)
  /// Sends an interrupt as the ICR's low word says; returns whether a CPU with that id accepted it.
  func send(interruptCommand: UInt32, to apicID: UInt32) -> Bool
  /// Prefers a vCPU over the caller; advisory. Unknown ids are ignored.
  func yield(to apicID: UInt32)
}

/// A hypercall that was answered, for counting and tracing.
public struct HypercallRecord: Sendable, Equatable {
  public let number: UInt64
  /// RAX afterwards.
  public let result: UInt64

  public init(number: UInt64, result: UInt64) {
    self.number = number
    self.result = result
  }
}

/// A hypercall that the program around the machine answers.
public struct HypercallRequest: Sendable {
  public let number: UInt64
  /// RBX, RCX, RDX and RSI, cut to 32 bits if the caller was not 64-bit code; in the interface of 2007 the six
  /// registers of that time.
  public let arguments: [UInt64]
  public let isLong: Bool
}

/// The hypercall entry of a VM.
public struct KVMHypercalls<Memory: GuestPhysicalWriter, Machine: HypercallMachine> {
  public let features: KVMFeatures
  private let clock: KVMClock
  private let memory: Memory
  private let machine: Machine
  private let interface: KVMInterface
  /// Answers what is no call of KVM's; nil is "no such call".
  private let program: (@Sendable (HypercallRequest) -> UInt64?)?

  public init(
    features: KVMFeatures, clock: KVMClock, memory: Memory, machine: Machine, interface: KVMInterface = .modern,
    program: (@Sendable (HypercallRequest) -> UInt64?)? = nil
  ) {
    self.features = features
    self.clock = clock
    self.memory = memory
    self.machine = machine
    self.interface = interface
    self.program = program
  }

  /// Answers `VCPUExit.hypercall`: reads the registers, performs the call and stores RAX.
  ///
  /// - Parameter timestampOffset: What the vCPU's TSC is ahead of the VM's; wraps.
  @discardableResult
  public func perform(on cpu: some CPUEngine, timestampOffset: UInt64 = 0) -> HypercallRecord {
    if interface == .year2007 { return performIn2007(on: cpu) }
    // August 2007 looked at EFER.LMA alone and at no privilege level, and knew no call.
    let isLong = interface == .modern ? cpu.isIn64BitMode : cpu.isLongModeActive
    let mask: UInt64 = isLong ? .max : 0xFFFF_FFFF
    let registers = cpu.generalRegisters
    let number = registers[GPR.rax] & mask
    let arguments = HypercallArguments(
      registers[GPR.rbx] & mask, registers[GPR.rcx] & mask, registers[GPR.rdx] & mask, registers[GPR.rsi] & mask,
      isLong: isLong)
    let result =
      mask
      & (interface == .modern
        ? answer(number, arguments, privilegeLevel: cpu.currentPrivilegeLevel, timestampOffset: timestampOffset)
        : KVMStatus.noSuchCall.result)
    cpu[register: GPR.rax] = result
    return HypercallRecord(number: number, result: result)
  }

  /// Every call is the host program's; RAX is what it says.
  private func performIn2007(on cpu: some CPUEngine) -> HypercallRecord {
    let call = KVMCall2007(cpu)
    let request = HypercallRequest(number: call.number, arguments: call.arguments, isLong: call.isLong)
    let result = (program?(request) ?? KVMCall2007.unanswered) & (call.isLong ? .max : 0xFFFF_FFFF)
    cpu[register: GPR.rax] = result
    return HypercallRecord(number: call.number, result: result)
  }

  /// The result of any number with any arguments, at any privilege level, as 64 bits.
  public func answer(
    _ number: UInt64, _ arguments: HypercallArguments, privilegeLevel: UInt8 = 0, timestampOffset: UInt64 = 0
  ) -> UInt64 {
    // Before the number: user space must not find out what is offered.
    guard privilegeLevel == 0 else { return KVMStatus.notPermitted.result }
    guard let call = KVMHypercall(rawValue: number) else {
      let list = [arguments.a0, arguments.a1, arguments.a2, arguments.a3]
      return program?(HypercallRequest(number: number, arguments: list, isLong: arguments.isLong))
        ?? KVMStatus.noSuchCall.result
    }
    do throws(KVMStatus) {
      return try perform(call, arguments, timestampOffset: timestampOffset)
    } catch {
      return error.result
    }
  }

  /// Performs one call. A thrown status reaches RAX negated.
  func perform(
    _ call: KVMHypercall, _ arguments: HypercallArguments, timestampOffset: UInt64
  ) throws(KVMStatus) -> UInt64 {
    switch call {
    case .pollInterrupts:
      return 0  // Leaving the guest was its effect.
    case .kickCPU:
      try require(.unhalt)
      machine.kick(apicID: UInt32(truncatingIfNeeded: arguments.a1))
      return 0
    case .clockPairing:
      try pairClocks(at: arguments.a0, type: arguments.a1, timestampOffset)
      return 0
    case .sendIPI:
      try require(.sendIPI)
      return try sendIPI(arguments)
    case .schedYield:
      try require(.schedYield)
      machine.yield(to: UInt32(truncatingIfNeeded: arguments.a0))
      return 0
    case .mapGuestRange:
      try require(.mapGuestRange)
      try checkRange(arguments)
      return 0  // No page of this machine is encrypted, so there is nothing to do about it.
    case .mmuOperation:
      throw .noSuchCall
    }
  }

  private func require(_ feature: KVMFeatures) throws(KVMStatus) {
    guard features.contains(feature) else { throw .noSuchCall }
  }

  /// The checks of MAP_GPA_RANGE: whole pages, some, none beyond the last; no attribute that means nothing.
  private func checkRange(_ arguments: HypercallArguments) throws(KVMStatus) {
    let attributes: UInt64 = 0x1F
    let (start, count) = (arguments.a0, arguments.a1)
    guard start & 0xFFF == 0, count != 0, !(start >> 12).addingReportingOverflow(count).overflow,
      arguments.a2 & ~attributes == 0
    else { throw .invalid }
  }

  /// Writes `kvm_clock_pairing`, 64 bytes: seconds, nanoseconds, guest TSC, flags and padding of zeros.
  private func pairClocks(at address: UInt64, type: UInt64, _ timestampOffset: UInt64) throws(KVMStatus) {
    let wallClock: UInt64 = 0
    guard type == wallClock, let pair = clock.wallClockPairing() else { throw .notSupported }
    guard memory.contains(address, byteCount: 64) else { throw .badAddress }
    memory.store(UInt64(bitPattern: pair.nanoseconds / 1_000_000_000), at: address)
    memory.store(UInt64(bitPattern: pair.nanoseconds % 1_000_000_000), at: address + 8)
    memory.store(pair.timestamp &+ timestampOffset, at: address + 16)
    for offset in stride(from: UInt64(24), to: 64, by: 8) {
      memory.store(UInt64(0), at: address + offset)
    }
  }

  /// Sends one interrupt to the APIC ids that two bitmaps name, and counts who accepted it.
  private func sendIPI(_ arguments: HypercallArguments) throws(KVMStatus) -> UInt64 {
    let logicalDestination: UInt64 = 1 << 11
    let shorthand: UInt64 = 3 << 18
    guard arguments.a3 & (logicalDestination | shorthand) == 0 else { throw .invalid }
    let (level, levelTriggered): (UInt64, UInt64) = (1 << 14, 1 << 15)
    // The end of a level is nothing to deliver.
    if arguments.a3 & (level | levelTriggered) == levelTriggered { return 0 }
    let command = UInt32(truncatingIfNeeded: arguments.a3)
    let lowest = UInt32(truncatingIfNeeded: arguments.a2)
    // The second half starts one register's width further on, and may wrap to 0; a half itself does not.
    let second = lowest &+ (arguments.isLong ? 64 : 32)
    return send(command, to: arguments.a0, from: lowest) + send(command, to: arguments.a1, from: second)
  }

  private func send(_ command: UInt32, to bitmap: UInt64, from lowest: UInt32) -> UInt64 {
    var rest = bitmap
    var accepted: UInt64 = 0
    while rest != 0 {
      let (id, wrapped) = lowest.addingReportingOverflow(UInt32(rest.trailingZeroBitCount))
      if wrapped { break }
      if machine.send(interruptCommand: command, to: id) { accepted += 1 }
      rest &= rest - 1
    }
    return accepted
  }
}

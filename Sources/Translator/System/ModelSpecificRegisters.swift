// SPDX-License-Identifier: Apache-2.0
// RDMSR and WRMSR of the registers that belong to the CPU core (SDM volume 4, table 2-2). Everything else, the
// local APIC and the paravirtual registers above all, is the machine's: it gets an exit and may refuse.

import CHost
import Engine
import X86

extension ModelSpecificRegister {
  /// Fast strings on; no branch trace storage, no PEBS (bits 11 and 12 say "unavailable").
  static let miscEnableReset: UInt64 = 1 << 0 | 1 << 11 | 1 << 12
  /// Fast strings, thermal control, performance monitoring, CPUID limit, xTPR, execute-disable are software's.
  static let miscEnableWritable: UInt64 = 1 << 0 | 1 << 3 | 1 << 7 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34

  // What registers hold of a value that was accepted; the others hold all of it.
  static func stored(miscEnable value: UInt64) -> UInt64 {
    miscEnableReset & ~miscEnableWritable | value & miscEnableWritable
  }
  static func stored(sysenterCS value: UInt64) -> UInt64 { value & 0xFFFF_FFFF }
  static func stored(sfmask value: UInt64) -> UInt64 { value & 0xFFFF_FFFF }
}

/// The answer to a RDMSR.
enum MSRValue: Equatable {
  case value(UInt64)
  /// Not a register of the CPU core.
  case machine
}

extension Processor {
  // MARK: Instructions

  func readMSR(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    try requirePrivilege()
    let index = UInt32(truncatingIfNeeded: page[register: GPR.rcx])
    switch try readMSR(index) {
    case .value(let value):
      setMSRResult(value)
      advance(instruction)
      return .done
    case .machine:
      state.completion = .msrRead(next: next(instruction))
      return .exit(.msrRead(index: index))
    }
  }

  func writeMSR(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    try requirePrivilege()
    let index = UInt32(truncatingIfNeeded: page[register: GPR.rcx])
    let value = edxEAX
    if try writeMSR(index, value) {
      advance(instruction)
      return .done
    }
    state.completion = .msrWrite(next: next(instruction))
    return .exit(.msrWrite(index: index, value: value))
  }

  func setMSRResult(_ value: UInt64) {
    page[register: GPR.rax] = value & 0xFFFF_FFFF
    page[register: GPR.rdx] = value >> 32
  }

  // MARK: Registers

  func readMSR(_ index: UInt32) throws(Fault) -> MSRValue {
    typealias MSR = ModelSpecificRegister
    switch index {
    case MSR.tsc: return .value(timestampCounter)
    case MSR.tscAdjust: return .value(state.tscAdjust)
    case MSR.platformID, MSR.platformInfo, MSR.miscFeatures: return .value(0)
    case MSR.debugControl: return .value(state.debugControl)
    // Locked, with VMX off.
    case MSR.featureControl: return .value(1)
    // In the upper half. Linux turns large pages off on model 28 below revision 20Eh (erratum AAE44).
    case MSR.microcodeRevision: return .value(0x219 << 32)
    case MSR.sysenterCS: return .value(page[\.sysenter_cs])
    case MSR.sysenterESP: return .value(page[\.sysenter_esp])
    case MSR.sysenterEIP: return .value(page[\.sysenter_eip])
    // No banks: nothing else of the machine-check architecture is touched.
    case MSR.machineCheckCapability: return .value(0)
    case MSR.machineCheckStatus: return .value(state.machineCheckStatus)
    case MSR.miscEnable: return .value(state.miscEnable)
    case MSR.powerControl: return .value(state.powerControl)
    case MSR.pat: return .value(page[\.pat])
    case MSR.efer: return .value(page[\.efer])
    case MSR.star: return .value(page[\.star])
    case MSR.lstar: return .value(page[\.lstar])
    case MSR.cstar: return .value(page[\.cstar])
    case MSR.sfmask: return .value(page[\.sfmask])
    case MSR.fsBase: return .value(page[.fs].base)
    case MSR.gsBase: return .value(page[.gs].base)
    case MSR.kernelGSBase: return .value(page[\.kernel_gs_base])
    case MSR.tscAux:
      guard hasTSCAux else { throw .generalProtection() }
      return .value(page[\.tsc_aux])
    default:
      if let value = state.mtrr.read(index) ?? readVendorMSR(index) { return .value(value) }
      return .machine
    }
  }

  /// Whether WRMSR accepts a value for a register of the CPU core, whatever the other registers hold. Of registers that
  /// are the machine's nothing is said, nor of the memory types' (MemoryTypeRanges.swift).
  func accepts(msr index: UInt32, _ value: UInt64) -> Bool {
    typealias MSR = ModelSpecificRegister
    switch index {
    case MSR.platformID, MSR.platformInfo, MSR.mtrrCapability, MSR.machineCheckCapability, MSR.featureControl:
      return false
    case MSR.miscFeatures, MSR.machineCheckStatus: return value == 0
    // LBR and BTF are accepted without effect, as KVM does for a CPU without branch records.
    case MSR.debugControl: return value & ~3 == 0
    case MSR.sysenterESP, MSR.sysenterEIP, MSR.lstar, MSR.cstar, MSR.fsBase, MSR.gsBase, MSR.kernelGSBase:
      return Processor.isCanonical(value)
    case MSR.pat: return MemoryTypeRanges.isPAT(value)
    case MSR.efer: return value & ~state.supportedEFER == 0
    case MSR.tscAux: return hasTSCAux && value >> 32 == 0
    default: return true
    }
  }

  /// Writes a register of the CPU core. Returns false if it is the machine's.
  func writeMSR(_ index: UInt32, _ value: UInt64) throws(Fault) -> Bool {
    typealias MSR = ModelSpecificRegister
    try require(accepts(msr: index, value))
    switch index {
    case MSR.tsc:
      // A write of the counter moves TSC_ADJUST by as much (SDM volume 3, 17.17.3).
      let change = value &- timestampCounter
      page[\.tsc_offset] = page[\.tsc_offset] &+ change
      state.tscAdjust = state.tscAdjust &+ change
    case MSR.tscAdjust:
      page[\.tsc_offset] = page[\.tsc_offset] &+ value &- state.tscAdjust
      state.tscAdjust = value
    // A microcode update, and clearing the signature before reading it: accepted without effect.
    case MSR.microcodeRevision, 0x79, MSR.miscFeatures: break
    case MSR.debugControl: state.debugControl = value
    case MSR.sysenterCS: page[\.sysenter_cs] = MSR.stored(sysenterCS: value)
    case MSR.sysenterESP: page[\.sysenter_esp] = value
    case MSR.sysenterEIP: page[\.sysenter_eip] = value
    case MSR.machineCheckStatus: state.machineCheckStatus = value
    case MSR.miscEnable: state.miscEnable = MSR.stored(miscEnable: value)
    case MSR.powerControl: state.powerControl = value
    case MSR.pat: page[\.pat] = value
    case MSR.efer: try writeEFER(value)
    case MSR.star: page[\.star] = value
    case MSR.lstar: page[\.lstar] = value
    case MSR.cstar: page[\.cstar] = value
    case MSR.sfmask: page[\.sfmask] = MSR.stored(sfmask: value)
    case MSR.fsBase: writeBase(.fs, value)
    case MSR.gsBase: writeBase(.gs, value)
    case MSR.kernelGSBase: page[\.kernel_gs_base] = value
    case MSR.tscAux: page[\.tsc_aux] = value
    default:
      if writeVendorMSR(index) { return true }
      guard MemoryTypeRanges.contains(index) else { return false }
      try require(state.mtrr.write(index, value, physicalMask: page[\.physical_mask]))
    }
    return true
  }

  private var hasTSCAux: Bool { state.cpuid.hasRDTSCP || state.cpuid.hasRDPID }

  private func require(_ condition: Bool) throws(Fault) {
    if !condition { throw .generalProtection() }
  }

  private func writeBase(_ register: SegmentRegister, _ value: UInt64) {
    var segment = page[register]
    segment.base = value
    page[register] = segment
  }

  private func writeEFER(_ value: UInt64) throws(Fault) {
    let old = page[\.efer]
    // LME may not change while paging is on; LMA is read-only and its written value ignored.
    if (value ^ old) & EFER.lme != 0 { try require(page[\.cr0] & CR0.pg == 0) }
    page[\.efer] = value & ~EFER.lma | old & EFER.lma
    page.updateMode()
    if (value ^ old) & EFER.nxe != 0 { unsafe chost_flush_all(page.pointer) }
  }

  // MARK: Time-stamp counter

  var timestampCounter: UInt64 { chost_read_tsc() &+ page[\.tsc_offset] }

  /// RDTSC; RDTSCP also gives TSC_AUX.
  func readTimestamp(auxiliary: Bool) throws(Fault) {
    if auxiliary && !state.cpuid.hasRDTSCP { throw .invalidOpcode }
    if page[\.cr4] & CR4.tsd != 0 && page.isProtected { try requirePrivilege() }
    setMSRResult(timestampCounter)
    if auxiliary { page[register: GPR.rcx] = page[\.tsc_aux] & 0xFFFF_FFFF }
  }

  func readProcessorID(_ instruction: Instruction) throws(Fault) {
    guard state.cpuid.hasRDPID else { throw .invalidOpcode }
    setRegister(instruction.rm, page[\.tsc_aux], size: page.isLongMode ? 8 : 4)
  }

  /// RDPMC: there are no performance counters.
  func readPerformanceCounter() throws(Fault) { throw .generalProtection() }
}

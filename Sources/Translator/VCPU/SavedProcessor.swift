// SPDX-License-Identifier: Apache-2.0
// A vCPU in a saved machine: the architectural state, and what of it `CPUState` does not name because no boot protocol
// and no test needs it.

import CHost
public import Saving
import X86

extension TranslatedCPU {
  public var isAtBoundary: Bool {
    slow == nil && !isRestarting && undelivered == nil && !hasDeliveryExit && processor.state.completion == .none
      && !processor.state.device.hasWrites
  }
}

extension TranslatedCPU: SavedState {
  // The TSC's distance from the host's is saved as it is; it means nothing to another host.
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var state = state
    try state.transfer(&archive)
    if archive.isRestoring {
      if let register = processor.impossibleRegister(in: state) {
        try archive.require(false, register.name, register.value)
      }
      self.state = state
    }
    let cold = processor.state
    try archive.transfer(&cold.interruptShadow, "kind of interrupt shadow")
    try archive.require((cold.interruptShadow != .none) == state.interruptShadow, "kind of interrupt shadow")
    try archive.transfer(&cold.pendingDebug, "pending debug traps", bits: DR6.writable)
    try archive.transfer(&cold.tscAdjust, "TSC_ADJUST")
    try transfer(&archive, &cold.miscEnable, "MISC_ENABLE") { ModelSpecificRegister.stored(miscEnable: $0) == $0 }
    try transfer(&archive, &cold.machineCheckStatus, "MCG_STATUS") {
      processor.accepts(msr: ModelSpecificRegister.machineCheckStatus, $0)
    }
    try archive.transfer(&cold.powerControl, "POWER_CTL")
    try transfer(&archive, &cold.debugControl, "DEBUGCTL") {
      processor.accepts(msr: ModelSpecificRegister.debugControl, $0)
    }
    try archive.transfer(&cold.isAPICEnabled, "APIC's presence")
    try archive.transfer(&cold.isRepeating, "repetition")
    try archive.transfer(&cold.taskPriorityWritten, "change of CR8")
    for index in MemoryTypeRanges.indices {
      var value = cold.mtrr.read(index) ?? 0
      let name = "memory type register 0x\(String(index, radix: 16))"
      try archive.transfer(&value, name)
      if archive.isRestoring {
        let isValid = cold.mtrr.write(index, value, physicalMask: page[\.physical_mask])
        try archive.require(isValid, name, value)
      }
    }
    // Loaded by MOV CR3, and memory may have changed since.
    var pointers = page[\.pdpte]
    try transfer(&archive, &pointers.0, "PDPTE 0", processor.acceptsPDPTE)
    try transfer(&archive, &pointers.1, "PDPTE 1", processor.acceptsPDPTE)
    try transfer(&archive, &pointers.2, "PDPTE 2", processor.acceptsPDPTE)
    try transfer(&archive, &pointers.3, "PDPTE 3", processor.acceptsPDPTE)
    page[\.pdpte] = pointers
    var hasMetUserCode = hasMetUserCode
    try archive.transfer(&hasMetUserCode, "user code")
    if hasMetUserCode { noteUserCode() }
  }

  /// A field that obeys a rule of its own.
  private func transfer(
    _ archive: inout StateArchive, _ value: inout UInt64, _ name: String, _ isPossible: (UInt64) -> Bool
  ) throws(SavedStateError) {
    try archive.transfer(&value, name)
    try archive.require(isPossible(value), name, value)
  }
}

extension Segment {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&selector, "selector")
    try archive.transfer(&base, "base")
    try archive.transfer(&limit, "limit")
    try archive.transfer(&attributes, "attributes")
  }
}

extension DescriptorTable {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&base, "base")
    try archive.transfer(&limit, "limit")
  }
}

extension CPUState {
  /// What the fields hold is judged when all are there (StateRules.swift).
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    for number in registers.indices { try archive.transfer(&registers[number], CPUState.names[number]) }
    try archive.transfer(&rip, "RIP")
    try archive.transfer(&rflags, "RFLAGS")
    for (field, name) in CPUState.segments {
      try archive.part(name) { archive throws(SavedStateError) in try self[keyPath: field].transfer(&archive) }
    }
    try archive.part("GDTR") { archive throws(SavedStateError) in try gdtr.transfer(&archive) }
    try archive.part("IDTR") { archive throws(SavedStateError) in try idtr.transfer(&archive) }
    for (field, name) in CPUState.quadwords { try archive.transfer(&self[keyPath: field], name) }
    try archive.transfer(bytes: &xsave, "vector state")
    try archive.transfer(&interruptShadow, "interrupt shadow")
    try archive.transfer(&nmiBlocked, "NMI blocking")
    try archive.transfer(&pendingInterrupt, "pending interrupt")
    try archive.transfer(&pendingNMI, "pending NMI")
  }

  private static let names = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
  ]

  private static let segments: [(any WritableKeyPath<CPUState, Segment> & Sendable, String)] = [
    (\.es, "ES"), (\.cs, "CS"), (\.ss, "SS"), (\.ds, "DS"), (\.fs, "FS"), (\.gs, "GS"), (\.ldtr, "LDTR"), (\.tr, "TR"),
  ]

  private static let quadwords: [(any WritableKeyPath<CPUState, UInt64> & Sendable, String)] = [
    (\.cr0, "CR0"), (\.cr2, "CR2"), (\.cr3, "CR3"), (\.cr4, "CR4"), (\.cr8, "CR8"), (\.dr0, "DR0"), (\.dr1, "DR1"),
    (\.dr2, "DR2"), (\.dr3, "DR3"), (\.dr6, "DR6"), (\.dr7, "DR7"), (\.efer, "EFER"), (\.star, "STAR"),
    (\.lstar, "LSTAR"), (\.cstar, "CSTAR"), (\.sfmask, "SFMASK"), (\.kernelGSBase, "KERNEL_GS_BASE"),
    (\.sysenterCS, "SYSENTER_CS"), (\.sysenterESP, "SYSENTER_ESP"), (\.sysenterEIP, "SYSENTER_EIP"),
    (\.tscAux, "TSC_AUX"), (\.pat, "PAT"), (\.xcr0, "XCR0"), (\.tscOffset, "TSC offset"),
  ]
}

// SPDX-License-Identifier: Apache-2.0
// A vCPU in a saved machine: the architectural state, and what of it `CPUState` does not name because no boot protocol
// and no test needs it.

import CHost
public import Saving
import X86

extension TranslatedCPU {
  /// Whether no instruction is half done: only then is `state` all there is.
  public var isAtBoundary: Bool {
    slow == nil && !isRestarting && undelivered == nil && !hasDeliveryExit && processor.state.completion == .none
      && !processor.state.device.hasWrites
  }
}

extension TranslatedCPU: SavedState {
  /// To be called at a boundary, by whoever has the vCPU. The TSC's distance from the host's is saved as it is; it
  /// means nothing to another host.
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var state = state
    try state.transfer(&archive)
    if archive.isRestoring { self.state = state }
    let cold = processor.state
    try archive.transfer(&cold.interruptShadow)
    try archive.transfer(&cold.pendingDebug)
    try archive.transfer(&cold.tscAdjust)
    try archive.transfer(&cold.miscEnable)
    try archive.transfer(&cold.machineCheckStatus)
    try archive.transfer(&cold.powerControl)
    try archive.transfer(&cold.debugControl)
    try archive.transfer(&cold.isAPICEnabled)
    try archive.transfer(&cold.isRepeating)
    try archive.transfer(&cold.taskPriorityWritten)
    for index in MemoryTypeRanges.indices {
      var value = cold.mtrr.read(index) ?? 0
      try archive.transfer(&value)
      if archive.isRestoring {
        let isValid = cold.mtrr.write(index, value, physicalMask: page[\.physical_mask])
        try archive.require(isValid, "memory type register \(index)")
      }
    }
    // Loaded by MOV CR3, and memory may have changed since.
    var pointers = page[\.pdpte]
    try archive.transfer(&pointers.0)
    try archive.transfer(&pointers.1)
    try archive.transfer(&pointers.2)
    try archive.transfer(&pointers.3)
    page[\.pdpte] = pointers
    var hasMetUserCode = hasMetUserCode
    try archive.transfer(&hasMetUserCode)
    if hasMetUserCode { noteUserCode() }
  }
}

extension Segment {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&selector)
    try archive.transfer(&base)
    try archive.transfer(&limit)
    try archive.transfer(&attributes)
  }
}

extension DescriptorTable {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&base)
    try archive.transfer(&limit)
  }
}

extension CPUState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    for number in registers.indices { try archive.transfer(&registers[number]) }
    try archive.transfer(&rip)
    try archive.transfer(&rflags)
    try es.transfer(&archive)
    try cs.transfer(&archive)
    try ss.transfer(&archive)
    try ds.transfer(&archive)
    try fs.transfer(&archive)
    try gs.transfer(&archive)
    try ldtr.transfer(&archive)
    try tr.transfer(&archive)
    try gdtr.transfer(&archive)
    try idtr.transfer(&archive)
    for field in CPUState.quadwords { try archive.transfer(&self[keyPath: field]) }
    for index in xsave.indices { try archive.transfer(&xsave[index]) }
    try archive.transfer(&interruptShadow)
    try archive.transfer(&nmiBlocked)
    try archive.transfer(&pendingInterrupt)
    try archive.transfer(&pendingNMI)
  }

  private static let quadwords: [any WritableKeyPath<CPUState, UInt64> & Sendable] = [
    \.cr0, \.cr2, \.cr3, \.cr4, \.cr8, \.dr0, \.dr1, \.dr2, \.dr3, \.dr6, \.dr7, \.efer, \.star, \.lstar, \.cstar,
    \.sfmask, \.kernelGSBase, \.sysenterCS, \.sysenterESP, \.sysenterEIP, \.tscAux, \.pat, \.xcr0, \.tscOffset,
  ]
}

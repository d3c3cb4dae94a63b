// SPDX-License-Identifier: Apache-2.0
// What CPUID answers. The machine decides the model and supplies the leaves; the engine adds the bits that
// depend on control registers and says what happens outside the list (SDM volume 2, CPUID).

import CHost
import X86

/// The CPUID leaves of a vCPU.
public struct CPUIDTable: Sendable, Equatable {
  public struct Entry: Sendable, Equatable {
    public var leaf: UInt32
    /// The subleaf in ECX, or nil if ECX does not matter.
    public var subleaf: UInt32?
    public var eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32

    public init(
      leaf: UInt32, subleaf: UInt32? = nil, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0
    ) {
      self.leaf = leaf
      self.subleaf = subleaf
      self.eax = eax
      self.ebx = ebx
      self.ecx = ecx
      self.edx = edx
    }
  }

  public var entries: [Entry]

  public init(_ entries: [Entry]) { self.entries = entries }

  /// The entry of a leaf, by exact subleaf or one that ignores it.
  public func entry(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> Entry? {
    for entry in entries where entry.leaf == leaf && (entry.subleaf == nil || entry.subleaf == subleaf) { return entry }
    return nil
  }

  /// Highest basic leaf.
  public var maximumBasic: UInt32 { entry(0)?.eax ?? 0 }

  /// What CPUID answers before control registers are looked at.
  ///
  /// A basic leaf above the maximum gives the data of the highest basic leaf, as Intel CPUs do; so do extended
  /// leaves above theirs. The hypervisor range 4000_0000h...4FFF_FFFFh answers zeros outside its leaves.
  public func lookup(_ leaf: UInt32, _ subleaf: UInt32) -> Entry {
    if let entry = entry(leaf, subleaf) { return entry }
    let zero = Entry(leaf: leaf)
    if leaf >> 28 == 4 { return zero }
    let maximum = maximumBasic
    let outside = leaf < 0x8000_0000 ? leaf > maximum : leaf > (entry(0x8000_0000)?.eax ?? 0)
    if outside && isIntel { return entry(maximum, subleaf) ?? zero }
    return zero
  }

  // MARK: Features the engine asks about

  var isIntel: Bool { entry(0)?.ebx == 0x756E_6547 }  // "Genu"
  var isAMD: Bool { entry(0)?.ebx == 0x6874_7541 }  // "Auth"

  func basicECX(_ bit: UInt32) -> Bool { (entry(1)?.ecx ?? 0) >> bit & 1 != 0 }
  func basicEDX(_ bit: UInt32) -> Bool { (entry(1)?.edx ?? 0) >> bit & 1 != 0 }
  func structuredEBX(_ bit: UInt32) -> Bool { (entry(7, 0)?.ebx ?? 0) >> bit & 1 != 0 }
  func structuredECX(_ bit: UInt32) -> Bool { (entry(7, 0)?.ecx ?? 0) >> bit & 1 != 0 }
  func extendedEDX(_ bit: UInt32) -> Bool { (entry(0x8000_0001)?.edx ?? 0) >> bit & 1 != 0 }

  /// State components that XCR0 may enable: x87, SSE, AVX at most.
  var supportedXCR0: UInt64 {
    guard basicECX(26) else { return 1 }
    return basicECX(28) ? 7 : 3
  }
  var hasRDTSCP: Bool { extendedEDX(27) }
  var hasRDPID: Bool { structuredECX(22) }
}

extension Processor {
  /// CPUID.
  func cpuid() {
    let leaf = UInt32(truncatingIfNeeded: page[register: GPR.rax])
    let subleaf = UInt32(truncatingIfNeeded: page[register: GPR.rcx])
    let entry = cpuid(leaf, subleaf)
    page[register: GPR.rax] = UInt64(entry.eax)
    page[register: GPR.rbx] = UInt64(entry.ebx)
    page[register: GPR.rcx] = UInt64(entry.ecx)
    page[register: GPR.rdx] = UInt64(entry.edx)
  }

  /// What CPUID answers now.
  func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDTable.Entry {
    var entry = state.cpuid.lookup(leaf, subleaf)
    switch (entry.leaf, entry.subleaf ?? 0) {
    case (1, _):
      let osxsave: UInt32 = 1 << 27
      entry.ecx = page[\.cr4] & CR4.osxsave != 0 ? entry.ecx | osxsave : entry.ecx & ~osxsave
      if !state.isAPICEnabled { entry.edx &= ~(1 << 9) }
    case (0xD, 0):
      entry.ebx = Processor.xsaveSize(page[\.xcr0])
    case (0xD, 1):
      // EBX: size of the compacted area of XCR0 | IA32_XSS, if XSAVEC or XSAVES exist.
      if entry.eax & 0xA != 0 { entry.ebx = Processor.xsaveSize(page[\.xcr0]) }
    default: break
    }
    return entry
  }

  /// Bytes of an XSAVE area with these components; standard and compacted formats agree for x87, SSE and AVX.
  static func xsaveSize(_ components: UInt64) -> UInt32 { components & 4 != 0 ? 832 : 576 }
}

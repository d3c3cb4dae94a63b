// SPDX-License-Identifier: Apache-2.0
// The CPUID table of a model, leaf by leaf in ascending order. Instruction features come from the model's
// set; the other bits are what the engine and the machine do for every guest. Left out on purpose:
// MONITOR/MWAIT (with it Linux does not use paravirtual TLB flushes), PCID and SMAP unless they are asked for, XSAVEOPT
// (its "modified" optimization compares with an XRSTOR that may have been the host's own), invariant TSC (it
// would rank "tsc" above kvm-clock), and everything speculative.

/// One vCPU's place in the machine, and what the machine promises it.
public struct CPUIDConfiguration: Sendable, Equatable {
  /// The local APIC's id; ids are 0..<cpuCount.
  public var apicID: UInt32
  /// vCPUs that may ever exist, 1...65535: cores of one package without hyper-threads.
  public var cpuCount: UInt32
  /// The rate of the guest's time-stamp counter, in kHz; 0 if unknown.
  public var timestampKilohertz: UInt32
  /// `nil`: the guest is not told that it is one (no HYPERVISOR bit, no leaves from 0x40000000).
  public var kvmFeatures: KVMFeatures?
  public var kvmHints: KVMHints

  public init(
    apicID: UInt32 = 0, cpuCount: UInt32 = 1, timestampKilohertz: UInt32,
    kvmFeatures: KVMFeatures? = .standard, kvmHints: KVMHints = []
  ) {
    self.apicID = apicID
    self.cpuCount = min(max(cpuCount, 1), 65535)
    self.timestampKilohertz = timestampKilohertz
    self.kvmFeatures = kvmFeatures
    self.kvmHints = kvmHints
  }

  /// The rate of the local APIC's timer before its divider, in kHz: one tick a nanosecond.
  public static let apicBusKilohertz: UInt32 = 1_000_000
}

extension CPUModel {
  /// Everything CPUID answers on one vCPU.
  public func cpuid(_ configuration: CPUIDConfiguration) -> CPUIDTable {
    var entries = basicLeaves(configuration)
    if let features = configuration.kvmFeatures { entries += hypervisorLeaves(features, configuration) }
    entries += extendedLeaves(configuration)
    return CPUIDTable(entries)
  }

  /// The instruction features that one register of one leaf reports.
  private func word(_ leaf: UInt32, _ register: CPUIDRegister, subleaf: UInt32 = 0) -> UInt32 {
    var word: UInt32 = 0
    for feature in features.features {
      if let bit = feature.cpuidBit, bit.leaf == leaf, bit.register == register, bit.subleaf == subleaf {
        word |= 1 << UInt32(bit.position)
      }
    }
    return word
  }

  // MARK: Basic leaves

  private func basicLeaves(_ configuration: CPUIDConfiguration) -> [CPUIDEntry] {
    let ratio = vendor == .intel ? TimestampRatio(kilohertz: configuration.timestampKilohertz) : nil
    let (ebx, edx, ecx) = vendorWords
    var leaves = [
      CPUIDEntry(0, eax: ratio == nil ? 0xD : 0x16, ebx: ebx, ecx: ecx, edx: edx),
      CPUIDEntry(
        1, eax: signature, ebx: topologyWord(configuration), ecx: leaf1ECX(configuration),
        edx: leaf1EDX(configuration)),
    ]
    if vendor == .intel {
      // Descriptors: a data TLB, "caches are in leaf 4", an instruction TLB, 64-byte prefetch.
      leaves.append(CPUIDEntry(2, eax: 0x00FF_0301, edx: 0x0000_F001))
      leaves += cacheLeaves(configuration)
    }
    leaves.append(CPUIDEntry(6, eax: 1 << 2))  // ARAT: the APIC timer runs in HLT.
    leaves.append(leaf7)
    leaves += topologyLeaves(configuration)
    leaves += xsaveLeaves
    if let ratio {
      let megahertz = min(configuration.timestampKilohertz / 1000, 0xFFFF)
      leaves.append(CPUIDEntry(0x15, eax: ratio.denominator, ebx: ratio.numerator, ecx: ratio.crystalHertz))
      leaves.append(CPUIDEntry(0x16, eax: megahertz, ebx: megahertz, ecx: 100))
    }
    return leaves
  }

  /// EBX, EDX, ECX of leaf 0.
  private var vendorWords: (UInt32, UInt32, UInt32) {
    switch vendor {
    case .intel: (0x756E_6547, 0x4965_6E69, 0x6C65_746E)  // GenuineIntel
    case .amd: (0x6874_7541, 0x6974_6E65, 0x444D_4163)  // AuthenticAMD
    }
  }

  private func topologyWord(_ configuration: CPUIDConfiguration) -> UInt32 {
    let flushLine: UInt32 = 8 << 8  // CLFLUSH works on 64 bytes.
    let logical = min(configuration.cpuCount.roundedUpToPowerOfTwo, 255)
    return configuration.apicID << 24 | logical << 16 | flushLine
  }

  private func leaf1ECX(_ configuration: CPUIDConfiguration) -> UInt32 {
    let x2apic: UInt32 = 1 << 21
    let deadline: UInt32 = 1 << 24
    let hypervisor: UInt32 = configuration.kvmFeatures == nil ? 0 : 1 << 31
    return word(1, .ecx) | x2apic | deadline | hypervisor
  }

  /// VME DE PSE TSC MSR PAE MCE CX8 APIC, SEP MTRR PGE MCA CMOV PAT PSE36, CLFLUSH, FXSR.
  private static let legacyFeatures: UInt32 = 0x010B_FBFE
  private static let hyperThreading: UInt32 = 1 << 28

  private func leaf1EDX(_ configuration: CPUIDConfiguration) -> UInt32 {
    word(1, .edx) | CPUModel.legacyFeatures | (configuration.cpuCount > 1 ? CPUModel.hyperThreading : 0)
  }

  private var leaf7: CPUIDEntry {
    let tscAdjust: UInt32 = 1 << 1
    let smep: UInt32 = 1 << 7
    let enhancedStrings: UInt32 = 1 << 9  // ERMS
    let fastShortStrings: UInt32 = 1 << 4  // FSRM
    return CPUIDEntry(
      7, subleaf: 0, ebx: word(7, .ebx) | tscAdjust | smep | enhancedStrings, ecx: word(7, .ecx),
      edx: word(7, .edx) | fastShortStrings)
  }

  /// Leaf 4: 32 KiB + 32 KiB and 256 KiB for each core, 8 MiB for all.
  private func cacheLeaves(_ configuration: CPUIDConfiguration) -> [CPUIDEntry] {
    let ids = configuration.cpuCount.roundedUpToPowerOfTwo
    let cores = (min(ids, 64) - 1) << 26
    let shared = (min(ids, 4096) - 1) << 14
    func cache(_ index: UInt32, type: UInt32, level: UInt32, sets: UInt32, ways: UInt32) -> CPUIDEntry {
      CPUIDEntry(
        4, subleaf: index, eax: type | level << 5 | 1 << 8 | (level == 3 ? shared : 0) | cores,
        ebx: (ways - 1) << 22 | 63, ecx: sets - 1, edx: level == 3 ? 2 : 0)
    }
    return [
      cache(0, type: 1, level: 1, sets: 64, ways: 8),
      cache(1, type: 2, level: 1, sets: 64, ways: 8),
      cache(2, type: 3, level: 2, sets: 512, ways: 8),
      cache(3, type: 3, level: 3, sets: 8192, ways: 16),
    ]
  }

  /// Leaf 0xB: one thread a core, all cores in one package. Other levels: `CPUIDTable.execute`.
  private func topologyLeaves(_ configuration: CPUIDConfiguration) -> [CPUIDEntry] {
    let shift = UInt32(configuration.cpuCount.roundedUpToPowerOfTwo.trailingZeroBitCount)
    return [
      CPUIDEntry(0xB, subleaf: 0, eax: 0, ebx: 1, ecx: 1 << 8, edx: configuration.apicID),
      CPUIDEntry(
        0xB, subleaf: 1, eax: shift, ebx: configuration.cpuCount, ecx: 2 << 8 | 1, edx: configuration.apicID),
    ]
  }

  private var xsaveLeaves: [CPUIDEntry] {
    guard supportedXCR0 != 0 else { return [] }
    var leaves = [
      CPUIDEntry(
        0xD, subleaf: 0, eax: UInt32(truncatingIfNeeded: supportedXCR0), ebx: XSAVELayout.headerEnd,
        ecx: XSAVELayout.size(of: supportedXCR0)),
      CPUIDEntry(0xD, subleaf: 1, eax: word(0xD, .eax, subleaf: 1)),
    ]
    if supportedXCR0 & 4 != 0 {
      leaves.append(CPUIDEntry(0xD, subleaf: 2, eax: XSAVELayout.avxSize, ebx: XSAVELayout.avxOffset))
    }
    return leaves
  }

  // MARK: Hypervisor leaves

  private func hypervisorLeaves(_ features: KVMFeatures, _ configuration: CPUIDConfiguration) -> [CPUIDEntry] {
    [
      // "KVMKVMKVM\0\0\0"
      CPUIDEntry(0x4000_0000, eax: 0x4000_0010, ebx: 0x4B4D_564B, ecx: 0x564B_4D56, edx: 0x0000_004D),
      CPUIDEntry(0x4000_0001, eax: features.rawValue, edx: configuration.kvmHints.rawValue),
      CPUIDEntry(
        0x4000_0010, eax: configuration.timestampKilohertz, ebx: CPUIDConfiguration.apicBusKilohertz),
    ]
  }

  // MARK: Extended leaves

  private func extendedLeaves(_ configuration: CPUIDConfiguration) -> [CPUIDEntry] {
    let several = configuration.cpuCount > 1
    // SYSCALL, NX, 1 GiB pages, long mode.
    var edx = word(0x8000_0001, .edx) | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29
    var ecx = word(0x8000_0001, .ecx) | 1  // LAHF and SAHF in 64-bit mode
    if vendor == .amd {
      // AMD repeats leaf 1's EDX, without what means something else here; MMX extensions came with SSE.
      edx |= CPUModel.legacyFeatures & ~(1 << 19) | word(1, .edx) & (1 << 0 | 1 << 23) | 1 << 22
      ecx |= 1 << 4 | (several ? 1 << 1 : 0)  // CR8 by LOCK MOV CR0, cores are not threads
    }
    var leaves = [
      CPUIDEntry(0x8000_0000, eax: vendor == .intel ? 0x8000_0008 : 0x8000_0021),
      CPUIDEntry(0x8000_0001, eax: vendor == .intel ? 0 : signature, ecx: ecx, edx: edx),
    ]
    leaves += brandLeaves
    let widths = UInt32(CPUModel.linearAddressBits) << 8 | UInt32(CPUModel.physicalAddressBits)
    switch vendor {
    case .intel:
      leaves.append(CPUIDEntry(0x8000_0006, ecx: 256 << 16 | 6 << 12 | 64))
      leaves.append(CPUIDEntry(0x8000_0008, eax: widths))
    case .amd:
      let level1: UInt32 = 32 << 24 | 8 << 16 | 1 << 8 | 64
      leaves.append(
        CPUIDEntry(0x8000_0005, eax: 0xFF40_FF40, ebx: 0xFF40_FF40, ecx: level1, edx: level1))
      leaves.append(
        CPUIDEntry(
          0x8000_0006, ebx: 0x4200_4200, ecx: 512 << 16 | 6 << 12 | 1 << 8 | 64,
          edx: 16 << 18 | 8 << 12 | 1 << 8 | 64))
      leaves.append(amdWidths(widths, configuration))
      // LFENCE serializes, a null selector clears the base, SRSO_NO.
      leaves.append(CPUIDEntry(0x8000_0021, eax: 1 << 2 | 1 << 6 | 1 << 29))
    }
    return leaves
  }

  /// Leaf 0x80000008 of AMD: error pointers are saved, SSB_NO, BTC_NO; cores and the width of a core's id.
  private func amdWidths(_ widths: UInt32, _ configuration: CPUIDConfiguration) -> CPUIDEntry {
    let idBits = UInt32(configuration.cpuCount.roundedUpToPowerOfTwo.trailingZeroBitCount)
    return CPUIDEntry(
      0x8000_0008, eax: widths, ebx: 1 << 2 | 1 << 26 | 1 << 29,
      ecx: min(idBits, 15) << 12 | min(configuration.cpuCount - 1, 255))
  }

  /// Leaves 0x80000002...4: 48 bytes of text, ended by zeros.
  private var brandLeaves: [CPUIDEntry] {
    var words = [UInt32](repeating: 0, count: 12)
    for (index, byte) in brand.utf8.prefix(47).enumerated() {
      words[index / 4] |= UInt32(byte) << UInt32(index % 4 * 8)
    }
    return [
      CPUIDEntry(0x8000_0002, eax: words[0], ebx: words[1], ecx: words[2], edx: words[3]),
      CPUIDEntry(0x8000_0003, eax: words[4], ebx: words[5], ecx: words[6], edx: words[7]),
      CPUIDEntry(0x8000_0004, eax: words[8], ebx: words[9], ecx: words[10], edx: words[11]),
    ]
  }
}

/// Leaf 0x15: TSC rate = crystal * numerator / denominator, exactly.
///
/// Linux takes the crystal for the clock of the APIC timer as well, so it must be our bus clock; and it
/// multiplies kilohertz by the numerator in 32 bits. Rates for which that cannot be exact have no leaf
/// 0x15 (and none above): such guests learn the rate from kvmclock or leaf 0x40000010.
struct TimestampRatio {
  let numerator, denominator: UInt32
  var crystalHertz: UInt32 { CPUIDConfiguration.apicBusKilohertz * 1000 }

  init?(kilohertz: UInt32) {
    guard kilohertz > 0 else { return nil }
    let crystal = CPUIDConfiguration.apicBusKilohertz
    var (a, b) = (kilohertz, crystal)
    while b != 0 { (a, b) = (b, a % b) }
    numerator = kilohertz / a
    denominator = crystal / a
    guard !crystal.multipliedReportingOverflow(by: numerator).overflow else { return nil }
  }
}

extension UInt32 {
  /// For 1...2^31.
  fileprivate var roundedUpToPowerOfTwo: UInt32 {
    self <= 1 ? 1 : 1 << (32 - UInt32((self - 1).leadingZeroBitCount))
  }
}

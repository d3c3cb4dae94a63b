// SPDX-License-Identifier: Apache-2.0
// The CPU models promise no more than the host and the engine can keep, say it consistently in all leaves,
// and say the same on every host.

import Testing
import X86

/// A host with exactly the given features.
func host(_ features: FeatureSet, xcr0: UInt64) -> HostCPUID {
  HostCPUID(xcr0: xcr0) { leaf, subleaf in
    if leaf == 0 { return (0x16, 0, 0, 0) }
    if leaf == 0x8000_0000 { return (0x8000_0021, 0, 0, 0) }
    var words: [UInt32] = [0, 0, 0, 0]
    if leaf == 7, subleaf == 0 { words[0] = 1 }
    for feature in features.features {
      if let bit = feature.cpuidBit, bit.leaf == leaf, bit.subleaf == subleaf {
        words[Int(bit.register.rawValue)] |= 1 << UInt32(bit.position)
      }
    }
    return (words[0], words[1], words[2], words[3])
  }
}

let everything = Feature.allCases.reduce(FeatureSet()) { $0.union(FeatureSet($1)) }

let models: [CPUModel] = CPUModel.Vendor.allCases.flatMap { vendor in
  CPUModel.Level.allCases.flatMap { level in
    [CPUModel(level, vendor: vendor), CPUModel(level, vendor: vendor, extras: [])]
  }
}

@Suite struct CPUModelTests {
  @Test func everyFeatureFitsTheSetAndHasABitOfItsOwn() {
    #expect(Feature.allCases.count <= 64)
    let bits = Feature.allCases.compactMap(\.cpuidBit)
    #expect(bits.count == Feature.allCases.count - 1)
    for (index, bit) in bits.enumerated() { #expect(!bits[..<index].contains(bit)) }
  }

  @Test func theBestModelIsTheHighestTheHostHas() throws {
    let all = try #require(CPUModel(host: host(everything, xcr0: 0xE7)))
    #expect(all.level == .v3)
    #expect(all == CPUModel(.v3))
    let haswell = CPUModel.Level.v3.required.union(FeatureSet(.aes, .pclmulqdq, .rdrand))
    let model = try #require(CPUModel(host: host(haswell, xcr0: 7)))
    #expect(model.level == .v3)
    #expect(!model.supports(.adx) && !model.supports(.rdseed) && model.supports(.rdrand))
    // AVX that the host's system did not enable is no AVX.
    #expect(CPUModel(host: host(haswell, xcr0: 3))?.level == .v2)
    #expect(CPUModel(.v3, host: host(haswell, xcr0: 3)) == nil)
    #expect(CPUModel(host: host(CPUModel.Level.v2.required, xcr0: 0))?.supportedXCR0 == 0)
    #expect(CPUModel(host: host(CPUModel.Level.v2.required.subtracting(FeatureSet(.sse42)), xcr0: 0)) == nil)
  }

  @Test func eachRequiredFeatureIsRequired() {
    for level in CPUModel.Level.allCases {
      for feature in level.required.features where feature != .base {
        let lacking = host(everything.subtracting(FeatureSet(feature)), xcr0: 7)
        #expect(CPUModel(level, host: lacking) == nil)
        #expect(CPUModel(level).missing(on: lacking) == [feature])
      }
      #expect(CPUModel(level).missing(on: host(everything, xcr0: 7)).isEmpty)
    }
  }

  @Test func hostsWithoutALeafDoNotHaveItsFeatures() {
    let old = HostCPUID(xcr0: 7) { leaf, _ in
      leaf == 0 ? (6, 0, 0, 0) : leaf == 0x8000_0000 ? (0x8000_0000, 0, 0, 0) : (.max, .max, .max, .max)
    }
    #expect(old.has(.avx) && !old.has(.avx2) && !old.has(.lzcnt) && !old.has(.xsaveopt))
  }

  @Test(arguments: models) func reportsItsFeaturesAndNoOthers(model: CPUModel) {
    let table = model.cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000))
    for feature in Feature.allCases {
      guard let bit = feature.cpuidBit else { continue }
      let reported = table.stored(bit.leaf, subleaf: bit.subleaf)[bit.register] >> UInt32(bit.position) & 1 != 0
      #expect(reported == model.supports(feature), "\(feature)")
    }
    let never: [Feature] = [
      .monitor, .vmx, .svm, .invpcid, .smap, .pku, .cet, .sha, .xsaveopt, .xsavec, .xsaves, .rtm, .vaes,
    ]
    for feature in never { #expect(!model.supports(feature)) }
  }

  @Test(arguments: models) func reportsWhatEngineAndMachineDo(model: CPUModel) {
    let one = model.cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000)).stored(1)
    // FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2
    #expect(one.edx == 0x078B_FBFF)
    #expect(one.ecx & 1 << 21 != 0 && one.ecx & 1 << 24 != 0 && one.ecx & 1 << 31 != 0)
    #expect(one.ecx & (1 << 27 | 1 << 17 | 1 << 15 | 1 << 3) == 0)  // OSXSAVE PCID PDCM MONITOR
    let table = model.cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000))
    #expect(table.stored(6).eax == 4)
    #expect(table.stored(7).ebx & (1 << 7 | 1 << 9 | 1) == 1 << 7 | 1 << 9 | 1)
    #expect(table.stored(7).edx == 1 << 4)
    #expect(table.stored(0x8000_0001).edx & 0x2410_0800 == 0x2410_0800)
    #expect(table.stored(0x8000_0007) == CPUIDRegisters())  // No invariant TSC: kvm-clock stays first.
    #expect(table.stored(0x8000_0008).eax == 0x302E)
    #expect(table.stored(5) == CPUIDRegisters())
  }

  @Test(arguments: models) func theControlRegistersFitTheFeatures(model: CPUModel) {
    #expect((model.supportedCR4 & 1 << 18 != 0) == model.supports(.xsave))
    #expect(model.supportedCR4 & (1 << 11 | 1 << 16 | 1 << 20) == 1 << 11 | 1 << 16 | 1 << 20)
    // LA57, VMXE, SMXE, PCIDE, SMAP, PKE, CET
    #expect(model.supportedCR4 & (1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21 | 1 << 22 | 1 << 23) == 0)
    #expect(model.supportedXCR0 == (model.supports(.xsave) ? model.supports(.avx) ? 7 : 3 : 0))
    #expect(model.supportedEFER == 0xD01)
  }

  @Test(arguments: models) func takesAdditionsWhenAsked(model: CPUModel) {
    let asked = FeatureSet(.smap, .pcid, .invpcid, .vmx)
    let more = CPUModel(model.level, vendor: model.vendor, extras: model.extras, additions: asked)
    #expect(more.features == model.features.union(FeatureSet(.smap, .pcid, .invpcid)) && more != model)
    #expect(more.supportedCR4 == model.supportedCR4 | 1 << 17 | 1 << 21)
    let table = more.cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000))
    #expect(table.stored(1).ecx & 1 << 17 != 0 && table.stored(7).ebx & (1 << 10 | 1 << 20) == 1 << 10 | 1 << 20)
  }

  @Test(arguments: models) func statesItsXSAVEArea(model: CPUModel) {
    let table = model.cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000))
    func leaf(_ subleaf: UInt32, xcr0: UInt64) -> CPUIDRegisters {
      table.execute(leaf: 0xD, subleaf: subleaf, cr4: 1 << 18, xcr0: xcr0)
    }
    guard model.supports(.xsave) else {
      #expect(leaf(0, xcr0: 1) == CPUIDRegisters())
      return
    }
    #expect(UInt64(leaf(0, xcr0: 1).eax) == model.supportedXCR0)
    #expect(leaf(0, xcr0: 1).ebx == 576 && leaf(0, xcr0: 3).ebx == 576)
    #expect(leaf(1, xcr0: 1) == CPUIDRegisters())
    if model.supports(.avx) {
      #expect(leaf(0, xcr0: 7).ebx == 832 && leaf(0, xcr0: 1).ecx == 832)
      #expect(leaf(2, xcr0: 7) == CPUIDRegisters(eax: 256, ebx: 576))
      #expect(CPUState().xsave.count == 832)
    } else {
      #expect(leaf(0, xcr0: 3).ecx == 576)
      #expect(leaf(2, xcr0: 3) == CPUIDRegisters())
    }
    #expect(leaf(9, xcr0: 7) == CPUIDRegisters())
  }

  @Test(arguments: models) func entriesAscendAndAppearOnce(model: CPUModel) {
    let entries = model.cpuid(CPUIDConfiguration(cpuCount: 4, timestampKilohertz: 2_600_000)).entries
    for (one, next) in zip(entries, entries.dropFirst()) {
      #expect((one.leaf, one.subleaf ?? 0) < (next.leaf, next.subleaf ?? 0))
    }
  }
}

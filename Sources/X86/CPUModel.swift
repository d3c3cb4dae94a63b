// SPDX-License-Identifier: Apache-2.0
// Which CPU a guest sees. Models are a ladder of two rungs, x86-64-v2 and x86-64-v3, each a fixed set of
// features, plus a few extras that are recorded in the model: a guest sees the same CPU on every host that
// can run its model, and a feature that is not in the model does not work, whatever the host could do.
// The identities are chosen so that Linux asks for no mitigation that would only cost time here.

/// A set of `Feature`.
public struct FeatureSet: OptionSet, Sendable, Hashable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public init(_ features: Feature...) {
    rawValue = features.reduce(0) { $0 | 1 << UInt64($1.rawValue) }
  }

  public func contains(_ feature: Feature) -> Bool {
    rawValue >> UInt64(feature.rawValue) & 1 != 0
  }

  /// In the order of the enumeration.
  public var features: [Feature] { Feature.allCases.filter { contains($0) } }
}

/// A CPU as a guest sees it: a promise, and all of it.
public struct CPUModel: Sendable, Hashable {
  /// A rung of the ladder: the levels of the x86-64 psABI, without SHA, AVX-512, protection keys or CET on any.
  public enum Level: String, Sendable, CaseIterable {
    case v2 = "x86-64-v2"
    case v3 = "x86-64-v3"

    /// What a host must execute itself for this rung.
    public var required: FeatureSet {
      switch self {
      case .v2: CPUModel.featuresOfV2
      case .v3: CPUModel.featuresOfV2.union(CPUModel.featuresAddedByV3)
      }
    }
  }

  /// Whose CPU the guest believes to run on. It decides the hypercall instruction that Linux emits.
  public enum Vendor: String, Sendable, CaseIterable {
    /// GenuineIntel family 6 model 28, an in-order Atom: Linux lists no vulnerability for it.
    case intel
    /// AuthenticAMD family 0x17 model 0x31.
    case amd
  }

  public let level: Level
  public let vendor: Vendor
  /// Recorded beside the level: part of `possibleExtras`.
  public let extras: FeatureSet
  /// Recorded beside the level: part of `possibleAdditions`.
  public let additions: FeatureSet
  /// Everything the model has. An instruction of another feature raises #UD or has its older meaning.
  public let features: FeatureSet

  /// A model by name, whatever the host.
  ///
  /// - Parameters:
  ///   - extras: What is not in `possibleExtras` is left out.
  ///   - additions: What is not in `possibleAdditions` is left out.
  public init(
    _ level: Level, vendor: Vendor = .intel, extras: FeatureSet = CPUModel.possibleExtras, additions: FeatureSet = []
  ) {
    self.level = level
    self.vendor = vendor
    self.extras = extras.intersection(CPUModel.possibleExtras).subtracting(level.required)
    self.additions = additions.intersection(CPUModel.possibleAdditions)
    features = level.required.union(self.extras).union(CPUModel.providedByEngine).union(self.additions)
  }

  /// The highest rung the host can climb, with every extra it has; `nil` if not even x86-64-v2.
  public init?(host: HostCPUID, vendor: Vendor = .intel, additions: FeatureSet = []) {
    for level in Level.allCases.reversed() {
      if let model = CPUModel(level, host: host, vendor: vendor, additions: additions) {
        self = model
        return
      }
    }
    return nil
  }

  /// The given rung with every extra the host has; `nil` if the host is below the rung.
  public init?(_ level: Level, host: HostCPUID, vendor: Vendor = .intel, additions: FeatureSet = []) {
    guard level.required.features.allSatisfy({ host.has($0) }) else { return nil }
    let extras = CPUModel.possibleExtras.features.filter { host.has($0) }
    self.init(
      level, vendor: vendor, extras: extras.reduce(FeatureSet()) { $0.union(FeatureSet($1)) }, additions: additions)
  }

  /// The features without which this model cannot run on `host`; empty if it can.
  public func missing(on host: HostCPUID) -> [Feature] {
    level.required.union(extras).features.filter { !host.has($0) }
  }

  /// Whether the model has a feature.
  public func supports(_ feature: Feature) -> Bool { features.contains(feature) }

  /// The bits of CR4 a guest may set; any other is #GP.
  ///
  /// VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT, UMIP, FSGSBASE, SMEP, OSXSAVE with XSAVE, and what was added
  /// of PCIDE and SMAP.
  public var supportedCR4: UInt64 {
    let always: UInt64 = 0x0000_07FF
    let smep: UInt64 = 1 << 20
    let umip: UInt64 = supports(.umip) ? 1 << 11 : 0
    let fsgsbase: UInt64 = supports(.fsgsbase) ? 1 << 16 : 0
    let osxsave: UInt64 = supports(.xsave) ? 1 << 18 : 0
    let pcide: UInt64 = supports(.pcid) ? 1 << 17 : 0
    let smap: UInt64 = supports(.smap) ? 1 << 21 : 0
    return always | umip | smep | fsgsbase | osxsave | pcide | smap
  }

  /// The bits of XCR0 a guest may set: x87, SSE and, on v3, AVX; 0 without XSAVE.
  public var supportedXCR0: UInt64 {
    guard supports(.xsave) else { return 0 }
    return supports(.avx) ? 7 : 3
  }

  /// The bits of EFER a guest may set: SCE LME LMA NXE.
  public var supportedEFER: UInt64 { 0xD01 }

  /// MAXPHYADDR: the width of a guest-physical address. Page-table bits above it are reserved.
  public static let physicalAddressBits: UInt8 = 46
  /// The width of a linear address: four levels.
  public static let linearAddressBits: UInt8 = 48

  /// CPUID 1 EAX: type, family, model and stepping.
  public var signature: UInt32 {
    switch vendor {
    case .intel: 0x0001_06CA
    case .amd: 0x0083_0F10
    }
  }

  /// What the guest's /proc/cpuinfo calls it; at most 47 bytes of ASCII.
  public var brand: String { "swift-lguest \(level.rawValue)" }

  /// May be added to a rung; whether they are is part of the model.
  public static let possibleExtras = FeatureSet(.aes, .pclmulqdq, .rdrand, .xsave, .rdseed, .adx)

  /// Done by the engine on any host, but only offered when asked for: they cost time and gain none here.
  public static let possibleAdditions = FeatureSet(.smap, .pcid, .invpcid)

  static let featuresOfV2 = FeatureSet(
    .base, .fpu, .mmx, .sse, .sse2, .sse3, .ssse3, .sse41, .sse42, .popcnt, .cmpxchg16b)
  static let featuresAddedByV3 = FeatureSet(.xsave, .avx, .avx2, .fma, .f16c, .bmi1, .bmi2, .lzcnt, .movbe)
  /// Done by the engine on any host.
  public static let providedByEngine = FeatureSet(.fsgsbase, .rdtscp, .prefetchw, .umip)
}

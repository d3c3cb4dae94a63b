// SPDX-License-Identifier: Apache-2.0
// CPUID as data: where each feature's bit is, one answer, and the table of all answers a vCPU gives. The
// same map of bits reads the host and writes the guest's table, so the two cannot disagree. What goes into
// the table is decided in CPUModel.swift.

/// A register in which CPUID answers.
public enum CPUIDRegister: UInt8, Sendable, CaseIterable {
  case eax, ebx, ecx, edx
}

/// Where CPUID says that a feature exists.
public struct CPUIDBit: Sendable, Equatable {
  public let leaf: UInt32
  public let subleaf: UInt32
  public let register: CPUIDRegister
  /// 0...31.
  public let position: UInt8

  init(_ leaf: UInt32, _ register: CPUIDRegister, _ position: UInt8, subleaf: UInt32 = 0) {
    self.leaf = leaf
    self.subleaf = subleaf
    self.register = register
    self.position = position
  }
}

extension Feature {
  /// The CPUID bit of this feature (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
  ///
  /// `nil` only for `base`. MOVDIR stands for MOVDIRI, `cet` for shadow stacks.
  public var cpuidBit: CPUIDBit? {
    switch self {
    case .base: nil
    case .fpu: CPUIDBit(1, .edx, 0)
    case .mmx: CPUIDBit(1, .edx, 23)
    case .sse: CPUIDBit(1, .edx, 25)
    case .sse2: CPUIDBit(1, .edx, 26)
    case .sse3: CPUIDBit(1, .ecx, 0)
    case .pclmulqdq: CPUIDBit(1, .ecx, 1)
    case .monitor: CPUIDBit(1, .ecx, 3)
    case .vmx: CPUIDBit(1, .ecx, 5)
    case .ssse3: CPUIDBit(1, .ecx, 9)
    case .fma: CPUIDBit(1, .ecx, 12)
    case .cmpxchg16b: CPUIDBit(1, .ecx, 13)
    case .pcid: CPUIDBit(1, .ecx, 17)
    case .sse41: CPUIDBit(1, .ecx, 19)
    case .sse42: CPUIDBit(1, .ecx, 20)
    case .movbe: CPUIDBit(1, .ecx, 22)
    case .popcnt: CPUIDBit(1, .ecx, 23)
    case .aes: CPUIDBit(1, .ecx, 25)
    case .xsave: CPUIDBit(1, .ecx, 26)
    case .avx: CPUIDBit(1, .ecx, 28)
    case .f16c: CPUIDBit(1, .ecx, 29)
    case .rdrand: CPUIDBit(1, .ecx, 30)
    case .fsgsbase: CPUIDBit(7, .ebx, 0)
    case .bmi1: CPUIDBit(7, .ebx, 3)
    case .avx2: CPUIDBit(7, .ebx, 5)
    case .bmi2: CPUIDBit(7, .ebx, 8)
    case .invpcid: CPUIDBit(7, .ebx, 10)
    case .rtm: CPUIDBit(7, .ebx, 11)
    case .rdseed: CPUIDBit(7, .ebx, 18)
    case .adx: CPUIDBit(7, .ebx, 19)
    case .smap: CPUIDBit(7, .ebx, 20)
    case .clflushopt: CPUIDBit(7, .ebx, 23)
    case .clwb: CPUIDBit(7, .ebx, 24)
    case .sha: CPUIDBit(7, .ebx, 29)
    case .umip: CPUIDBit(7, .ecx, 2)
    case .pku: CPUIDBit(7, .ecx, 3)
    case .waitpkg: CPUIDBit(7, .ecx, 5)
    case .cet: CPUIDBit(7, .ecx, 7)
    case .gfni: CPUIDBit(7, .ecx, 8)
    case .vaes: CPUIDBit(7, .ecx, 9)
    case .vpclmulqdq: CPUIDBit(7, .ecx, 10)
    case .rdpid: CPUIDBit(7, .ecx, 22)
    case .movdir: CPUIDBit(7, .ecx, 27)
    case .serialize: CPUIDBit(7, .edx, 14)
    case .avxvnni: CPUIDBit(7, .eax, 4, subleaf: 1)
    case .xsaveopt: CPUIDBit(0xD, .eax, 0, subleaf: 1)
    case .xsavec: CPUIDBit(0xD, .eax, 1, subleaf: 1)
    case .xsaves: CPUIDBit(0xD, .eax, 3, subleaf: 1)
    case .svm: CPUIDBit(0x8000_0001, .ecx, 2)
    case .lzcnt: CPUIDBit(0x8000_0001, .ecx, 5)
    case .sse4a: CPUIDBit(0x8000_0001, .ecx, 6)
    case .prefetchw: CPUIDBit(0x8000_0001, .ecx, 8)
    case .xop: CPUIDBit(0x8000_0001, .ecx, 11)
    case .fma4: CPUIDBit(0x8000_0001, .ecx, 16)
    case .tbm: CPUIDBit(0x8000_0001, .ecx, 21)
    case .rdtscp: CPUIDBit(0x8000_0001, .edx, 27)
    case .threeDNow: CPUIDBit(0x8000_0001, .edx, 31)
    case .wbnoinvd: CPUIDBit(0x8000_0008, .ebx, 9)
    }
  }

  /// Whether the instructions need XCR0 to hold SSE and AVX state besides their CPUID bit.
  var needsAVXState: Bool {
    switch self {
    case .avx, .avx2, .fma, .f16c, .vaes, .vpclmulqdq, .avxvnni, .xop, .fma4: true
    default: false
    }
  }
}

/// What CPUID left in the four registers.
public struct CPUIDRegisters: Sendable, Equatable {
  public var eax, ebx, ecx, edx: UInt32

  public init(eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0) {
    self.eax = eax
    self.ebx = ebx
    self.ecx = ecx
    self.edx = edx
  }

  public subscript(_ register: CPUIDRegister) -> UInt32 {
    switch register {
    case .eax: eax
    case .ebx: ebx
    case .ecx: ecx
    case .edx: edx
    }
  }
}

/// The CPU under us, as far as CPUID and XGETBV tell; injected, because this module executes nothing.
public struct HostCPUID {
  let query: (_ leaf: UInt32, _ subleaf: UInt32) -> (UInt32, UInt32, UInt32, UInt32)
  let xcr0: UInt64

  /// - Parameters:
  ///   - xcr0: XGETBV with ECX 0, or 0 if the host's CR4.OSXSAVE (CPUID 1 ECX 27) is clear.
  ///   - query: Executes CPUID and returns EAX, EBX, ECX and EDX.
  public init(
    xcr0: UInt64,
    query: @escaping (_ leaf: UInt32, _ subleaf: UInt32) -> (UInt32, UInt32, UInt32, UInt32)
  ) {
    self.xcr0 = xcr0
    self.query = query
  }

  /// Whether an ordinary process on this host may execute the feature's instructions.
  public func has(_ feature: Feature) -> Bool {
    guard let bit = feature.cpuidBit else { return true }
    // Above the highest leaf Intel repeats another leaf's answer.
    guard query(bit.leaf & 0x8000_0000, 0).0 >= bit.leaf else { return false }
    if bit.leaf == 7, bit.subleaf > 0, query(7, 0).0 < bit.subleaf { return false }
    if feature.needsAVXState, xcr0 & 6 != 6 { return false }
    if feature == .xsave, xcr0 & 3 != 3 { return false }
    let (eax, ebx, ecx, edx) = query(bit.leaf, bit.subleaf)
    let answer = CPUIDRegisters(eax: eax, ebx: ebx, ecx: ecx, edx: edx)
    return answer[bit.register] >> UInt32(bit.position) & 1 != 0
  }
}

/// One answer of a vCPU's CPUID.
public struct CPUIDEntry: Sendable, Equatable {
  public let leaf: UInt32
  /// `nil`: this leaf ignores ECX.
  public let subleaf: UInt32?
  public let registers: CPUIDRegisters

  public init(
    _ leaf: UInt32, subleaf: UInt32? = nil, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0
  ) {
    self.leaf = leaf
    self.subleaf = subleaf
    registers = CPUIDRegisters(eax: eax, ebx: ebx, ecx: ecx, edx: edx)
  }
}

/// Everything CPUID can say on one vCPU.
public struct CPUIDTable: Sendable, Equatable {
  public let entries: [CPUIDEntry]

  public init(_ entries: [CPUIDEntry]) { self.entries = entries }

  /// Whether leaf 0 names Intel.
  public var isIntel: Bool { stored(0).ebx == 0x756E_6547 }  // "Genu"
  /// Whether leaf 0 names AMD.
  public var isAMD: Bool { stored(0).ebx == 0x6874_7541 }  // "Auth"

  /// The stored answer, without the bits that follow the vCPU's state; zeros where there is none.
  public func stored(_ leaf: UInt32, subleaf: UInt32 = 0) -> CPUIDRegisters {
    for entry in entries where entry.leaf == leaf && (entry.subleaf ?? subleaf) == subleaf {
      return entry.registers
    }
    return CPUIDRegisters()
  }

  /// Executes CPUID.
  ///
  /// - Parameters:
  ///   - leaf: EAX.
  ///   - subleaf: ECX.
  ///   - cr4: OSXSAVE (bit 18) is reflected in leaf 1.
  ///   - xcr0: Decides the size in leaf 0xD.
  ///   - apicEnabled: IA32_APIC_BASE bit 11, reflected in leaf 1.
  public func execute(
    leaf: UInt32, subleaf: UInt32, cr4: UInt64, xcr0: UInt64, apicEnabled: Bool = true
  ) -> CPUIDRegisters {
    let leaf = inRange(leaf)
    var answer = stored(leaf, subleaf: subleaf)
    switch leaf {
    case 1:
      if cr4 & CR4.osxsave != 0 { answer.ecx |= 1 << 27 }
      if !apicEnabled { answer.edx &= ~(1 << 9) }
    case 0xB where subleaf > 1:
      // Levels that do not exist still echo the level and the APIC id.
      answer = CPUIDRegisters(ecx: subleaf & 0xFF, edx: stored(0xB).edx)
    case 0xD where subleaf == 0:
      if answer.ecx != 0 { answer.ebx = XSAVELayout.size(of: xcr0) }
    default: break
    }
    return answer
  }

  private func inRange(_ leaf: UInt32) -> UInt32 {
    // Linux, like any guest, scans 0x40000000...0x4FFFFFFF for signatures: nothing may answer there by accident. Above
    // the highest leaf Intel repeats the highest basic one, AMD answers zeros.
    if leaf >> 28 == 4 || !isIntel { return leaf }
    let highest = stored(leaf & 0x8000_0000).eax
    return leaf & 0x7FFF_FFFF <= highest & 0x7FFF_FFFF ? leaf : stored(0).eax
  }
}

/// The standard format of the XSAVE area for the components we offer (Intel SDM volume 1, 13.4).
public enum XSAVELayout {
  /// Legacy region and header, in bytes.
  public static let headerEnd: UInt32 = 576
  public static let avxOffset: UInt32 = 576
  public static let avxSize: UInt32 = 256

  /// Bytes that XSAVE writes at most for the components in `xcr0`: 576, or 832 with AVX.
  public static func size(of xcr0: UInt64) -> UInt32 {
    xcr0 & 4 != 0 ? avxOffset + avxSize : headerEnd
  }
}

// SPDX-License-Identifier: Apache-2.0
// CPUID as an instruction: signatures, topology, bits that follow the vCPU's state, leaves that do not exist.

import Testing
import X86

private func text(_ words: UInt32...) -> String {
  let bytes = words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
  return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
}

@Suite struct CPUIDTableTests {
  let intel = CPUModel(.v3).cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000))
  let amd = CPUModel(.v3, vendor: .amd).cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000))

  private func execute(_ table: CPUIDTable, _ leaf: UInt32, _ subleaf: UInt32 = 0) -> CPUIDRegisters {
    table.execute(leaf: leaf, subleaf: subleaf, cr4: 0, xcr0: 1)
  }

  @Test func names() {
    let first = intel.stored(0)
    #expect(text(first.ebx, first.edx, first.ecx) == "GenuineIntel")
    let second = amd.stored(0)
    #expect(text(second.ebx, second.edx, second.ecx) == "AuthenticAMD")
    let kvm = intel.stored(0x4000_0000)
    #expect(text(kvm.ebx, kvm.ecx, kvm.edx) == "KVMKVMKVM")
    #expect(kvm.eax == 0x4000_0010)
    let brand = (0x8000_0002...0x8000_0004).map { intel.stored($0) }
    #expect(
      brand.map { text($0.eax, $0.ebx, $0.ecx, $0.edx) }.joined() == "swift-lguest x86-64-v3")
  }

  @Test func identities() {
    let signature = intel.stored(1).eax
    #expect(signature >> 8 & 15 == 6)
    #expect((signature >> 16 & 15) << 4 | signature >> 4 & 15 == 28)
    let other = amd.stored(1).eax
    #expect(other >> 8 & 15 + other >> 20 & 255 == 0x17)
    #expect(amd.stored(0x8000_0001).eax == other)
  }

  @Test func paravirtualLeaves() {
    #expect(intel.stored(0x4000_0001) == CPUIDRegisters(eax: 0x0100_FEFB))
    #expect(intel.stored(0x4000_0010) == CPUIDRegisters(eax: 2_600_000, ebx: 1_000_000))
    let dedicated = CPUModel(.v2).cpuid(
      CPUIDConfiguration(timestampKilohertz: 1, kvmFeatures: [.clockSource], kvmHints: .realtime))
    #expect(dedicated.stored(0x4000_0001) == CPUIDRegisters(eax: 1, edx: 1))
    let silent = CPUModel(.v3).cpuid(CPUIDConfiguration(timestampKilohertz: 2_600_000, kvmFeatures: nil))
    #expect(silent.stored(1).ecx >> 31 == 0)
    #expect(silent.stored(0x4000_0000) == CPUIDRegisters())
    #expect(silent.stored(0x4000_0001) == CPUIDRegisters())
  }

  @Test func absentLeaves() {
    for leaf: UInt32 in [0x4000_0002, 0x4000_0011, 0x4000_0100, 0x4FFF_FFFF] {
      #expect(execute(intel, leaf) == CPUIDRegisters())
      #expect(execute(amd, leaf) == CPUIDRegisters())
    }
    for leaf: UInt32 in [3, 5, 8, 0xA, 0xC, 0x14] { #expect(execute(intel, leaf) == CPUIDRegisters()) }
    // Above the highest leaf Intel repeats the highest basic one, AMD is silent.
    for leaf: UInt32 in [0x17, 0x3FFF_FFFF, 0x8000_0009, 0xC000_0000, .max] {
      #expect(execute(intel, leaf) == intel.stored(0x16), "\(leaf)")
      #expect(execute(amd, leaf) == CPUIDRegisters())
    }
    #expect(execute(intel, 7, 1) == CPUIDRegisters())
    #expect(execute(intel, 4, 4) == CPUIDRegisters())
  }

  @Test func bitsThatFollowTheState() {
    #expect(execute(intel, 1).ecx & 1 << 27 == 0)
    #expect(intel.execute(leaf: 1, subleaf: 9, cr4: 1 << 18, xcr0: 7).ecx & 1 << 27 != 0)
    #expect(execute(intel, 1).edx & 1 << 9 != 0)
    #expect(intel.execute(leaf: 1, subleaf: 0, cr4: 0, xcr0: 1, apicEnabled: false).edx & 1 << 9 == 0)
  }

  @Test(arguments: [1, 2, 3, 4, 5, 8, 64, 255, 256, 300] as [UInt32], CPUModel.Vendor.allCases)
  func topology(count: UInt32, vendor: CPUModel.Vendor) {
    for id in [0, count - 1] {
      let table = CPUModel(.v3, vendor: vendor).cpuid(
        CPUIDConfiguration(apicID: id, cpuCount: count, timestampKilohertz: 1_000_000))
      let one = table.stored(1)
      #expect(one.ebx >> 24 == id & 0xFF)
      #expect(one.ebx >> 8 & 0xFF == 8)
      #expect((one.edx >> 28 & 1 != 0) == (count > 1))
      let thread = execute(table, 0xB, 0)
      let core = execute(table, 0xB, 1)
      let none = execute(table, 0xB, 2)
      #expect(thread == CPUIDRegisters(eax: 0, ebx: 1, ecx: 0x100, edx: id))
      #expect(core.ebx == count && core.ecx == 0x201 && core.edx == id)
      #expect(none == CPUIDRegisters(ecx: 2, edx: id))
      // All ids are in package 0, and no smaller shift would do.
      #expect((count - 1) >> core.eax == 0)
      #expect(core.eax == 0 || (count - 1) >> (core.eax - 1) != 0)
      if vendor == .amd {
        #expect(table.stored(0x8000_0008).ecx >> 12 == core.eax)
        #expect(table.stored(0x8000_0008).ecx & 0xFF == min(count - 1, 255))
      }
    }
  }

  @Test func cachesAreWhatTheySay() {
    func size(_ index: UInt32) -> UInt32 {
      let leaf = intel.stored(4, subleaf: index)
      return (leaf.ebx >> 22 + 1) * (leaf.ebx >> 12 & 0x3FF + 1) * (leaf.ebx & 0xFFF + 1) * (leaf.ecx + 1)
    }
    #expect((0..<4).map { size($0) >> 10 } == [32, 32, 256, 8192])
    #expect((0..<4).map { intel.stored(4, subleaf: $0).eax & 0x1F } == [1, 2, 3, 3])
    #expect((0..<4).map { intel.stored(4, subleaf: $0).eax >> 5 & 7 } == [1, 1, 2, 3])
    #expect(intel.stored(2).eax & 0xFF == 1)
  }

  /// Rates as hosts have them, and the arithmetic of Linux' native_calibrate_tsc, in 32 bits.
  @Test(arguments: [1_000_000, 2_000_000, 2_400_000, 2_600_000, 3_400_000, 2_595_192, 2_499_998, 1, 0] as [UInt32])
  func frequencyIsExactOrAbsent(kilohertz: UInt32) {
    let table = CPUModel(.v3).cpuid(CPUIDConfiguration(timestampKilohertz: kilohertz))
    let leaf = table.stored(0x15)
    if table.stored(0).eax < 0x15 {
      #expect(leaf == CPUIDRegisters() && table.stored(0x16) == CPUIDRegisters())
      #expect(kilohertz % 100_000 != 0 || kilohertz == 0)
    } else {
      let (product, overflow) = (leaf.ecx / 1000).multipliedReportingOverflow(by: leaf.ebx)
      #expect(!overflow)
      #expect(product / leaf.eax == kilohertz && product % leaf.eax == 0)
      #expect(leaf.ecx / 1000 == CPUIDConfiguration.apicBusKilohertz)
    }
  }
}

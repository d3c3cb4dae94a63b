// SPDX-License-Identifier: Apache-2.0
// What firmware leaves in a CPU before it starts a kernel, beyond what the boot protocols ask for: the memory types of
// a PC. Without them Linux takes the registers for broken and leaves the page-attribute table alone.

import Engine
import GuestMemory
import X86

enum Firmware {
  private static let uncacheable: UInt64 = 0, writeProtected: UInt64 = 5, writeBack: UInt64 = 6

  /// Sets the memory-type range registers: write-back by default, the hole below 4 GiB and the display's 128 KiB
  /// uncached, ROM write-protected (SDM volume 3, 11.11).
  static func setMemoryTypes(_ cpu: any CPUEngine) {
    let physicalMask = UInt64(1) << UInt64(CPUModel.physicalAddressBits) - 1
    let holeByteCount = GuestMemory.highStart - GuestMemory.lowLimit
    let isValid: UInt64 = 1 << 11, fixedEnabled: UInt64 = 1 << 10, enabled: UInt64 = 1 << 11
    typealias MSR = ModelSpecificRegister
    var settings: [(UInt32, UInt64)] = [
      (MSR.mtrrFixed64K, everywhere(writeBack)), (MSR.mtrrFixed16KLow, everywhere(writeBack)),
      (MSR.mtrrFixed16KHigh, everywhere(uncacheable)),
    ]
    for index in MSR.mtrrFixed4KFirst...MSR.mtrrFixed4KLast { settings.append((index, everywhere(writeProtected))) }
    settings += [
      (MSR.mtrrBase0, GuestMemory.lowLimit | uncacheable),
      (MSR.mtrrMask0, physicalMask & ~(holeByteCount - 1) | isValid),
      (MSR.mtrrDefaultType, writeBack | fixedEnabled | enabled),
    ]
    for (index, value) in settings {
      let isAccepted = cpu.write(register: index, value)
      assert(isAccepted, "memory type register 0x\(String(index, radix: 16))")
    }
  }

  /// A fixed-range register's eight fields, all of one type.
  private static func everywhere(_ type: UInt64) -> UInt64 { type &* 0x0101_0101_0101_0101 }
}

// SPDX-License-Identifier: Apache-2.0
// The FADT: which fixed hardware exists and, by its flags, which does not.

extension ACPITables {
  /// IAPC_BOOT_ARCH (ACPI 6.5, 5.2.9.3). Bit 1 (8042) is clear: the reset command works, but there is nothing to
  /// probe for.
  private enum BootArchitecture {
    static let legacyDevices: UInt16 = 1 << 0
    static let noVGA: UInt16 = 1 << 2
    static let noMSI: UInt16 = 1 << 3
    static let noASPM: UInt16 = 1 << 4
  }

  /// Fixed feature flags (ACPI 6.5, table 5.10).
  private enum Feature {
    static let writeBackInvalidate: UInt32 = 1 << 0
    static let haltIsC1: UInt32 = 1 << 2
    /// Set means "not in the fixed hardware".
    static let noPowerButton: UInt32 = 1 << 4
    static let noSleepButton: UInt32 = 1 << 5
    static let noFixedRTCWake: UInt32 = 1 << 6
    static let timerIs32Bits: UInt32 = 1 << 8
    static let resetRegister: UInt32 = 1 << 10
    static let headless: UInt32 = 1 << 12
  }

  /// Port and value of RESET_REG: `ResetControl`, hard reset.
  static let resetPort: UInt16 = 0xCF9
  static let resetValue: UInt8 = 0x06
  /// SCI_INT; the MADT makes it level triggered. It is never asserted.
  static let sciInterrupt: UInt16 = 9

  /// The body after the header, 240 bytes (ACPI 6.5, table 5.9). Fields that name nothing are 0.
  static func fadt(facs: UInt32, dsdt: UInt32) -> [UInt8] {
    let base = UInt16(PlatformAddress.powerManagement)
    let event = base + UInt16(PowerManagement.Register.status.rawValue)
    let control = base + UInt16(PowerManagement.Register.control.rawValue)
    let timer = base + UInt16(PowerManagement.Register.timer.rawValue)
    var boot = BootArchitecture.legacyDevices | BootArchitecture.noVGA | BootArchitecture.noMSI
    boot |= BootArchitecture.noASPM
    let features =
      Feature.writeBackInvalidate | Feature.haltIsC1 | Feature.noPowerButton | Feature.noSleepButton
      | Feature.noFixedRTCWake | Feature.timerIs32Bits | Feature.resetRegister | Feature.headless

    var body = [UInt8](repeating: 0, count: 240)
    /// Stores at an offset of the manual's table, which counts from the header.
    func put(_ offset: Int, _ bytes: [UInt8]) {
      body.replaceSubrange(offset - 36..<offset - 36 + bytes.count, with: bytes)
    }
    put(36, facs.littleEndianBytes)
    put(40, dsdt.littleEndianBytes)
    put(46, sciInterrupt.littleEndianBytes)
    // SMI_CMD (48) is 0: ACPI mode cannot be left, so nobody tries to enter it.
    put(56, UInt32(event).littleEndianBytes)
    put(64, UInt32(control).littleEndianBytes)
    put(76, UInt32(timer).littleEndianBytes)
    put(88, [4, 2, 0, 4])  // PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN
    put(96, UInt16(0xFFFF).littleEndianBytes)  // P_LVL2_LAT and P_LVL3_LAT above their limits:
    put(98, UInt16(0xFFFF).littleEndianBytes)  // neither C2 nor C3.
    put(108, [RTC.centuryIndex])
    put(109, boot.littleEndianBytes)
    put(112, features.littleEndianBytes)
    put(116, portAddress(resetPort, bits: 8, accessSize: 1))
    put(128, [resetValue])
    put(131, [5])  // Minor version: 6.5.
    // X_FIRMWARE_CTRL (132) stays 0: the FACS is below 4 GiB and must be named once.
    put(140, UInt64(dsdt).littleEndianBytes)
    put(148, portAddress(event, bits: 32, accessSize: 2))
    put(172, portAddress(control, bits: 16, accessSize: 2))
    put(208, portAddress(timer, bits: 32, accessSize: 3))
    put(268, Array("LGUEST".utf8) + [0, 0])  // Hypervisor vendor identity
    return body
  }

  /// A Generic Address Structure in port space (ACPI 6.5, 5.2.3.2).
  private static func portAddress(_ port: UInt16, bits: UInt8, accessSize: UInt8) -> [UInt8] {
    [1, bits, 0, accessSize] + UInt64(port).littleEndianBytes
  }
}

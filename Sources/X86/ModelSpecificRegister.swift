// SPDX-License-Identifier: Apache-2.0
// Numbers of model-specific registers (SDM volume 4, table 2-2).

/// Numbers for RDMSR and WRMSR.
public enum ModelSpecificRegister {
  /// IA32_TIME_STAMP_COUNTER.
  @inlinable public static var tsc: UInt32 { 0x10 }
  /// IA32_PLATFORM_ID.
  @inlinable public static var platformID: UInt32 { 0x17 }
  /// IA32_APIC_BASE.
  @inlinable public static var apicBase: UInt32 { 0x1B }
  /// IA32_FEATURE_CONTROL.
  @inlinable public static var featureControl: UInt32 { 0x3A }
  /// IA32_TSC_ADJUST.
  @inlinable public static var tscAdjust: UInt32 { 0x3B }
  /// IA32_BIOS_SIGN_ID.
  @inlinable public static var microcodeRevision: UInt32 { 0x8B }
  /// MSR_PLATFORM_INFO.
  @inlinable public static var platformInfo: UInt32 { 0xCE }
  /// IA32_MTRRCAP.
  @inlinable public static var mtrrCapability: UInt32 { 0xFE }
  /// MISC_FEATURE_ENABLES.
  @inlinable public static var miscFeatures: UInt32 { 0x140 }
  /// IA32_SYSENTER_CS.
  @inlinable public static var sysenterCS: UInt32 { 0x174 }
  /// IA32_SYSENTER_ESP.
  @inlinable public static var sysenterESP: UInt32 { 0x175 }
  /// IA32_SYSENTER_EIP.
  @inlinable public static var sysenterEIP: UInt32 { 0x176 }
  /// IA32_MCG_CAP.
  @inlinable public static var machineCheckCapability: UInt32 { 0x179 }
  /// IA32_MCG_STATUS.
  @inlinable public static var machineCheckStatus: UInt32 { 0x17A }
  /// IA32_MISC_ENABLE.
  @inlinable public static var miscEnable: UInt32 { 0x1A0 }
  /// IA32_DEBUGCTL.
  @inlinable public static var debugControl: UInt32 { 0x1D9 }
  /// MSR_POWER_CTL.
  @inlinable public static var powerControl: UInt32 { 0x1FC }
  /// IA32_MTRR_PHYSBASE0.
  @inlinable public static var mtrrBase0: UInt32 { 0x200 }
  /// IA32_MTRR_PHYSMASK0.
  @inlinable public static var mtrrMask0: UInt32 { 0x201 }
  /// IA32_MTRR_FIX64K_00000.
  @inlinable public static var mtrrFixed64K: UInt32 { 0x250 }
  /// IA32_MTRR_FIX16K_80000.
  @inlinable public static var mtrrFixed16KLow: UInt32 { 0x258 }
  /// IA32_MTRR_FIX16K_A0000.
  @inlinable public static var mtrrFixed16KHigh: UInt32 { 0x259 }
  /// IA32_MTRR_FIX4K_C0000, the first of eight.
  @inlinable public static var mtrrFixed4KFirst: UInt32 { 0x268 }
  /// IA32_MTRR_FIX4K_F8000, the last of them.
  @inlinable public static var mtrrFixed4KLast: UInt32 { 0x26F }
  /// IA32_PAT.
  @inlinable public static var pat: UInt32 { 0x277 }
  /// IA32_MTRR_DEF_TYPE.
  @inlinable public static var mtrrDefaultType: UInt32 { 0x2FF }
  /// IA32_X2APIC_TPR.
  @inlinable public static var x2APICTaskPriority: UInt32 { 0x808 }
  /// IA32_EFER.
  @inlinable public static var efer: UInt32 { 0xC000_0080 }
  /// IA32_STAR.
  @inlinable public static var star: UInt32 { 0xC000_0081 }
  /// IA32_LSTAR.
  @inlinable public static var lstar: UInt32 { 0xC000_0082 }
  /// IA32_CSTAR.
  @inlinable public static var cstar: UInt32 { 0xC000_0083 }
  /// IA32_FMASK.
  @inlinable public static var sfmask: UInt32 { 0xC000_0084 }
  /// IA32_FS_BASE.
  @inlinable public static var fsBase: UInt32 { 0xC000_0100 }
  /// IA32_GS_BASE.
  @inlinable public static var gsBase: UInt32 { 0xC000_0101 }
  /// IA32_KERNEL_GS_BASE.
  @inlinable public static var kernelGSBase: UInt32 { 0xC000_0102 }
  /// IA32_TSC_AUX.
  @inlinable public static var tscAux: UInt32 { 0xC000_0103 }
}

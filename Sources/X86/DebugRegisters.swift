// SPDX-License-Identifier: Apache-2.0
// Bits of the debug registers (SDM volume 3, 17.2).

/// DR6.
public enum DR6 {
  /// BD: the next instruction accesses a debug register.
  @inlinable public static var generalDetect: UInt64 { 1 << 13 }
  /// BS: a single step.
  @inlinable public static var step: UInt64 { 1 << 14 }
  /// BT: a task switch.
  @inlinable public static var taskSwitch: UInt64 { 1 << 15 }
  /// Bits that read as one.
  @inlinable public static var ones: UInt64 { 0xFFFF_0FF0 }
  /// Bits that hold what is written.
  @inlinable public static var writable: UInt64 { 0xE00F }

  /// What the register holds after MOV.
  @inlinable public static func stored(_ value: UInt64) -> UInt64 { value & writable | ones }
}

/// DR7.
public enum DR7 {
  /// L0 to G3: a breakpoint is enabled if one of its two is set.
  @inlinable public static var enabled: UInt64 { 0xFF }
  /// GD: accesses to debug registers raise #DB.
  @inlinable public static var generalDetect: UInt64 { 1 << 13 }
  /// Bits that read as one.
  @inlinable public static var ones: UInt64 { 0x400 }
  /// Bits that hold what is written.
  @inlinable public static var writable: UInt64 { 0xFFFF_23FF }

  /// What the register holds after MOV.
  @inlinable public static func stored(_ value: UInt64) -> UInt64 { value & writable | ones }
}

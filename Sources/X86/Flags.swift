// SPDX-License-Identifier: Apache-2.0
// Bits of RFLAGS (SDM volume 1, 3.4.3).

/// RFLAGS.
public enum RFLAGS {
  /// Carry.
  @inlinable public static var cf: UInt64 { 1 << 0 }
  /// The bit that reads as one.
  @inlinable public static var ones: UInt64 { 1 << 1 }
  /// Parity.
  @inlinable public static var pf: UInt64 { 1 << 2 }
  /// Auxiliary carry.
  @inlinable public static var af: UInt64 { 1 << 4 }
  /// Zero.
  @inlinable public static var zf: UInt64 { 1 << 6 }
  /// Sign.
  @inlinable public static var sf: UInt64 { 1 << 7 }
  /// Trap: single step.
  @inlinable public static var tf: UInt64 { 1 << 8 }
  /// Interrupts enabled.
  @inlinable public static var `if`: UInt64 { 1 << 9 }
  /// Direction of string instructions.
  @inlinable public static var df: UInt64 { 1 << 10 }
  /// Overflow.
  @inlinable public static var of: UInt64 { 1 << 11 }
  /// I/O privilege level, two bits.
  @inlinable public static var iopl: UInt64 { 3 << 12 }
  /// Nested task.
  @inlinable public static var nt: UInt64 { 1 << 14 }
  /// Resume.
  @inlinable public static var rf: UInt64 { 1 << 16 }
  /// Virtual-8086 mode.
  @inlinable public static var vm: UInt64 { 1 << 17 }
  /// Alignment check, or access control with SMAP.
  @inlinable public static var ac: UInt64 { 1 << 18 }
  /// Virtual interrupt flag.
  @inlinable public static var vif: UInt64 { 1 << 19 }
  /// Virtual interrupt pending.
  @inlinable public static var vip: UInt64 { 1 << 20 }
  /// CPUID exists.
  @inlinable public static var id: UInt64 { 1 << 21 }
  /// The six that arithmetic sets.
  @inlinable public static var arithmetic: UInt64 { cf | pf | af | zf | sf | of }
  /// All the others that exist.
  @inlinable public static var system: UInt64 { tf | `if` | df | iopl | nt | rf | vm | ac | vif | vip | id }
}

// SPDX-License-Identifier: Apache-2.0
// Bits of the control registers and of EFER (SDM volume 3, 2.2.1 and 2.5). They are computed so that other modules see
// their values, not a variable.

/// CR0.
public enum CR0 {
  /// Protection enable.
  @inlinable public static var pe: UInt64 { 1 << 0 }
  /// Monitor coprocessor.
  @inlinable public static var mp: UInt64 { 1 << 1 }
  /// Emulation: there is no x87.
  @inlinable public static var em: UInt64 { 1 << 2 }
  /// Task switched.
  @inlinable public static var ts: UInt64 { 1 << 3 }
  /// Extension type; always set.
  @inlinable public static var et: UInt64 { 1 << 4 }
  /// Numeric error.
  @inlinable public static var ne: UInt64 { 1 << 5 }
  /// Write protect.
  @inlinable public static var wp: UInt64 { 1 << 16 }
  /// Alignment mask.
  @inlinable public static var am: UInt64 { 1 << 18 }
  /// Not write-through.
  @inlinable public static var nw: UInt64 { 1 << 29 }
  /// Cache disable.
  @inlinable public static var cd: UInt64 { 1 << 30 }
  /// Paging.
  @inlinable public static var pg: UInt64 { 1 << 31 }
  /// All of them.
  @inlinable public static var defined: UInt64 { pe | mp | em | ts | et | ne | wp | am | nw | cd | pg }

  /// Whether MOV to CR0 accepts a value, whatever the other registers hold.
  @inlinable public static func accepts(_ value: UInt64) -> Bool {
    value >> 32 == 0 && (value & pg == 0 || value & pe != 0) && (value & nw == 0 || value & cd != 0)
  }

  /// What the register holds after a value was accepted: other bits stay 0, and ET is wired to 1.
  @inlinable public static func stored(_ value: UInt64) -> UInt64 { value & defined | et }
}

/// CR4.
public enum CR4 {
  /// Virtual-8086 mode extensions.
  @inlinable public static var vme: UInt64 { 1 << 0 }
  /// Protected-mode virtual interrupts.
  @inlinable public static var pvi: UInt64 { 1 << 1 }
  /// Time-stamp disable.
  @inlinable public static var tsd: UInt64 { 1 << 2 }
  /// Debugging extensions.
  @inlinable public static var de: UInt64 { 1 << 3 }
  /// Page size extensions.
  @inlinable public static var pse: UInt64 { 1 << 4 }
  /// Physical address extension.
  @inlinable public static var pae: UInt64 { 1 << 5 }
  /// Machine-check enable.
  @inlinable public static var mce: UInt64 { 1 << 6 }
  /// Page global enable.
  @inlinable public static var pge: UInt64 { 1 << 7 }
  /// Performance-monitoring counter enable.
  @inlinable public static var pce: UInt64 { 1 << 8 }
  /// FXSAVE and SSE enable.
  @inlinable public static var osfxsr: UInt64 { 1 << 9 }
  /// Unmasked SIMD exceptions are #XM.
  @inlinable public static var osxmmexcpt: UInt64 { 1 << 10 }
  /// User-mode instruction prevention.
  @inlinable public static var umip: UInt64 { 1 << 11 }
  /// RDFSBASE and its like enable.
  @inlinable public static var fsgsbase: UInt64 { 1 << 16 }
  /// Process-context identifiers enable.
  @inlinable public static var pcide: UInt64 { 1 << 17 }
  /// XSAVE enable.
  @inlinable public static var osxsave: UInt64 { 1 << 18 }
  /// Supervisor-mode execution prevention.
  @inlinable public static var smep: UInt64 { 1 << 20 }
  /// Supervisor-mode access prevention.
  @inlinable public static var smap: UInt64 { 1 << 21 }
  /// A change of one of these invalidates translations (SDM volume 3, 4.10.4.1), and reloads the PDPTEs.
  @inlinable public static var paging: UInt64 { pse | pae | pge | smep }
}

/// CR8.
public enum CR8 {
  /// Whether MOV to CR8 accepts a task priority.
  @inlinable public static func accepts(_ value: UInt64) -> Bool { value <= 15 }
}

/// EFER.
public enum EFER {
  /// SYSCALL enable.
  @inlinable public static var sce: UInt64 { 1 << 0 }
  /// Long mode enable.
  @inlinable public static var lme: UInt64 { 1 << 8 }
  /// Long mode active.
  @inlinable public static var lma: UInt64 { 1 << 10 }
  /// Execute-disable enable.
  @inlinable public static var nxe: UInt64 { 1 << 11 }
}

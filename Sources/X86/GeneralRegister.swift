// SPDX-License-Identifier: Apache-2.0
// Numbers of the general registers, as instructions encode them (SDM volume 2, table 3-1).

/// RAX RCX RDX RBX RSP RBP RSI RDI R8...R15, 0...15.
public enum GPR {
  /// RAX.
  @inlinable public static var rax: UInt8 { 0 }
  /// RCX.
  @inlinable public static var rcx: UInt8 { 1 }
  /// RDX.
  @inlinable public static var rdx: UInt8 { 2 }
  /// RBX.
  @inlinable public static var rbx: UInt8 { 3 }
  /// RSP.
  @inlinable public static var rsp: UInt8 { 4 }
  /// RBP.
  @inlinable public static var rbp: UInt8 { 5 }
  /// RSI.
  @inlinable public static var rsi: UInt8 { 6 }
  /// RDI.
  @inlinable public static var rdi: UInt8 { 7 }
  /// R8.
  @inlinable public static var r8: UInt8 { 8 }
  /// R9.
  @inlinable public static var r9: UInt8 { 9 }
  /// R11.
  @inlinable public static var r11: UInt8 { 11 }
}

/// The values of the general registers.
public struct GeneralRegisters: Sendable {
  @usableFromInline var values = InlineArray<16, UInt64>(repeating: 0)

  /// All 0.
  @inlinable public init() {}

  /// A register by number, which is taken modulo 16.
  @inlinable public subscript(number: UInt8) -> UInt64 {
    get { values[Int(number & 15)] }
    set { values[Int(number & 15)] = newValue }
  }
}

extension CPUState {
  /// A general register by number, which is taken modulo 16.
  public subscript(register number: UInt8) -> UInt64 {
    get { registers[Int(number & 15)] }
    set { registers[Int(number & 15)] = newValue }
  }
}

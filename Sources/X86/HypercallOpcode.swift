// SPDX-License-Identifier: Apache-2.0
// The two instructions that ask a hypervisor for something, one for each vendor, and what can be done about the one
// that the CPU's vendor does not have (Anthony Liguori, "KVM: Refactor hypercall infrastructure (v3)", kvm-devel,
// 2007).

/// A vendor's hypercall instruction; the raw value is its third byte, behind 0F 01.
public enum HypercallOpcode: UInt8, Sendable, CaseIterable {
  /// Intel's.
  case vmcall = 0xC1
  /// AMD's.
  case vmmcall = 0xD9

  /// Bytes of either instruction.
  public static let byteCount = 3

  /// The instruction.
  public var bytes: [UInt8] { [0x0F, 0x01, rawValue] }

  /// The instruction that these bytes begin with, if it is one of the two without a prefix.
  public init?(code bytes: [UInt8]) {
    guard bytes.count >= 3, bytes[0] == 0x0F, bytes[1] == 0x01, let opcode = HypercallOpcode(rawValue: bytes[2])
    else { return nil }
    self = opcode
  }
}

/// What becomes of the other vendor's hypercall instruction. Its own always works.
public enum HypercallPolicy: String, Sendable, CaseIterable {
  /// It works as well.
  case native
  /// It raises #UD to the machine, which performs the call, each time.
  case emulate
  /// It raises #UD to the machine, which replaces it in guest memory.
  case patch
  /// It raises #UD in the guest.
  case fault
}

// SPDX-License-Identifier: Apache-2.0
// Where guest registers live while translated code runs: the one table. Legacy registers keep their names, so
// that implicit operands (MUL, shifts by CL, CMPXCHG, ...) need no thought; RSP moves because the host's own
// stack stays in place; of R8...R15 the three that compilers use most get host registers, the rest live in
// the vCPU page, always as full 64-bit values. world.S restates the convention for the assembly.

/// A host register number, 0...15.
typealias HostRegister = UInt8

enum RegisterMap {
  /// Addresses the vCPU page.
  static let env: HostRegister = 11
  /// Scratch: T0 holds linear addresses, T1 addends and information words, T2 the rest.
  static let t0: HostRegister = 15
  static let t1: HostRegister = 14
  static let t2: HostRegister = 13
  /// The guest's RSP.
  static let stackPointer: HostRegister = 12
  static let rax: HostRegister = 0
  static let rcx: HostRegister = 1
  static let rdi: HostRegister = 7

  /// "Lives in the vCPU page."
  static let inMemory: HostRegister = 0xFF

  /// The host register of guest register `number` (masked to 0...15), or `inMemory`.
  @inline(__always)
  static func host(_ number: UInt8) -> HostRegister {
    switch number & 15 {
    case 4: stackPointer
    case 0...8: number & 15
    case 12: 9
    case 13: 10
    default: inMemory
    }
  }

  /// The displacement from ENV of guest register `number`'s slot.
  @inline(__always)
  static func slot(_ number: UInt8) -> Int32 { Int32(number & 15) &* 8 &- 128 }
}

// SPDX-License-Identifier: Apache-2.0
// What the checker (Checker.swift) knows at a place in emitted code: an abstract value per register, what the flags
// tell, and of each row what its operands do not say.

import X86

/// What the checker knows of a register.
enum CheckedValue: Equatable {
  /// The unknown `id` plus a constant.
  case sum(id: Int, offset: Int64)
  case constant(UInt64)
  /// Stages of the index of a linear address's TLB entry: MOV, SHR 8, AND.
  case low(id: Int, offset: Int64)
  case shifted(id: Int, offset: Int64)
  case entry(id: Int, offset: Int64)
  /// A linear address minus its entry's tag; minus that of `table`.
  case distance(id: Int, offset: Int64, table: Int64)
  /// What turns a linear address into a host address, for `size` bytes from `sum(id, offset)` on.
  case addend(id: Int, offset: Int64, size: Int, write: Bool)
  /// A host address from which `low..<high` is checked.
  case host(low: Int, high: Int, write: Bool)
  /// At most this.
  case bounded(UInt64)

  /// As an unknown plus a constant.
  var linear: (id: Int, offset: Int64)? {
    switch self {
    case .sum(let id, let offset): (id, offset)
    case .constant(let value): (Int.min, Int64(bitPattern: value))
    default: nil
    }
  }
}

/// What the flags tell.
enum CheckedFlags: Equatable {
  case nothing
  /// A comparison of a distance with 4096 minus `size`.
  case compared(id: Int, offset: Int64, table: Int64, size: Int)
  /// A comparison of the start of a region of `size` bytes with the tag of its slot; passed once a JNE was not taken.
  case region(slot: Int64, size: Int, passed: Bool)
}

/// What is known at a place in the code.
struct CheckedState: Equatable {
  /// The registers, and behind them what groups keep in the vCPU page.
  var registers = InlineArray<24, CheckedValue>(repeating: .constant(0))
  var flags = CheckedFlags.nothing

  subscript(register: UInt8) -> CheckedValue {
    get { registers[Int(register)] }
    set { registers[Int(register)] = newValue }
  }

  static let count: UInt8 = 24

  /// The same with another value in one register, and flags that tell nothing.
  func without(_ register: UInt8, _ value: CheckedValue) -> CheckedState {
    var state = self
    state[register] = value
    state.flags = .nothing
    return state
  }

  static func == (a: CheckedState, b: CheckedState) -> Bool {
    for number in 0..<Int(count) where a.registers[number] != b.registers[number] { return false }
    return a.flags == b.flags
  }
}

/// Host code to be checked.
struct CheckedCode {
  /// Executable addresses.
  var hot: Range<UInt64>
  var cold: Range<UInt64>
  var hotBytes: [UInt8]
  var coldBytes: [UInt8]
  /// Addresses outside the code that it may jump to.
  var exits: Set<UInt64>
  var stubs: CodeStubs
  /// Addresses where it is entered, besides its start.
  var entries: [UInt64] = []
}

extension Opcode {
  /// General registers (a bit each, RAX RCX RDX) that are written without being named.
  var hiddenTargets: UInt8 {
    let rax: UInt8 = 1, rcx: UInt8 = 2, rdx: UInt8 = 4
    if rule == .cmpxchgWide { return rax | rdx }
    switch map {
    case .one:
      if rule == .x87 { return rax }  // FNSTSW AX
      switch byte {
      case 0x99: return rdx
      case 0x9E, 0xF5, 0xF8, 0xF9, 0x9B: return 0  // SAHF, CMC, CLC, STC, FWAIT
      case 0xF6, 0xF7: return rax | rdx
      case 0xB0, 0xB8: return 0
      default: return form == .plain || form == .plus ? rax : 0
      }
    case .x0F:
      if byte == 0xB0 || byte == 0xB1 { return rax }  // CMPXCHG
      return form == .plain || form == .exact ? rax | rcx | rdx : 0
    case .x0F3A, .vex0F3A: return byte >= 0x60 && byte <= 0x63 ? rcx : 0  // PCMPxSTRI
    default: return 0
    }
  }

  /// Operands in memory that ModRM does not name.
  var hasImplicitMemory: Bool {
    switch rule {
    case .movs, .stos, .lods, .scas, .cmps, .ins, .outs, .xlat, .maskMove, .gather, .enter, .leave: true
    default: false
    }
  }
}

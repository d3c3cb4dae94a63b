// SPDX-License-Identifier: Apache-2.0
// Where one side of a case ended, as a value: two of them are compared, and a test can write one down.

import CNative
import X86

@testable import Translator

/// The state that an instruction left on one side.
struct Outcome: Equatable {
  /// RAX RCX RDX RBX RSP RBP RSI RDI R8...R15.
  var registers = [UInt64](repeating: 0, count: 16)
  var rip: UInt64 = 0
  var rflags: UInt64 = 0
  var fsBase: UInt64 = 0
  var gsBase: UInt64 = 0
  /// The exception that ended it; HLT counts as #GP.
  var vector: UInt64 = 0
  var errorCode: UInt64 = 0
  var cr2: UInt64 = 0
  /// x87, SSE and AVX state as XSAVE stores it, `CNATIVE_XSAVE_BYTES` long.
  var image = [UInt8](repeating: 0, count: Int(CNATIVE_XSAVE_BYTES))
  /// The bytes of the operand, where its exact contents matter (`CaseFacts.address`); nil where there is no memory.
  var operand: [UInt8?] = []

  init() {}

  init(_ state: UnsafeMutablePointer<cnative_state>) {
    registers = (0..<16).map { unsafe Bench.register(state, $0) }
    unsafe rip = state.pointee.rip
    unsafe rflags = state.pointee.rflags
    unsafe fsBase = state.pointee.fs_base
    unsafe gsBase = state.pointee.gs_base
    unsafe vector = state.pointee.vector
    unsafe errorCode = state.pointee.error_code
    unsafe cr2 = state.pointee.cr2
    image = unsafe [UInt8](UnsafeRawBufferPointer(start: Bench.xsave(state), count: Int(CNATIVE_XSAVE_BYTES)))
  }

  /// What is visible of the general registers in 16- and 32-bit code: eight, of 32 bits.
  mutating func narrow() {
    for number in 0..<16 { registers[number] &= number < 8 ? 0xFFFF_FFFF : 0 }
  }

  /// #SS, #GP or #PF.
  var isMemoryFault: Bool { (12...14).contains(vector) }

  func word(_ offset: Int) -> UInt16 { UInt16(image[offset]) | UInt16(image[offset + 1]) << 8 }
  func long(_ offset: Int) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(image[offset + $1]) << UInt64($1 * 8) } }
  mutating func setWord(_ offset: Int, _ value: UInt16) {
    image[offset] = UInt8(truncatingIfNeeded: value)
    image[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
  }

  var controlWord: UInt16 {
    get { word(0) }
    set { setWord(0, newValue) }
  }
  var statusWord: UInt16 {
    get { word(2) }
    set { setWord(2, newValue) }
  }
  var mxcsr: UInt32 {
    get { UInt32(word(24)) | UInt32(word(26)) << 16 }
    set {
      setWord(24, UInt16(truncatingIfNeeded: newValue))
      setWord(26, UInt16(truncatingIfNeeded: newValue >> 16))
    }
  }
  /// FSW.TOP.
  var top: UInt16 {
    get { statusWord >> 11 & 7 }
    set { statusWord = statusWord & ~0x3800 | newValue << 11 }
  }
}

/// What one comparison ignores.
struct Tolerance {
  /// Arithmetic flags (RFLAGS bits) whose value is undefined.
  var flags: UInt64 = 0
  /// Registers with results that differ between runs (RDRAND).
  var registers: UInt16 = 0
  /// CR2 may be any address of an operand of this many bytes.
  var operandBytes: UInt64 = 0
  /// Two operands in memory: which fault comes first is the processor's choice.
  var eitherOperand = false
  /// Vector registers: a gather that faults may have its mask as it was or reduced to signs.
  var vectors = false

  /// `ArithmeticFlags` bits as RFLAGS bits.
  static func rflags(_ flags: UInt8) -> UInt64 {
    UInt64(flags & 0xD5) | (flags & ArithmeticFlags.of != 0 ? 0x800 : 0)
  }
}

extension Outcome {
  private static let names = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
  ]

  /// The first difference between this, the native outcome, and the translated one, or nil. `input`: where both began,
  /// for the message.
  func difference(_ translated: Outcome, from input: Outcome, _ tolerance: Tolerance, privilege: Int) -> String? {
    var guest = translated
    if tolerance.eitherOperand && rip == guest.rip && isMemoryFault && guest.isMemoryFault {
      guest.vector = vector
      guest.cr2 = cr2
      guest.errorCode = errorCode & ~4 | (privilege == 3 ? 4 : 0)
    }
    if vector != guest.vector || rip != guest.rip {
      return "ended with vector \(vector) at \(hex(rip)) natively (cr2 \(hex(cr2))), "
        + "\(guest.vector) at \(hex(guest.rip)) translated (cr2 \(hex(guest.cr2)))"
    }
    for number in 0..<16 where tolerance.registers >> UInt16(number) & 1 == 0 {
      let a = registers[number], b = guest.registers[number]
      if a != b {
        return "\(Outcome.names[number]): native \(hex(a)) translated \(hex(b)) (was \(hex(input.registers[number])))"
      }
    }
    let mask = (RFLAGS.arithmetic | RFLAGS.df) & ~tolerance.flags
    if (rflags ^ guest.rflags) & mask != 0 {
      return "flags: native \(Outcome.text(rflags)) translated \(Outcome.text(guest.rflags)) "
        + "(was \(Outcome.text(input.rflags)))"
    }
    if vector == 14 {
      let user: UInt64 = privilege == 3 ? 4 : 0
      // In the upper half there are the host kernel's pages.
      let present: UInt64 = cr2 >> 47 != 0 ? 1 : 0
      if (errorCode & ~4 | user) & ~present != guest.errorCode & ~present {
        return "#PF error code: native \(hex(errorCode)) translated \(hex(guest.errorCode))"
      }
      // Of a large operand the processor may touch the last byte first.
      if cr2 != guest.cr2 && cr2 &- guest.cr2 >= tolerance.operandBytes {
        return "CR2: native \(hex(cr2)) translated \(hex(guest.cr2))"
      }
    }
    if fsBase != guest.fsBase { return "FS base: native \(hex(fsBase)) translated \(hex(guest.fsBase))" }
    if gsBase != guest.gsBase { return "GS base: native \(hex(gsBase)) translated \(hex(guest.gsBase))" }
    if operand != guest.operand {
      return "operand: native \(Outcome.text(operand)) translated \(Outcome.text(guest.operand)) "
        + "(was \(Outcome.text(input.operand)))"
    }
    return tolerance.vectors ? nil : imageDifference(guest, from: input)
  }

  private static func text(_ value: UInt64) -> String {
    let letters: [(UInt64, String)] = [
      (1, "C"), (4, "P"), (16, "A"), (64, "Z"), (128, "S"), (0x400, "D"), (0x800, "O"),
    ]
    return letters.map { value & $0.0 != 0 ? $0.1 : "-" }.joined()
  }

  private static func text(_ byte: UInt8?) -> String {
    guard let byte else { return "--" }
    return (byte < 16 ? "0" : "") + String(byte, radix: 16)
  }

  private static func text(_ bytes: [UInt8?]) -> String { bytes.map { text($0) }.joined(separator: " ") }

  /// One byte of an XSAVE image; components that are in their initial state read so.
  private func byte(_ offset: Int) -> UInt8 {
    let component: UInt64 = offset >= 576 ? 4 : (offset >= 160 ? 2 : 1)
    if long(512) & component == 0, !(24..<28).contains(offset) {
      return offset == 0 ? 0x7F : (offset == 1 ? 3 : 0)
    }
    return image[offset]
  }

  private func imageDifference(_ guest: Outcome, from input: Outcome) -> String? {
    func same(_ offset: Int, _ count: Int, _ name: @autoclosure () -> String) -> String? {
      let range = offset..<offset + count
      guard range.contains(where: { byte($0) != guest.byte($0) }) else { return nil }
      func text(_ side: Outcome) -> String { range.reversed().map { Outcome.text(side.byte($0)) }.joined() }
      return "\(name()): native \(text(self)) translated \(text(guest)) (was \(text(input)))"
    }
    if let found = same(0, 2, "FCW") { return found }
    if let found = same(2, 2, "FSW") { return found }
    if let found = same(4, 1, "FTW") { return found }
    if let found = same(24, 4, "MXCSR") { return found }
    for number in 0..<8 { if let found = same(32 + number * 16, 10, "ST/MM\(number)") { return found } }
    // The common case, equal, first.
    if long(512) == guest.long(512), image[160..<416] == guest.image[160..<416],
      image[576..<832] == guest.image[576..<832]
    {
      return nil
    }
    for number in 0..<16 { if let found = same(160 + number * 16, 16, "xmm\(number)") { return found } }
    for number in 0..<16 { if let found = same(576 + number * 16, 16, "ymm\(number) high") { return found } }
    return nil
  }
}

// SPDX-License-Identifier: Apache-2.0
// The oracle is a processor of some vendor. Where Intel's and AMD's differ in what the manuals leave open, or where a
// processor departs from its manual, this says what the engine does, given what the host's processor did: exactly, so
// that a wrong result stays one. What the engine can do as the guest's vendor does (REP with 32-bit addresses, BOUND)
// it does, and the machine's vendor is the host's here, so that those need nothing.

import CNative
import Host
import X86

@testable import Translator

/// Whose processor runs the native side.
enum HostVendor: CaseIterable {
  case intel, amd

  /// This host's. Who is not Intel (Hygon) makes AMD's.
  static let here: HostVendor = HostCPU.query(0).1 == 0x756E_6547 ? .intel : .amd

  /// CPUID leaf 0: EBX, EDX, ECX.
  var name: (ebx: UInt32, edx: UInt32, ecx: UInt32) {
    switch self {
    case .intel: (0x756E_6547, 0x4965_6E69, 0x6C65_746E)
    case .amd: (0x6874_7541, 0x6974_6E65, 0x444D_4163)
    }
  }
}

/// What the vendors' differences depend on besides the outcomes.
struct CaseFacts {
  enum Kind {
    case other
    /// An MMX register to memory.
    case mmxStore
    /// FST, FSTP, FIST, FISTP, FISTTP, FBSTP to memory.
    case x87Store
    /// VCVTPS2PH to memory.
    case halfStore
    /// PUSH of a segment register by four bytes.
    case segmentPush
  }

  var kind = Kind.other
  /// RIP (EIP) of the instruction and of the next one.
  var rip: UInt64 = 0
  var next: UInt64 = 0
  /// Linear address of the operand whose bytes the outcomes record.
  var address: UInt64?
  /// Its size.
  var size = 0
  /// FBSTP.
  var isDecimal = false
  var privilege = 0

  init() {}

  init(_ c: Case, rip: UInt64) {
    let traits = RowTraits(c.row)
    let stores = c.instruction.isMemory && traits.memoryWrites
    self.rip = rip
    next = rip &+ UInt64(c.bytes.count)
    privilege = c.privilege
    size = c.size
    switch c.row.rule {
    case .mmx where stores: kind = .mmxStore
    case .x87 where stores:
      kind = .x87Store
      address = c.target
      isDecimal = c.row.byte == 0xDF && c.size == 10
    case .avx where stores && c.row.feature == .f16c: kind = .halfStore
    case .pushSegment where c.instruction.operandSize == 4:
      kind = .segmentPush
      address = c.touched[0]
      size = 4
    default: break
    }
  }

  /// The instruction raised an exception before it had completed.
  func faulted(_ outcome: Outcome) -> Bool { outcome.rip == rip }
}

extension HostVendor {
  /// The bytes to run natively in an instruction's place.
  ///
  /// MOVSXD r16, r/m16 moves a word (Intel SDM volume 2, MOVSXD). AMD's processors read four bytes, which shows where
  /// the last two fault (binutils knows the two as Intel64 and AMD64); the engine does what Intel's do, by MOV.
  func nativeBytes(_ bytes: [UInt8], _ i: Instruction, _ row: Opcode) -> [UInt8] {
    guard self == .amd, row.map == .one, row.byte == 0x63, row.attribute == .only64, i.operandSize == 2,
      let opcode = bytes.firstIndex(of: 0x63)
    else { return bytes }
    var result = bytes
    result[opcode] = 0x8B
    return result
  }

  /// Whether the judgement needs to know what the instruction does natively with all floating-point exceptions masked.
  func wantsMaskedRun(_ facts: CaseFacts, native: Outcome, translated: Outcome) -> Bool {
    guard self == .intel, facts.faulted(translated), translated.isMemoryFault else { return false }
    switch facts.kind {
    case .x87Store: return !facts.faulted(native)
    case .halfStore: return facts.faulted(native) && native.vector == 19
    default: return false
    }
  }

  /// What the engine should have done, given what this vendor's processor did.
  ///
  /// - Parameters:
  ///   - input: Where both sides began.
  ///   - native: Where the host's processor ended.
  ///   - masked: The same with all floating-point exceptions masked, where `wantsMaskedRun` asked for it.
  func expectation(_ facts: CaseFacts, input: Outcome, native: Outcome, masked: Outcome? = nil) -> Outcome {
    switch (self, facts.kind) {
    case (.intel, .mmxStore): unchangedTop(facts, input, native)
    case (.intel, .halfStore): unchangedMXCSR(facts, input, native, masked)
    case (.intel, .x87Store): wholeStore(facts, input, pendingException(facts, input, native, masked))
    case (.amd, .segmentPush): halfPush(facts, input, native)
    default: native
    }
  }

  /// Intel's processors have set FSW.TOP to 0 (SDM volume 1, 9.6.2) when the store of an MMX register faults. A fault
  /// leaves the state as before the instruction (SDM volume 3, 6.5): so do AMD's and the engine.
  private func unchangedTop(_ facts: CaseFacts, _ input: Outcome, _ native: Outcome) -> Outcome {
    guard facts.faulted(native), native.isMemoryFault, native.top == 0 else { return native }
    var result = native
    result.top = input.top
    // The image has ST(0) first, not R0.
    for number in 0..<8 {
      let from = 32 + (number + Int(input.top)) % 8 * 16, to = 32 + number * 16
      result.image.replaceSubrange(to..<to + 16, with: native.image[from..<from + 16])
    }
    return result
  }

  /// Intel's processors convert before they store: the conversion's flags are in MXCSR when the store of VCVTPS2PH
  /// faults, and if one of its exceptions is not masked, #XM comes instead of the fault. A fault leaves the state as
  /// before (SDM volume 3, 6.5); which of two faults of one instruction comes first is open (SDM volume 3, 6.9).
  private func unchangedMXCSR(
    _ facts: CaseFacts, _ input: Outcome, _ native: Outcome, _ masked: Outcome?
  ) -> Outcome {
    /// IE, DE, OE, UE, PE: what the conversion can raise (SDM volume 2, VCVTPS2PH).
    let flags: UInt32 = 0x3B
    guard facts.faulted(native) else { return native }
    if native.vector == 19 {
      guard let masked, facts.faulted(masked), masked.isMemoryFault, native.mxcsr & 0x3F & ~(native.mxcsr >> 7) != 0
      else { return native }
      var result = masked
      result.image = input.image
      return result
    }
    guard native.isMemoryFault, native.mxcsr & ~flags == input.mxcsr & ~flags, input.mxcsr & ~native.mxcsr == 0 else {
      return native
    }
    var result = native
    result.mxcsr = input.mxcsr
    return result
  }

  /// An x87 store whose exception is not masked leaves memory alone (SDM volume 1, 8.5.1 and 8.5.4). On Intel's
  /// processors it then does not fault on it either: the exception is pending for the next instruction. On AMD's, and
  /// in the engine, the operand is checked first. What it raises is then what it raises when exceptions are masked.
  private func pendingException(
    _ facts: CaseFacts, _ input: Outcome, _ native: Outcome, _ masked: Outcome?
  ) -> Outcome {
    let summary: UInt16 = 0x80
    guard native.rip == facts.next, input.statusWord & summary == 0, native.statusWord & summary != 0,
      native.statusWord & ~native.controlWord & 0x3F != 0, native.operand == input.operand,
      let masked, facts.faulted(masked), masked.isMemoryFault
    else { return native }
    var result = masked
    result.image = input.image
    return result
  }

  /// Intel's processors store ten bytes as eight and two: the eight are in memory when the two fault. AMD's check all
  /// ten first, as the engine does.
  private func wholeStore(_ facts: CaseFacts, _ input: Outcome, _ native: Outcome) -> Outcome {
    guard facts.size == 10, facts.faulted(native), native.isMemoryFault, native.operand != input.operand,
      native.operand.count == 10, native.operand[8...] == input.operand[8...],
      native.vector != 14 || native.cr2 &- (facts.address ?? 0) &- 8 < 2
    else { return native }
    let stored = native.operand[..<8].reversed().reduce(into: UInt64(0)) { $0 = $0 << 8 | UInt64($1 ?? 0) }
    // The significand of ST(0), or digits; the indefinite values are alike here (SDM volume 1, 4.2.2 and 4.7.1).
    let isIndefinite = stored == 0xC000_0000_0000_0000
    let isEmpty = input.image[4] >> UInt8(input.top) & 1 == 0
    let hasDigits = (0..<16).allSatisfy { stored >> UInt64($0 * 4) & 15 <= 9 }
    guard isIndefinite || !isEmpty && (facts.isDecimal ? hasDigits : stored == input.long(32)) else { return native }
    var result = native
    result.operand = input.operand
    return result
  }

  /// Of the four bytes that a PUSH of a segment register moves over, Intel's processors write two (SDM volume 2, PUSH),
  /// which is what the engine does, and AMD's four, the selector with zeros.
  private func halfPush(_ facts: CaseFacts, _ input: Outcome, _ native: Outcome) -> Outcome {
    guard !facts.faulted(native), native.operand.count == 4, native.operand[2...] == [0, 0] else { return native }
    var result = native
    result.operand[2...] = input.operand[2...]
    return result
  }
}

// SPDX-License-Identifier: Apache-2.0
// An encoding of a host instruction as the checker knows it: how it is judged, which registers it writes and what it
// accesses. What operand letters of the opcode rows mean is said here a second time, on purpose.

import X86

/// How an encoding is judged.
enum HostAction: UInt8 {
  /// Never emitted, or nothing that translated code may execute.
  case refuse
  /// Registers and at most one operand in memory; nothing is known of what it writes.
  case general
  /// Nothing at all.
  case nothing
  // What checks are made of, and what computes addresses.
  case move, load, lea, add, subtract, compare, and, immediate, shift, step, multiply, constant, storeConstant, test
  // Control.
  case branch, loop, jump, call, indirect, ret, push
  /// A bit test: a register says which bit of the operand.
  case bit
  /// XSAVE and XRSTOR: EDX:EAX say which components. FXSAVE.
  case xsave, fxsave
  /// Other forms of state in memory: in a scratch area, or to clear the x87 pointers.
  case state
}

/// What follows an encoding's operands.
enum HostImmediate: UInt8 {
  case none, byte, word, operandSize, operandSizeOr8, long

  /// Its bytes: four bits a case.
  @inline(__always)
  func bytes(isWide: Bool, has66: Bool) -> Int {
    (isWide ? 0x48_4210 : has66 ? 0x42_2210 : 0x44_4210) &>> (Int(rawValue) &* 4) & 15
  }
}

/// How large an operand in memory is.
enum HostSize: UInt8 {
  case none
  /// `bytes`.
  case fixed
  /// 2, 4 or 8, by 66 and W; 4 or 8 by W.
  case operandSize, wide
  /// `bytes`, twice that with L; with W.
  case vector, doubled
}

/// One encoding.
struct HostEncoding {
  var action = HostAction.refuse
  var immediate = HostImmediate.none
  var size = HostSize.none
  /// RAX, RCX and RDX, a bit each, if they are written without being named.
  var hidden: UInt8 = 0
  var bytes: UInt16 = 0
  var traits: UInt16 = 0
  /// Values of L and W that it is not for.
  var excluded: UInt8 = 0
  /// The operand that is written is read, too; with 66 two bytes of a register are written.
  var readsWritten = false, narrows = false
  /// The row that may be meant instead. (Of 32 bits, so that an encoding has 16 bytes.)
  var next: UInt32 = 0

  @inline(__always)
  func has(_ trait: UInt16) -> Bool { traits & trait != 0 }

  // Traits.
  static var hasModRM: UInt16 { @inline(__always) get { 1 } }
  static var regIsGeneral: UInt16 { @inline(__always) get { 2 } }
  static var regIsByte: UInt16 { @inline(__always) get { 4 } }
  static var regWritten: UInt16 { @inline(__always) get { 8 } }
  static var rmIsGeneral: UInt16 { @inline(__always) get { 0x10 } }
  static var rmIsByte: UInt16 { @inline(__always) get { 0x20 } }
  static var rmWritten: UInt16 { @inline(__always) get { 0x40 } }
  static var vvvvIsGeneral: UInt16 { @inline(__always) get { 0x80 } }
  static var vvvvWritten: UInt16 { @inline(__always) get { 0x100 } }
  static var plusIsGeneral: UInt16 { @inline(__always) get { 0x200 } }
  static var plusIsByte: UInt16 { @inline(__always) get { 0x400 } }
  static var plusWritten: UInt16 { @inline(__always) get { 0x800 } }
  static var memoryWritten: UInt16 { @inline(__always) get { 0x1000 } }
  static var flagsWritten: UInt16 { @inline(__always) get { 0x2000 } }
  static var lockable: UInt16 { @inline(__always) get { 0x4000 } }
  static var usesVvvv: UInt16 { @inline(__always) get { 0x8000 } }

  // Bits of `excluded`.
  static let l0: UInt8 = 1, l1: UInt8 = 2, w0: UInt8 = 4, w1: UInt8 = 8
}

extension HostEncoding {
  init(_ row: Opcode) {
    switch row.form {
    case .plain, .plus: break
    default: traits = HostEncoding.hasModRM
    }
    switch row.attribute {
    case .vexL0, .secondWritten: excluded = HostEncoding.l1
    case .vexL1: excluded = HostEncoding.l0
    case .vexW0, .rexW0: excluded = HostEncoding.w1
    case .vexW1, .rexW1: excluded = HostEncoding.w0
    case .vexL1W0: excluded = HostEncoding.l0 | HostEncoding.w1
    case .vexL0W0: excluded = HostEncoding.l1 | HostEncoding.w1
    case .vexL0W1: excluded = HostEncoding.l1 | HostEncoding.w0
    case .vexL1W1: excluded = HostEncoding.l0 | HostEncoding.w0
    case .lockable, .exchange: traits |= HostEncoding.lockable
    default: break
    }
    let isVEX = row.map == .vex0F || row.map == .vex0F38 || row.map == .vex0F3A
    if isVEX && row.rule == .copy { excluded |= HostEncoding.l1 }
    if row.flags.writesMaybe != 0 { traits |= HostEncoding.flagsWritten }
    let writes = row.access == .write || row.access == .readWrite
    switch row.operand1 {
    case .Gv, .Ev, .Evw, .Ew, .Zv: narrows = true
    default: break
    }
    readsWritten = row.access == .readWrite || row.attribute == .exchange
    add(row.operand1, written: writes)
    add(row.operand2, written: row.attribute == .exchange || row.attribute == .secondWritten)
    add(row.operand3, written: false)
    add(row.operand4, written: false)
    hidden = HostEncoding.hidden(row, writes: writes)
    action = HostEncoding.action(row)
    if action == .branch || action == .jump || action == .call || action == .loop {
      immediate = immediate == .byte ? .byte : .long
    }
  }

  private mutating func reg(byte: Bool, written: Bool) {
    traits |= HostEncoding.regIsGeneral | (byte ? HostEncoding.regIsByte : 0) | (written ? HostEncoding.regWritten : 0)
  }

  private mutating func rm(byte: Bool, written: Bool) {
    traits |= HostEncoding.rmIsGeneral | (byte ? HostEncoding.rmIsByte : 0) | (written ? HostEncoding.rmWritten : 0)
  }

  private mutating func memory(_ size: HostSize, _ bytes: UInt16, written: Bool) {
    self.size = size
    self.bytes = bytes
    if written { traits |= HostEncoding.memoryWritten }
  }

  /// The manual's letters (SDM volume 2, appendix A.2).
  private mutating func add(_ operand: Operand, written: Bool) {
    switch operand {
    case .Gb: reg(byte: true, written: written)
    case .Gw, .Gd, .Gv, .Gy: reg(byte: false, written: written)
    case .By:
      traits |= HostEncoding.vvvvIsGeneral | HostEncoding.usesVvvv | (written ? HostEncoding.vvvvWritten : 0)
    case .Hx, .Ho: traits |= HostEncoding.usesVvvv
    case .Ry, .Rd: rm(byte: false, written: written)
    case .Zb:
      traits |= HostEncoding.plusIsGeneral | HostEncoding.plusIsByte | (written ? HostEncoding.plusWritten : 0)
    case .Zv, .Zq: traits |= HostEncoding.plusIsGeneral | (written ? HostEncoding.plusWritten : 0)
    case .Eb:
      rm(byte: true, written: written)
      memory(.fixed, 1, written: written)
    case .Ew, .Evw:
      rm(byte: false, written: written)
      memory(.fixed, 2, written: written)
    case .Ed, .Ez:
      // Of an Ez, 4 bytes at most.
      rm(byte: false, written: written)
      memory(.fixed, 4, written: written)
    case .Eq, .Ef:
      rm(byte: false, written: written)
      memory(.fixed, 8, written: written)
    case .Ev:
      rm(byte: false, written: written)
      memory(.operandSize, 0, written: written)
    case .Ey:
      rm(byte: false, written: written)
      memory(.wide, 0, written: written)
    case .Mv: memory(.operandSize, 0, written: written)
    case .My: memory(.wide, 0, written: written)
    case .Mb, .Wb: memory(.fixed, 1, written: written)
    case .Mw, .Ww: memory(.fixed, 2, written: written)
    case .Md, .Wd, .Qd: memory(.fixed, 4, written: written)
    case .Mq, .Wq, .Qq: memory(.fixed, 8, written: written)
    case .Mo, .Wo: memory(.fixed, 16, written: written)
    case .Mt: memory(.fixed, 10, written: written)
    case .Mx, .Wx: memory(.vector, 16, written: written)
    case .Wh: memory(.vector, 8, written: written)
    case .Wf: memory(.vector, 4, written: written)
    case .We: memory(.vector, 2, written: written)
    case .Mdq: memory(.doubled, 8, written: written)
    case .Mfx: memory(.fixed, 512, written: written)
    case .Mxsave: memory(.fixed, 832, written: written)
    case .Mfsave: memory(.fixed, 108, written: written)
    case .Mfenv: memory(.fixed, 28, written: written)
    case .Ib, .Ibs, .Jb, .Lx: immediate = .byte
    case .Iw: immediate = .word
    case .Iz, .Jz: immediate = .operandSize
    case .Iv: immediate = .operandSizeOr8
    default: break
    }
  }

  /// Registers that are written without being named: of those RAX, RCX and RDX alone.
  private static func hidden(_ row: Opcode, writes: Bool) -> UInt8 {
    let rax: UInt8 = 1, rcx: UInt8 = 2, rdx: UInt8 = 4
    if row.rule == .cmpxchgWide { return rax | rdx }
    switch row.map {
    case .one:
      if row.rule == .x87 { return row.byte == 0xDF && row.form == .exact ? rax : 0 }  // FNSTSW AX
      switch row.operand1 {
      case .AL, .AX, .rAX, .eAX: return writes ? rax : 0
      default: break
      }
      if row.form == .plus { return row.operand2 == .rAX ? rax : 0 }  // XCHG
      switch row.byte {
      case 0x98, 0x9F: return rax  // CBW, LAHF
      case 0x99: return rdx
      case 0x90, 0x9B, 0x9E, 0xF5, 0xF8, 0xF9: return 0  // NOP, FWAIT, SAHF, CMC, CLC, STC
      case 0xF6: return row.flags == .multiply || row.flags == .divide ? rax : 0
      case 0xF7: return row.flags == .multiply || row.flags == .divide ? rax | rdx : 0
      default: return row.form == .plain || row.form == .exact ? rax | rcx | rdx : 0
      }
    case .x0F:
      if row.byte == 0xB0 || row.byte == 0xB1 { return rax }  // CMPXCHG
      if row.byte == 0x77 { return 0 }  // EMMS
      return row.form == .plain || row.form == .exact ? rax | rcx | rdx : 0
    case .x0F3A, .vex0F3A: return row.byte == 0x61 || row.byte == 0x63 ? rcx : 0  // PCMPxSTRI
    default: return 0
    }
  }

  private static func action(_ row: Opcode) -> HostAction {
    if row.attribute == .privileged { return .refuse }
    switch row.rule {
    case .copy: return row.map == .one ? oneByteAction(row) : .general
    case .lea: return .lea
    case .x87, .mmx, .sse, .avx, .wait, .cmpxchgWide, .rdtsc, .rdtscp: return .general
    case .bitMemory: return .bit
    case .nop: return row.byte == 0x90 || row.byte == 0x1F ? .nothing : .refuse
    case .pause: return .nothing
    case .jcc: return .branch
    case .loop: return .loop
    case .jump: return .jump
    case .call: return .call
    case .jumpIndirect, .callIndirect: return .indirect
    case .ret: return row.byte == 0xC3 ? .ret : .refuse
    case .push: return row.form == .plus ? .push : .refuse
    case .saveState, .restoreState:
      switch (row.map, row.byte, row.form) {
      case (.x0F, 0xAE, .mem0): return .fxsave
      // FXRSTOR.
      case (.x0F, 0xAE, .mem1): return .general
      case (.x0F, 0xAE, .mem4), (.x0F, 0xAE, .mem5): return .xsave
      default: return .state
      }
    default: return .refuse
    }
  }

  private static func oneByteAction(_ row: Opcode) -> HostAction {
    switch (row.byte, row.form) {
    case (0x89, _): .move
    case (0x8B, _): .load
    case (0x03, _): .add
    case (0x2B, _): .subtract
    case (0x3B, _): .compare
    case (0x23, _): .and
    case (0x81, _), (0x83, _): .immediate
    case (0xC1, .ext5): .shift
    case (0xF7, .ext0): .test
    case (0xFF, .ext0), (0xFF, .ext1): .step
    case (0x69, _): .multiply
    case (0xB8, _): .constant
    case (0xC7, .ext0): .storeConstant
    default: .general
    }
  }
}

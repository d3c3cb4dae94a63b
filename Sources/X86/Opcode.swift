// SPDX-License-Identifier: Apache-2.0
// What one row of the opcode tables says. The rows (Opcodes+*.swift) are the only place that knows an
// encoding; the decoder, the translator, the checker and the differential tests all read them. Every
// field is an enum: literals of enums compile to read-only data, and type-check a hundred times faster
// than option sets.

/// An opcode map: where the opcode byte is looked up.
public enum OpcodeMap: UInt8, Sendable, CaseIterable {
  case one, x0F, x0F38, x0F3A
  case vex0F, vex0F38, vex0F3A
}

/// Which mandatory prefix selects the row. `any`: the row ignores 66/F3/F2 (they keep their usual meaning); it
/// gives way to rows of the same byte that name a prefix (BSF and TZCNT, NOP and PAUSE). F3 and F2 win over 66,
/// and the last of F3 and F2 wins. 66 changes `Instruction.operandSize` even where it selects the row: MOVBE and
/// RDRAND, which exist without a prefix and with 66 but not with F3 or F2, have two rows.
public enum MandatoryPrefix: UInt8, Sendable, CaseIterable {
  case any, none, p66, pF3, pF2
}

/// What follows the opcode byte.
public enum Form: UInt8, Sendable, CaseIterable {
  /// No ModRM byte.
  case plain
  /// No ModRM byte; the low three opcode bits name a register (the row stands for eight bytes). The register,
  /// with REX.B, is in `Instruction.rm`. Byte 90 without REX.B is the `plain` row NOP.
  case plus
  /// ModRM with a register in `reg`; both register and memory forms.
  case modRM
  /// ModRM whose register form does not exist (`M` operands): #UD.
  case memory
  /// ModRM whose memory form does not exist: #UD. With a control or debug register (MOV CR, DR) the mod field
  /// is ignored instead.
  case register
  /// ModRM whose `reg` field extends the opcode, register and memory forms.
  case ext0, ext1, ext2, ext3, ext4, ext5, ext6, ext7
  /// The same, memory form only.
  case mem0, mem1, mem2, mem3, mem4, mem5, mem6, mem7
  /// The same, register form only.
  case reg0, reg1, reg2, reg3, reg4, reg5, reg6, reg7
  /// The whole ModRM byte is part of the opcode; `Opcode.exact` holds it (0F 01 C1, D9 E8, ...).
  case exact
}

/// An operand, in the manual's letters (Intel SDM volume 2, appendix A.2).
///
/// E/M: ModRM.rm as general register or memory, memory only. G: ModRM.reg. R: ModRM.rm, register only.
/// B: VEX.vvvv as general register. Z: the register in the opcode's low bits. I: immediate. J: relative
/// target. O: offset without ModRM. S, C, D: segment, control, debug register in ModRM.reg.
/// V, W, H, L, U: vector register in reg, rm (or memory), vvvv, imm8[7:4], rm (register only).
/// P, Q, N: MMX register in reg, rm (or memory), rm (register only).
/// Sizes: b 1, w 2, d 4, q 8 bytes; v by operand size; y 8 with REX.W or VEX.W in 64-bit mode, else 4, whatever
/// 66 says (MOV CR and DR, INVPCID: always 8 in 64-bit mode); z 2 or 4; x 16 or 32 by VEX.L; o 16; h half of x;
/// s of a W operand: ss 4, sd 8. `eAX` is at most 4 bytes even with REX.W; string instructions name no operands:
/// opcode bit 0 clear is bytes, set is operand size (INS and OUTS: at most 4).
public enum Operand: UInt8, Sendable, CaseIterable {
  case none
  case Eb, Ew, Ed, Eq, Ev, Ey
  /// 16 bits in memory, operand size in a register (MOV from segment register, STR, SMSW, ...).
  case Evw
  /// Operand size, but 4 bytes of 8 (MOVSXD).
  case Ez
  /// A near branch target: 64 bits in 64-bit mode, else the operand size.
  case Ef
  case Gb, Gw, Gd, Gv, Gy
  case By
  case Ry, Rd
  case Zb, Zv, Zq
  case M, Mb, Mw, Md, Mq, Mo, Mx, Mv, My
  /// 10-byte x87 operand.
  case Mt
  /// A far pointer in memory: 16-bit selector after an offset of operand size.
  case Mp
  /// A descriptor-table image: 16-bit limit and base.
  case Ms
  /// Two bounds of operand size (BOUND); 8 bytes, 16 with REX.W (CMPXCHG8B/16B, one row).
  case Ma, Mdq
  /// FXSAVE (512 bytes), XSAVE (by XCR0), FNSAVE (108 or 94), FNSTENV (28 or 14) areas.
  case Mfx, Mxsave, Mfsave, Mfenv
  case Ib, Ibs, Iw, Iz, Iv
  /// ENTER's second immediate byte; a far pointer in the instruction.
  case Ib2, Ap
  case Jb, Jz
  case Ob, Ov
  case AL, AX, rAX, eAX, CL, DX, rDX, one
  case Sw
  case Cy, Dy
  case ES, CS, SS, DS, FS, GS
  case Vx, Vo, Vq, Vd
  /// W operands: by VEX.L, 16, 8, 4, 2, 1 bytes, half, quarter and eighth of x (PMOVZX and the like).
  case Wx, Wo, Wq, Wd, Ww, Wb, Wh, Wf, We
  case Hx, Ho, Lx
  case Ux, Uo
  case Pq, Qq, Qd, Nq
  /// VSIB memory operand: gather with 4- or 8-byte elements.
  case Vsibd, Vsibq
  /// x87 stack register, in rm.
  case ST0, STi
}

/// How an instruction uses its first operand. Other operands are read, unless `Opcode.attribute` says more.
public enum Access: UInt8, Sendable, CaseIterable {
  /// Not an access (LEA, NOP, prefetch).
  case none
  case read, write, readWrite
}

/// Which arithmetic flags an instruction reads, defines and leaves undefined.
public enum FlagEffect: UInt8, Sendable, CaseIterable {
  case none
  /// Writes all six (ADD, SUB, CMP, NEG).
  case arith
  /// Reads CF, writes all six (ADC, SBB).
  case arithCarry
  /// Writes all but AF, which is undefined (AND, OR, XOR, TEST).
  case logic
  /// Writes all but CF (INC, DEC).
  case increment
  /// Shifts by an immediate or CL: with count 0 nothing changes; OF undefined unless count is 1, AF undefined.
  case shift
  /// Shift by one: OF defined, AF undefined.
  case shiftOne
  /// Rotates: CF and OF only (OF undefined unless by one); nothing with count 0.
  case rotate
  case rotateOne
  /// RCL, RCR: like rotate, CF also read.
  case rotateCarry
  case rotateCarryOne
  /// SHLD, SHRD: like shift.
  case doubleShift
  /// MUL, IMUL: CF and OF; SF, ZF, AF, PF undefined.
  case multiply
  /// DIV, IDIV: all undefined.
  case divide
  /// BT, BTS, BTR, BTC: CF; OF, SF, AF, PF undefined; ZF unchanged.
  case bitTest
  /// BSF, BSR: ZF; others undefined.
  case bitScan
  /// LZCNT, TZCNT: CF and ZF; others undefined.
  case countZeros
  /// POPCNT: writes all (ZF by result, the others cleared).
  case popcount
  /// ANDN: SF ZF, OF and CF cleared; AF PF undefined.
  case andn
  /// BLSI, BLSR, BLSMSK, BZHI: CF SF ZF, OF cleared; AF PF undefined.
  case bls
  /// BEXTR: ZF, OF and CF cleared; others undefined.
  case bextr
  /// ADCX (CF), ADOX (OF): read and written, nothing else touched.
  case adcx, adox
  /// CLC, STC; CMC also reads CF.
  case setCarry, complementCarry
  /// SAHF writes SF ZF AF PF CF; LAHF reads them.
  case sahf, lahf
  /// Writes ZF only (CMPXCHG8B/16B, ARPL, LAR, LSL, VERR, VERW).
  case zero
  /// COMISS and the like, PTEST, PCMPxSTRx, FCOMI: writes all six.
  case compare
  /// RDRAND, RDSEED: CF by result, others cleared.
  case random
  /// AAA, AAS: AF read, AF CF written, others undefined. DAA, DAS: AF CF read. AAM, AAD: SF ZF PF written.
  case ascii, decimal, asciiMultiply
  /// PUSHF reads all; POPF, IRET write all.
  case readsAll, writesAll
  /// Jcc, SETcc, CMOVcc: reads what the condition in the opcode's low four bits needs.
  case condition
  /// LOOPE, LOOPNE: ZF. INTO: OF. SALC: CF. FCMOVcc: CF ZF PF.
  case readsZero, readsOverflow, readsCarry, readsFcmov
}

/// A CPUID feature without which the encoding does not exist.
public enum Feature: UInt8, Sendable, CaseIterable {
  case base
  case fpu, mmx, sse, sse2, sse3, ssse3, sse41, sse42, popcnt, aes, pclmulqdq
  case avx, avx2, fma, f16c, bmi1, bmi2, lzcnt, movbe, adx, sha, vaes, vpclmulqdq, gfni, avxvnni
  case rdrand, rdseed, fsgsbase, invpcid, xsave, xsaveopt, xsavec, xsaves
  case clflushopt, clwb, rdpid, rdtscp, prefetchw, cmpxchg16b, smap, umip, monitor, vmx, svm, rtm, pku, waitpkg
  /// No instructions: process-context identifiers.
  case pcid
  case cet, movdir, serialize, wbnoinvd, sse4a, xop, fma4, tbm, threeDNow
}

/// What the translator does with an instruction; each rule has one function.
public enum Rule: UInt8, Sendable, CaseIterable {
  /// The same bytes with registers renamed and a memory operand redirected. Nearly everything.
  case copy
  /// Nothing happens (NOP, ENDBR, prefetch).
  case nop
  case lea
  /// Vector, x87 or MMX: like `copy`, after the #NM/#UD checks of the state (CR0.TS/EM, CR4.OSFXSR, XCR0).
  case x87, mmx, sse, avx
  /// WAIT/FWAIT: #NM if MP and TS.
  case wait
  /// Raises #UD (UD2, UD1, encodings that the CPU model does not have).
  case undefined
  // Branches.
  case jump, jumpIndirect, call, callIndirect, ret, jcc, loop
  // Stack.
  case push, pop, pushFlags, popFlags, enter, leave, pushAll, popAll, pushSegment, popSegment
  // Strings.
  case movs, stos, lods, scas, cmps, ins, outs
  // Special encodings of ordinary instructions.
  case incDec32  // 40-4F outside 64-bit mode
  case moffs  // A0-A3
  case bitMemory  // BT/BTS/BTR/BTC with a register offset: the operand may lie outside [EA]
  case gather, maskMove
  case xlat
  case cmpxchgWide  // CMPXCHG8B/16B
  case saveState, restoreState  // FXSAVE, XSAVE*, FNSAVE, FNSTENV; FXRSTOR, XRSTOR, FRSTOR, FLDENV
  case movSegment  // MOV Ew,Sw (reads a selector)
  case decimal  // DAA DAS AAA AAS AAM AAD SALC: no 64-bit encoding; executed by Swift
  case bound, arpl
  // System instructions with code in line.
  case cpuid, rdtsc, rdtscp, syscall, sysret, swapgs, cli, sti, cld, std, pause
  case rdfsbase, wrfsbase, stac, clac
  case hypercall  // VMCALL, VMMCALL
  /// Everything else privileged or rare: executed by Swift, one instruction at a time, as the row's operation says.
  case system
}

/// What Swift does for a row of the rules `system` and `decimal`; for others `none`. Named by the mnemonic.
public enum Operation: UInt8, Sendable, CaseIterable {
  case none
  // Decimal arithmetic.
  case daa, das, aaa, aas, aam, aad, salc
  // Descriptor tables, the task register, selectors.
  case sldt, str, lldt, ltr, verr, verw, sgdt, sidt, lgdt, lidt, lar, lsl
  case movToSegment, les, lds, lss, lfs, lgs
  // Control, debug and model-specific registers.
  case smsw, lmsw, clts, movFromControl, movFromDebug, movToControl, movToDebug
  case rdmsr, wrmsr, rdpmc, rdpid, xgetbv, xsetbv
  // Caches and translations.
  case invd, wbinvd, invlpg, invpcid
  // Far transfers, interrupts, fast system calls.
  case callFar, jumpFar, returnFar, int, int1, int3, into, iret, sysenter, sysexit
  // Waiting.
  case hlt, monitor, mwait
  // Ports.
  case input, output
}

/// General registers that an instruction writes though no operand of its row is written and names them. Only rows whose
/// rule emits the instruction itself say it; what other rules write is in their own code.
public enum ImplicitWrite: UInt8, Sendable, CaseIterable {
  case none
  case rAX, rCX, rDX
  /// Both halves of a double register.
  case rDXrAX

  /// The registers, a bit each by their numbers.
  @inlinable @inline(__always)
  public var registers: UInt8 {
    switch self {
    case .none: 0
    case .rAX: 1
    case .rCX: 2
    case .rDX: 4
    case .rDXrAX: 5
    }
  }
}

/// What else is special about an encoding.
public enum Attribute: UInt8, Sendable, CaseIterable {
  case none
  /// LOCK is allowed with a memory destination. (Group 82, `notIn64`, allows it as group 80 does.)
  case lockable
  /// LOCK allowed and the second operand is written too (XADD); XCHG (implicitly locked).
  case exchange
  /// The second operand is written too (MULX, which also needs VEX.L 0).
  case secondWritten
  /// Does not exist in 64-bit mode.
  case notIn64
  /// Exists in 64-bit mode only.
  case only64
  /// Operand size is 64 in 64-bit mode without REX.W (near branches, PUSH, POP).
  case default64
  /// May raise an exception on the host (DIV, x87, unmasked SSE, aligned operands): needs a fault-table entry.
  case mayFault
  /// `mayFault`, and a memory operand must be aligned to its size (MOVAPS, legacy SSE operands).
  case aligned
  /// VEX.L must be 0; VEX.L must be 1.
  case vexL0, vexL1
  /// VEX.W must be 0; must be 1.
  case vexW0, vexW1
  /// Both constraints at once.
  case vexL1W0, vexL0W0, vexL0W1, vexL1W1
  /// Needs REX.W clear, set (legacy encodings that differ by it: CMPXCHG16B, MOVQ).
  case rexW0, rexW1
  /// Privileged: #GP above CPL 0.
  case privileged
}

/// One encoding.
public struct Opcode: Sendable {
  /// Intel-syntax mnemonic, with the operands for the reader where they matter.
  public let name: StaticString
  public let map: OpcodeMap
  public let prefix: MandatoryPrefix
  public let byte: UInt8
  public let form: Form
  /// The ModRM byte of `Form.exact`.
  public let exact: UInt8
  public let operand1, operand2, operand3, operand4: Operand
  public let access: Access
  public let rule: Rule
  public let operation: Operation
  public let flags: FlagEffect
  public let implicit: ImplicitWrite
  public let feature: Feature
  public let attribute: Attribute

  @inline(__always)
  init(
    _ map: OpcodeMap, _ prefix: MandatoryPrefix, _ byte: UInt8, _ form: Form, _ name: StaticString,
    _ operand1: Operand = .none, _ operand2: Operand = .none, _ operand3: Operand = .none,
    _ operand4: Operand = .none, access: Access = .none, rule: Rule = .copy, operation: Operation = .none,
    flags: FlagEffect = .none, implicit: ImplicitWrite = .none, feature: Feature = .base, attribute: Attribute = .none,
    exact: UInt8 = 0
  ) {
    self.name = name
    self.map = map
    self.prefix = prefix
    self.byte = byte
    self.form = form
    self.exact = exact
    self.operand1 = operand1
    self.operand2 = operand2
    self.operand3 = operand3
    self.operand4 = operand4
    self.access = access
    self.rule = rule
    self.operation = operation
    self.flags = flags
    self.implicit = implicit
    self.feature = feature
    self.attribute = attribute
  }
}

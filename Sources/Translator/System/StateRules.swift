// SPDX-License-Identifier: Apache-2.0
// Whether a vCPU can be in a state that comes from outside: every register alone by the rule that its own instruction
// obeys, and all of them together as a processor checks a guest's before it enters it (SDM volume 3, 27.3.1). What no
// guest can bring about by itself is refused; what translated code relies on is among it.

import CHost
import X86

/// A register that cannot hold what it does, alone or beside the others.
struct ImpossibleRegister: Equatable {
  var name: String
  var value: UInt64
}

/// The parts of an XSAVE image that the processor checks when it loads one (SDM volume 1, 13.4.2 and 13.8.1).
enum XSAVEImage {
  static let mxcsr = 24, components = 512, header = 520, headerEnd = 576
  /// x87, SSE and AVX: what entering and leaving translated code loads and saves.
  static let allComponents: UInt64 = 7
  /// What MXCSR can hold on some processor: bit 17 is AMD's (APM volume 1, 4.2.2).
  static let mxcsrBits: UInt64 = 0x2_FFFF

  static func word(_ image: [UInt8], at offset: Int, count: Int) -> UInt64 {
    (0..<count).reduce(0) { $0 | UInt64(image[offset + $1]) << UInt64($1 * 8) }
  }
}

extension Processor {
  /// The first register of a state that cannot be as it is; nil if the state can be.
  func impossibleRegister(in state: CPUState) -> ImpossibleRegister? {
    for (isPossible, name, value) in controlRules(state) + segmentRules(state) + registerRules(state)
      + imageRules(state)
    where !isPossible { return ImpossibleRegister(name: name, value: value) }
    return nil
  }

  /// Whether it can be, what it is, and its value.
  private typealias Rule = (isPossible: Bool, name: String, value: UInt64)

  // MARK: Control registers

  private func controlRules(_ s: CPUState) -> [Rule] {
    let isProtected = s.cr0 & CR0.pe != 0, isLMA = s.efer & EFER.lma != 0
    let isLong = isLMA && s.cs.attributes & Attribute.long != 0
    // Long mode is active once it is enabled and paging is on, which then is PAE's.
    let activates = s.efer & EFER.lme != 0 && s.cr0 & CR0.pg != 0
    let needed = isLMA ? CR4.pae : 0, forbidden = isLMA ? 0 : CR4.pcide
    let flags = RFLAGS.arithmetic | RFLAGS.system | 2
    let allowsVM = isProtected && !isLMA
    return [
      (CR0.accepts(s.cr0) && CR0.stored(s.cr0) == s.cr0, "CR0", s.cr0),
      (acceptsCR3(s.cr3), "CR3", s.cr3),
      (acceptsCR4(s.cr4) && s.cr4 & needed == needed && s.cr4 & forbidden == 0, "CR4", s.cr4),
      (CR8.accepts(s.cr8), "CR8", s.cr8),
      (accepts(msr: ModelSpecificRegister.efer, s.efer) && isLMA == activates, "EFER", s.efer),
      (acceptsXCR0(s.xcr0), "XCR0", s.xcr0),
      (DR6.stored(s.dr6) == s.dr6, "DR6", s.dr6),
      (DR7.stored(s.dr7) == s.dr7, "DR7", s.dr7),
      (s.rflags & ~flags == 0 && s.rflags & 2 != 0 && (allowsVM || s.rflags & RFLAGS.vm == 0), "RFLAGS", s.rflags),
      // Of 64-bit code that went where no address is, the next fetch says so.
      (isLong || s.rip >> 32 == 0, "RIP", s.rip),
    ]
  }

  // MARK: Segments

  private enum Attribute {
    static let accessed: UInt32 = 1 << 0, writable: UInt32 = 1 << 1, conforming: UInt32 = 1 << 2
    static let code: UInt32 = 1 << 3, type: UInt32 = 15, codeOrData: UInt32 = 1 << 4, present: UInt32 = 1 << 7
    static let long: UInt32 = 1 << 13, big: UInt32 = 1 << 14, granular: UInt32 = 1 << 15, unusable: UInt32 = 1 << 16
    /// All that there are.
    static let defined: UInt32 = 0x1_F0FF
    /// Of a segment in virtual-8086 mode: level 3, writable data.
    static let virtual8086: UInt32 = 0xF3
  }

  private func segmentRules(_ s: CPUState) -> [Rule] {
    let all: [(register: SegmentRegister, segment: Segment, name: String)] = [
      (.es, s.es, "ES"), (.cs, s.cs, "CS"), (.ss, s.ss, "SS"), (.ds, s.ds, "DS"), (.fs, s.fs, "FS"), (.gs, s.gs, "GS"),
      (.ldtr, s.ldtr, "LDTR"), (.tr, s.tr, "TR"),
    ]
    var rules: [Rule] = []
    for (register, segment, name) in all {
      rules += [
        (hasPossibleBase(segment, register), "\(name) base", segment.base),
        (hasPossibleLimit(segment), "\(name) limit", UInt64(segment.limit)),
        (hasPossibleAttributes(segment, register, s), "\(name) attributes", UInt64(segment.attributes)),
        (hasPossibleSelector(segment, register), "\(name) selector", UInt64(segment.selector)),
      ]
      if s.rflags & RFLAGS.vm != 0, register != .ldtr, register != .tr {
        let made = chost_segment.real(selector: segment.selector, attributes: Attribute.virtual8086)
        rules += [
          (segment.base == made.base, "\(name) base", segment.base),
          (segment.limit == made.limit, "\(name) limit", UInt64(segment.limit)),
          (segment.attributes == made.attributes, "\(name) attributes", UInt64(segment.attributes)),
        ]
      }
    }
    return rules + [
      (Processor.isCanonical(s.gdtr.base), "GDTR base", s.gdtr.base),
      (Processor.isCanonical(s.idtr.base), "IDTR base", s.idtr.base),
    ]
  }

  /// Those of FS, GS and the system segments can be anywhere in 64-bit mode; the others come from descriptors.
  private func hasPossibleBase(_ segment: Segment, _ register: SegmentRegister) -> Bool {
    switch register {
    case .fs, .gs, .ldtr, .tr: Processor.isCanonical(segment.base)
    case .es, .cs, .ss, .ds: segment.base >> 32 == 0
    }
  }

  /// 20 bits, or so many pages.
  private func hasPossibleLimit(_ segment: Segment) -> Bool {
    let isGranular = segment.attributes & Attribute.granular != 0
    return isGranular ? segment.limit & 0xFFF == 0xFFF : segment.limit >> 20 == 0
  }

  /// The system segments are described in the global table.
  private func hasPossibleSelector(_ segment: Segment, _ register: SegmentRegister) -> Bool {
    guard register == .ldtr || register == .tr, segment.attributes & Attribute.unusable == 0 else { return true }
    return segment.selector & 4 == 0
  }

  private func hasPossibleAttributes(_ segment: Segment, _ register: SegmentRegister, _ state: CPUState) -> Bool {
    let attributes = segment.attributes
    guard attributes & ~Attribute.defined == 0 else { return false }
    if attributes & Attribute.unusable != 0 { return register != .cs && register != .tr }
    let isCode = attributes & Attribute.code != 0, type = attributes & Attribute.type
    let isLoaded = attributes & (Attribute.codeOrData | Attribute.accessed) == Attribute.codeOrData | Attribute.accessed
    guard attributes & Attribute.present != 0 else { return false }
    switch register {
    case .cs: return isLoaded && (state.rflags & RFLAGS.vm != 0 || isPossible(code: attributes, state))
    case .ss: return isLoaded && !isCode && attributes & Attribute.writable != 0
    // Readable code is data as well.
    case .es, .ds, .fs, .gs: return isLoaded && (!isCode || attributes & Attribute.writable != 0)
    case .ldtr: return attributes & Attribute.codeOrData == 0 && type == UInt32(SystemType.ldt)
    case .tr:
      return attributes & Attribute.codeOrData == 0
        && (type == UInt32(SystemType.tssBusy) || type == UInt32(SystemType.tss16Busy))
    }
  }

  /// The level of code is that of the stack, and of conforming code that or an inner one.
  private func isPossible(code attributes: UInt32, _ state: CPUState) -> Bool {
    let isLMA = state.efer & EFER.lma != 0, level = attributes >> 5 & 3
    let both = Attribute.long | Attribute.big
    guard attributes & Attribute.code != 0, !(isLMA && attributes & both == both) else { return false }
    let privilege = state.ss.attributes >> 5 & 3
    // Whoever leaves protected mode is at level 0.
    guard state.cr0 & CR0.pe != 0 else { return privilege == 0 }
    return attributes & Attribute.conforming != 0 ? level <= privilege : level == privilege
  }

  // MARK: Model-specific registers

  private func registerRules(_ s: CPUState) -> [Rule] {
    typealias MSR = ModelSpecificRegister
    return [
      (accepts(msr: MSR.lstar, s.lstar), "LSTAR", s.lstar),
      (accepts(msr: MSR.cstar, s.cstar), "CSTAR", s.cstar),
      (MSR.stored(sfmask: s.sfmask) == s.sfmask, "SFMASK", s.sfmask),
      (accepts(msr: MSR.kernelGSBase, s.kernelGSBase), "KERNEL_GS_BASE", s.kernelGSBase),
      (MSR.stored(sysenterCS: s.sysenterCS) == s.sysenterCS, "SYSENTER_CS", s.sysenterCS),
      (accepts(msr: MSR.sysenterESP, s.sysenterESP), "SYSENTER_ESP", s.sysenterESP),
      (accepts(msr: MSR.sysenterEIP, s.sysenterEIP), "SYSENTER_EIP", s.sysenterEIP),
      (s.tscAux == 0 || accepts(msr: MSR.tscAux, s.tscAux), "TSC_AUX", s.tscAux),
      (accepts(msr: MSR.pat, s.pat), "PAT", s.pat),
    ]
  }

  // MARK: Vector state

  private func imageRules(_ s: CPUState) -> [Rule] {
    let mxcsr = XSAVEImage.word(s.xsave, at: XSAVEImage.mxcsr, count: 4)
    let components = XSAVEImage.word(s.xsave, at: XSAVEImage.components, count: 8)
    let layout = XSAVEImage.word(s.xsave, at: XSAVEImage.header, count: 8)
    let reserved = s.xsave[XSAVEImage.header + 8..<XSAVEImage.headerEnd].first { $0 != 0 } ?? 0
    return [
      (mxcsr & ~XSAVEImage.mxcsrBits == 0, "MXCSR", mxcsr),
      (components & ~XSAVEImage.allComponents == 0, "XSTATE_BV", components),
      (layout == 0, "XCOMP_BV", layout),
      (reserved == 0, "reserved byte of the XSAVE header", UInt64(reserved)),
    ]
  }
}

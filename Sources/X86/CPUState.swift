// SPDX-License-Identifier: Apache-2.0
// The architectural state of one vCPU as a value: what tests compare, snapshots store and boot protocols
// fill in. Read and written only while the vCPU is stopped.

/// A segment register with its hidden part.
public struct Segment: Sendable, Equatable {
  public var selector: UInt16
  public var base: UInt64
  /// In bytes, the granularity bit already applied.
  public var limit: UInt32
  /// Type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16 (Intel SDM volume 3, 25.4.1).
  public var attributes: UInt32

  public init(selector: UInt16 = 0, base: UInt64 = 0, limit: UInt32 = 0xFFFF, attributes: UInt32 = 0x93) {
    self.selector = selector
    self.base = base
    self.limit = limit
    self.attributes = attributes
  }

  public static let flatCode64 = Segment(selector: 0x10, base: 0, limit: 0xFFFF_FFFF, attributes: 0xA09B)
  public static let flatCode32 = Segment(selector: 0x10, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC09B)
  public static let flatData = Segment(selector: 0x18, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC093)
  /// A busy task-state segment behind the flat ones, as boot protocols leave it.
  public static let task64 = Segment(selector: 0x20, base: 0, limit: 0xFFFF_FFFF, attributes: 0x808B)
  public static let task32 = Segment(selector: 0x20, base: 0, limit: 0x67, attributes: 0x8B)
  /// What LDTR and segment registers are with a null selector.
  public static let unusable = Segment(selector: 0, base: 0, limit: 0, attributes: 0x10000)
}

/// GDTR or IDTR.
public struct DescriptorTable: Sendable, Equatable {
  public var base: UInt64
  public var limit: UInt16
  public init(base: UInt64 = 0, limit: UInt16 = 0xFFFF) {
    self.base = base
    self.limit = limit
  }
}

/// Everything a vCPU is. A new value is the state after RESET (Intel SDM volume 3, table 10-1).
public struct CPUState: Sendable, Equatable {
  /// RAX RCX RDX RBX RSP RBP RSI RDI R8...R15.
  public var registers = [UInt64](repeating: 0, count: 16)
  public var rip: UInt64 = 0xFFF0
  /// Canonical: bit 1 set, reserved bits clear.
  public var rflags = RFLAGS.ones
  public var es = Segment(), cs = Segment(selector: 0xF000, base: 0xFFFF_0000, limit: 0xFFFF, attributes: 0x9B)
  public var ss = Segment(), ds = Segment(), fs = Segment(), gs = Segment()
  public var ldtr = Segment(limit: 0xFFFF, attributes: 0x82), tr = Segment(limit: 0xFFFF, attributes: 0x8B)
  public var gdtr = DescriptorTable(), idtr = DescriptorTable()
  public var cr0 = CR0.cd | CR0.nw | CR0.et
  public var cr2: UInt64 = 0, cr3: UInt64 = 0, cr4: UInt64 = 0, cr8: UInt64 = 0
  public var dr0: UInt64 = 0, dr1: UInt64 = 0, dr2: UInt64 = 0, dr3: UInt64 = 0
  public var dr6 = DR6.ones, dr7 = DR7.ones
  public var efer: UInt64 = 0
  public var star: UInt64 = 0, lstar: UInt64 = 0, cstar: UInt64 = 0, sfmask: UInt64 = 0, kernelGSBase: UInt64 = 0
  public var sysenterCS: UInt64 = 0, sysenterESP: UInt64 = 0, sysenterEIP: UInt64 = 0
  public var tscAux: UInt64 = 0, pat: UInt64 = 0x0007_0406_0007_0406, xcr0: UInt64 = 1
  public var tscOffset: UInt64 = 0
  /// The XSAVE image in standard format: x87 and SSE (512 bytes), header (64), AVX (256).
  public var xsave: [UInt8] = CPUState.initialXSAVE
  /// Interrupts are blocked for one instruction (STI, MOV SS).
  public var interruptShadow = false
  public var nmiBlocked = false
  /// An external interrupt and an NMI that were accepted and are not delivered yet.
  public var pendingInterrupt: UInt8?
  public var pendingNMI = false

  public init() {}

  /// The state after INIT: as after RESET, but for the caches' mode, model-specific registers and the floating-point
  /// and vector state (Intel SDM volume 3, table 10-1).
  ///
  /// - Parameter signature: CPUID.1:EAX, which EDX holds.
  public func initialized(signature: UInt32) -> CPUState {
    var next = CPUState()
    next[register: GPR.rdx] = UInt64(signature)
    let cacheBits = CR0.cd | CR0.nw
    next.cr0 = next.cr0 & ~cacheBits | cr0 & cacheBits
    (next.star, next.lstar, next.cstar, next.sfmask, next.kernelGSBase) = (star, lstar, cstar, sfmask, kernelGSBase)
    (next.sysenterCS, next.sysenterESP, next.sysenterEIP) = (sysenterCS, sysenterESP, sysenterEIP)
    (next.tscAux, next.tscOffset, next.pat, next.xcr0, next.xsave) = (tscAux, tscOffset, pat, xcr0, xsave)
    return next
  }

  /// The state after a start-up IPI: real mode at the start of page `vector`.
  public func started(vector: UInt8) -> CPUState {
    var next = self
    next.cs = Segment(selector: UInt16(vector) << 8, base: UInt64(vector) << 12, limit: 0xFFFF, attributes: 0x9B)
    next.rip = 0
    return next
  }

  static var initialXSAVE: [UInt8] {
    var image = [UInt8](repeating: 0, count: 832)
    image[0] = 0x7F  // FCW 0x037F
    image[1] = 0x03
    image[24] = 0x80  // MXCSR 0x1F80
    image[25] = 0x1F
    return image
  }
}

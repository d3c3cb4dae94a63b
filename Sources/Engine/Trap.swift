// SPDX-License-Identifier: Apache-2.0
// Traps, and where they go: to the guest's interrupt descriptor table, as a processor has it, or to the machine, which
// removes the cause or sends them on to a handler of its choice ("reflects" them, as lguest did).

/// Vectors, 0...255.
public struct VectorSet: Sendable, Equatable, ExpressibleByArrayLiteral {
  /// A bit for each, 64 in a word.
  public private(set) var words = SIMD4<UInt64>(repeating: 0)

  /// The vectors that are listed.
  public init(arrayLiteral vectors: UInt8...) {
    for vector in vectors { words[Int(vector >> 6)] |= 1 << UInt64(vector & 63) }
  }

  /// Whether a vector is one of them.
  public func contains(_ vector: UInt8) -> Bool { words[Int(vector >> 6)] >> UInt64(vector & 63) & 1 != 0 }
}

/// A guest whose RFLAGS.IF is always set, and that keeps an interrupt flag of its own in memory; and how its traps go
/// through the gates of an interrupt descriptor table that the machine keeps.
public struct VirtualInterrupts: Sendable, Equatable {
  /// Vectors that go to the machine first. `CPUEngine.forward` sends one on.
  public let machineFirst: VectorSet
  /// Guest-physical address, a multiple of 4 in RAM, of a word whose bit 9 is the guest's flag: frames show that bit as IF,
  /// and an interrupt gate stores 0 to the word instead of clearing IF. nil: IF is IF.
  public let flag: UInt64?
  /// Guest-physical address, a multiple of 4 in RAM, of a word that holds the address of a page fault when its handler
  /// begins.
  public let faultAddress: UInt64?

  /// - Parameters:
  ///   - machineFirst: Vectors that the machine wants to see first.
  ///   - flag: Where the guest's own flag is.
  ///   - faultAddress: Where it looks for the address of a page fault.
  public init(machineFirst: VectorSet, flag: UInt64? = nil, faultAddress: UInt64? = nil) {
    (self.machineFirst, self.flag, self.faultAddress) = (machineFirst, flag, faultAddress)
  }
}

/// Where exceptions, interrupts and INT n go.
public enum TrapPolicy: Sendable, Equatable {
  /// Through the guest's interrupt descriptor table.
  case guest
  /// Through the gates of the interrupt descriptor table that are present; to the machine, as with `machine`, where there
  /// is none, for vectors that it wants first, and outside protected mode and in IA-32e mode.
  case gates(VirtualInterrupts)
  /// To the machine, as `VCPUExit.trap`. No frame is stored then, CR2 and the blocking of NMIs are as they were; DR6 says
  /// what #DB is for. A frame that the machine stores for an instruction that has begun, a fault's or one between two
  /// elements of a repeated string instruction, should have RFLAGS.RF set.
  case machine
}

/// An exception, an interrupt or an INT n that the machine takes.
public struct Trap: Sendable, Equatable {
  /// What raised it.
  public enum Kind: Sendable, Equatable {
    /// The processor: RIP is at the instruction, but for #DB as a trap.
    case exception
    /// INT n, INT3, INTO or INT1, whose RIP this is: RIP is past it now. No gate's privilege has been looked at.
    case software(at: UInt64)
    /// `CPUEngine.inject(interrupt:)`.
    case interrupt
    /// `CPUEngine.injectNMI()`. The next one comes at once unless `CPUState.nmiBlocked` is set.
    case nmi
  }

  /// 0...255.
  public let vector: UInt8
  /// What raised it.
  public let kind: Kind
  /// For the exceptions that push one.
  public let errorCode: UInt32?
  /// What CR2 would hold, for #PF.
  public let address: UInt64

  /// A trap, field by field.
  public init(vector: UInt8, kind: Kind, errorCode: UInt32? = nil, address: UInt64 = 0) {
    (self.vector, self.kind, self.errorCode, self.address) = (vector, kind, errorCode, address)
  }
}

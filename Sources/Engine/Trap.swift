// SPDX-License-Identifier: Apache-2.0
// Traps, and where they go: to the guest's interrupt descriptor table, as a processor has it, or to the machine, which
// removes the cause or sends them on to a handler of its choice ("reflects" them, as lguest did).

/// Where exceptions, interrupts and INT n go.
public enum TrapPolicy: Sendable, Equatable {
  /// Through the guest's interrupt descriptor table.
  case guest
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
    /// INT n, INT3, INTO or INT1: RIP is past it. No gate's privilege has been looked at.
    case software
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

// SPDX-License-Identifier: Apache-2.0
// What a thread may ask of the kernel, as a list, and its translation into the language that the kernel checks by:
// classic BPF over `struct seccomp_data` (linux, Documentation/userspace-api/seccomp_filter.rst). Whatever is not on
// the list raises SIGSYS, calls by the numbers of other architectures included.

import CHost

/// A list of allowed system calls, compiled.
public struct SystemCallFilter: Sendable, Equatable {
  /// What an argument must be like. The kernel takes an `int` by its low half, so that is what most conditions look at.
  public enum Condition: Sendable, Equatable {
    /// None of these bits is set in the low half of argument `number`, 0...5.
    case without(Int, UInt32)
    /// All of these bits are set in its low half.
    case with(Int, UInt32)
    /// Its low half is one of these, of which there is at least one, whatever the ignored bits are.
    case oneOf(Int, [UInt32], ignoring: UInt32 = 0)
    /// All 64 bits are these.
    case equals(Int, UInt64)
  }

  /// A call that is allowed if all conditions hold.
  public struct Rule: Sendable, Equatable {
    public var call: SystemCall
    public var conditions: [Condition]

    public init(_ call: SystemCall, _ conditions: [Condition] = []) {
      self.call = call
      self.conditions = conditions
    }
  }

  /// An instruction of classic BPF (linux/filter.h).
  public struct Instruction: Sendable, Equatable {
    public var code: UInt16
    /// Instructions to skip if a comparison holds, and if not.
    public var ifTrue: UInt8 = 0
    public var ifFalse: UInt8 = 0
    public var operand: UInt32
  }

  public let instructions: [Instruction]

  /// - Parameters:
  ///   - rules: Calls may stand there once; those that are made most often first.
  ///   - data: Told to whoever handles a refusal (`Refusals`).
  public init(_ rules: [Rule], data: UInt16) {
    let refuse = Instruction(code: Code.answer, operand: Answer.trap | UInt32(data))
    var program: [Instruction] = []
    program.reserveCapacity(8 * rules.count)
    program += [
      Instruction(code: Code.load, operand: Offset.architecture),
      Instruction(code: Code.jumpIfEqual, ifTrue: 1, operand: Architecture.x86_64),
      refuse,
      Instruction(code: Code.load, operand: Offset.number),
      // The x32 interface: this architecture, other numbers.
      Instruction(code: Code.jumpIfAtLeast, ifFalse: 1, operand: Architecture.x32Bit),
      refuse,
    ]
    for rule in rules {
      let body = rule.conditions.flatMap { SystemCallFilter.check($0, refuse) } + [SystemCallFilter.allow]
      program.append(
        Instruction(code: Code.jumpIfEqual, ifFalse: UInt8(body.count), operand: rule.call.rawValue))
      program += body
    }
    instructions = program + [refuse]
  }

  /// Goes on behind the last instruction if the condition holds. Afterwards the call's number is no longer at hand,
  /// and it need not be: nothing else allows this call.
  private static func check(_ condition: Condition, _ refuse: Instruction) -> [Instruction] {
    func low(_ number: Int) -> Instruction {
      precondition((0...5).contains(number))
      return Instruction(code: Code.load, operand: Offset.arguments + 8 * UInt32(number))
    }
    func isOneOf(_ values: [UInt32]) -> [Instruction] {
      values.enumerated().map { index, value in
        Instruction(code: Code.jumpIfEqual, ifTrue: UInt8(values.count - index), operand: value)
      } + [refuse]
    }
    switch condition {
    case .without(let number, let bits):
      return [low(number), Instruction(code: Code.jumpIfAnySet, ifFalse: 1, operand: bits), refuse]
    case .with(let number, let bits):
      return [low(number), Instruction(code: Code.and, operand: bits)] + isOneOf([bits])
    case .oneOf(let number, let values, let ignored):
      return [low(number), Instruction(code: Code.and, operand: ~ignored)] + isOneOf(values)
    case .equals(let number, let value):
      var high = low(number)
      high.operand += 4
      return [low(number)] + isOneOf([UInt32(truncatingIfNeeded: value)]) + [high]
        + isOneOf([UInt32(truncatingIfNeeded: value >> 32)])
    }
  }

  private static let allow = Instruction(code: Code.answer, operand: Answer.allow)

  /// Opcodes (linux/bpf_common.h).
  enum Code {
    static let load: UInt16 = 0x20
    static let jumpIfEqual: UInt16 = 0x15
    static let jumpIfAtLeast: UInt16 = 0x35
    static let jumpIfAnySet: UInt16 = 0x45
    static let and: UInt16 = 0x54
    static let answer: UInt16 = 0x06
  }

  /// Places in `struct seccomp_data` (linux/seccomp.h), which CHost/sandbox.c compares with the header.
  enum Offset {
    static let number: UInt32 = 0
    static let architecture: UInt32 = 4
    static let arguments: UInt32 = 16
  }

  /// AUDIT_ARCH_X86_64 (linux/audit.h) and __X32_SYSCALL_BIT (asm/unistd.h).
  enum Architecture {
    static let x86_64: UInt32 = 0xC000_003E
    static let x32Bit: UInt32 = 0x4000_0000
  }

  /// What a filter returns (linux/seccomp.h).
  enum Answer {
    static let trap: UInt32 = 0x0003_0000
    static let allow: UInt32 = 0x7FFF_0000
  }

  // MARK: The calling thread

  /// Filters the system calls of the calling thread for good, and of threads that it starts.
  ///
  /// - Throws: `HostError`: the host takes no filter.
  public func install() throws(HostError) {
    try checked(chost_forbid_privileges(), "forbid", "privileges")
    unsafe try checked(
      withProgram { unsafe chost_filter_install($0, UInt16(instructions.count)) }, "filter",
      "a thread's system calls")
  }

  /// Calls `body` with the instructions as the kernel takes them.
  func withProgram<Result>(_ body: (UnsafePointer<chost_bpf>?) -> Result) -> Result {
    let program = instructions.map {
      chost_bpf(code: $0.code, if_true: $0.ifTrue, if_false: $0.ifFalse, operand: $0.operand)
    }
    return unsafe program.withUnsafeBufferPointer { unsafe body($0.baseAddress) }
  }
}

/// What becomes of calls that a filter refuses.
public enum Refusals {
  /// Has a function called in place of a refused call, in a signal handler, on the thread that made the call; it must
  /// not return. It gets the call's number, what the filter said about itself, and whether the number is that of
  /// another architecture. Without one, the process dies of SIGSYS.
  public static func handle(_ body: (@convention(c) (Int32, UInt32, Int32) -> Void)?) {
    chost_on_refusal(body)
  }

  /// Takes the signal that refused calls raise, before the first filter is installed.
  public static func prepare() { _ = chost_prepare_refusals() }

  /// A call's name as C has it, never freed. For signal handlers.
  @unsafe public static func name(of number: Int32) -> UnsafePointer<CChar> {
    unsafe chost_system_call_name(number)
  }
}

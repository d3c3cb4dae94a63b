// SPDX-License-Identifier: Apache-2.0
// Hypercalls of the embedding program with typed arguments, results and failures: the conversions from and to registers
// stand here once, not in every handler.

import Paravirt

/// What a register can be taken for, and what can be put into one: the integers.
public protocol HypercallValue: Sendable {
  /// From a register; what does not fit is cut off, as narrower code would do.
  init(hypercallRegister: UInt64)
  /// To a register; sign-extended if signed.
  var hypercallRegister: UInt64 { get }
}

extension HypercallValue where Self: FixedWidthInteger {
  /// The register's low bits.
  public init(hypercallRegister: UInt64) { self.init(truncatingIfNeeded: hypercallRegister) }
  /// Sign-extended or zero-extended, as the type has it.
  public var hypercallRegister: UInt64 { UInt64(truncatingIfNeeded: self) }
}

extension UInt64: HypercallValue {}
extension Int64: HypercallValue {}
extension UInt32: HypercallValue {}
extension Int32: HypercallValue {}

/// Why a handler refuses; RAX is the code, negated, as with KVM's own calls.
public struct HypercallFailure: Error, Sendable, Equatable {
  /// A number of errno(3), as a rule; the guest finds 0 - code in RAX.
  public let code: UInt64

  /// A failure of the program's own.
  public init(code: UInt64) { self.code = code }
  private init(_ status: KVMStatus) { code = status.rawValue }

  /// An address that is not RAM (-14).
  public static let badAddress = HypercallFailure(.badAddress)
  /// Nonsense in an argument (-22).
  public static let invalid = HypercallFailure(.invalid)
  /// Too much at once (-7).
  public static let tooBig = HypercallFailure(.tooBig)
}

extension VirtualMachine.Configuration {
  /// Adds a hypercall of the program's own.
  ///
  /// The handler runs on the vCPU's thread, and several vCPUs may call at once. It gets the call, for access to the
  /// guest's memory, and as many arguments as it names, at most four (six in the interface of 2007); more are zero.
  ///
  /// - Parameter number: What the guest puts into RAX. Numbers of KVM's own cannot be replaced; stay above 0x1000.
  public mutating func addHypercall<each Argument: HypercallValue, Result: HypercallValue>(
    _ number: UInt64,
    _ body: @escaping @Sendable (VirtualMachine.Hypercall, repeat each Argument) throws(HypercallFailure) -> Result
  ) {
    hypercalls[number] = { call in
      var registers = call.arguments.makeIterator()
      func next<Value: HypercallValue>(_ type: Value.Type) -> Value { Value(hypercallRegister: registers.next() ?? 0) }
      do throws(HypercallFailure) {
        return try body(call, repeat next((each Argument).self)).hypercallRegister
      } catch {
        return 0 &- error.code
      }
    }
  }
}

extension VirtualMachine.Hypercall {
  /// Unsigned integers in guest memory, lowest byte first.
  ///
  /// - Throws: `badAddress` unless all of them are RAM.
  public func load<Value: FixedWidthInteger & UnsignedInteger>(
    _ type: Value.Type = Value.self, at address: UInt64, count: UInt64
  ) throws(HypercallFailure) -> [Value] {
    let width = Value.bitWidth / 8
    let (size, isHuge) = count.multipliedReportingOverflow(by: UInt64(width))
    guard !isHuge, let size = Int(exactly: size), let bytes = bytes(at: address, count: size) else { throw .badAddress }
    return stride(from: 0, to: size, by: width).map { start in
      (0..<width).reduce(0) { $0 | Value(truncatingIfNeeded: bytes[start + $1]) << Value(truncatingIfNeeded: 8 * $1) }
    }
  }

  /// Stores unsigned integers in guest memory, lowest byte first.
  ///
  /// - Throws: `badAddress` unless all of it is RAM; nothing is stored then.
  public func store<Value: FixedWidthInteger & UnsignedInteger>(
    _ values: [Value], at address: UInt64
  ) throws(HypercallFailure) {
    let bytes = values.flatMap { value in
      (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> Value(truncatingIfNeeded: 8 * $0)) }
    }
    guard store(bytes, at: address) else { throw .badAddress }
  }
}

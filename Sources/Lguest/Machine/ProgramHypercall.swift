// SPDX-License-Identifier: Apache-2.0
// Hypercalls that the program around a machine adds: a number, a handler, a value for the guest's RAX.

import GuestMemory
import Paravirt
import X86

extension VirtualMachine {
  /// A hypercall for the program around the machine.
  public struct Hypercall: Sendable {
    /// What the guest had in RAX.
    public let number: UInt64
    /// RBX, RCX, RDX and RSI, cut to 32 bits if the caller was not 64-bit code. In the interface of 2007: RDI, RSI,
    /// RDX, RCX, R8 and R9, or EAX, ECX, EDX, ESI, EDI and EBP.
    public let arguments: [UInt64]
    /// Whether the caller ran 64-bit code.
    public let isLong: Bool
    private let memory: GuestMemory

    init(_ request: HypercallRequest, _ memory: GuestMemory) {
      number = request.number
      arguments = request.arguments
      isLong = request.isLong
      self.memory = memory
    }

    /// The bytes at a guest-physical address; nil unless all of them are RAM.
    public func bytes(at address: UInt64, count: Int) -> [UInt8]? {
      do throws(MemoryError) { return try memory.bytes(at: GuestPhysical(address), count: count) } catch { return nil }
    }

    /// Stores bytes at a guest-physical address; false, and nothing is changed, unless all of it is RAM.
    public func store(_ bytes: [UInt8], at address: UInt64) -> Bool {
      do throws(MemoryError) { try memory.copy(from: bytes, to: GuestPhysical(address)) } catch { return false }
      return true
    }
  }

  /// Answers a hypercall on the vCPU's thread; the value goes to RAX. The guest waits until it returns.
  public typealias HypercallHandler = @Sendable (Hypercall) -> UInt64
}

extension VirtualMachine.Configuration {
  var nativeHypercall: HypercallOpcode { cpuVendor == .intel ? .vmcall : .vmmcall }

  /// What becomes of the hypercall instruction that is not the CPU's own.
  var hypercallPolicy: HypercallPolicy {
    switch effectiveForeignHypercall {
    case .native: .native
    case .emulate: .emulate
    case .patch: .patch
    case .fault: .fault
    }
  }

  /// The policy as it was asked for, or that of the guest's interface.
  var effectiveForeignHypercall: ForeignHypercall { foreignHypercall ?? (abi == .lguest ? .patch : .native) }

  var kvmInterface: KVMInterface {
    switch kvmAPI {
    case .modern: .modern
    case .refactored: .refactored
    case .year2007: .year2007
    }
  }

  /// KVM's calls whose answer is the same whatever the machine does, but for those that the program answers.
  var constantHypercalls: [UInt64: Int32] {
    guard kvmAPI == .modern else { return [:] }
    return KVMHypercall.constantAnswers(features: offered).filter { hypercalls[$0.key] == nil }
  }

  /// The program's own hypercalls as one function; nil where it has none of that number.
  func program(_ memory: GuestMemory) -> (@Sendable (HypercallRequest) -> UInt64?)? {
    guard !hypercalls.isEmpty else { return nil }
    let handlers = hypercalls
    return { request in handlers[request.number]?(VirtualMachine.Hypercall(request, memory)) }
  }
}

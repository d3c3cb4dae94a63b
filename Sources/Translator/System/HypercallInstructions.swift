// SPDX-License-Identifier: Apache-2.0
// VMCALL and VMMCALL: the vendor's own leaves for the machine, the other one does what the policy says; and what the
// machine needs to deal with it, the bytes at RIP and a store to them in the guest's name.

import CHost
import X86

extension Processor {
  /// VMCALL, VMMCALL. Neither takes a 66, F2 or F3 prefix (SDM volume 3, chapter 31; APM volume 3).
  func hypercall(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    guard !instruction.hasOperandSizePrefix, instruction.repeatPrefix == 0 else { throw .invalidOpcode }
    if instruction.modRM != state.nativeHypercall.rawValue {
      switch state.hypercallPolicy {
      case .native: break
      case .fault: throw .invalidOpcode
      case .emulate, .patch:
        // A prefixed form is left alone: the three bytes to replace would not be those at RIP.
        guard instruction.length == 3 else { throw .invalidOpcode }
        return .exit(.foreignHypercall)
      }
    }
    advance(instruction)
    return .exit(.hypercall)
  }
}

extension TranslatedCPU {
  /// How many bytes either instruction has.
  private static let hypercallLength = 3

  public var hypercallCode: [UInt8] {
    let bytes = busy {
      processor.state.waitsForPages = true
      defer { processor.state.waitsForPages = false }
      return processor.fetch(at: page[\.rip])
    }
    return (0..<min(bytes.count, TranslatedCPU.hypercallLength)).map { bytes[$0] }
  }

  public func skipHypercall() {
    processor.advance(TranslatedCPU.hypercallLength)
    stepped()
  }

  public func replaceHypercall(with opcode: HypercallOpcode) -> Bool { busy { replace(with: opcode) } }

  private func replace(with opcode: HypercallOpcode) -> Bool {
    do throws(Fault) {
      let span = try processor.span(
        linearIP, count: TranslatedCPU.hypercallLength, write: true, as: processor.authority)
      // Only this byte differs, so that no other vCPU ever sees half an instruction.
      processor.store(opcode.rawValue, span, at: TranslatedCPU.hypercallLength - 1)
      return true
    } catch {
      fault(error)
      return false
    }
  }

  public func refuseHypercall(privileged: Bool) {
    busy { fault(privileged ? .generalProtection() : .invalidOpcode) }
  }

  /// How often each of `TranslationOptions.constantHypercalls` was made; to be asked on the thread that runs the vCPU.
  public var constantHypercalls: [(number: UInt64, count: UInt64)] { page.constantHypercalls }

  /// The hypercall instruction of the CPU's vendor.
  public var nativeHypercall: HypercallOpcode { processor.state.nativeHypercall }

  /// CR0.PE.
  public var isProtected: Bool { page.isProtected }

  public func refetchCode() {
    busy {
      let first = linearIP
      unsafe chost_flush_page(page.pointer, first)
      unsafe chost_flush_page(page.pointer, first &+ UInt64(TranslatedCPU.hypercallLength - 1))
    }
  }
}

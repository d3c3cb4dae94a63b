// SPDX-License-Identifier: Apache-2.0
// Both sides of one case compared: the state that the same bytes left, and memory.

import CNative
import X86

@testable import Translator

extension Bench {
  /// The first difference between `native` and `translated`, or nil.
  func difference(_ tolerance: Tolerance, privilege: Int) -> String? {
    unsafe Outcome(native).difference(
      Outcome(translated), from: Outcome(input), tolerance, privilege: privilege)
  }

  /// The same for a case of one instruction, by what the vendor of the host's processor lets expect. What only the
  /// native side stored is taken back.
  ///
  /// - Parameters:
  ///   - before: The operand's bytes before both ran.
  ///   - narrow: 16- or 32-bit code.
  ///   - runAgain: Runs `input` natively once more.
  func difference(
    _ facts: CaseFacts, before: [UInt8?], _ tolerance: Tolerance, narrow: Bool = false, runAgain: () -> Void
  ) -> String? {
    func outcome(_ state: UnsafeMutablePointer<cnative_state>, _ operand: [UInt8?]) -> Outcome {
      var result = unsafe Outcome(state)
      result.operand = operand
      if narrow { result.narrow() }
      return result
    }
    let start = unsafe outcome(input, before)
    let host = unsafe outcome(native, operand(facts, native: true))
    let guest = unsafe outcome(translated, operand(facts, native: false))
    var masked: Outcome?
    if HostVendor.here.wantsMaskedRun(facts, native: host, translated: guest) {
      setImage(0, start.controlWord | 0x3F)
      setImage(24, start.mxcsr | 0x1F80)
      runAgain()
      setImage(0, start.controlWord)
      setImage(24, start.mxcsr)
      masked = unsafe outcome(native, operand(facts, native: true))
    }
    let expected = HostVendor.here.expectation(facts, input: start, native: host, masked: masked)
    if let address = facts.address {
      for (offset, byte) in expected.operand.enumerated() {
        guard let byte else { continue }
        arena.restoreNative(byte, at: address &+ UInt64(offset))
      }
    }
    return expected.difference(guest, from: start, tolerance, privilege: facts.privilege)
  }

  /// The operand's bytes, as far as outcomes record them.
  func operand(_ facts: CaseFacts, native: Bool) -> [UInt8?] {
    guard let address = facts.address else { return [] }
    return (0..<facts.size).map { arena.byte(address &+ UInt64($0), native: native) }
  }

  /// The first difference of memory in the pages around `addresses`.
  func memoryDifference(around addresses: [UInt64]) -> String? {
    var seen: [UInt64] = []
    for address in addresses {
      var page = (address &- 256) & ~0xFFF
      while page <= (address &+ 1100) & ~0xFFF {
        if !seen.contains(page) {
          seen.append(page)
          if let found = arena.difference(page: page) {
            arena.synchronize(page: page)
            return found
          }
        }
        page &+= 4096
      }
    }
    return nil
  }

  /// The first difference of memory anywhere.
  func memoryDifference() -> String? {
    var result: String?
    for window in Arena.windows {
      for index in window.kinds.indices {
        let page = window.base + UInt64(index) << 12
        if let found = arena.difference(page: page) {
          result = result ?? found
          arena.synchronize(page: page)
        }
      }
    }
    return result
  }
}

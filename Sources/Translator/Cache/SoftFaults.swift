// SPDX-License-Identifier: Apache-2.0
// Host faults at places in translated code where none is expected: a check was wrong, and memory that nobody may touch
// stood in the way. The guest's instruction is executed by Swift instead, which checks everything anew, and the
// blocks that hold it are translated again without what the mistake can have been about. A bug of ours all the same: it
// is counted and told, and a few of them end the run.

import CHost
import Engine
import Synchronization
import X86

/// What the engine has met of them, and which code it no longer trusts.
struct SoftFaults {
  /// So many faults end the run.
  static let limit = 16

  /// Faults so far.
  private(set) var count: UInt64 = 0
  /// Where, as guest-physical addresses of instructions.
  private var places: Set<UInt64> = []
  /// The first, in words.
  private(set) var first: String?

  /// Notes a fault of the instruction at `place`; whether the run may go on.
  mutating func note(_ place: UInt64, _ text: @autoclosure () -> String, limit: Int) -> Bool {
    count &+= 1
    if first == nil { first = text() }
    return places.insert(place).inserted && count < UInt64(limit)
  }

  /// Whether none of `count` bytes of code from `physical` on is at such a place: nearly always at once.
  func trusts(_ physical: UInt64, count: Int) -> Bool {
    places.isEmpty || !places.contains { $0 &- physical < UInt64(count) }
  }
}

extension TranslatedCPU {
  /// The host CPU raised an exception in translated code: the guest instruction's own, or for want of memory where an
  /// empty stack entry leads, or by a mistake of ours.
  func hostFault() -> VCPUExit? {
    let address = page[\.fault_pc]
    let trap = page[\.fault_trap]
    guard let (block, fault) = translation.lock.withLock({ _ in translation.cache.faultingInstruction(at: address) })
    else { return .failed(describe(trap, at: address)) }
    restore(fault)
    if trap == UInt32(CHOST_TRAP_SLOT) { return executeSlowly() }
    if trap != UInt32(CHOST_TRAP_PAGE) && fault.state.contains(.canRaise) {
      self.fault(guestFault(hostTrap: trap))
      return nil
    }
    let place = block.page | UInt64(fault.offset)
    let text = describe(trap, at: address)
    let goesOn = translation.lock.withLock { _ in
      translation.cache.distrust(place, text, limit: translation.options.softFaultLimit)
    }
    guard goesOn else { return .failed(text) }
    return executeSlowly()
  }

  /// Completes the state of the guest as it was before the instruction of a fault site.
  private func restore(_ fault: CachedFault) {
    let state = fault.state
    if !state.contains(.flagsSaved) { page[\.flags] = page[\.captured_flags] }
    if state.contains(.restoresScratch) {
      page[register: GPR.rax] = page[\.scratch].0
      page[register: GPR.rdx] = page[\.scratch].1
    }
    if state.contains(.restoresRDI) { page[register: GPR.rdi] = page[\.scratch].0 }
    if fault.pendingStack != 0 {
      let moved = page[register: GPR.rsp] &+ UInt64(bitPattern: Int64(fault.pendingStack))
      page[register: GPR.rsp] = page.isLongMode ? moved : moved & 0xFFFF_FFFF
    }
    setIP(linear: page[\.page_va] &+ UInt64(fault.offset))
  }

  private func describe(_ trap: UInt32, at address: UInt64) -> String {
    "host trap \(trap) at an unexpected place in translated code (guest page \(hex(page[\.page_va])), host code "
      + hostBytes(at: address) + ")"
  }

  /// The first bytes of an instruction in the code cache.
  private func hostBytes(at address: UInt64) -> String {
    guard address >= page[\.code_base], address < page[\.code_end] &- 16 else { return "outside" }
    let bytes = unsafe UnsafeBufferPointer(start: UnsafePointer<UInt8>(bitPattern: UInt(address)), count: 12)
    return unsafe bytes.map { String($0, radix: 16) }.joined(separator: " ")
  }
}

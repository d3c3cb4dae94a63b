// SPDX-License-Identifier: Apache-2.0
// IN and OUT: who may use a port (SDM volume 1, 19.5), and finishing the exits that the machine answers.

import CHost
import Engine
import X86

extension Processor {
  /// #GP(0) unless IOPL or the I/O permission bitmap of the TSS allows the ports.
  func checkPort(_ port: UInt16, _ size: UInt8) throws(Fault) {
    try checkPermission(port, size)
    if mode(CHOST_MODE_STEP) {
      state.pendingDebug |= dataBreakpoint(at: UInt64(port), count: UInt64(size), write: false, port: true)
    }
  }

  private func checkPermission(_ port: UInt16, _ size: UInt8) throws(Fault) {
    guard page.isProtected else { return }
    let ioPrivilege = page.rflags >> 12 & 3
    if !page.isVM86 && UInt64(privilege) <= ioPrivilege { return }
    let task = page[.tr]
    // A 16-bit TSS has no bitmap.
    guard !task.isUnusable, task.type & 8 != 0, task.limit >= 103 else { throw .generalProtection() }
    let map = UInt32(try read(UInt16.self, at: task.base &+ 102, as: .implicit))
    let first = map &+ UInt32(port >> 3)
    // Two bytes are read even when one holds all the bits.
    guard first &+ 1 <= task.limit else { throw .generalProtection() }
    let bits = try read(UInt16.self, at: task.base &+ UInt64(first), as: .implicit)
    let wanted = (UInt16(1) << UInt16(size)) &- 1
    if bits >> UInt16(port & 7) & wanted != 0 { throw .generalProtection() }
  }

  func input(_ instruction: Instruction, port: UInt16) throws(Fault) -> SystemOutcome {
    let size = instruction.opcode & 1 == 0 ? 1 : min(instruction.operandSize, 4)
    try checkPort(port, size)
    state.completion = .portRead(size: size, next: next(instruction))
    return .exit(.portRead(port: port, size: size))
  }

  func output(_ instruction: Instruction, port: UInt16) throws(Fault) -> SystemOutcome {
    let size = instruction.opcode & 1 == 0 ? 1 : min(instruction.operandSize, 4)
    try checkPort(port, size)
    let value = UInt32(truncatingIfNeeded: register(GPR.rax, size: size))
    advance(instruction)
    return .exit(.portWrite(port: port, size: size, value: value))
  }

  // MARK: Completions

  /// Whether the last exit still owes an answer.
  var owesCompletion: Bool { state.completion != .none }

  /// Takes the machine's answer to `portRead` or `msrRead`.
  func completeRead(_ value: UInt64) throws(Fault) {
    let completion = state.completion
    state.completion = .none
    switch completion {
    case .portRead(let size, let next):
      setRegister(GPR.rax, value, size: size)
      page[\.rip] = next
      clearResume()
    case .stringRead(let linear, let size, let addressSize, let repeated, let next):
      try finishInput(
        value, linear: linear, size: size, addressSize: addressSize, repeated: repeated, next: next)
    case .msrRead(let next):
      setMSRResult(value)
      page[\.rip] = next
      clearResume()
    case .msrWrite, .none: break
    }
  }

  /// Takes the machine's acceptance of an `msrWrite`.
  func completeWrite() {
    if case .msrWrite(let next) = state.completion {
      page[\.rip] = next
      clearResume()
    }
    state.completion = .none
  }
}

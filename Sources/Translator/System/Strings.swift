// SPDX-License-Identifier: Apache-2.0
// One element of MOVS, STOS, LODS, SCAS, CMPS, INS and OUTS: what runs when translated code and the page-sized
// loops of string.c cannot. A repeated instruction leaves RIP where it is until its count is used up.

import CHost
import Engine
import X86

extension Processor {
  // MARK: Counting

  /// The bytes that each element moves SI and DI by.
  private func stride(_ size: UInt8) -> UInt64 {
    page.rflags & RFLAGS.df != 0 ? 0 &- UInt64(size) : UInt64(size)
  }

  private func step(_ number: UInt8, by amount: UInt64, _ addressSize: UInt8) {
    setRegister(number, page[register: number] &+ amount, size: addressSize)
  }

  /// Whether a repeated instruction has nothing (left) to do.
  private func isExhausted(_ instruction: Instruction) -> Bool {
    instruction.isRepeated && register(GPR.rcx, size: instruction.addressSize) == 0
  }

  /// Counts an element; RIP moves on unless more are to come.
  private func finishElement(_ instruction: Instruction, stops: Bool = false) {
    guard instruction.isRepeated else { return advance(instruction) }
    let count = register(GPR.rcx, size: instruction.addressSize) &- 1
    setRegister(GPR.rcx, count, size: instruction.addressSize)
    if count & Processor.mask(instruction.addressSize) == 0 || stops { return advance(instruction) }
    state.isRepeating = true
  }

  /// Intel's CPUs begin a repeated string instruction of 32-bit addresses in 64-bit code by cutting RCX, and for MOVS and
  /// STOS the pointers, to 32 bits, even where no element follows or the first one faults; AMD's change a register with
  /// an element that is done, and not before (measured; neither manual says). For a count of zero KVM does the same by
  /// the guest's vendor (Linux, arch/x86/kvm/emulate.c, string_registers_quirk).
  private func beginRepeating(_ instruction: Instruction) {
    guard instruction.isRepeated, instruction.addressSize == 4, page.isLongMode, !state.cpuid.isAMD else { return }
    step(GPR.rcx, by: 0, 4)
    let isMOVS = instruction.opcode & 0xFE == 0xA4
    if isMOVS { step(GPR.rsi, by: 0, 4) }
    if isMOVS || instruction.opcode & 0xFE == 0xAA { step(GPR.rdi, by: 0, 4) }
  }

  private func elementSize(_ instruction: Instruction) -> UInt8 {
    instruction.opcode & 1 == 0 ? 1 : instruction.operandSize
  }

  // MARK: Memory strings

  func stringElement(_ instruction: Instruction) throws(Fault) {
    beginRepeating(instruction)
    if isExhausted(instruction) { return advance(instruction) }
    let size = elementSize(instruction)
    let address = instruction.addressSize
    let source = register(GPR.rsi, size: address)
    let destination = register(GPR.rdi, size: address)
    let amount = stride(size)
    switch instruction.opcode & 0xFE {
    case 0xA4:  // MOVS
      let value = try readMemory(dataSegment(instruction), source, size: size)
      try writeMemory(.es, destination, value, size: size)
      announce(destination, instruction, size: size)
      step(GPR.rsi, by: amount, address)
      step(GPR.rdi, by: amount, address)
      finishElement(instruction)
    case 0xA6:  // CMPS
      let left = try readMemory(dataSegment(instruction), source, size: size)
      let right = try readMemory(.es, destination, size: size)
      step(GPR.rsi, by: amount, address)
      step(GPR.rdi, by: amount, address)
      compare(left, right, size: size)
      finishElement(instruction, stops: stopsComparing(instruction))
    case 0xAA:  // STOS
      try writeMemory(.es, destination, register(GPR.rax, size: size), size: size)
      announce(destination, instruction, size: size)
      step(GPR.rdi, by: amount, address)
      finishElement(instruction)
    case 0xAC:  // LODS
      setRegister(GPR.rax, try readMemory(dataSegment(instruction), source, size: size), size: size)
      step(GPR.rsi, by: amount, address)
      finishElement(instruction)
    default:  // SCAS
      let right = try readMemory(.es, destination, size: size)
      step(GPR.rdi, by: amount, address)
      compare(register(GPR.rax, size: size), right, size: size)
      finishElement(instruction, stops: stopsComparing(instruction))
    }
  }

  /// Code that the rest of a repeated store will overwrite in this page is forgotten at once, not once per element.
  private func announce(_ destination: UInt64, _ instruction: Instruction, size: UInt8) {
    guard instruction.isRepeated, page.rflags & RFLAGS.df == 0, state.device.missing == nil else { return }
    let left = register(GPR.rcx, size: instruction.addressSize) &- 1
    guard left > 0, let observer = state.codeObserver else { return }
    let address = page.isLongMode ? destination : (page[.es].base &+ destination) & 0xFFFF_FFFF
    var physical: UInt64 = 0
    let access = UInt32(CHOST_ACCESS_WRITE) | authority.rights
    guard unsafe chost_probe(page.pointer, address, access, &physical) == 0, isRAM(physical) else { return }
    let room = 4096 &- (physical & 4095)
    let count = left >= room ? room : min(room, (left &+ 1) &* UInt64(size))
    observer.codeWritten(physical: physical, count: Int(count))
  }

  /// REPE stops at a difference, REPNE at equality.
  private func stopsComparing(_ instruction: Instruction) -> Bool {
    let equal = page.rflags & RFLAGS.zf != 0
    return instruction.repeatPrefix == 0xF2 ? equal : !equal
  }

  /// The six arithmetic flags of a subtraction.
  func compare(_ left: UInt64, _ right: UInt64, size: UInt8) {
    let mask = Processor.mask(size)
    let sign = mask ^ mask >> 1
    let result = (left &- right) & mask
    var flags = page.rflags & ~RFLAGS.arithmetic
    if left & mask < right & mask { flags |= RFLAGS.cf }
    if (left ^ right ^ result) & 0x10 != 0 { flags |= RFLAGS.af }
    if (left ^ right) & (left ^ result) & sign != 0 { flags |= RFLAGS.of }
    page.rflags = flags | Processor.resultFlags(result, size: size)
  }

  /// SF, ZF and PF of a result.
  static func resultFlags(_ result: UInt64, size: UInt8) -> UInt64 {
    let value = result & mask(size)
    var flags: UInt64 = 0
    if value == 0 { flags |= RFLAGS.zf }
    if value >> (UInt64(size) &* 8 &- 1) & 1 != 0 { flags |= RFLAGS.sf }
    if (value & 0xFF).nonzeroBitCount & 1 == 0 { flags |= RFLAGS.pf }
    return flags
  }

  // MARK: Port strings

  func inputElement(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    beginRepeating(instruction)
    if isExhausted(instruction) {
      advance(instruction)
      return .done
    }
    let size = min(elementSize(instruction), 4)
    let port = UInt16(truncatingIfNeeded: page[register: GPR.rdx])
    try checkPort(port, size)
    let destination = register(GPR.rdi, size: instruction.addressSize)
    let address = try linear(.es, destination, size: Int(size), write: true)
    _ = try span(address, count: Int(size), write: true, as: authority)
    state.completion = .stringRead(
      linear: address, size: size, addressSize: instruction.addressSize, repeated: instruction.isRepeated,
      next: next(instruction))
    return .exit(.portRead(port: port, size: size))
  }

  func outputElement(_ instruction: Instruction) throws(Fault) -> SystemOutcome {
    beginRepeating(instruction)
    if isExhausted(instruction) {
      advance(instruction)
      return .done
    }
    let size = min(elementSize(instruction), 4)
    let port = UInt16(truncatingIfNeeded: page[register: GPR.rdx])
    try checkPort(port, size)
    let value = try readMemory(
      dataSegment(instruction), register(GPR.rsi, size: instruction.addressSize), size: size)
    step(GPR.rsi, by: stride(size), instruction.addressSize)
    finishElement(instruction)
    return .exit(.portWrite(port: port, size: size, value: UInt32(truncatingIfNeeded: value)))
  }

  /// Stores what INS read and counts the element.
  func finishInput(
    _ value: UInt64, linear: UInt64, size: UInt8, addressSize: UInt8, repeated: Bool, next: UInt64
  ) throws(Fault) {
    store(value, try span(linear, count: Int(size), write: true, as: authority), size: size)
    step(GPR.rdi, by: stride(size), addressSize)
    if repeated {
      let count = register(GPR.rcx, size: addressSize) &- 1
      setRegister(GPR.rcx, count, size: addressSize)
      if count & Processor.mask(addressSize) != 0 {
        state.isRepeating = true
        return
      }
    }
    page[\.rip] = next
    clearResume()
  }
}

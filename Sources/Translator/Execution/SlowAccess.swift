// SPDX-License-Identifier: Apache-2.0
// The one slow mechanism for accesses that the software TLB cannot serve: page-crossing, device, code-page and faulting
// ones. Every page is checked with its final rights first; the operand is copied to the bounce buffer in the vCPU
// page; the *same* instruction runs with its operand pointing there; the result is written back. So every
// instruction works in every place, and none is interpreted.

import CHost
import Engine
import GuestMemory
import Synchronization
import X86

/// An instruction on its way through the slow path.
struct SlowAccess {
  enum Phase { case read, write }
  var phase: Phase
  let instruction: Instruction
  let row: Opcode
  let span: LinearSpan
  let reads: Bool
  let writes: Bool
  /// Bytes of the operand already moved in this phase.
  var position = 0
}

extension TranslatedCPU {
  /// Checks the operand and starts the phases; false if the instruction had no memory operand and is done.
  func prepare(_ instruction: Instruction, _ row: Opcode) throws(Fault) -> Bool {
    let traits = translation.cache.translator.traits(of: instruction.row)
    guard instruction.isMemory else {
      try runOnHost(instruction, row)
      return false
    }
    var operand = processor.effectiveAddress(instruction)
    if row.rule == .bitMemory {
      // The bit offset selects the word (SDM volume 2, BT).
      let size = instruction.operandSize
      let value = Processor.signExtend(page[register: instruction.reg], size: size)
      let bits: UInt64 = size == 8 ? 6 : (size == 4 ? 5 : 4)
      let words = UInt64(bitPattern: Int64(bitPattern: value) >> Int64(bits))
      operand.offset = (operand.offset &+ words &* UInt64(size)) & Processor.mask(instruction.addressSize)
    }
    let isState = row.rule == .saveState || row.rule == .restoreState
    var size = traits.memoryBytes(instruction)
    if traits.memorySize == .xsave {
      let mask = (page[register: GPR.rdx] << 32 | page[register: GPR.rax] & 0xFFFF_FFFF) & page[\.xcr0]
      size = mask & 4 != 0 ? 832 : 576
    }
    guard size > 0, size <= 1024 else { throw .invalidOpcode }
    let writes = traits.memoryWrites || row.rule == .saveState
    var alignment = row.attribute == .aligned ? UInt64(size) : 1
    if traits.memorySize == .xsave { alignment = 64 }
    if traits.memorySize == .fxsave { alignment = 16 }
    if traits.memorySize == .wide && size == 16 { alignment = 16 }
    // Before the stack's limit and before an address that is not canonical: so on Intel's family 6 model 207.
    let unchecked = processor.uncheckedLinear(operand.segment, operand.offset)
    if unchecked & (alignment &- 1) != 0 { throw .generalProtection() }
    let linear = try processor.linear(operand.segment, operand.offset, size: size, write: writes)
    let span = try processor.span(
      linear, count: size, write: writes, as: processor.authority, stack: operand.segment == .ss)
    // State images are merged with what is there (XSAVE leaves parts alone).
    // An x87 store whose exception is not masked leaves memory alone: so does writing back what was there.
    let mayNotStore = row.rule == .x87 && writes && controlWord & 0x3F != 0x3F
    slow = SlowAccess(
      phase: .read, instruction: instruction, row: row, span: span,
      reads: traits.memoryReads || isState || mayNotStore, writes: writes)
    return true
  }

  /// Moves the operand, runs the instruction, moves it back; returns an exit for every piece that is a device's.
  func continueSlow() -> VCPUExit? {
    guard var access = slow else { return nil }
    if access.phase == .read {
      if access.reads, let exit = move(&access, write: false) { return exit }
      do throws(Fault) { try runOnHost(access.instruction, access.row) } catch {
        slow = nil
        fault(error)
        return nil
      }
      access.phase = .write
      access.position = 0
    }
    if access.writes, let exit = move(&access, write: true) { return exit }
    slow = nil
    if isStepping { processor.state.pendingDebug |= DR6.step }
    processor.advance(access.instruction)
    return nil
  }

  /// Copies between the operand and the bounce buffer, from `position` on.
  private func move(_ access: inout SlowAccess, write: Bool) -> VCPUExit? {
    let span = access.span
    while access.position < span.count {
      let physical = span.physical(access.position)
      let end = access.position < span.firstCount ? span.firstCount : span.count
      let left = end - access.position
      var size = left >= 8 ? 8 : (left >= 4 ? 4 : (left >= 2 ? 2 : 1))
      if processor.isRAM(physical) {
        if write {
          storePiece(bounce(access.position, size), physical, size)
        } else {
          setBounce(access.position, size, loadPiece(physical, size))
        }
        access.position += size
        continue
      }
      // Devices see naturally aligned accesses.
      while physical & UInt64(size - 1) != 0 { size >>= 1 }
      if write {
        let value = bounce(access.position, size)
        access.position += size
        slow = access
        return .mmioWrite(address: physical, size: UInt8(size), value: value)
      }
      slow = access
      return .mmioRead(address: physical, size: UInt8(size))
    }
    return nil
  }

  /// The machine's answer to an MMIO read.
  func completeSlowRead(_ value: UInt64) {
    guard var access = slow, access.phase == .read else { return }
    let physical = access.span.physical(access.position)
    let end = access.position < access.span.firstCount ? access.span.firstCount : access.span.count
    let left = end - access.position
    var size = left >= 8 ? 8 : (left >= 4 ? 4 : (left >= 2 ? 2 : 1))
    while physical & UInt64(size - 1) != 0 { size >>= 1 }
    setBounce(access.position, size, value)
    access.position += size
    slow = access
  }

  private func loadPiece(_ physical: UInt64, _ size: Int) -> UInt64 {
    switch size {
    case 1: UInt64(processor.physicalLoad(UInt8.self, physical))
    case 2: UInt64(processor.physicalLoad(UInt16.self, physical))
    case 4: UInt64(processor.physicalLoad(UInt32.self, physical))
    default: processor.physicalLoad(UInt64.self, physical)
    }
  }

  private func storePiece(_ value: UInt64, _ physical: UInt64, _ size: Int) {
    switch size {
    case 1: processor.physicalStore(UInt8(truncatingIfNeeded: value), physical)
    case 2: processor.physicalStore(UInt16(truncatingIfNeeded: value), physical)
    case 4: processor.physicalStore(UInt32(truncatingIfNeeded: value), physical)
    default: processor.physicalStore(value, physical)
    }
  }
}

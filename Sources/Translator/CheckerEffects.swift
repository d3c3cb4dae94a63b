// SPDX-License-Identifier: Apache-2.0
// What the checker (Checker.swift) knows after an instruction: the shape of a check, instruction by instruction. Every other
// instruction leaves unknowns in what it writes.

import CHost
import X86

extension BlockChecker {
  /// Executes an instruction on what is known.
  func effect(
    _ address: UInt64, _ i: Instruction, _ row: Opcode, _ traits: RowTraits, _ state: inout CheckedState
  ) {
    let before = state
    if i.isMemory && traits.memoryWrites && i.base == RegisterMap.env {
      // Whatever is stored where groups keep things, no longer is what they kept.
      for number in 0..<Int32(CHOST_GROUPS) {
        let from = Slot.groups &+ number &* 8
        if i.displacement < from &+ 8 && i.displacement &+ 64 > from {
          state[UInt8(16 + number)] = fresh(address, UInt8(16 + number))
        }
      }
    }
    if row.map == .one && pattern(i, before, &state) { return }
    if row.flags.writesMaybe != 0 { state.flags = .nothing }
    func clobber(_ register: UInt8) { state[register] = fresh(address, register) }
    func written(_ use: FieldUse, _ register: UInt8) {
      if use.isGeneral && use.writes { clobber(use.isByte && i.isHighByte(register) ? register & 3 : register) }
    }
    written(traits.reg, i.reg)
    if !i.isMemory { written(traits.rm, i.rm) }
    written(traits.vvvv, i.vvvv)
    written(traits.plus, i.rm)
    let hidden = row.hiddenTargets
    for register in UInt8(0)..<3 where hidden >> register & 1 != 0 { clobber(register) }
  }

  /// The instructions that checks are made of. Returns false for others.
  private func pattern(_ i: Instruction, _ before: CheckedState, _ state: inout CheckedState) -> Bool {
    let wide = i.rex & 8 != 0
    switch i.opcode {
    case 0x89 where i.isMemory && wide && i.base == RegisterMap.env && i.index == 0xFF:
      guard let kept = BlockChecker.kept(i.displacement) else { return false }
      for number in UInt8(16)..<CheckedState.count { state[number] = before[number] }
      state[kept] = before[i.reg]
      return true
    case 0x89 where !i.isMemory:
      if wide {
        state[i.rm] = before[i.reg]
      } else if let (id, offset) = before[i.reg].linear, i.rm != i.reg {
        state[i.rm] = .low(id: id, offset: offset)
      } else {
        return false
      }
      return true
    case 0x8D:  // LEA
      guard wide, i.base != 0xFF else { return false }
      if i.index == 0xFF {
        switch before[i.base] {
        case .sum(let id, let offset): state[i.reg] = .sum(id: id, offset: offset + Int64(i.displacement))
        case .host(let low, let high, let write):
          state[i.reg] = .host(low: low - Int(i.displacement), high: high - Int(i.displacement), write: write)
        case .constant(let value): state[i.reg] = .constant(value &+ UInt64(bitPattern: Int64(i.displacement)))
        default: return false
        }
        return true
      }
      guard i.scale == 0, let (id, offset) = before[i.base].linear,
        case .addend(let checkedID, let start, let size, let write) = before[i.index], id == checkedID
      else { return false }
      let low = Int(start - offset - Int64(i.displacement))
      state[i.reg] = .host(low: low, high: low + size, write: write)
      return true
    case 0xC1 where !i.isMemory && i.modRM >> 3 & 7 == 5 && !wide && i.immediate == 8:
      guard case .low(let id, let offset) = before[i.rm] else { return false }
      state[i.rm] = .shifted(id: id, offset: offset)
      state.flags = .nothing
      return true
    case 0xC1 where !i.isMemory && i.modRM >> 3 & 7 == 5 && !wide && i.immediate == UInt64(CHOST_JUMP_SHIFT):
      state[i.rm] = .bounded(UInt64(UInt32.max >> UInt32(CHOST_JUMP_SHIFT)))
      state.flags = .nothing
      return true
    case 0x81, 0x83:
      guard !i.isMemory else { return false }
      return immediate(i, before, &state, wide: wide)
    case 0x2B where wide && i.isMemory && i.base == RegisterMap.env && i.index == 0xFF:  // from a slot's tag
      guard let (id, offset) = before[i.reg].linear, let slot = BlockChecker.slot(Int64(i.displacement)), !slot.isRegion
      else { return false }
      state[i.reg] = .distance(id: id, offset: offset, table: Int64(i.displacement))
      state.flags = .nothing
      return true
    case 0x03 where wide && i.isMemory && i.base == RegisterMap.env && i.index == 0xFF:
      guard case .distance(let id, let offset, let table) = before[i.reg], table == Int64(i.displacement) else {
        return false
      }
      state[i.reg] = .sum(id: id, offset: offset)
      state.flags = .nothing
      return true
    case 0x3B where wide && i.isMemory && i.base == RegisterMap.env && i.index == 0xFF:  // CMP with a region's tag
      state.flags = .nothing
      if case .distance(let id, let offset, let table) = before[i.reg], Int64(i.displacement) == table + 16,
        let slot = BlockChecker.slot(table), slot.most > 0
      {
        state.flags = .compared(id: id, offset: offset, table: table, size: slot.most)
        return true
      }
      guard let slot = BlockChecker.slot(Int64(i.displacement)), slot.isRegion else { return true }
      var size = 64
      if let (id, offset) = before[i.reg].linear, id == BlockChecker.pageAddress || id == Int.min, offset & 4095 == 0 {
        size = 4096
      }
      state.flags = .region(slot: Int64(i.displacement), size: size, passed: false)
      return true
    case 0x8B where wide && i.isMemory && i.base == RegisterMap.env && i.index == 0xFF:
      let displacement = Int64(i.displacement)
      if i.displacement == Slot.pageAddress {
        state[i.reg] = .sum(id: BlockChecker.pageAddress, offset: 0)
      } else if let kept = BlockChecker.kept(i.displacement) {
        state[i.reg] = before[kept]
      } else if case .region(let slot, let size, true) = before.flags, displacement == slot + 8 {
        state[i.reg] = .host(low: 0, high: size, write: BlockChecker.slot(slot)?.writes ?? false)
      } else if case .compared(let id, let offset, let table, let size) = before.flags, size & BlockChecker.passed != 0,
        displacement == table + 8, let slot = BlockChecker.slot(table), !slot.isRegion
      {
        state[i.reg] = .addend(id: id, offset: offset, size: size & ~BlockChecker.passed, write: slot.writes)
      } else {
        return false
      }
      return true
    case 0xFF where wide && !i.isMemory && i.modRM >> 3 & 7 < 2:  // INC, DEC
      guard case .sum(let id, let offset) = before[i.rm] else { return false }
      state[i.rm] = .sum(id: id, offset: i.modRM >> 3 & 7 == 0 ? offset + 1 : offset - 1)
      state.flags = .nothing
      return true
    case 0x2B where wide && i.isMemory && i.base == RegisterMap.env:  // SUB distance
      guard i.index != 0xFF, let (id, offset) = before[i.reg].linear,
        case .entry(let entryID, let entryOffset) = before[i.index], id == entryID, offset == entryOffset
      else { return false }
      state[i.reg] = .distance(id: id, offset: offset, table: Int64(i.displacement))
      state.flags = .nothing
      return true
    case 0x03 where wide && i.isMemory && i.base == RegisterMap.env:  // ADD undoes it
      guard i.index != 0xFF, case .distance(let id, let offset, let table) = before[i.reg],
        table == Int64(i.displacement),
        before[i.index] == .entry(id: id, offset: offset)
      else { return false }
      state[i.reg] = .sum(id: id, offset: offset)
      state.flags = .nothing
      return true
    case 0x8B where wide && i.isMemory && i.base == RegisterMap.env && i.index != 0xFF:  // the addend
      guard case .entry(let id, let offset) = before[i.index],
        case .compared(let checkedID, let checkedOffset, let table, let size) = before.flags,
        size & BlockChecker.passed != 0, id == checkedID, offset == checkedOffset, Int64(i.displacement) == table + 8
      else { return false }
      let inTables = Int(table) - Int(CHOST_TLB_READ)
      let write = inTables / Int(CHOST_TLB_BYTES) & 1 == 1
      state[i.reg] = .addend(id: id, offset: offset, size: size & ~BlockChecker.passed, write: write)
      return true
    case 0xB8...0xBF:
      state[i.rm] = .constant(wide ? i.immediate : i.immediate & 0xFFFF_FFFF)
      return true
    case 0xC7 where wide && !i.isMemory:
      state[i.rm] = .constant(i.immediate)
      return true
    default: return false
    }
  }

  /// ADD, SUB, AND and CMP with a constant.
  private func immediate(_ i: Instruction, _ before: CheckedState, _ state: inout CheckedState, wide: Bool) -> Bool {
    switch i.modRM >> 3 & 7 {
    case 0, 5:
      guard wide, case .sum(let id, let offset) = before[i.rm] else { return false }
      let constant = Int64(bitPattern: i.immediate)
      state[i.rm] = .sum(id: id, offset: i.modRM >> 3 & 7 == 0 ? offset &+ constant : offset &- constant)
      state.flags = .nothing
      return true
    case 4:
      guard i.immediate < 1 << 31 else { return false }
      state.flags = .nothing
      if case .shifted(let id, let offset) = before[i.rm], i.immediate == (UInt64(CHOST_TLB_ENTRIES) - 1) << 4 {
        state[i.rm] = .entry(id: id, offset: offset)
      } else {
        state[i.rm] = .bounded(i.immediate)
      }
      return true
    case 7:
      state.flags = .nothing
      if case .distance(let id, let offset, let table) = before[i.rm], wide {
        // A site's distance is compared with the slot's bound.
        guard i.immediate < 4096, (BlockChecker.slot(table)?.most ?? 0) == 0 else { return true }
        state.flags = .compared(id: id, offset: offset, table: table, size: 4096 - Int(i.immediate))
      }
      return true
    default: return false
    }
  }
}

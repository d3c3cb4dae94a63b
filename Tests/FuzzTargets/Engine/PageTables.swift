// SPDX-License-Identifier: Apache-2.0
// The target of page tables: random entries in every format of paging, and code of steps of 16 bytes that loads, stores,
// changes entries, flushes and switches, while the handler of page faults goes on with the next step.

import GuestMemory
import TestSupport
import X86

@testable import Translator

/// Page tables that change under the code that relies on them.
enum PageTables {
  static func run(_ input: inout FuzzInput) throws {
    try Programs.run(&input) { guest, input in
      try guest.restoreTables()
      let mode = input.below(4)
      let isUser = input.chance(3)
      for _ in 0..<input.below(24) { try damage(guest, mode, &input) }
      var state =
        mode < 2 ? EngineGuest.long(user: isUser) : EngineGuest.protected(user: isUser, paging: mode - 2)
      // #PF: the next step; others halt.
      let resume: [UInt8] =
        mode < 2
        ? [0x48, 0x83, 0xC4, 0x08, 0x48, 0x83, 0x24, 0x24, 0xF0, 0x48, 0x83, 0x04, 0x24, 0x10, 0x48, 0xCF]
        : [0x83, 0xC4, 0x04, 0x83, 0x24, 0x24, 0xF0, 0x83, 0x04, 0x24, 0x10, 0xCF]
      try guest.load(resume, at: EngineGuest.handlers + 14 * 16)
      if mode < 2 {
        if input.chance(2) { state.cr4 |= 1 << 17 }
        if input.chance(3) { state.cr4 |= 1 << 20 }
      }
      if input.chance(3) { state.cr4 |= 1 << 21 }
      if input.chance(3) { state.cr0 &= ~(1 << 16) }
      if input.chance(4) { state.cr4 &= ~(1 << 7) }
      for number in 0..<16 where number != 4 { state.registers[number] = address(mode, &input) }
      if mode >= 2 { for number in 0..<16 { state.registers[number] &= 0xFFFF_FFFF } }
      let count = 4 + input.below(24)
      var code: [UInt8] = []
      for _ in 0..<count {
        let step = step(is64: mode < 2, &input)
        code += step + [UInt8](repeating: 0x90, count: 16 - step.count)
      }
      code.append(0xF4)
      try guest.load(code, at: EngineGuest.code + 0x800)
      state.rip &+= 0x800
      return (state, ProgramWriter.Taste(is64: mode < 2))
    }
  }

  /// Linear addresses that differ in what leads to them.
  private static func address(_ mode: Int, _ input: inout FuzzInput) -> UInt64 {
    let page = UInt64(input.byte()) << 12
    // Few cross pages or cache lines: a locked access that does may take the host a second.
    let offset: UInt64 = input.chance(12) ? 0xFF8 &+ UInt64(input.byte() & 15) : UInt64(input.byte()) * 8
    return switch input.byte() % 8 {
    case 0: page &+ offset
    case 1: 0x20_0000 &+ page &+ offset
    case 2: UInt64(input.byte() & 7) << 21 | offset
    case 3: UInt64(input.byte() & 7) << 30 | offset
    case 4: UInt64(input.byte() & 3) << 39 | page | offset
    case 5: 0xFFFF_8000_0000_0000 | page | offset
    case 6: EngineGuest.table &+ UInt64(input.byte()) * 8
    default: 0x1_0000 &+ page % 0x8_0000 &+ offset
    }
  }

  private static func entry(_ input: inout FuzzInput) -> UInt64 {
    let target: UInt64 =
      switch input.byte() % 8 {
      case 0: EngineGuest.table
      case 1: EngineGuest.directory
      case 2: EngineGuest.pdpt
      case 3: EngineGuest.pml4
      case 4: UInt64(input.byte()) << 21
      case 5: input.value() & 0x000F_FFFF_FFFF_F000
      default: UInt64(input.word(UInt16.self)) % 0x800 << 12
      }
    var flags = UInt64(input.byte())
    if !input.chance(8) { flags |= 1 }
    if input.chance(4) { flags |= UInt64(input.byte() & 15) << 8 }
    if input.chance(4) { flags |= 1 << 63 }
    if input.chance(16) { flags |= 1 << UInt64(input.byte() & 63) }
    return target | flags
  }

  private static func damage(_ guest: EngineGuest, _ mode: Int, _ input: inout FuzzInput) throws {
    let value = entry(&input)
    if mode == 3 {
      let table = input.choose([EngineGuest.directory32, EngineGuest.table32])
      // The code stays where it is.
      let index = UInt64(input.byte()) * 4 + (table == EngineGuest.directory32 ? 4 : 0x50)
      try guest.poke(UInt32(truncatingIfNeeded: value), at: table + index)
    } else {
      let table = input.choose([
        EngineGuest.pml4, EngineGuest.pdpt, EngineGuest.directory, EngineGuest.table, EngineGuest.table,
        mode == 2 ? EngineGuest.list : EngineGuest.table,
      ])
      let index = UInt64(input.byte()) * 8 + (table == EngineGuest.table ? 0x100 : 8)
      try guest.poke(value, at: table + index % 4096)
    }
  }

  /// An instruction or a few, at most 16 bytes.
  private static func step(is64: Bool, _ input: inout FuzzInput) -> [UInt8] {
    let wide: [UInt8] = is64 ? [0x48] : []
    // Registers but RSP, and no forms with SIB or displacement.
    let base = input.choose([0, 1, 2, 3, 6, 7] as [UInt8])
    let register = input.byte() & 3
    switch input.byte() % 16 {
    case 0, 1: return wide + [0x8B, register << 3 | base]
    case 2, 3: return wide + [0x89, register << 3 | base]
    case 4: return [0x80, base, 1]
    case 5:
      let lock: [UInt8] = input.chance(16) ? [0xF0] : []
      return lock + wide + [0x01, register << 3 | base]
    case 6: return [0x0F, 0x10, base] + [0x0F, 0x11, base]
    case 7: return [0x0F, 0x01, 0x38 | base]
    case 8: return [0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8]
    case 9:
      return [0x0F, 0x20, 0xE0] + wide + [0x0F, 0xBA, 0xF8, input.choose([7, 17, 20, 21, 4])] + [0x0F, 0x22, 0xE0]
    case 10: return [0x0F, 0x01, input.choose([0xCA, 0xCB])]
    case 11:
      // An entry of a table changes; then perhaps the access that it is about.
      let value = entry(&input)
      let table = input.choose([EngineGuest.table, EngineGuest.directory, EngineGuest.table32])
      let place = table &+ 0x100 &+ UInt64(input.byte()) * 8
      var code: [UInt8] = is64 ? [0x48, 0xC7, 0x04, 0x25] : [0xC7, 0x05]
      for shift in stride(from: UInt64(0), to: 32, by: 8) { code.append(UInt8(truncatingIfNeeded: place >> shift)) }
      for shift in stride(from: UInt64(0), to: 32, by: 8) { code.append(UInt8(truncatingIfNeeded: value >> shift)) }
      return code
    case 12: return wide + [0xFF, 0x30 | base & 7]
    case 13: return wide + [0x81, 0xC0 | base, 0, UInt8(input.byte() & 0xF0), UInt8(input.byte() & 3), 0]
    case 14: return wide + [0x83, 0xC0 | base, input.byte() & (input.chance(16) ? 0xFF : 0xF8)]
    default: return [0xB9, input.byte() & 15, 0, 0, 0, 0xF3] + wide + [input.choose([0xA4, 0xA5, 0xAA, 0xAB, 0xA7])]
    }
  }
}

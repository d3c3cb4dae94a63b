// SPDX-License-Identifier: Apache-2.0
// The segments of the 16- and 32-bit cases: natively entries of the process's LDT, in the guest the hidden parts of the
// segment registers, with the same selectors.

import CHost
import CNative
import GuestMemory
import X86

@testable import Translator

/// In what a case of 16 or 32 bits runs.
enum LegacyMode: CaseIterable {
  /// 32-bit code; CS, DS, ES and SS are flat, FS and GS are not.
  case flat32
  /// 32-bit code, every segment with a base and a limit of its own, a stack of 16 or 32 bits.
  case segmented32
  /// The same with 16-bit code.
  case code16

  var is16: Bool { self == .code16 }
}

/// One segment, on both sides.
struct LegacySegment: Equatable {
  enum Kind: Int32 { case data, expandDown, code }
  enum Rights: Int32 { case all, restricted, absent }

  var base: UInt32 = 0
  /// In bytes, or in pages.
  var limit: UInt32 = 0xF_FFFF
  var pages = true
  var kind = Kind.data
  var is32 = true
  var rights = Rights.all

  /// The last offset that may be used (of an expand-down segment, that may not).
  var lastOffset: UInt32 { pages ? limit << 12 | 0xFFF : limit }

  /// The descriptor, of level 3 and accessed.
  var descriptor: UInt64 {
    let type: UInt64 =
      switch kind {
      case .data: rights == .restricted ? 1 : 3
      case .expandDown: rights == .restricted ? 5 : 7
      case .code: rights == .restricted ? 9 : 11
      }
    let access = 0x70 | type | (rights == .absent ? 0 : 0x80)
    let low = UInt64(limit & 0xFFFF) | UInt64(base & 0xFF_FFFF) << 16 | access << 40 | UInt64(limit >> 16 & 15) << 48
    return low | (is32 ? 1 << 54 : 0) | (pages ? 1 << 55 : 0) | UInt64(base >> 24) << 56
  }

  /// The segment register's contents.
  func hidden(selector: UInt16, privilege: Int) -> chost_segment {
    let type: UInt32 =
      switch kind {
      case .data: 3
      case .expandDown: 7
      case .code: 11
      }
    let attributes = 0x90 | type | UInt32(privilege) << 5 | (is32 ? 0x4000 : 0) | (pages ? 0x8000 : 0)
    return chost_segment(
      base: UInt64(base), limit: lastOffset, attributes: attributes, selector: selector, pad: (0, 0, 0))
  }
}

/// The six segment registers of a case, in the manual's order: ES CS SS DS FS GS.
struct LegacySegments {
  var mode: LegacyMode
  var registers: [LegacySegment]

  init(_ mode: LegacyMode) {
    self.mode = mode
    registers = Array(repeating: LegacySegment(), count: 6)
    registers[1].kind = .code
  }

  /// CS, DS, ES and SS of `flat32` are the kernel's own.
  func isFlat(_ number: Int) -> Bool { mode == .flat32 && number < 4 }

  func selector(_ number: Int) -> UInt16 {
    if isFlat(number) { return number == 1 ? 0x23 : 0x2B }
    return UInt16(number) << 3 | 7
  }
}

extension LegacySegments {
  /// Entries of the LDT behind the registers' own: what loads refuse.
  static let others: [LegacySegment] = [
    LegacySegment(rights: .absent), LegacySegment(rights: .restricted), LegacySegment(kind: .code, rights: .restricted),
    LegacySegment(kind: .code), LegacySegment(kind: .code, rights: .absent),
  ]

  /// Puts `others` into this process's LDT.
  static func writeOthers() {
    for (index, segment) in others.enumerated() {
      let error = segment.write(to: UInt32(6 + index))
      precondition(error == 0, "modify_ldt: errno \(error)")
    }
  }
}

extension LegacySegment {
  /// Writes an entry of this process's LDT. 0 or errno.
  func write(to entry: UInt32) -> Int32 {
    cnative_set_segment(entry, base, limit, kind.rawValue, is32 ? 1 : 0, pages ? 1 : 0, rights.rawValue)
  }
}

extension Bench {
  /// The guest's LDT, as the process's is.
  func writeLDT(_ segments: LegacySegments) throws {
    for (index, segment) in (segments.registers + LegacySegments.others).enumerated() {
      // A flat register's entry is what another case left there.
      guard index >= 6 || !segments.isFlat(index) else { continue }
      try arena.memory.store(segment.descriptor, at: GuestPhysical(arena.physical(Bench.ldt + UInt64(index) * 8)!))
    }
  }

  /// The first selector that differs.
  func selectorDifference() -> String? {
    let names = ["es", "cs", "ss", "ds", "fs", "gs"]
    for number in 0..<6 where number != 1 {
      guard let register = SegmentRegister(rawValue: number) else { continue }
      let offset = 184 + number * 4
      let host = unsafe UnsafeRawPointer(native).load(fromByteOffset: offset, as: UInt32.self)
      // SS is the handler's now, and in its frame what it was.
      let guest = unsafe number == 2 ? translated.pointee.segments.2 : UInt32(cpu.page[register].selector)
      // The kernel's IRET to the signal handler cleared null selectors' level (SDM volume 2, IRET).
      if host != guest && (host != 0 || guest > 3) {
        return "\(names[number]): native \(hex(host)) translated \(hex(guest))"
      }
    }
    return nil
  }

  /// Runs `input` natively in `segments` into `native`.
  func runNative(_ segments: LegacySegments, written: inout [LegacySegment?]) {
    for number in 0..<6 {
      let segment = segments.registers[number]
      unsafe Bench.setSelector(input, number, UInt32(segments.selector(number)))
      guard !segments.isFlat(number), written[number] != segment else { continue }
      let error = segment.write(to: UInt32(number))
      precondition(error == 0, "modify_ldt: errno \(error)")
      written[number] = segment
    }
    unsafe native.update(from: input, count: 1)
    unsafe cnative_run_legacy(native)
  }

  private static func setSelector(_ state: UnsafeMutablePointer<cnative_state>, _ number: Int, _ value: UInt32) {
    unsafe UnsafeMutableRawPointer(state).storeBytes(of: value, toByteOffset: 184 + number * 4, as: UInt32.self)
  }

  /// Runs `input` translated in `segments` into `translated`. Returns what went wrong, if the engine gave up.
  func runTranslated(_ segments: LegacySegments, privilege: Int) -> String? {
    let page = cpu.page
    for number in 0..<6 {
      guard let register = SegmentRegister(rawValue: number) else { continue }
      page[register] = segments.registers[number].hidden(selector: segments.selector(number), privilege: privilege)
    }
    unsafe input.pointee.fs_base = page[.fs].base
    unsafe input.pointee.gs_base = page[.gs].base
    // The next 64-bit case sets its own.
    defer { forgetPrivilege() }
    return runTranslated()
  }

  /// What is visible of the general registers: eight, of 32 bits.
  func narrowRegisters() {
    for number in 0..<16 {
      let mask: UInt64 = number < 8 ? 0xFFFF_FFFF : 0
      unsafe Bench.setRegister(native, number, Bench.register(native, number) & mask)
      unsafe Bench.setRegister(translated, number, Bench.register(translated, number) & mask)
    }
  }
}

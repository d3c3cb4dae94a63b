// SPDX-License-Identifier: Apache-2.0
// What must be equal after the same bytes ran on both sides, and what the manual leaves open.

import CNative
import Glibc
import X86

@testable import Translator

/// What one comparison ignores.
struct Tolerance {
  /// Arithmetic flags (RFLAGS bits) whose value is undefined.
  var flags: UInt64 = 0
  /// Registers with results that differ between runs (RDRAND).
  var registers: UInt16 = 0
  /// CR2 may be any address of an operand of this many bytes.
  var operandBytes: UInt64 = 0
  /// Two operands in memory: which fault comes first is the processor's choice.
  var eitherOperand = false
  /// Vector registers: a gather that faults may have its mask as it was or reduced to signs.
  var vectors = false

  /// `ArithmeticFlags` bits as RFLAGS bits.
  static func rflags(_ flags: UInt8) -> UInt64 {
    UInt64(flags & 0xD5) | (flags & ArithmeticFlags.of != 0 ? 0x800 : 0)
  }
}

extension Bench {
  private static let names = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
  ]

  /// The first difference between `native` and `translated`, or nil.
  func difference(_ tolerance: Tolerance, privilege: Int) -> String? {
    let host = unsafe native.pointee
    var guest = unsafe translated.pointee
    let faults: [UInt64] = [12, 13, 14]
    if tolerance.eitherOperand && host.rip == guest.rip && faults.contains(host.vector) && faults.contains(guest.vector)
    {
      guest.vector = host.vector
      guest.cr2 = host.cr2
      guest.error_code = host.error_code & ~4 | (privilege == 3 ? 4 : 0)
    }
    if host.vector != guest.vector || host.rip != guest.rip {
      return "ended with vector \(host.vector) at \(hex(host.rip)) natively (cr2 \(hex(host.cr2))), "
        + "\(guest.vector) at \(hex(guest.rip)) translated (cr2 \(hex(guest.cr2)))"
    }
    for number in 0..<16 where tolerance.registers >> UInt16(number) & 1 == 0 {
      let a = unsafe Bench.register(native, number), b = unsafe Bench.register(translated, number)
      if a != b { return "\(Bench.names[number]): native \(hex(a)) translated \(hex(b)) (was \(hex(self[number])))" }
    }
    let mask = (RFLAGS.arithmetic | RFLAGS.df) & ~tolerance.flags
    if (host.rflags ^ guest.rflags) & mask != 0 {
      let was = unsafe input.pointee.rflags
      return "flags: native \(flags(host.rflags)) translated \(flags(guest.rflags)) (was \(flags(was)))"
    }
    if host.vector == 14 {
      let user: UInt64 = privilege == 3 ? 4 : 0
      // In the upper half there are the host kernel's pages.
      let present: UInt64 = host.cr2 >> 47 != 0 ? 1 : 0
      if (host.error_code & ~4 | user) & ~present != guest.error_code & ~present {
        return "#PF error code: native \(hex(host.error_code)) translated \(hex(guest.error_code))"
      }
      // Of a large operand the processor may touch the last byte first.
      if host.cr2 != guest.cr2 && host.cr2 &- guest.cr2 >= tolerance.operandBytes {
        return "CR2: native \(hex(host.cr2)) translated \(hex(guest.cr2))"
      }
    }
    if host.fs_base != guest.fs_base { return "FS base: native \(hex(host.fs_base)) translated \(hex(guest.fs_base))" }
    if host.gs_base != guest.gs_base { return "GS base: native \(hex(host.gs_base)) translated \(hex(guest.gs_base))" }
    return tolerance.vectors ? nil : imageDifference()
  }

  private func flags(_ value: UInt64) -> String {
    let letters: [(UInt64, String)] = [
      (1, "C"), (4, "P"), (16, "A"), (64, "Z"), (128, "S"), (0x400, "D"), (0x800, "O"),
    ]
    return letters.map { value & $0.0 != 0 ? $0.1 : "-" }.joined()
  }

  /// One byte of an XSAVE image; components that are in their initial state read so.
  private func byte(_ state: UnsafeMutablePointer<cnative_state>, _ offset: Int) -> UInt8 {
    let image = unsafe Bench.xsave(state)
    let components = unsafe image.load(fromByteOffset: 512, as: UInt64.self)
    let component: UInt64 = offset >= 576 ? 4 : (offset >= 160 ? 2 : 1)
    if components & component == 0, !(24..<28).contains(offset) {
      return offset == 0 ? 0x7F : (offset == 1 ? 3 : 0)
    }
    return unsafe image.load(fromByteOffset: offset, as: UInt8.self)
  }

  private func imageDifference() -> String? {
    func same(_ offset: Int, _ count: Int, _ name: @autoclosure () -> String) -> String? {
      for index in offset..<offset + count where unsafe byte(native, index) != byte(translated, index) {
        func text(_ state: UnsafeMutablePointer<cnative_state>) -> String {
          (0..<count).reversed().map {
            let digits = String(unsafe byte(state, offset + $0), radix: 16)
            return digits.count == 1 ? "0" + digits : digits
          }.joined()
        }
        return unsafe "\(name()): native \(text(native)) translated \(text(translated)) (was \(text(input)))"
      }
      return nil
    }
    if let found = same(0, 2, "FCW") { return found }
    if let found = same(2, 2, "FSW") { return found }
    if let found = same(4, 1, "FTW") { return found }
    if let found = same(24, 4, "MXCSR") { return found }
    for number in 0..<8 { if let found = same(32 + number * 16, 10, "ST/MM\(number)") { return found } }
    // The common case, equal, first.
    let a = unsafe Bench.xsave(native), b = unsafe Bench.xsave(translated)
    if unsafe memcmp(a + 160, b + 160, 256) == 0, unsafe memcmp(a + 576, b + 576, 256) == 0,
      unsafe a.load(fromByteOffset: 512, as: UInt64.self) == b.load(fromByteOffset: 512, as: UInt64.self)
    {
      return nil
    }
    for number in 0..<16 { if let found = same(160 + number * 16, 16, "xmm\(number)") { return found } }
    for number in 0..<16 { if let found = same(576 + number * 16, 16, "ymm\(number) high") { return found } }
    return nil
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

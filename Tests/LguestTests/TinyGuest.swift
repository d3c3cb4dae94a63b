// SPDX-License-Identifier: Apache-2.0
// Guests of a few instructions for the tests of whole machines (Tests/GuestCode/machines.S), and the ELF file around
// them.

import Foundation
import SystemPackage
import TestSupport

/// A guest program.
struct TinyGuest {
  let code: [UInt8]

  /// Writes it as an ELF executable and removes it after `body`.
  func withFile<Result>(_ body: (FilePath) throws -> Result) throws -> Result {
    let url = FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString).elf")
    try Data(elf).write(to: url)
    defer { try? FileManager.default.removeItem(at: url) }
    return try body(FilePath(url.path))
  }

  private var elf: [UInt8] {
    var bytes: [UInt8] = []
    func put(_ value: UInt64, _ count: Int) {
      for index in 0..<count { bytes.append(UInt8(value >> (8 * index) & 0xFF)) }
    }
    bytes += [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
    put(2, 2)  // ET_EXEC
    put(62, 2)  // x86-64
    put(1, 4)
    for value: UInt64 in [0x10_0000, 64, 0] { put(value, 8) }  // entry, program headers, no sections
    put(0, 4)
    for value: UInt64 in [64, 56, 1, 0, 0, 0] { put(value, 2) }
    put(1, 4)  // PT_LOAD
    put(7, 4)
    for value: UInt64 in [120, 0x10_0000, 0x10_0000, UInt64(code.count), UInt64(code.count), 1] { put(value, 8) }
    return bytes + code
  }

  /// Prints "hi" and switches itself off.
  static let goodbye = TinyGuest(code: GuestProgram("machine_goodbye").bytes)
  /// Resets through 0xCF9.
  static let reset = TinyGuest(code: GuestProgram("machine_reset").bytes)
  /// Resets as Linux does after a panic with `panic_warm`.
  static let warmReset = TinyGuest(code: GuestProgram("machine_warm_reset").bytes)
  /// An exception without an IDT.
  static let tripleFault = TinyGuest(code: GuestProgram("machine_triple_fault").bytes)
  /// Halts with interrupts off, for ever.
  static let halt = TinyGuest(code: GuestProgram("machine_halt").bytes)
  /// Jumps to itself.
  static let spin = TinyGuest(code: GuestProgram("machine_spin").bytes)
  /// Copies polled input to output until a q, then switches itself off.
  static let echo = TinyGuest(code: GuestProgram("machine_echo").bytes)
  /// Asks for a port, an address and a hypercall that nobody has; 0x2A to 0xF4 if all answer as they should.
  static let oddities = TinyGuest(code: GuestProgram("machine_oddities").bytes)
  /// 300 halts, each ended by a TSC deadline up to a million ticks ahead; 0x42 to 0xF4, or 1 if one came early.
  static let deadlines = TinyGuest(code: GuestProgram("machine_deadlines").bytes)
}

// SPDX-License-Identifier: Apache-2.0
// Code of the built-in ring-1 guests: 32 bits, in the interface of Linux 3.1 to 3.19, without page tables of its own.

import Paravirt
import X86

/// Pieces of such a guest, and what every one has.
enum Ring1Code {
  /// struct lguest_data lies so far behind the code's start; a buffer, and a text for SHUTDOWN, behind it.
  static let dataOffset: UInt32 = 0x1000
  static var data: UInt32 { UInt32(BuiltInGuest.origin) + dataOffset }
  static var buffer: UInt32 { data + 0x800 }
  static var goodbye: UInt32 { data + 0x840 }
  /// What a guest has besides.
  static var more: UInt32 { data + 0x860 }

  /// Bytes of a number.
  static func word(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }

  /// The number of a call.
  static func number(_ call: LguestCall) -> UInt32 { call.number(in: .linux3_1) ?? 0 }

  /// A hypercall by INT 1Fh, with its number and up to three arguments.
  static func call(_ call: LguestCall, _ arguments: [UInt32] = []) -> [UInt8] {
    // MOV EAX; MOV EBX, ECX, EDX
    var code = [0xB8] + word(number(call))
    for (opcode, argument) in zip([0xBB, 0xB9, 0xBA] as [UInt8], arguments) { code += [opcode] + word(argument) }
    return code + [0xCD, LguestCall.vector]
  }

  /// MOV ESP, and LGUEST_INIT.
  private static let beginning = [0xBC] + word(UInt32(BuiltInGuest.stackTop)) + call(.initialize, [data])
  /// Where the body of a guest begins.
  static var bodyAddress: UInt32 { UInt32(BuiltInGuest.origin) + UInt32(beginning.count) }

  /// A whole guest: it registers itself and goes on with `body`, which with that has a page.
  ///
  /// - Parameter more: What lies at the address of that name.
  static func program(_ body: [UInt8], more: [UInt8] = []) -> [UInt8] {
    var code = beginning + body
    code += [UInt8](repeating: 0x90, count: Int(dataOffset) - code.count)
    code += LguestDataLayout.blank3_1(kernelAddress: 0xC000_0000)
    code += [UInt8](repeating: 0, count: Int(goodbye - UInt32(BuiltInGuest.origin)) - code.count)
    code += Array("Power down".utf8) + [0]
    return code + [UInt8](repeating: 0, count: Int(Ring1Code.more - UInt32(BuiltInGuest.origin)) - code.count) + more
  }

  /// A guest that makes the same call for ever.
  static func looping(_ call: (name: LguestCall, arguments: [UInt32])) -> [UInt8] {
    let body = Ring1Code.call(call.name, call.arguments)
    return program(body + [0xEB, UInt8(truncatingIfNeeded: -(body.count + 2))])  // JMP to the first
  }
}

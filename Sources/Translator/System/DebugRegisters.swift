// SPDX-License-Identifier: Apache-2.0
// DR0 to DR7: moving to and from them, and matching addresses against them (SDM volume 3, 17.2).

import CHost
import X86

extension Processor {
  func moveFromDebug(_ instruction: Instruction) throws(Fault) {
    let number = try debugRegister(instruction)
    setRegister(instruction.rm, self[debug: number], size: page.isLongMode ? 8 : 4)
  }

  func moveToDebug(_ instruction: Instruction) throws(Fault) {
    let number = try debugRegister(instruction)
    let value = register(instruction.rm, size: page.isLongMode ? 8 : 4)
    if number >= 6 && value >> 32 != 0 { throw .generalProtection() }
    switch number {
    case 6: page[\.dr.6] = DR6.stored(value)
    case 7:
      page[\.dr.7] = DR7.stored(value)
      page.updateMode()
    default: self[debug: number] = value
    }
  }

  /// The register number after all checks; DR4 and DR5 are DR6 and DR7 unless CR4.DE.
  private func debugRegister(_ instruction: Instruction) throws(Fault) -> UInt8 {
    guard instruction.reg < 8 else { throw .invalidOpcode }
    let alias = instruction.reg == 4 || instruction.reg == 5
    if alias && page[\.cr4] & CR4.de != 0 { throw .invalidOpcode }
    try requirePrivilege()
    if page[\.dr.7] & DR7.generalDetect != 0 {
      page[\.dr.6] = page[\.dr.6] | DR6.generalDetect
      throw .debug
    }
    return alias ? instruction.reg &+ 2 : instruction.reg
  }

  subscript(debug number: UInt8) -> UInt64 {
    get {
      switch number {
      case 0: page[\.dr.0]
      case 1: page[\.dr.1]
      case 2: page[\.dr.2]
      case 3: page[\.dr.3]
      case 6: page[\.dr.6]
      default: page[\.dr.7]
      }
    }
    nonmutating set {
      switch number {
      case 0: page[\.dr.0] = newValue
      case 1: page[\.dr.1] = newValue
      case 2: page[\.dr.2] = newValue
      case 3: page[\.dr.3] = newValue
      case 6: page[\.dr.6] = newValue
      default: page[\.dr.7] = newValue
      }
    }
  }

  // MARK: Breakpoints

  /// Whether any of DR0 to DR3 is enabled.
  var hasBreakpoints: Bool { page[\.dr.7] & DR7.enabled != 0 }

  /// R/W and LEN of a breakpoint that is enabled, locally or globally.
  private func breakpoint(_ number: UInt8) -> (kind: UInt64, length: UInt64)? {
    let control = page[\.dr.7]
    guard control >> UInt64(number &* 2) & 3 != 0 else { return nil }
    let field = control >> UInt64(16 &+ number &* 4) & 15
    let lengths: [UInt64] = [1, 2, 8, 4]
    return (field & 3, lengths[Int(field >> 2)])
  }

  /// DR6 bits of the instruction breakpoints at a linear address. RF suppresses them.
  func instructionBreakpoint(at linear: UInt64) -> UInt64 {
    guard hasBreakpoints, page.rflags & RFLAGS.rf == 0 else { return 0 }
    var hits: UInt64 = 0
    for number in UInt8(0)..<4 {
      if let point = breakpoint(number), point.kind == 0, self[debug: number] == linear { hits |= 1 << UInt64(number) }
    }
    return hits
  }

  /// DR6 bits of the data breakpoints that `count` bytes at a linear address touch; `port`: I/O breakpoints
  /// (R/W = 10b with CR4.DE) instead.
  func dataBreakpoint(at linear: UInt64, count: UInt64, write: Bool, port: Bool = false) -> UInt64 {
    guard hasBreakpoints else { return 0 }
    var hits: UInt64 = 0
    for number in UInt8(0)..<4 {
      guard let point = breakpoint(number) else { continue }
      let matches: Bool
      switch point.kind {
      case 1: matches = write && !port
      case 2: matches = port && page[\.cr4] & CR4.de != 0
      case 3: matches = !port
      default: matches = false
      }
      // The low address bits that the length covers are ignored.
      let start = self[debug: number] & ~(point.length &- 1)
      if matches && linear &- start < point.length || matches && start &- linear < count { hits |= 1 << UInt64(number) }
    }
    return hits
  }

  /// Delivers #DB as a trap at this boundary with the DR6 bits given (`DR6.step` after a single step).
  @discardableResult
  func debugTrap(_ status: UInt64 = DR6.step) -> Delivery {
    recordDebug(status)
    return deliver(Vector.debug, kind: .exception)
  }

  /// What DR6 says of the debug exception about to be delivered.
  func recordDebug(_ status: UInt64) { page[\.dr.6] = page[\.dr.6] & ~0xF | status | DR6.ones }
}

// SPDX-License-Identifier: Apache-2.0
// PUSHF, POPF, CLI and STI: who may see and change IF and IOPL, and the virtual interrupt flag of CR4.VME and
// CR4.PVI (SDM volume 2; volume 3, 20.3 and 20.4).

import CHost
import X86

extension Processor {
  /// FLAGS as a virtual-8086 program with VME sees it: IF is VIF and IOPL is 3.
  func virtualFlags(_ flags: UInt64) -> UInt64 {
    flags & ~RFLAGS.if | (flags & RFLAGS.vif != 0 ? RFLAGS.if : 0) | RFLAGS.iopl
  }

  private var ioPrivilege: UInt8 { UInt8(truncatingIfNeeded: page.rflags >> 12 & 3) }

  /// Virtual-8086 code below IOPL 3 needs help for the interrupt flag.
  private var isVirtualBelow: Bool { page.isVM86 && ioPrivilege < 3 }

  func pushFlags(_ instruction: Instruction) throws(Fault) {
    let size = stackOperandSize(instruction)
    var image = page.rflags & ~(RFLAGS.vm | RFLAGS.rf)
    if isVirtualBelow {
      guard page[\.cr4] & CR4.vme != 0, size == 2 else { throw .generalProtection() }
      image = virtualFlags(image)
    }
    try push(image, size: size)
  }

  func popFlags(_ instruction: Instruction) throws(Fault) {
    let size = stackOperandSize(instruction)
    let old = page.rflags
    if isVirtualBelow {
      guard page[\.cr4] & CR4.vme != 0, size == 2 else { throw .generalProtection() }
      let image = try peek(size: size)
      if image & RFLAGS.tf != 0 || (image & RFLAGS.if != 0 && old & RFLAGS.vip != 0) { throw .generalProtection() }
      let mask: UInt64 = 0x4DD5
      drop(2)
      let virtual = image & RFLAGS.if != 0 ? RFLAGS.vif : 0
      return setFlags(old & ~(mask | RFLAGS.vif | RFLAGS.rf) | image & mask | virtual | 2)
    }
    let image = try peek(size: size)
    var mask = RFLAGS.arithmetic | RFLAGS.tf | RFLAGS.df | RFLAGS.nt | RFLAGS.ac | RFLAGS.id
    if privilege <= ioPrivilege { mask |= RFLAGS.if }
    if privilege == 0 { mask |= RFLAGS.iopl }
    if size == 2 { mask &= 0xFFFF }
    drop(UInt64(size))
    // VM, VIF and VIP stay; RF is cleared.
    setFlags(old & ~(mask | RFLAGS.rf) | image & mask | 2)
  }

  func clearInterrupts() throws(Fault) {
    let flags = page.rflags
    if !page.isProtected || privilege <= ioPrivilege {
      page.rflags = flags & ~RFLAGS.if
    } else if usesVirtualInterruptFlag {
      page.rflags = flags & ~RFLAGS.vif
    } else {
      throw .generalProtection()
    }
  }

  func setInterrupts() throws(Fault) {
    let flags = page.rflags
    if !page.isProtected || privilege <= ioPrivilege {
      page.rflags = flags | RFLAGS.if
      if flags & RFLAGS.if == 0 { state.interruptShadow = .sti }
    } else if usesVirtualInterruptFlag && flags & RFLAGS.vip == 0 {
      page.rflags = flags | RFLAGS.vif
    } else {
      throw .generalProtection()
    }
  }

  private var usesVirtualInterruptFlag: Bool {
    page.isVM86 ? page[\.cr4] & CR4.vme != 0 : privilege == 3 && page[\.cr4] & CR4.pvi != 0
  }

  // MARK: Interrupt acceptance

  /// Whether an external interrupt would be accepted at this boundary.
  var acceptsInterrupts: Bool {
    page[\.system_flags] & UInt32(truncatingIfNeeded: RFLAGS.if) != 0 && state.interruptShadow == .none
  }

  var acceptsNMI: Bool { !state.nmiBlocked && state.interruptShadow != .movSS }
}

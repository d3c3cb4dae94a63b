// SPDX-License-Identifier: Apache-2.0
// IRET in every mode (SDM volume 2, IRET/IRETD/IRETQ).

import CHost
import X86

extension Processor {
  func interruptReturn(_ instruction: Instruction) throws(Fault) {
    // Any execution of IRET unblocks NMIs, even one that faults (SDM volume 3, 6.7.1).
    state.nmiBlocked = false
    if !page.isProtected { return try returnReal(instruction.operandSize) }
    if page.isVM86 { return try returnVM86(instruction.operandSize) }
    if page.rflags & RFLAGS.nt != 0 {
      guard !page.isLMA else { throw .generalProtection() }
      return try returnTask(next: next(instruction))
    }
    try returnProtected(instruction.operandSize)
  }

  /// Flags that a frame may change at this privilege level.
  private func restored(_ image: UInt64, size: UInt8) -> UInt64 {
    let old = page.rflags
    var mask = RFLAGS.arithmetic | RFLAGS.tf | RFLAGS.df | RFLAGS.nt | RFLAGS.rf | RFLAGS.ac | RFLAGS.id
    if privilege == 0 { mask |= RFLAGS.iopl | RFLAGS.vif | RFLAGS.vip }
    if UInt64(privilege) <= old >> 12 & 3 { mask |= RFLAGS.if }
    if size == 2 { mask &= 0xFFFF }
    return old & ~mask | image & mask | 2
  }

  // MARK: 8086

  private func returnReal(_ size: UInt8) throws(Fault) {
    let step = UInt64(size)
    let offset = try peek(size: size)
    let selector = UInt16(truncatingIfNeeded: try peek(step, size: size))
    let image = try peek(2 &* step, size: size)
    try commit8086(offset, selector, count: 3 &* step)
    // VM, VIF and VIP keep their values.
    let mask: UInt64 = size == 2 ? 0x7FD5 : 0x257FD5
    setFlags(page.rflags & ~mask | image & mask | 2)
  }

  private func returnVM86(_ size: UInt8) throws(Fault) {
    let flags = page.rflags
    let full = flags & RFLAGS.iopl == RFLAGS.iopl
    let extended = page[\.cr4] & CR4.vme != 0 && size == 2
    guard full || extended else { throw .generalProtection() }
    let step = UInt64(size)
    let offset = try peek(size: size)
    let selector = UInt16(truncatingIfNeeded: try peek(step, size: size))
    let image = try peek(2 &* step, size: size)
    var new: UInt64
    if full {
      // IOPL, VM, VIF and VIP keep their values.
      let mask: UInt64 = size == 2 ? 0x4FD5 : 0x254FD5
      new = flags & ~mask | image & mask
    } else {
      // IF of the image becomes VIF; pending virtual interrupts or TF fault (SDM volume 3, 20.3.3.4).
      if image & RFLAGS.tf != 0 || (image & RFLAGS.if != 0 && flags & RFLAGS.vip != 0) { throw .generalProtection() }
      let mask: UInt64 = 0x4DD5
      new = flags & ~(mask | RFLAGS.vif) | image & mask
      if image & RFLAGS.if != 0 { new |= RFLAGS.vif }
    }
    new |= 2
    try commit8086(offset, selector, count: 3 &* step)
    setFlags(new)
  }

  private func commit8086(_ offset: UInt64, _ selector: UInt16, count: UInt64) throws(Fault) {
    let segment = realSegment(.cs, selector)
    guard offset <= UInt64(segment.limit) else { throw .generalProtection() }
    drop(count)
    page[.cs] = segment
    page[\.rip] = offset
    page.updateMode()
  }

  // MARK: Protected and IA-32e mode

  private func returnProtected(_ size: UInt8) throws(Fault) {
    let step = UInt64(size)
    let offset = try peek(size: size)
    let selector = UInt16(truncatingIfNeeded: try peek(step, size: size))
    let image = try peek(2 &* step, size: size)
    if image & RFLAGS.vm != 0 && size == 4 && privilege == 0 && !page.isLMA {
      return try enterVM86(offset, selector, image)
    }
    var target = try returnCode(selector)
    let level = UInt8(selector & 3)
    let flags = restored(image, size: size)
    // 64-bit mode pops SS:RSP always; other modes when the level changes.
    if level == privilege && !page.isLongMode {
      try checkTarget(target, offset)
      try markAccessed(&target)
      drop(3 &* step)
      enterCode(target, selector, privilege: level, offset)
      page.rflags = flags
      return page.updateMode()
    }
    let pointer = try peek(3 &* step, size: size)
    let stack = UInt16(truncatingIfNeeded: try peek(4 &* step, size: size))
    let segment = try returnStack(stack, privilege: level, long: page.isLMA && target.isLong)
    try checkTarget(target, offset)
    try markAccessed(&target)
    let outer = level != privilege
    enterCode(target, selector, privilege: level, offset)
    page.rflags = flags
    page[.ss] = segment
    page.updateMode()
    setStackPointer(pointer, mask: stackMask)
    if outer {
      dropInnerDataSegments()
      page.updateMode()
    }
  }

  /// IRETD at level 0 with VM set in the image (SDM volume 3, 20.2.5).
  private func enterVM86(_ offset: UInt64, _ selector: UInt16, _ image: UInt64) throws(Fault) {
    let pointer = try peek(12, size: 4)
    let stack = UInt16(truncatingIfNeeded: try peek(16, size: 4))
    let es = UInt16(truncatingIfNeeded: try peek(20, size: 4))
    let ds = UInt16(truncatingIfNeeded: try peek(24, size: 4))
    let fs = UInt16(truncatingIfNeeded: try peek(28, size: 4))
    let gs = UInt16(truncatingIfNeeded: try peek(32, size: 4))
    guard offset <= 0xFFFF else { throw .generalProtection() }
    page.rflags = image & (RFLAGS.arithmetic | RFLAGS.system) | 2
    page[.cs] = .real(selector: selector, attributes: 0xF3)
    page[.ss] = .real(selector: stack, attributes: 0xF3)
    page[.es] = .real(selector: es, attributes: 0xF3)
    page[.ds] = .real(selector: ds, attributes: 0xF3)
    page[.fs] = .real(selector: fs, attributes: 0xF3)
    page[.gs] = .real(selector: gs, attributes: 0xF3)
    page[\.rip] = offset
    page[register: GPR.rsp] = pointer
    page.updateMode()
  }
}

// SPDX-License-Identifier: Apache-2.0
// Interrupts of real-address mode, and those of virtual-8086 mode that CR4.VME redirects to the 8086 program's own
// handlers (SDM volume 3, 20.1.4 and 20.3.3).

import CHost
import X86

extension Processor {
  /// Delivers through the interrupt vector table.
  func deliverReal(_ vector: UInt8, returnAddress: UInt64) throws(Fault) {
    let table = page[\.idtr]
    let offset = UInt64(vector) &* 4
    guard offset &+ 3 <= UInt64(table.limit) else { throw .generalProtection(Processor.gateCode(vector)) }
    let entry = try read(UInt32.self, at: (table.base &+ offset) & 0xFFFF_FFFF, as: .implicit)
    try enterHandler8086(entry, flags: page.rflags, returnAddress: returnAddress)
    page.rflags = page.rflags & ~(RFLAGS.tf | RFLAGS.if | RFLAGS.rf | RFLAGS.ac)
  }

  /// Pushes FLAGS, CS and IP and goes to a 16:16 address.
  private func enterHandler8086(_ entry: UInt32, flags: UInt64, returnAddress: UInt64) throws(Fault) {
    var frame = currentFrame()
    try reserve(&frame, 3, size: 2)
    let ip = UInt64(entry & 0xFFFF)
    guard ip <= UInt64(page[.cs].limit) else { throw .generalProtection() }
    try push(flags & 0xFFFF, size: 2, &frame)
    try push(UInt64(page[.cs].selector), size: 2, &frame)
    try push(returnAddress & 0xFFFF, size: 2, &frame)
    setStackPointer(frame.pointer, mask: frame.mask)
    page[.cs] = realSegment(.cs, UInt16(truncatingIfNeeded: entry >> 16))
    page[\.rip] = ip
  }

  /// Whether INT n in virtual-8086 mode goes to the program's own handler: its bit in the redirection map, the
  /// 32 bytes below the I/O permission bitmap, is clear (SDM volume 3, 20.3.3.4, table 20-2).
  func redirects(_ vector: UInt8) throws(Fault) -> Bool {
    let task = page[.tr]
    guard !task.isUnusable, task.type & 8 != 0, task.limit >= 103 else { return false }
    let map = UInt32(try read(UInt16.self, at: task.base &+ 102, as: .implicit))
    guard map >= 32, map &- 32 &+ UInt32(vector >> 3) <= task.limit else { throw .generalProtection() }
    let byte = try read(UInt8.self, at: task.base &+ UInt64(map &- 32 &+ UInt32(vector >> 3)), as: .implicit)
    return byte >> (vector & 7) & 1 == 0
  }

  /// A redirected INT n. With IOPL below 3 the program sees its virtual IF and an IOPL of 3.
  func deliverRedirected(_ vector: UInt8, returnAddress: UInt64) throws(Fault) {
    let entry = try read(UInt32.self, at: UInt64(vector) &* 4, as: authority)
    let flags = page.rflags
    if flags & RFLAGS.iopl == RFLAGS.iopl {
      try enterHandler8086(entry, flags: flags, returnAddress: returnAddress)
      setFlags(flags & ~(RFLAGS.tf | RFLAGS.if | RFLAGS.nt))
    } else {
      try enterHandler8086(entry, flags: virtualFlags(flags), returnAddress: returnAddress)
      setFlags(flags & ~(RFLAGS.tf | RFLAGS.vif | RFLAGS.nt))
    }
    page.updateMode()
  }
}

// SPDX-License-Identifier: Apache-2.0
// Hardware task switches (SDM volume 3, 7.3): far JMP and CALL to a TSS or task gate, interrupts through task gates
// and IRET with NT. 32-bit Linux handles double faults this way. IA-32e mode has none of it.

import CHost
import X86

extension Processor {
  enum TaskSwitchReason { case jump, call, interrupt, `return` }

  /// IRET with NT set: back to the task whose selector is in this one's link field.
  func returnTask(next: UInt64) throws(Fault) {
    let link = try read(UInt16.self, at: page[.tr].base, as: .implicit)
    try switchTask(to: link, reason: .return, returnAddress: next)
  }

  /// Switches to another task.
  ///
  /// Faults up to the commit point are raised in the old task; those of loading the new task's segments belong
  /// to the new one, whose RIP is already loaded.
  func switchTask(
    to selector: UInt16, reason: TaskSwitchReason, returnAddress: UInt64, errorCode: UInt32? = nil
  ) throws(Fault) {
    let bad: SelectorFault = reason == .return || reason == .interrupt ? .invalidTSS : .protection
    guard !Processor.isNull(selector), selector & 4 == 0 else { throw bad(selector) }
    var descriptor = try descriptor(selector, or: bad)
    let wanted: UInt8 = reason == .return ? 2 : 0
    guard !descriptor.isCodeOrData, descriptor.type & 0b0101 == 1, descriptor.type & 2 == wanted else {
      throw bad(selector)
    }
    guard descriptor.isPresent else { throw SelectorFault.notPresent(selector) }
    let wide = descriptor.type & 8 != 0
    guard descriptor.limit >= (wide ? 103 : 43) else { throw SelectorFault.invalidTSS(selector) }

    // Both images and the descriptors are checked before anything is written.
    let old = page[.tr]
    let oldWide = old.type & 8 != 0
    guard !old.isUnusable, old.limit >= (oldWide ? 0x5F : 0x29) else { throw SelectorFault.invalidTSS(old.selector) }
    let saved = try span(old.base, count: oldWide ? 104 : 44, write: true, as: .implicit)
    let nested = reason == .call || reason == .interrupt
    let image = try span(descriptor.base, count: wide ? 104 : 44, write: nested, as: .implicit)
    let oldDescriptor = page[\.gdtr].base &+ UInt64(old.selector & 0xFFF8)
    let cr3 = wide ? UInt64(load(UInt32.self, image, at: 28)) : page[\.cr3]

    saveTask(saved, wide: oldWide, returnAddress: returnAddress, clearNested: reason == .return)
    if reason == .jump || reason == .return { try clearBits(2, at: oldDescriptor &+ 5, as: .implicit) }
    if reason != .return { try setBits(2, at: descriptor.address &+ 5, as: .implicit) }
    if nested { store(old.selector, image) }
    descriptor.low |= 2 << 40
    page[.tr] = descriptor.segment(selector)
    page[\.cr0] = page[\.cr0] | CR0.ts

    try loadTask(image, wide: wide, cr3: cr3, nested: nested)
    if let errorCode { try push(UInt64(errorCode), size: wide ? 4 : 2) }
    if wide && load(UInt16.self, image, at: 100) & 1 != 0 { state.pendingDebug |= DR6.taskSwitch }
  }

  private static let segmentOrder: [SegmentRegister] = [.es, .cs, .ss, .ds, .fs, .gs]

  private func saveTask(_ image: LinearSpan, wide: Bool, returnAddress: UInt64, clearNested: Bool) {
    let flags = clearNested ? page.rflags & ~RFLAGS.nt : page.rflags
    if wide {
      store(UInt32(truncatingIfNeeded: returnAddress), image, at: 32)
      store(UInt32(truncatingIfNeeded: flags), image, at: 36)
      for number in UInt8(0)..<8 {
        store(UInt32(truncatingIfNeeded: page[register: number]), image, at: 40 &+ Int(number) &* 4)
      }
      for (index, register) in Processor.segmentOrder.enumerated() {
        store(UInt32(page[register].selector), image, at: 72 &+ index &* 4)
      }
    } else {
      store(UInt16(truncatingIfNeeded: returnAddress), image, at: 14)
      store(UInt16(truncatingIfNeeded: flags), image, at: 16)
      for number in UInt8(0)..<8 {
        store(UInt16(truncatingIfNeeded: page[register: number]), image, at: 18 &+ Int(number) &* 2)
      }
      for (index, register) in Processor.segmentOrder.prefix(4).enumerated() {
        store(page[register].selector, image, at: 34 &+ index &* 2)
      }
    }
  }

  private func loadTask(_ image: LinearSpan, wide: Bool, cr3: UInt64, nested: Bool) throws(Fault) {
    var flags: UInt64
    var selectors: [UInt16] = [0, 0, 0, 0, 0, 0]
    let table: UInt16
    if wide {
      page[\.rip] = UInt64(load(UInt32.self, image, at: 32))
      flags = UInt64(load(UInt32.self, image, at: 36))
      for number in UInt8(0)..<8 {
        page[register: number] = UInt64(load(UInt32.self, image, at: 40 &+ Int(number) &* 4))
      }
      for index in 0..<6 { selectors[index] = load(UInt16.self, image, at: 72 &+ index &* 4) }
      table = load(UInt16.self, image, at: 96)
    } else {
      page[\.rip] = UInt64(load(UInt16.self, image, at: 14))
      flags = UInt64(load(UInt16.self, image, at: 16))
      for number in UInt8(0)..<8 {
        setRegister(number, UInt64(load(UInt16.self, image, at: 18 &+ Int(number) &* 2)), size: 2)
      }
      for index in 0..<4 { selectors[index] = load(UInt16.self, image, at: 34 &+ index &* 2) }
      table = load(UInt16.self, image, at: 42)
    }
    if wide && page[\.cr0] & CR0.pg != 0 && cr3 != page[\.cr3] { try writeCR3(cr3) }
    if nested { flags |= RFLAGS.nt }
    page.rflags = flags & (RFLAGS.arithmetic | RFLAGS.system) | 2
    page[\.dr.7] = page[\.dr.7] & ~0x155  // local enables are the task's

    // Selectors are visible even if their descriptors turn out bad.
    for (index, register) in Processor.segmentOrder.enumerated() {
      page[register] = .unusable(selector: selectors[index], dpl: UInt8(selectors[1] & 3))
    }
    page[.ldtr] = .unusable(selector: table)
    page[.ldtr] = try localTable(table, or: .invalidTSS)
    if flags & RFLAGS.vm != 0 {
      for (index, register) in Processor.segmentOrder.enumerated() {
        page[register] = .real(selector: selectors[index], attributes: 0xF3)
      }
      return page.updateMode()
    }
    let level = UInt8(selectors[1] & 3)
    guard !Processor.isNull(selectors[1]) else { throw SelectorFault.invalidTSS(0) }
    var code = try descriptor(selectors[1], or: .invalidTSS)
    guard code.isCode, code.isConforming ? code.dpl <= level : code.dpl == level else {
      throw SelectorFault.invalidTSS(selectors[1])
    }
    guard code.isPresent else { throw SelectorFault.notPresent(selectors[1]) }
    try markAccessed(&code)
    page[.ss] = try stackSegment(selectors[2], privilege: level, or: .invalidTSS)
    page[.cs] = code.segment(selectors[1])
    page.updateMode()
    for index in [0, 3, 4, 5] {
      do throws(Fault) {
        page[Processor.segmentOrder[index]] = try checkedSegment(Processor.segmentOrder[index], selectors[index])
      } catch {
        throw error.vector == Vector.generalProtection ? SelectorFault.invalidTSS(selectors[index]) : error
      }
    }
    page.updateMode()
    guard page[\.rip] <= UInt64(page[.cs].limit) else { throw .generalProtection() }
  }
}

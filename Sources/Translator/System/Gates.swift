// SPDX-License-Identifier: Apache-2.0
// Interrupt, trap and task gates of protected and IA-32e mode (SDM volume 3, 6.12 and 6.14). Everything that can
// fault happens before the first store to a register.

import CHost
import X86

extension Processor {
  /// The code segment of a gate and the privilege level it runs at.
  private func gateTarget(_ selector: UInt16) throws(Fault) -> (Descriptor, UInt8) {
    guard !Processor.isNull(selector) else { throw .generalProtection() }
    let target = try descriptor(selector)
    guard target.isCode, target.dpl <= privilege else { throw SelectorFault.protection(selector) }
    if page.isLMA {
      guard target.isLong, !target.isBig else { throw SelectorFault.protection(selector) }
    }
    guard target.isPresent else { throw SelectorFault.notPresent(selector) }
    return (target, target.isConforming ? privilege : target.dpl)
  }

  /// Commits CS:RIP.
  func enterCode(_ descriptor: Descriptor, _ selector: UInt16, privilege: UInt8, _ rip: UInt64) {
    page[.cs] = descriptor.segment(selector & 0xFFFC | UInt16(privilege))
    page[\.rip] = rip
  }

  /// RFLAGS inside a handler.
  private func handlerFlags(masksInterrupts: Bool) -> UInt64 {
    let cleared = RFLAGS.tf | RFLAGS.nt | RFLAGS.rf | RFLAGS.vm | (masksInterrupts ? RFLAGS.if : 0)
    return page.rflags & ~cleared
  }

  // MARK: IA-32e mode

  func deliverLong(_ event: Event) throws(Fault) {
    let table = page[\.idtr]
    let code = Processor.gateCode(event.vector)
    let offset = UInt64(event.vector) &* 16
    guard offset &+ 15 <= UInt64(table.limit) else { throw .generalProtection(code) }
    let entry = try span(table.base &+ offset, count: 16, write: false, as: .implicit)
    let gate = Descriptor(low: load(UInt64.self, entry), high: load(UInt64.self, entry, at: 8) & 0xFFFF_FFFF)
    guard !gate.isCodeOrData, gate.type == SystemType.interruptGate || gate.type == SystemType.trapGate else {
      throw .generalProtection(code)
    }
    if event.kind == .software && gate.dpl < privilege { throw .generalProtection(code) }
    guard gate.isPresent else { throw .segmentNotPresent(code) }

    let (found, level) = try gateTarget(gate.gateSelector)
    var target = found
    guard Processor.isCanonical(gate.gateOffset) else { throw .generalProtection() }
    let changes = level != privilege
    var frame: StackFrame
    if gate.gateStackTable != 0 {
      let pointer = try longStackPointer(tssOffset: 36 &+ UInt32(gate.gateStackTable &- 1) &* 8)
      frame = longFrame(privilege: level, pointer: pointer)
    } else if changes {
      frame = longFrame(privilege: level, pointer: try longStackPointer(tssOffset: 4 &+ UInt32(level) &* 8))
    } else {
      frame = longFrame(privilege: level, pointer: page[register: GPR.rsp])
    }
    if !changes { frame.segment = page[.ss] }
    frame.pointer &= ~15
    try reserve(&frame, event.errorCode == nil ? 5 : 6, size: 8)
    try markAccessed(&target)

    try push(UInt64(page[.ss].selector), size: 8, &frame)
    try push(page[register: GPR.rsp], size: 8, &frame)
    try push(pushedFlags(event), size: 8, &frame)
    try push(UInt64(page[.cs].selector), size: 8, &frame)
    try push(event.returnAddress, size: 8, &frame)
    if let errorCode = event.errorCode { try push(UInt64(errorCode), size: 8, &frame) }
    adopt(frame)
    enterCode(target, gate.gateSelector, privilege: level, gate.gateOffset)
    page.rflags = handlerFlags(masksInterrupts: gate.type == SystemType.interruptGate)
  }

  // MARK: Protected mode

  func deliverProtected(_ event: Event) throws(Fault) {
    let table = page[\.idtr]
    let code = Processor.gateCode(event.vector)
    let offset = UInt64(event.vector) &* 8
    guard offset &+ 7 <= UInt64(table.limit) else { throw .generalProtection(code) }
    let gate = Descriptor(low: try read(UInt64.self, at: table.base &+ offset, as: .implicit))
    guard !gate.isCodeOrData else { throw .generalProtection(code) }
    switch gate.type {
    case SystemType.taskGate, SystemType.interruptGate16, SystemType.trapGate16, SystemType.interruptGate,
      SystemType.trapGate:
      break
    default: throw .generalProtection(code)
    }
    if event.kind == .software && gate.dpl < privilege { throw .generalProtection(code) }
    guard gate.isPresent else { throw .segmentNotPresent(code) }
    if gate.type == SystemType.taskGate {
      return try switchTask(
        to: gate.gateSelector, reason: .interrupt, returnAddress: event.returnAddress, errorCode: event.errorCode)
    }

    let (found, level) = try gateTarget(gate.gateSelector)
    var target = found
    let size: UInt8 = gate.type & 8 != 0 ? 4 : 2
    let fromVM86 = page.isVM86
    // A handler of virtual-8086 code runs at level 0, never in a conforming segment (SDM volume 3, 20.3.1).
    if fromVM86 && (level != 0 || target.isConforming) { throw SelectorFault.protection(gate.gateSelector) }
    let changes = level != privilege
    var frame = changes ? try innerFrame(privilege: level) : currentFrame()
    let elements = (fromVM86 ? 9 : changes ? 5 : 3) &+ (event.errorCode == nil ? 0 : 1)
    try reserve(&frame, elements, size: size)
    let entry = gate.type & 8 != 0 ? gate.gateOffset & 0xFFFF_FFFF : gate.gateOffset & 0xFFFF
    guard entry <= UInt64(target.limit) else { throw .generalProtection() }
    try markAccessed(&target)

    if fromVM86 {
      for register in [SegmentRegister.gs, .fs, .ds, .es] {
        try push(UInt64(page[register].selector), size: size, &frame)
      }
    }
    if changes {
      try push(UInt64(page[.ss].selector), size: size, &frame)
      try push(page[register: GPR.rsp] & 0xFFFF_FFFF, size: size, &frame)
    }
    try push(pushedFlags(event), size: size, &frame)
    try push(UInt64(page[.cs].selector), size: size, &frame)
    try push(event.returnAddress, size: size, &frame)
    if let errorCode = event.errorCode { try push(UInt64(errorCode), size: size, &frame) }
    if fromVM86 {
      for register in [SegmentRegister.gs, .fs, .ds, .es] { page[register] = .unusable(selector: 0) }
    }
    adopt(frame)
    enterCode(target, gate.gateSelector, privilege: level, entry)
    storeFaultAddress(event)
    page.rflags = handlerFlags(masksInterrupts: gate.type & 1 == 0 && !clearVirtualFlag())
  }
}

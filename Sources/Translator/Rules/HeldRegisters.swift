// SPDX-License-Identifier: Apache-2.0
// Guest registers that live in the page, while a scratch register has their value. What one instruction writes the next
// often reads, and would wait for the store: four cycles or five where a register takes none. So the emitter is told
// what the scratch registers hold, and forgets it as they are written. Between instructions that work on registers
// alone, nothing can see the page: there a value is stored only when its scratch register is wanted, or the run ends.

import CHost
import X86

/// The scratch registers that an instruction may still take.
struct ScratchRegisters {
  private var free: UInt16 = 1 << UInt16(RegisterMap.t0) | 1 << UInt16(RegisterMap.t1) | 1 << UInt16(RegisterMap.t2)

  /// All but those that address `memory`.
  init(besides memory: HostMemory?) {
    guard let memory else { return }
    take(memory.base)
    if memory.index != 0xFF { take(memory.index) }
  }

  func contains(_ register: HostRegister) -> Bool { free >> UInt16(register) & 1 != 0 }
  mutating func take(_ register: HostRegister) { free &= ~(1 << UInt16(register)) }
}

/// What the builder knows of the scratch registers beside their contents. T2, T1 and T0 are 13, 14 and 15.
struct HeldRegisters {
  /// A bit for each whose value is newer than the page's.
  var unstored: UInt16 = 0
  /// When each was last taken.
  private var uses = InlineArray<3, UInt8>(repeating: 0)
  private var time: UInt8 = 0

  mutating func use(_ register: HostRegister) {
    time &+= 1
    uses[Int(register &- RegisterMap.t2)] = time
  }

  /// How long ago.
  func age(_ register: HostRegister) -> UInt8 { time &- uses[Int(register &- RegisterMap.t2)] }
}

extension BlockBuilder {
  private static let scratchRegisters = RegisterMap.t2...RegisterMap.t0

  /// What the emitter notes of a register with the host address or the addend of a group.
  static func contents(group: Int8) -> UInt8 { 0x20 | UInt8(truncatingIfNeeded: group) }

  /// The scratch register that holds guest register `number`, which lives in the page, if one does.
  @inline(__always)
  func holder(of number: UInt8) -> HostRegister? {
    for register in BlockBuilder.scratchRegisters where hot.holds(number & 15, in: register) { return register }
    return nil
  }

  /// The same, or `scratch` after a load. For reading.
  mutating func held(_ number: UInt8, or scratch: HostRegister) -> HostRegister {
    if let holder = holder(of: number) { return holder }
    load(number, into: scratch)
    return scratch
  }

  /// Loads guest register `number`, which lives in the page.
  mutating func load(_ number: UInt8, into scratch: HostRegister) {
    if let holder = holder(of: number) {
      if holder == scratch { return }
      hot.mov(scratch, holder)
    } else {
      hot.load(scratch, .env(RegisterMap.slot(number)))
    }
    hot.keep(number & 15, in: scratch)
  }

  /// Stores guest register `number`, which lives in the page, or notes that it has to be stored.
  mutating func store(_ number: UInt8, from source: HostRegister) {
    forget(number)
    if worksOnRegisters {
      held.unstored |= 1 << UInt16(source)
    } else {
      hot.store(.env(RegisterMap.slot(number)), source)
    }
    if source >= RegisterMap.t2 { hot.keep(number & 15, in: source) }
  }

  /// No scratch register holds guest register `number` any more.
  mutating func forget(_ number: UInt8) {
    while let holder = holder(of: number) {
      hot.note(holder)
      held.unstored &= ~(1 << UInt16(holder))
    }
  }

  /// Stores the guest register that `scratch` holds, if it has to be.
  private mutating func settle(_ scratch: HostRegister) {
    guard held.unstored >> UInt16(scratch) & 1 != 0 else { return }
    for number in UInt8(0)..<16 where hot.holds(number, in: scratch) {
      hot.store(.env(RegisterMap.slot(number)), scratch)
    }
    held.unstored &= ~(1 << UInt16(scratch))
  }

  /// Stores all guest registers that have to be. Keeps EFLAGS.
  mutating func settleRegisters() {
    if held.unstored == 0 { return }
    for register in BlockBuilder.scratchRegisters { settle(register) }
  }

  /// Looks at the next instruction: whether it works on registers alone and cannot leave the block. Before any other
  /// the page is brought up to date; a rule that writes scratch registers without a note makes them unknown.
  mutating func prepareRegisters() {
    let i = instruction
    switch row.rule {
    case .copy: worksOnRegisters = !i.isMemory && row.attribute != .mayFault && row.attribute != .aligned
    case .nop: worksOnRegisters = true
    default: worksOnRegisters = false
    }
    if !worksOnRegisters { settleRegisters() }
    if !traits.rule.contains(.notesScratch) { hot.forgetContents() }
  }

  /// The host register that stands for guest register `number` in the current instruction: its own, or a scratch
  /// register, with its value if that `isRead`.
  mutating func rename(_ number: UInt8, isRead: Bool, _ scratch: inout ScratchRegisters) -> HostRegister {
    let host = RegisterMap.host(number)
    if host != RegisterMap.inMemory { return host }
    var choice = RegisterMap.t2
    if let holder = holder(of: number) {
      choice = holder
    } else {
      // The one that has waited longest, and holds no other operand unless there is no choice.
      var best = -1
      for register in BlockBuilder.scratchRegisters where scratch.contains(register) {
        let score = Int(held.age(register)) + (holdsOperand(register) ? 1 : 257)
        if score > best { (best, choice) = (score, register) }
      }
      settle(choice)
      if isRead { load(number, into: choice) } else { hot.note(choice) }
    }
    scratch.take(choice)
    held.use(choice)
    return choice
  }

  /// Whether `register` holds a guest register that the current instruction may name.
  private func holdsOperand(_ register: HostRegister) -> Bool {
    let i = instruction
    return hot.holds(i.reg & 15, in: register) || hot.holds(i.rm & 15, in: register)
      || hot.holds(i.vvvv & 15, in: register)
  }
}

// SPDX-License-Identifier: Apache-2.0
// The two 8259s every PC has had since the AT. Linux probes them, masks them and forgets them; kernels without an
// IOAPIC, and the first timer ticks of others, still live on them.

public import Saving
import Synchronization

/// A pair of cascaded 8259As with edge/level control.
///
/// Offsets 0-1 are the master's ports (0x20), 2-3 the slave's (0xA0), 4-5 the ELCR (0x4D0). Inputs may be driven
/// from any thread; `acknowledge` is the processor's INTA cycle.
public final class PIC: Device {
  /// One 8259A (Intel 231468-003).
  fileprivate struct Chip {
    /// Where an initialisation sequence stands: the next write to the odd port is that word.
    enum Expected: UInt8 { case mask, word2, word3, word4 }

    static let vectorBaseBits: UInt8 = 0xF8

    var requests: UInt8 = 0
    var inService: UInt8 = 0
    /// ICW1 clears it; until then nothing may reach a guest that has not said with which vector.
    var mask: UInt8 = 0xFF
    var levels: UInt8 = 0
    /// ELCR: which inputs are level triggered.
    var levelTriggered: UInt8 = 0
    let levelTriggerable: UInt8
    var vectorBase: UInt8 = 0
    /// The input with the highest priority; rotation moves it.
    var first: UInt8 = 0
    var expected = Expected.mask
    var needsWord4 = false
    var isSingle = false
    var readsInService = false
    var polls = false
    var isAutoEOI = false
    var rotatesOnAutoEOI = false
    var isSpecialMask = false
    var isSpecialFullyNested = false

    mutating func set(_ input: UInt8, _ asserted: Bool) {
      let bit: UInt8 = 1 << input
      if levelTriggered & bit != 0 {
        requests = asserted ? requests | bit : requests & ~bit
      } else if asserted, levels & bit == 0 {
        requests |= bit
      }
      levels = asserted ? levels | bit : levels & ~bit
    }

    /// 0 is the highest priority, 8 is none.
    func priority(of bits: UInt8) -> UInt8 {
      for step in UInt8(0)..<8 where bits >> ((first &+ step) & 7) & 1 != 0 { return step }
      return 8
    }

    /// The input to report to the processor now.
    func pending(isMaster: Bool) -> UInt8? {
      let requested = priority(of: requests & ~mask)
      guard requested < 8 else { return nil }
      var serviced = inService
      if isSpecialMask { serviced &= ~mask }
      // In special fully nested mode a second interrupt of the slave may pass the slave's first.
      if isSpecialFullyNested, isMaster { serviced &= ~(1 << 2) }
      return requested < priority(of: serviced) ? (first &+ requested) & 7 : nil
    }

    mutating func acknowledge(_ input: UInt8) {
      let bit: UInt8 = 1 << input
      if isAutoEOI {
        if rotatesOnAutoEOI { first = (input &+ 1) & 7 }
      } else {
        inService |= bit
      }
      if levelTriggered & bit == 0 { requests &= ~bit }
    }

    mutating func writeCommand(_ value: UInt8) {
      if value & 0x10 != 0 {  // ICW1
        self = Chip(
          mask: 0, levels: levels, levelTriggered: levelTriggered, levelTriggerable: levelTriggerable, expected: .word2,
          needsWord4: value & 1 != 0, isSingle: value & 2 != 0)
      } else if value & 0x08 != 0 {  // OCW3
        if value & 0x04 != 0 { polls = true }
        if value & 0x02 != 0 { readsInService = value & 1 != 0 }
        if value & 0x40 != 0 { isSpecialMask = value & 0x20 != 0 }
      } else {
        writeEndOfInterrupt(value)
      }
    }

    /// OCW2: the top three bits say what to do, the low three to which input.
    mutating func writeEndOfInterrupt(_ value: UInt8) {
      let input = value & 7
      switch value >> 5 {
      case 0, 4: rotatesOnAutoEOI = value >> 5 == 4
      case 1, 5:
        let highest = priority(of: inService)
        guard highest < 8 else { return }
        let ended = (first &+ highest) & 7
        inService &= ~(1 << ended)
        if value >> 5 == 5 { first = (ended &+ 1) & 7 }
      case 3: inService &= ~(1 << input)
      case 6: first = (input &+ 1) & 7
      case 7:
        inService &= ~(1 << input)
        first = (input &+ 1) & 7
      default: break  // 2 is "no operation".
      }
    }

    mutating func writeData(_ value: UInt8) {
      switch expected {
      case .mask: mask = value
      case .word2:
        vectorBase = value & Self.vectorBaseBits
        expected = isSingle ? (needsWord4 ? .word4 : .mask) : .word3
      case .word3: expected = needsWord4 ? .word4 : .mask
      case .word4:
        isSpecialFullyNested = value & 0x10 != 0
        isAutoEOI = value & 0x02 != 0
        expected = .mask
      }
    }
  }

  private struct State {
    // Inputs 0, 1, 2 (and 8, 13) cannot be level triggered on a PC.
    var master = Chip(levelTriggerable: 0xF8)
    var slave = Chip(levelTriggerable: 0xDE)
    var output = InterruptLine.disconnected
    var isAsserting = false
  }

  private let state = Mutex(State())

  public init() {}

  /// Connects INTR, a level that is driven with the PIC's lock held. `InterruptController` connects LINT0 of its
  /// bootstrap processor; only a machine without local APICs has another use for this.
  public func connect(_ output: InterruptLine) {
    state.withLock { state in
      state.output = output
      output.set(state.isAsserting)
    }
  }

  /// Drives input `irq`, 0...15. 2 is the cascade and is ignored, as is anything out of range.
  public func set(irq: Int, _ asserted: Bool) {
    guard (0..<16).contains(irq), irq != 2 else { return }
    update { state in
      let input = UInt8(truncatingIfNeeded: irq & 7)
      if irq < 8 { state.master.set(input, asserted) } else { state.slave.set(input, asserted) }
    }
  }

  /// Whether INTR is asserted.
  public var hasPendingInterrupt: Bool { state.withLock { $0.master.pending(isMaster: true) != nil } }

  /// The INTA cycle: returns the vector and puts the input in service. If the request has gone, the vector is that
  /// of input 7, with nothing in service: the spurious interrupt of the manual.
  public func acknowledge() -> UInt8 {
    update { state in
      guard let input = state.master.pending(isMaster: true) else { return state.master.vectorBase | 7 }
      state.master.acknowledge(input)
      guard input == 2 else { return state.master.vectorBase | input }
      guard let second = state.slave.pending(isMaster: false) else { return state.slave.vectorBase | 7 }
      state.slave.acknowledge(second)
      return state.slave.vectorBase | second
    }
  }

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    let byte: UInt8 = update { state in
      switch offset {
      case 0: Self.readCommand(&state.master, isMaster: true)
      case 1: state.master.mask
      case 2: Self.readCommand(&state.slave, isMaster: false)
      case 3: state.slave.mask
      case 4: state.master.levelTriggered
      case 5: state.slave.levelTriggered
      default: 0xFF
      }
    }
    return UInt64(byte)
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    let byte = UInt8(truncatingIfNeeded: value)
    update { state in
      switch offset {
      case 0: state.master.writeCommand(byte)
      case 1: state.master.writeData(byte)
      case 2: state.slave.writeCommand(byte)
      case 3: state.slave.writeData(byte)
      case 4: state.master.levelTriggered = byte & state.master.levelTriggerable
      case 5: state.slave.levelTriggered = byte & state.slave.levelTriggerable
      default: break
      }
    }
  }

  private static func readCommand(_ chip: inout Chip, isMaster: Bool) -> UInt8 {
    guard chip.polls else { return chip.readsInService ? chip.inService : chip.requests }
    // A poll is an INTA cycle whose answer is read instead.
    chip.polls = false
    guard let input = chip.pending(isMaster: isMaster) else { return 0 }
    chip.acknowledge(input)
    return 0x80 | input
  }

  /// Changes the chips, lets the slave's output reach the master and the master's the processor.
  @discardableResult
  private func update<Result: Sendable>(_ body: (inout State) -> Result) -> Result {
    state.withLock { state in
      let result = body(&state)
      // The cascade follows the slave like a level, whatever the ELCR says.
      let cascade: UInt8 = 1 << 2
      if state.slave.pending(isMaster: false) != nil {
        state.master.requests |= cascade
      } else {
        state.master.requests &= ~cascade
      }
      let isAsserting = state.master.pending(isMaster: true) != nil
      if isAsserting != state.isAsserting {
        state.isAsserting = isAsserting
        state.output.set(isAsserting)
      }
      return result
    }
  }
}

extension PIC.Chip: SavedState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&requests, "requests")
    try archive.transfer(&inService, "services")
    try archive.transfer(&mask, "mask")
    try archive.transfer(&levels, "levels")
    try archive.transfer(&levelTriggered, "level triggers", bits: levelTriggerable)
    try archive.transfer(&vectorBase, "vector base", bits: Self.vectorBaseBits)
    try archive.transfer(&first, "priority", in: 0...7)
    try archive.transfer(&expected, "initialisation")
    try archive.transfer(&needsWord4, "fourth word")
    try archive.transfer(&isSingle, "single mode")
    try archive.transfer(&readsInService, "read choice")
    try archive.transfer(&polls, "poll")
    try archive.transfer(&isAutoEOI, "automatic end")
    try archive.transfer(&rotatesOnAutoEOI, "rotation")
    try archive.transfer(&isSpecialMask, "special mask mode")
    try archive.transfer(&isSpecialFullyNested, "special nested mode")
  }
}

extension PIC: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try state.withLock { state throws(SavedStateError) in
      try archive.part("master's") { archive throws(SavedStateError) in try state.master.transfer(&archive) }
      try archive.part("slave's") { archive throws(SavedStateError) in try state.slave.transfer(&archive) }
      try archive.transfer(&state.isAsserting, "output")
      try archive.require(state.isAsserting == (state.master.pending(isMaster: true) != nil), "output")
    }
  }
}

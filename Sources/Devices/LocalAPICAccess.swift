// SPDX-License-Identifier: Apache-2.0
// Reading and writing the local APIC's registers: one switch each, shared by MMIO and MSR access, and the
// transitions of IA32_APIC_BASE.

extension LocalAPICState {
  /// Version 0x14, entries 0...5 in the local vector table, no EOI-broadcast suppression.
  static let version: UInt32 = 0x0005_0014

  static let logicalDestinationBits: UInt32 = 0xFF00_0000, destinationFormatOnes: UInt32 = 0x0FFF_FFFF
  static let spuriousVectorBits: UInt32 = 0x3FF

  /// What the interrupt command can hold: in x2APIC mode what WRMSR lets through, else any 32 bits and a destination of
  /// 8; delivery status reads as 0.
  var commandBits: UInt64 {
    let written: UInt64 = mode == .x2APIC ? LocalAPICRegister.commandBits : 0xFF00_0000_FFFF_FFFF
    return written & ~UInt64(LocalVector.deliveryStatus)
  }

  /// Whether IA32_APIC_BASE can have a value, whatever it was before: no reserved bits, no x2APIC mode without APIC.
  static func accepts(base value: UInt64) -> Bool {
    value & ~(APICBase.addressBits | APICBase.bootstrap | APICBase.x2APIC | APICBase.enabled) == 0
      && (value & APICBase.enabled != 0 || value & APICBase.x2APIC == 0)
  }

  /// The value of a register; callers have already decided that it exists in this mode.
  mutating func read(_ register: LocalAPICRegister, _ clock: Clock, _ effects: inout LocalAPICEffects) -> UInt64 {
    switch register {
    case .id: UInt64(mode == .x2APIC ? id : id << 24)
    case .version: UInt64(Self.version)
    case .taskPriority: UInt64(taskPriority)
    case .arbitrationPriority, .processorPriority: UInt64(processorPriority)
    case .endOfInterrupt, .remoteRead, .selfInterrupt: 0
    case .logicalDestination: UInt64(mode == .x2APIC ? x2APICLogicalID : logicalDestination)
    case .destinationFormat: UInt64(destinationFormat)
    case .spuriousVector: UInt64(spuriousVector)
    case .inService(let word): UInt64(inService.word(word))
    case .triggerMode(let word): UInt64(levelTriggered.word(word))
    case .interruptRequest(let word): UInt64(requested.word(word))
    case .errorStatus: UInt64(errorStatus)
    case .interruptCommandLow: mode == .x2APIC ? command : command & 0xFFFF_FFFF
    case .interruptCommandHigh: command >> 32
    case .localVector(let entry): UInt64(self[entry])
    case .initialCount: UInt64(timer.initialCount)
    case .currentCount: currentCount(clock, &effects)
    case .divideConfiguration: UInt64(timer.divideConfiguration)
    }
  }

  /// Changes a register; callers have already refused what is #GP in x2APIC mode.
  mutating func write(
    _ register: LocalAPICRegister, _ value: UInt64, _ clock: Clock, _ effects: inout LocalAPICEffects
  ) {
    let word = UInt32(truncatingIfNeeded: value)
    switch register {
    case .taskPriority:
      taskPriority = UInt8(truncatingIfNeeded: word)
    case .endOfInterrupt:
      endOfInterrupt(&effects)
    case .logicalDestination:
      logicalDestination = word & Self.logicalDestinationBits
    case .destinationFormat:
      destinationFormat = word | Self.destinationFormatOnes
    case .spuriousVector:
      spuriousVector = word & Self.spuriousVectorBits
      if !isSoftwareEnabled {
        for entry in LocalVector.allCases { self[entry] |= LocalVector.masked }
      }
    case .errorStatus:
      errorStatus = unreportedErrors
      unreportedErrors = 0
    case .interruptCommandLow:
      command = mode == .x2APIC ? value : command & 0xFFFF_FFFF_0000_0000 | UInt64(word)
      command &= commandBits
      send(&effects)
    case .interruptCommandHigh:
      command = command & 0xFFFF_FFFF | UInt64(word & 0xFF00_0000) << 32
    case .localVector(let entry):
      write(entry, word, clock, &effects)
    case .initialCount:
      timer.setInitialCount(word, now: clock.nanoseconds())
      effects.rearms = true
    case .divideConfiguration:
      advanceTimer(clock, &effects)
      timer.setDivideConfiguration(word, now: clock.nanoseconds())
      effects.rearms = true
    case .selfInterrupt:
      if mode == .x2APIC {
        let vector = UInt8(truncatingIfNeeded: word)
        if vector < 16 { note(LocalAPICError.sendIllegalVector, &effects) } else { receive(vector, .edge, &effects) }
      }
    case .id, .version, .arbitrationPriority, .processorPriority, .remoteRead, .inService, .triggerMode,
      .interruptRequest, .currentCount:
      break
    }
  }

  /// IA32_TSC_DEADLINE. A tick already reached fires at once; in the other timer modes writes are ignored.
  mutating func setDeadline(_ tick: UInt64, _ clock: Clock, _ effects: inout LocalAPICEffects) {
    guard mode != .disabled else { return }
    advanceTimer(clock, &effects)
    timer.setDeadline(tick)
    advanceTimer(clock, &effects)
    effects.rearms = true
  }

  /// IA32_APIC_BASE; false is #GP. From disabled only xAPIC, from x2APIC only disabled (SDM figure 11-27).
  mutating func setBase(_ value: UInt64, _ effects: inout LocalAPICEffects) -> Bool {
    let old = mode
    guard Self.accepts(base: value) else { return false }
    var next = self
    next.base = value
    switch (old, next.mode) {
    case (.disabled, .x2APIC), (.x2APIC, .xAPIC): return false
    case (.xAPIC, .disabled), (.x2APIC, .disabled):
      next.reset()
      effects.rearms = true
    case (.xAPIC, .x2APIC): next.command = 0
    case (.disabled, .disabled), (.disabled, .xAPIC), (.xAPIC, .xAPIC), (.x2APIC, .x2APIC): break
    }
    self = next
    return true
  }

  private mutating func currentCount(_ clock: Clock, _ effects: inout LocalAPICEffects) -> UInt64 {
    advanceTimer(clock, &effects)
    return UInt64(timer.currentCount(now: clock.nanoseconds()))
  }

  private mutating func write(
    _ entry: LocalVector, _ value: UInt32, _ clock: Clock, _ effects: inout LocalAPICEffects
  ) {
    // What expired under the old entry was for that entry: masked, it is gone.
    if entry == .timer { advanceTimer(clock, &effects) }
    let wasMasked = self[entry] & LocalVector.masked != 0
    var new = value & entry.writableBits | self[entry] & LocalVector.remoteIRR
    if !isSoftwareEnabled { new |= LocalVector.masked }
    if new & LocalVector.levelTriggered == 0 { new &= ~LocalVector.remoteIRR }
    self[entry] = new
    switch entry {
    case .timer:
      timer.setMode(LocalAPICTimer.Mode(entry: new), now: clock.nanoseconds())
      effects.rearms = true
    case .lint0, .lint1:
      if wasMasked { evaluatePin(entry == .lint0 ? 0 : 1, isEdge: false, &effects) }
    case .thermal, .performance, .error:
      break
    }
  }

  private mutating func send(_ effects: inout LocalAPICEffects) {
    let low = UInt32(truncatingIfNeeded: command)
    var target = UInt32(truncatingIfNeeded: command >> 32)
    if mode == .xAPIC { target = target >> 24 == 0xFF ? .max : target >> 24 }
    let message = InterruptMessage(commandRegister: low, target: target, from: id)
    if message.vector < 16, message.mode == .fixed || message.mode == .lowestPriority {
      return note(LocalAPICError.sendIllegalVector, &effects)
    }
    effects.message = message
  }
}

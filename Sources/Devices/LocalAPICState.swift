// SPDX-License-Identifier: Apache-2.0
// What one local APIC remembers and how it decides: a plain value, changed under `LocalAPIC`'s lock. Whatever must
// happen outside (an IPI, an EOI for the IOAPIC, waking the vCPU) is noted in `Effects` and done after unlocking.

import Saving

/// What a change to a local APIC asks of the rest of the machine.
struct LocalAPICEffects {
  var message: InterruptMessage?
  /// A level-triggered vector whose service ended.
  var endedVector: UInt8?
  /// The vCPU may have something new to take.
  var wakes = false
  var rearms = false
}

struct LocalAPICState: Sendable {
  enum Mode { case disabled, xAPIC, x2APIC }

  let id: UInt32
  var base: UInt64
  var taskPriority: UInt8 = 0
  var logicalDestination: UInt32 = 0
  var destinationFormat: UInt32 = .max
  var spuriousVector: UInt32 = 0xFF
  var requested = VectorSet()
  var inService = VectorSet()
  var levelTriggered = VectorSet()
  var errorStatus: UInt32 = 0
  var unreportedErrors: UInt32 = 0
  var command: UInt64 = 0
  var vectors = [6 of UInt32](repeating: LocalVector.masked)
  var timer = LocalAPICTimer()
  /// The levels of LINT0 and LINT1: wires, so a reset does not change them.
  var pins = [2 of Bool](repeating: false)
  /// An ExtINT message, as opposed to the LINT0 wire, which is a level.
  var hasExternalMessage = false
  var hasNMI = false
  var hasInit = false
  var isWaitingForStartup: Bool
  var startupVector: UInt8?

  init(id: UInt32, isBootstrap: Bool) {
    self.id = id
    base = APICBase.defaultAddress | APICBase.enabled | (isBootstrap ? APICBase.bootstrap : 0)
    isWaitingForStartup = !isBootstrap
  }

  var mode: Mode {
    guard base & APICBase.enabled != 0 else { return .disabled }
    return base & APICBase.x2APIC != 0 ? .x2APIC : .xAPIC
  }

  var isSoftwareEnabled: Bool { mode != .disabled && spuriousVector & (1 << 8) != 0 }

  /// INIT and hardware disable: everything but the identity, the base register and the wires (SDM 11.4.7).
  mutating func reset() {
    let fresh = LocalAPICState(id: id, isBootstrap: false)
    taskPriority = 0
    logicalDestination = fresh.logicalDestination
    destinationFormat = fresh.destinationFormat
    spuriousVector = fresh.spuriousVector
    requested = fresh.requested
    inService = fresh.inService
    levelTriggered = fresh.levelTriggered
    errorStatus = 0
    unreportedErrors = 0
    command = 0
    vectors = fresh.vectors
    timer = LocalAPICTimer()
    hasExternalMessage = false
    hasNMI = false
  }

  subscript(entry: LocalVector) -> UInt32 {
    get { vectors[entry.rawValue] }
    set { vectors[entry.rawValue] = newValue }
  }

  // MARK: Priorities

  /// PPR (SDM vol. 3, 11.8.3.1).
  var processorPriority: UInt8 {
    let serviced = inService.highest ?? 0
    return taskPriority >> 4 >= serviced >> 4 ? taskPriority : serviced & 0xF0
  }

  var pendingVector: UInt8? {
    guard mode != .disabled, let vector = requested.highest, vector >> 4 > processorPriority >> 4 else { return nil }
    return vector
  }

  /// Whether the 8259 should be asked for a vector: LINT0 as ExtINT, or wired straight through when there is no
  /// APIC (SDM vol. 3, 11.4.3).
  var hasExternalInterrupt: Bool {
    if mode == .disabled { return pins[0] }
    if hasExternalMessage { return true }
    let entry = self[.lint0]
    return pins[0] && entry & LocalVector.masked == 0 && deliveryMode(entry) == .external
  }

  mutating func acknowledge() -> UInt8? {
    guard let vector = pendingVector else { return nil }
    requested[vector] = false
    inService[vector] = true
    return vector
  }

  /// Whatever is deliverable now, the vCPU's thread finds when it asks before entering the guest again.
  mutating func endOfInterrupt(_ effects: inout LocalAPICEffects) {
    guard let vector = inService.highest else { return }
    inService[vector] = false
    if levelTriggered[vector] {
      effects.endedVector = vector
      for (entry, pin) in [(LocalVector.lint0, 0), (.lint1, 1)]
      where self[entry] & LocalVector.remoteIRR != 0 && self[entry] & 0xFF == UInt32(vector) {
        self[entry] &= ~LocalVector.remoteIRR
        evaluatePin(pin, isEdge: false, &effects)
      }
    }
  }

  // MARK: Arrivals

  /// Returns whether the vector was taken; a software-disabled APIC takes none.
  @discardableResult
  mutating func receive(
    _ vector: UInt8, _ trigger: InterruptMessage.Trigger, _ effects: inout LocalAPICEffects
  ) -> Bool {
    guard isSoftwareEnabled else { return false }
    guard vector >= 16 else {
      note(LocalAPICError.receiveIllegalVector, &effects)
      return false
    }
    if !requested[vector] { effects.wakes = true }
    requested[vector] = true
    levelTriggered[vector] = trigger == .level
    return true
  }

  @discardableResult
  mutating func receive(_ message: InterruptMessage, _ effects: inout LocalAPICEffects) -> Bool {
    guard mode != .disabled else { return false }
    switch message.mode {
    case .fixed, .lowestPriority:
      return receive(message.vector, message.trigger, &effects)
    case .nonMaskable:
      hasNMI = true
    case .initialize:
      guard message.isAsserted else { return false }
      hasInit = true
      startupVector = nil
    case .startup:
      guard hasInit || isWaitingForStartup else { return false }
      startupVector = message.vector
    case .external:
      hasExternalMessage = true
    case .systemManagement, .remoteRead:
      return false  // There is no SMM, and no processor since the Pentium 4 answers remote reads.
    }
    effects.wakes = true
    return true
  }

  /// SDM vol. 3, 11.6.2.2 and 11.12.10.2.
  func matches(logical address: UInt32) -> Bool {
    switch mode {
    case .disabled: false
    case .x2APIC: address >> 16 == x2APICLogicalID >> 16 && address & x2APICLogicalID & 0xFFFF != 0
    case .xAPIC where destinationFormat >> 28 == 0xF:
      address & (logicalDestination >> 24) & 0xFF != 0
    case .xAPIC:
      (address >> 4 & 0xF == 0xF || address >> 4 & 0xF == logicalDestination >> 28)
        && address & (logicalDestination >> 24) & 0xF != 0
    }
  }

  var x2APICLogicalID: UInt32 { (id >> 4) << 16 | 1 << (id & 0xF) }

  // MARK: Local sources

  mutating func setPin(_ pin: Int, _ asserted: Bool, _ effects: inout LocalAPICEffects) {
    guard pins[pin] != asserted else { return }
    pins[pin] = asserted
    if asserted { evaluatePin(pin, isEdge: true, &effects) }
  }

  mutating func evaluatePin(_ pin: Int, isEdge: Bool, _ effects: inout LocalAPICEffects) {
    guard pins[pin] else { return }
    guard mode != .disabled else {
      if pin == 1, isEdge { hasNMI = true }
      effects.wakes = true
      return
    }
    let entry: LocalVector = pin == 0 ? .lint0 : .lint1
    let value = self[entry]
    guard value & LocalVector.masked == 0 else { return }
    if deliveryMode(value) == .external {
      effects.wakes = true
    } else if deliveryMode(value) == .fixed, value & LocalVector.levelTriggered != 0 {
      guard value & LocalVector.remoteIRR == 0, isSoftwareEnabled else { return }
      self[entry] |= LocalVector.remoteIRR
      receive(UInt8(truncatingIfNeeded: value), .level, &effects)
    } else if isEdge {
      deliver(entry, &effects)
    }
  }

  /// Raises the interrupt of an unmasked entry once.
  mutating func deliver(_ entry: LocalVector, _ effects: inout LocalAPICEffects) {
    let value = self[entry]
    guard value & LocalVector.masked == 0, mode != .disabled else { return }
    let isPlain = entry == .timer || entry == .error
    let message = InterruptMessage(
      vector: UInt8(truncatingIfNeeded: value), mode: isPlain ? .fixed : deliveryMode(value),
      destination: .physical(id))
    receive(message, &effects)
  }

  mutating func advanceTimer(_ clock: Clock, _ effects: inout LocalAPICEffects) {
    if timer.advance(clock) { deliver(.timer, &effects) }
  }

  mutating func note(_ error: UInt32, _ effects: inout LocalAPICEffects) {
    unreportedErrors |= error
    let value = self[.error]
    // An illegal vector in the error entry itself must not recurse.
    guard value & LocalVector.masked == 0, value & 0xFF >= 16 else { return }
    deliver(.error, &effects)
  }

  private func deliveryMode(_ value: UInt32) -> InterruptMessage.DeliveryMode {
    InterruptMessage.DeliveryMode(rawValue: UInt8(truncatingIfNeeded: value >> 8) & 7) ?? .fixed
  }
}

extension LocalAPICState: SavedState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&base, "base register")
    try archive.require(Self.accepts(base: base), "base register", base)
    try archive.transfer(&taskPriority, "task priority")
    try archive.transfer(&logicalDestination, "logical destination", bits: Self.logicalDestinationBits)
    try archive.transfer(&destinationFormat, "destination format")
    try archive.require(destinationFormat | Self.destinationFormatOnes == destinationFormat, "destination format")
    try archive.transfer(&spuriousVector, "spurious vector", bits: Self.spuriousVectorBits)
    try archive.part("requests") { archive throws(SavedStateError) in try requested.transfer(&archive) }
    try archive.part("services") { archive throws(SavedStateError) in try inService.transfer(&archive) }
    try archive.part("triggers") { archive throws(SavedStateError) in try levelTriggered.transfer(&archive) }
    try archive.transfer(&errorStatus, "error status", bits: LocalAPICError.all)
    try archive.transfer(&unreportedErrors, "unreported errors", bits: LocalAPICError.all)
    try archive.transfer(&command, "interrupt command")
    try archive.require(command & ~commandBits == 0, "interrupt command", command)
    for entry in LocalVector.allCases {
      try archive.transfer(&self[entry], "\(entry) vector")
      try archive.require(isPossible(self[entry], in: entry), "\(entry) vector", self[entry])
    }
    try archive.part("timer") { archive throws(SavedStateError) in try timer.transfer(&archive) }
    try archive.require(timer.mode == LocalAPICTimer.Mode(entry: self[.timer]), "timer mode")
    for pin in 0..<2 { try archive.transfer(&pins[pin], "pin \(pin)") }
    try archive.transfer(&hasExternalMessage, "external interrupt")
    try archive.transfer(&hasNMI, "NMI")
    try archive.transfer(&hasInit, "INIT")
    try archive.transfer(&isWaitingForStartup, "wait for start-up")
    // The bootstrap processor restarts where it would wait.
    try archive.require(id != 0 || !isWaitingForStartup, "wait for start-up")
    try archive.transfer(&startupVector, "start-up vector")
  }

  /// What an entry of the local vector table can hold: software's bits, and what follows from the rest.
  private func isPossible(_ value: UInt32, in entry: LocalVector) -> Bool {
    let isMasked = value & LocalVector.masked != 0, isLevel = value & LocalVector.levelTriggered != 0
    let remote = isLevel ? entry.definedBits & LocalVector.remoteIRR : 0
    return value & ~(entry.writableBits | remote) == 0 && (isMasked || isSoftwareEnabled)
  }
}

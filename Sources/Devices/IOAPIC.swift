// SPDX-License-Identifier: Apache-2.0
// The IOAPIC: 24 pins, each with a redirection that says which vector goes to which local APIC.

public import Saving
import Synchronization

/// An 82093AA with the EOI register of its successors (version 0x20).
///
/// Register access comes from vCPU threads, pins from any thread. As a `Device` it is a page of MMIO.
public final class IOAPIC: Device {
  private static let idBits: UInt32 = 0x0F00_0000
  /// Number of pins.
  public static let pinCount = 24

  /// What the window shows, by IOREGSEL.
  private enum Register {
    case id, version, arbitration
    case redirection(pin: Int, isHigh: Bool)

    init?(index: UInt8) {
      switch index {
      case 0: self = .id
      case 1: self = .version
      case 2: self = .arbitration
      case 0x10..<0x10 + UInt8(2 * IOAPIC.pinCount):
        self = .redirection(pin: Int(index - 0x10) / 2, isHigh: index & 1 != 0)
      default: return nil
      }
    }
  }

  /// The three registers in the page.
  private enum Port: UInt64 { case select = 0x00, window = 0x10, endOfInterrupt = 0x40 }

  /// One 64-bit redirection entry (82093AA, 3.2.4).
  private struct Redirection {
    static let readOnly: UInt64 = 1 << 12 | remoteIRR
    static let remoteIRR: UInt64 = 1 << 14
    static let defined: UInt64 = 0xFF00_0000_0001_FFFF
    /// APIC id bits 14:8, where machines with more than 255 CPUs have them (David Woodhouse, "x86/kvm: Reserve
    /// KVM_FEATURE_MSI_EXT_DEST_ID", linux-kernel, 2020).
    static let extended: UInt64 = 0x7F << 49

    var bits: UInt64 = 1 << 16

    var vector: UInt8 { UInt8(truncatingIfNeeded: bits) }
    var isLevel: Bool { bits & (1 << 15) != 0 }
    var isMasked: Bool { bits & (1 << 16) != 0 }
    var isInService: Bool {
      get { bits & Self.remoteIRR != 0 }
      set { bits = newValue ? bits | Self.remoteIRR : bits & ~Self.remoteIRR }
    }

    var message: InterruptMessage {
      // Without extended destinations those bits are never set.
      let target = UInt32(truncatingIfNeeded: bits >> 56 | (bits & Self.extended) >> 41)
      let isLogical = bits & (1 << 11) != 0
      return InterruptMessage(
        vector: vector,
        mode: InterruptMessage.DeliveryMode(rawValue: UInt8(truncatingIfNeeded: bits >> 8) & 7) ?? .fixed,
        destination: target == 0xFF ? .all : isLogical ? .logical(target) : .physical(target),
        trigger: isLevel ? .level : .edge)
    }
  }

  private struct State {
    var id: UInt32 = 0
    var select: UInt8 = 0
    var asserted: UInt32 = 0
    var table = [24 of Redirection](repeating: Redirection())
  }

  private let state = Mutex(State())
  private let controller: InterruptController
  private let definedBits: UInt64

  /// - Parameter extendedDestinations: Whether redirections carry 15 bits of APIC id.
  public init(controller: InterruptController, extendedDestinations: Bool = false) {
    self.controller = controller
    definedBits = Redirection.defined | (extendedDestinations ? Redirection.extended : 0)
    controller.attach(self)
  }

  /// Drives a pin, 0...23; others are ignored. `true` is asserted, whatever polarity the guest programmed.
  public func set(pin: Int, _ asserted: Bool) {
    guard pin >= 0, pin < Self.pinCount else { return }
    state.withLock { state in
      let bit: UInt32 = 1 << UInt32(pin)
      let isRising = asserted && state.asserted & bit == 0
      state.asserted = asserted ? state.asserted | bit : state.asserted & ~bit
      let entry = state.table[pin]
      if entry.isLevel {
        service(pin, &state)
      } else if isRising, !entry.isMasked {
        controller.deliver(entry.message)
      }
    }
  }

  /// A local APIC ended the service of a level-triggered vector; pins still asserted ask again.
  func endOfInterrupt(_ vector: UInt8) {
    state.withLock { state in
      for pin in 0..<Self.pinCount where state.table[pin].isLevel && state.table[pin].vector == vector {
        state.table[pin].isInService = false
        service(pin, &state)
      }
    }
  }

  /// Sends a level-triggered pin's interrupt unless one is already on its way.
  private func service(_ pin: Int, _ state: inout State) {
    let entry = state.table[pin]
    guard entry.isLevel, !entry.isMasked, !entry.isInService, state.asserted >> UInt32(pin) & 1 != 0 else { return }
    if controller.deliver(entry.message) > 0 { state.table[pin].isInService = true }
  }

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    guard let port = Port(rawValue: offset & ~3) else { return 0 }
    let value: UInt32 = state.withLock { state in
      switch port {
      case .select: return UInt32(state.select)
      case .endOfInterrupt: return 0
      case .window: return read(Register(index: state.select), state)
      }
    }
    return UInt64(value) >> ((offset & 3) &* 8)
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    guard let port = Port(rawValue: offset) else { return }
    let word = UInt32(truncatingIfNeeded: value)
    switch port {
    case .select: state.withLock { $0.select = UInt8(truncatingIfNeeded: word) }
    case .window: state.withLock { write(Register(index: $0.select), word, &$0) }
    case .endOfInterrupt: endOfInterrupt(UInt8(truncatingIfNeeded: word))
    }
  }

  private func read(_ register: Register?, _ state: State) -> UInt32 {
    switch register {
    case .id, .arbitration: state.id
    case .version: UInt32(Self.pinCount - 1) << 16 | 0x20
    case .redirection(let pin, let isHigh):
      UInt32(truncatingIfNeeded: state.table[pin].bits >> (isHigh ? 32 : 0))
    case nil: 0
    }
  }

  private func write(_ register: Register?, _ word: UInt32, _ state: inout State) {
    switch register {
    case .id: state.id = word & Self.idBits
    case .redirection(let pin, let isHigh):
      let old = state.table[pin].bits
      var bits = isHigh ? old & 0xFFFF_FFFF | UInt64(word) << 32 : old & ~0xFFFF_FFFF | UInt64(word)
      bits = bits & definedBits & ~Redirection.readOnly | old & Redirection.readOnly
      state.table[pin].bits = bits
      // Linux clears a stuck remote IRR by passing through edge mode.
      if !state.table[pin].isLevel { state.table[pin].isInService = false }
      service(pin, &state)
    case .version, .arbitration, nil: break
    }
  }
}

extension IOAPIC: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try state.withLock { state throws(SavedStateError) in
      try archive.transfer(&state.id, "id", bits: Self.idBits)
      try archive.transfer(&state.select, "register number")
      try archive.transfer(&state.asserted, "pins", bits: 1 << UInt32(Self.pinCount) - 1)
      for pin in 0..<Self.pinCount {
        try archive.transfer(&state.table[pin].bits, "redirection \(pin)")
        let entry = state.table[pin]
        let read = entry.isLevel ? Redirection.remoteIRR : 0
        try archive.require(
          entry.bits & ~(definedBits & ~Redirection.readOnly | read) == 0, "redirection \(pin)", entry.bits)
      }
    }
  }
}

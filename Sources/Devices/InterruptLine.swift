// SPDX-License-Identifier: Apache-2.0
// The one thing a device knows about interrupts: a wire it can pull. Where the wire ends (a PIC input, an IOAPIC
// pin, both, a test) is decided where the machine is wired.

/// The device's end of an interrupt wire.
///
/// `true` always means "asserted"; polarity is a matter of the receiving pin and never of the device.
public struct InterruptLine: Sendable {
  private let drive: @Sendable (Bool) -> Void

  /// Makes a wire that ends in a closure, called with the level on whatever thread the device runs.
  public init(_ drive: @escaping @Sendable (_ asserted: Bool) -> Void) { self.drive = drive }

  /// A wire that ends nowhere.
  public static let disconnected = InterruptLine { _ in }

  /// Drives the wire to a level, and keeps it there.
  public func set(_ asserted: Bool) { drive(asserted) }

  /// Asserts and releases: one rising edge.
  public func pulse() {
    drive(true)
    drive(false)
  }

  /// A wire to a pin; that of an ISA interrupt ends at both controllers.
  public init(to pin: InterruptPin, pic: PIC, ioapic: IOAPIC) {
    let gsi = pin.globalSystemInterrupt
    switch pin {
    case .isa(let irq):
      self.init { asserted in
        pic.set(irq: irq, asserted)
        ioapic.set(pin: gsi, asserted)
      }
    case .ioapic: self.init { ioapic.set(pin: gsi, $0) }
    }
  }
}

/// Where a device's interrupt arrives.
public enum InterruptPin: Sendable, Equatable {
  /// One of the 16 interrupts of an ISA bus, 0...15: at both controllers, edge-triggered, as on a PC.
  case isa(Int)
  /// A pin of the IOAPIC alone, 16..<`IOAPIC.pinCount`; a level unless the machine pulses it.
  case ioapic(Int, isEdgeTriggered: Bool = false)

  /// The IOAPIC's pin. ISA's IRQ 0 is pin 2, as the MADT's override says; the others keep their number.
  public var globalSystemInterrupt: Int {
    switch self {
    case .isa(0): 2
    case .isa(let pin), .ioapic(let pin, _): pin
    }
  }
}

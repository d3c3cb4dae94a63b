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

  /// The wire of one of the 16 ISA interrupts, ending at both controllers as on a PC.
  ///
  /// - Parameter irq: 0...15. IRQ 0 is IOAPIC pin 2, as the MADT's override says; the others keep their number.
  public static func isa(_ irq: Int, pic: PIC?, ioapic: IOAPIC?) -> InterruptLine {
    let pin = irq == 0 ? 2 : irq
    return InterruptLine { asserted in
      pic?.set(irq: irq, asserted)
      ioapic?.set(pin: pin, asserted)
    }
  }
}

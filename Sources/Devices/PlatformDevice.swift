// SPDX-License-Identifier: Apache-2.0
// The platform device, as Linux calls what no bus can enumerate: all that the machine must know of a device, in one value.
// What is mapped, what is saved, when it acts by itself and what ACPI says all come from it, so that no device can be added
// without one of them. `Platform` has the list.

public import Saving

/// A device that keeps nothing from one access to the next, so that nothing of it is saved.
public protocol StatelessDevice: Device {}

/// One device of a machine, whole.
public struct PlatformDevice: Sendable {
  /// The name of its section in a saved machine: at most 16 ASCII characters, no other device's.
  public let name: String
  /// What is saved; nil only of a `StatelessDevice`.
  public let state: (any SavedState & Sendable)?
  /// Where it answers, on the bus of ports and on that of physical addresses.
  public let ports: [Bus.Mapping]
  public let memory: [Bus.Mapping]
  /// The device as the timer thread's, if it does something by itself.
  public let deadlines: (any DeadlineSource)?
  /// The pin that its interrupt line ends at, for ACPI.
  public let interrupt: InterruptPin?
  /// What the DSDT says of it, its ranges and its interrupt aside; nil leaves it out.
  public let acpi: ACPIDevice?

  /// A device with a state.
  public init<D: Device & SavedState>(
    _ name: String, _ device: D, ports: [Bus.Window] = [], memory: [Bus.Window] = [], interrupt: InterruptPin? = nil,
    acpi: ACPIDevice? = nil
  ) {
    self.init(name, state: device, device, ports, memory, interrupt, acpi)
  }

  /// A device without a state.
  public init(
    _ name: String, stateless device: some StatelessDevice, ports: [Bus.Window] = [], memory: [Bus.Window] = [],
    interrupt: InterruptPin? = nil, acpi: ACPIDevice? = nil
  ) {
    self.init(name, state: nil, device, ports, memory, interrupt, acpi)
  }

  /// A part of the machine that has a state and answers at no address of a bus.
  public init(_ name: String, wired part: some SavedState & Sendable) {
    self.init(name, state: part, nil, [], [], nil, nil)
  }

  private init(
    _ name: String, state: (any SavedState & Sendable)?, _ device: (any Device)?, _ ports: [Bus.Window],
    _ memory: [Bus.Window], _ interrupt: InterruptPin?, _ acpi: ACPIDevice?
  ) {
    precondition((1...16).contains(name.utf8.count), "a section's name has at most 16 characters")
    (self.name, self.state, self.interrupt, self.acpi) = (name, state, interrupt, acpi)
    self.ports = ports.compactMap { window in device.map { Bus.Mapping(window, $0) } }
    self.memory = memory.compactMap { window in device.map { Bus.Mapping(window, $0) } }
    deadlines = device as? any DeadlineSource
  }
}

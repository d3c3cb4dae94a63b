// SPDX-License-Identifier: Apache-2.0
// The machine's devices, made and wired in one place: what is connected to what, and at which address. The only
// file that knows where anything lives.

public import Saving

/// Where devices live. The ACPI tables take the same numbers.
public enum PlatformAddress {
  public static let serial: UInt64 = 0x3F8
  public static let powerManagement: UInt64 = 0x600
  public static let debugExit: UInt64 = 0xF4
  /// Of the test machine.
  public static let scratchPort: UInt64 = 0xE0
  public static let firmwareConfiguration: UInt64 = 0x510
  public static let interruptLines: UInt64 = 0x2000
  public static let scratchMemory: UInt64 = 0xFF00_0000
  public static let ioapic: UInt64 = 0xFEC0_0000
  /// Where the ACPI tables go; the RSDP is first.
  public static let acpiTables: UInt64 = 0xE0000
}

/// A device and the name of its section in a saved machine, at most 16 ASCII characters.
public struct SavedDevice: Sendable {
  public let name: String
  public let device: any SavedState & Sendable

  init(_ name: String, _ device: any SavedState & Sendable) {
    self.name = name
    self.device = device
  }
}

/// What a platform needs to know and may do outside itself. Closures are called on vCPU, timer and input threads,
/// possibly with device locks held, and must not call a device back.
public struct PlatformConfiguration: Sendable {
  public var cpuCount: Int
  /// Bytes of RAM, for the CMOS.
  public var memoryBelow4G: UInt64
  public var memoryAbove4G: UInt64
  /// The clock of each vCPU; that of 0 also drives the shared devices, which use only its nanoseconds.
  public var clocks: [Clock]
  public var wallTime: @Sendable () -> WallTime
  public var hasDebugExit = false
  /// Whether the IOAPIC's redirections carry 15 bits of APIC id.
  public var hasExtendedDestinations = false
  /// Whether the devices of the test machine are there, the debug exit among them.
  public var hasTestDevices = false
  /// Takes serial output, a byte at a time.
  public var serialOutput: @Sendable (UInt8) -> Void
  /// The serial port can take input again.
  public var serialHasRoom: @Sendable () -> Void = {}
  public var power: @Sendable (PowerEvent) -> Void
  /// The A20 gate was opened or closed, for every vCPU.
  public var a20: @Sendable (Bool) -> Void = { _ in }
  /// A vCPU, by APIC ID, may have something new to take: kick it or end its HLT.
  public var wake: @Sendable (UInt32) -> Void
  /// A vCPU's timer deadline changed.
  public var rearmCPU: @Sendable (UInt32) -> Void = { _ in }
  /// A shared device's deadline changed: the timer thread looks at `deadlineSources` again.
  public var rearm: @Sendable () -> Void = {}
  public var onUnclaimedPort: @Sendable (_ port: UInt64, _ size: UInt8, _ isWrite: Bool) -> Void = { _, _, _ in }
  public var onUnclaimedMMIO: @Sendable (_ address: UInt64, _ size: UInt8, _ isWrite: Bool) -> Void = { _, _, _ in }
  /// Further devices, such as virtio-mmio transports, for the MMIO bus.
  public var mmio: [Bus.Mapping] = []

  public init(
    cpuCount: Int, memoryBelow4G: UInt64, memoryAbove4G: UInt64, clocks: [Clock],
    wallTime: @escaping @Sendable () -> WallTime, serialOutput: @escaping @Sendable (UInt8) -> Void,
    power: @escaping @Sendable (PowerEvent) -> Void, wake: @escaping @Sendable (UInt32) -> Void
  ) {
    precondition(clocks.count == cpuCount, "one clock per vCPU")
    self.cpuCount = cpuCount
    self.memoryBelow4G = memoryBelow4G
    self.memoryAbove4G = memoryAbove4G
    self.clocks = clocks
    self.wallTime = wallTime
    self.serialOutput = serialOutput
    self.power = power
    self.wake = wake
  }
}

/// Every device of a machine, wired.
public final class Platform: Sendable {
  public let pic: PIC
  public let interrupts: InterruptController
  public let ioapic: IOAPIC
  public let pit: PIT
  public let serial: UART
  public let rtc: RTC
  public let ports: Bus
  /// Everything in physical address space but RAM and each vCPU's own local APIC page.
  public let mmio: Bus
  /// The shared devices the timer thread serves; the local APICs are sources of their own.
  public let deadlineSources: [any DeadlineSource]
  /// Every device with a state, in the order in which they are saved.
  public let savedDevices: [SavedDevice]

  public init(_ configuration: PlatformConfiguration) {
    let clock = configuration.clocks[0]
    let power = configuration.power
    pic = PIC()
    interrupts = InterruptController(
      cpuCount: configuration.cpuCount, pic: pic, clock: { configuration.clocks[Int($0)] }, wake: configuration.wake,
      rearm: configuration.rearmCPU)
    ioapic = IOAPIC(controller: interrupts, extendedDestinations: configuration.hasExtendedDestinations)
    pit = PIT(clock: clock, line: .isa(0, pic: pic, ioapic: ioapic), rearm: configuration.rearm)
    serial = UART(
      line: .isa(4, pic: pic, ioapic: ioapic), send: configuration.serialOutput, hasRoom: configuration.serialHasRoom)
    rtc = RTC(
      memoryBelow4G: configuration.memoryBelow4G, memoryAbove4G: configuration.memoryAbove4G, clock: clock,
      wallTime: configuration.wallTime, line: .isa(8, pic: pic, ioapic: ioapic), rearm: configuration.rearm)
    deadlineSources = [pit, rtc]

    let gate = A20Gate(changed: configuration.a20)
    let keyboard = KeyboardController(a20: gate, report: power)
    let portA = SystemControlPortA(a20: gate, report: power)
    let powerManagement = PowerManagement(clock: clock, report: power)
    let bridge = PCIHostBridge(reset: ResetControl(report: power))
    var ports: [Bus.Mapping] = [
      .init(base: 0x20, count: 2, device: pic),
      .init(base: 0x40, count: 4, device: pit),
      .init(base: 0x60, count: 1, device: keyboard),
      .init(base: 0x61, count: 1, device: pit, offset: 4),
      .init(base: 0x64, count: 1, device: keyboard, offset: 4),
      .init(base: 0x70, count: 2, device: rtc),
      .init(base: 0x92, count: 1, device: portA),
      .init(base: 0xA0, count: 2, device: pic, offset: 2),
      .init(base: PlatformAddress.serial, count: 8, device: serial),
      .init(base: 0x4D0, count: 2, device: pic, offset: 4),
      .init(
        base: PlatformAddress.powerManagement, count: PowerManagement.portCount,
        device: powerManagement, widestAccess: 4),
      .init(base: 0xCF8, count: PCIHostBridge.portCount, device: bridge, widestAccess: 4),
    ]
    if configuration.hasDebugExit || configuration.hasTestDevices {
      ports.append(
        .init(base: PlatformAddress.debugExit, count: 4, device: DebugExit(report: power), widestAccess: 4))
    }
    var mappings: [Bus.Mapping] = [.init(base: PlatformAddress.ioapic, count: 0x1000, device: ioapic, widestAccess: 4)]
    var saved = [
      SavedDevice("8259", pic), SavedDevice("local APICs", interrupts), SavedDevice("IOAPIC", ioapic),
      SavedDevice("8254", pit), SavedDevice("serial", serial), SavedDevice("RTC", rtc),
      SavedDevice("keyboard", keyboard), SavedDevice("port 92", portA), SavedDevice("A20", gate),
      SavedDevice("ACPI", powerManagement),
      SavedDevice("PCI", bridge),
    ]
    if configuration.hasTestDevices {
      let (testPorts, testMemory, testDevices) = Platform.testDevices(configuration, pic, ioapic)
      ports += testPorts
      mappings.append(testMemory)
      saved += testDevices
    }
    savedDevices = saved
    self.ports = Bus(ports, onUnclaimed: configuration.onUnclaimedPort)
    mmio = Bus(mappings + configuration.mmio, onUnclaimed: configuration.onUnclaimedMMIO)
  }

  /// What conformance suites expect beside a PC.
  private static func testDevices(
    _ configuration: PlatformConfiguration, _ pic: PIC, _ ioapic: IOAPIC
  ) -> (ports: [Bus.Mapping], memory: Bus.Mapping, saved: [SavedDevice]) {
    // Pins without an ISA interrupt exist at the IOAPIC alone.
    func ioapicLine(_ pin: Int) -> InterruptLine { InterruptLine { ioapic.set(pin: pin, $0) } }
    let lines = InterruptLinePorts(
      (0..<IOAPIC.pinCount).map { $0 < 16 ? .isa($0, pic: pic, ioapic: ioapic) : ioapicLine($0) })
    let information = FirmwareConfiguration(
      memory: configuration.memoryBelow4G + configuration.memoryAbove4G, cpuCount: configuration.cpuCount)
    let (port, memory) = (ScratchPort(), ScratchMemory())
    return (
      [
        .init(
          base: PlatformAddress.scratchPort, count: ScratchPort.byteCount, device: port, widestAccess: 4),
        .init(base: PlatformAddress.firmwareConfiguration, count: 2, device: information, widestAccess: 2),
        .init(base: PlatformAddress.interruptLines, count: lines.count, device: lines),
      ],
      .init(
        base: PlatformAddress.scratchMemory, count: UInt64(ScratchMemory.byteCount), device: memory,
        widestAccess: 8),
      [SavedDevice("scratch port", port), SavedDevice("scratch memory", memory), SavedDevice("fw_cfg", information)]
    )
  }
}

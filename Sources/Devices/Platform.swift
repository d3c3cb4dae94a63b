// SPDX-License-Identifier: Apache-2.0
// The machine's devices, made and wired in one place: what is connected to what, and at which address. The only
// file that knows where anything lives; a line of its list is all that a new device needs here.

public import Saving

/// The addresses that the ACPI tables take beside those of the devices in them.
public enum PlatformAddress {
  static let powerManagement: UInt64 = 0x600
  static let ioapic: UInt64 = 0xFEC0_0000
  static let localAPIC: UInt64 = 0xFEE0_0000
  /// Where the ACPI tables go; the RSDP is first.
  public static let acpiTables: UInt64 = 0xE0000
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
  /// Makes further devices, such as virtio-mmio transports, from what gives a line to a pin.
  public var devices: @Sendable (_ line: (InterruptPin) -> InterruptLine) -> [PlatformDevice] = { _ in [] }

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
  /// Every device, in the order in which they are saved.
  public let devices: [PlatformDevice]

  public init(_ configuration: PlatformConfiguration) {
    let clock = configuration.clocks[0]
    let power = configuration.power
    pic = PIC()
    interrupts = InterruptController(
      cpuCount: configuration.cpuCount, pic: pic, clock: { configuration.clocks[Int($0)] }, wake: configuration.wake,
      rearm: configuration.rearmCPU)
    ioapic = IOAPIC(controller: interrupts, extendedDestinations: configuration.hasExtendedDestinations)
    let (pitPin, serialPin, rtcPin) = (InterruptPin.isa(0), InterruptPin.isa(4), InterruptPin.isa(8))
    let line = { [pic, ioapic] pin in InterruptLine(to: pin, pic: pic, ioapic: ioapic) }
    pit = PIT(clock: clock, line: line(pitPin), rearm: configuration.rearm)
    serial = UART(line: line(serialPin), send: configuration.serialOutput, hasRoom: configuration.serialHasRoom)
    rtc = RTC(
      memoryBelow4G: configuration.memoryBelow4G, memoryAbove4G: configuration.memoryAbove4G, clock: clock,
      wallTime: configuration.wallTime, line: line(rtcPin), rearm: configuration.rearm)

    let gate = A20Gate(changed: configuration.a20)
    var devices = [
      PlatformDevice(
        "8259", pic,
        ports: [.init(0x20, count: 2), .init(0xA0, count: 2, offset: 2), .init(0x4D0, count: 2, offset: 4)]),
      PlatformDevice("local APICs", wired: interrupts),
      PlatformDevice("IOAPIC", ioapic, memory: [.init(PlatformAddress.ioapic, count: 0x1000, widestAccess: 4)]),
      PlatformDevice("8254", pit, ports: [.init(0x40, count: 4), .init(0x61, count: 1, offset: 4)], interrupt: pitPin),
      PlatformDevice(
        "serial", serial, ports: [.init(0x3F8, count: 8)], interrupt: serialPin,
        acpi: ACPIDevice("COM1", .eisa("PNP0501"), uid: 1)),
      PlatformDevice(
        "RTC", rtc, ports: [.init(0x70, count: 2)], interrupt: rtcPin, acpi: ACPIDevice("RTC", .eisa("PNP0B00"))),
      PlatformDevice(
        "keyboard", KeyboardController(a20: gate, report: power),
        ports: [.init(0x60, count: 1), .init(0x64, count: 1, offset: 4)]),
      PlatformDevice("port 92", SystemControlPortA(a20: gate, report: power), ports: [.init(0x92, count: 1)]),
      PlatformDevice("A20", wired: gate),
      PlatformDevice(
        "ACPI", PowerManagement(clock: clock, report: power),
        ports: [.init(PlatformAddress.powerManagement, count: PowerManagement.portCount, widestAccess: 4)]),
      PlatformDevice(
        "PCI", PCIHostBridge(reset: ResetControl(report: power)),
        ports: [.init(0xCF8, count: PCIHostBridge.portCount, widestAccess: 4)]),
    ]
    if configuration.hasDebugExit || configuration.hasTestDevices {
      devices.append(
        PlatformDevice(
          "debug exit", stateless: DebugExit(report: power), ports: [.init(0xF4, count: 4, widestAccess: 4)]))
    }
    if configuration.hasTestDevices { devices += Platform.testDevices(configuration, line) }
    devices += configuration.devices(line)
    precondition(Set(devices.map(\.name)).count == devices.count, "two devices of one name")
    self.devices = devices
    ports = Bus(devices.flatMap(\.ports), onUnclaimed: configuration.onUnclaimedPort)
    mmio = Bus(devices.flatMap(\.memory), onUnclaimed: configuration.onUnclaimedMMIO)
  }

  /// What conformance suites expect beside a PC.
  private static func testDevices(
    _ configuration: PlatformConfiguration, _ line: (InterruptPin) -> InterruptLine
  ) -> [PlatformDevice] {
    let lines = InterruptLinePorts((0..<IOAPIC.pinCount).map { line($0 < 16 ? .isa($0) : .ioapic($0)) })
    let information = FirmwareConfiguration(
      memory: configuration.memoryBelow4G + configuration.memoryAbove4G, cpuCount: configuration.cpuCount)
    return [
      PlatformDevice(
        "scratch port", ScratchPort(), ports: [.init(0xE0, count: ScratchPort.byteCount, widestAccess: 4)]),
      PlatformDevice(
        "scratch memory", ScratchMemory(),
        memory: [.init(0xFF00_0000, count: UInt64(ScratchMemory.byteCount), widestAccess: 8)]),
      PlatformDevice("fw_cfg", information, ports: [.init(0x510, count: 2, widestAccess: 2)]),
      PlatformDevice("interrupt lines", stateless: lines, ports: [.init(0x2000, count: lines.count)]),
    ]
  }
}

extension Platform {
  /// Every device with a state, by the name of its section.
  public var savedDevices: [(name: String, device: any SavedState & Sendable)] {
    devices.compactMap { device in device.state.map { (device.name, $0) } }
  }

  /// What the timer thread serves; the local APICs are sources of their own.
  public var deadlineSources: [any DeadlineSource] { devices.compactMap(\.deadlines) }

  /// The ACPI tables that name these devices, for `PlatformAddress.acpiTables`. The RSDP is first.
  ///
  /// - Parameter mailbox: See `ACPIConfiguration`.
  public func acpiTables(mailbox: UInt64? = nil) -> [UInt8] {
    var configuration = ACPIConfiguration(cpuCount: interrupts.localAPICs.count)
    configuration.devices = devices
    configuration.mailbox = mailbox
    return ACPITables.build(configuration, at: PlatformAddress.acpiTables)
  }
}

// SPDX-License-Identifier: Apache-2.0
// What a machine has for a ring-1 guest of lguest besides RAM and a vCPU: the guest's interrupts and timer, its devices
// and the buses they are on, and the memory behind RAM that is a device's or the host's own.

import Boot
import Devices
import Engine
import GuestMemory
import Host
import Paravirt
import Saving
import Synchronization
import X86

/// The memory of such a machine: RAM that the guest is told of, and devices' pages behind it.
enum LguestLayout {
  static let deviceBytes: UInt64 = 1 << 20
  static func limit(_ memorySize: UInt64) -> UInt64 { memorySize + deviceBytes }
  /// Where memory regions of PCI devices are, behind all RAM.
  static func region(_ memorySize: UInt64) -> UInt64 { (limit(memorySize) + 0x1F_FFFF) & ~0xF_FFFF }
}

/// The parts of a machine that only such a guest has.
final class LguestMachine: Sendable {
  let interrupts = LguestInterrupts()
  let timer: LguestTimer
  /// Devices are on all buses; the guest uses one, that of its era.
  private let fields: LguestBus, records: LguestBus
  let dma: LguestDMA
  let pci: LguestPCI
  /// Where console input arrives.
  let console: any ConsolePort
  private let output: VirtioConsole
  private let hostDevices: HostDevices
  /// What the guest is, once it is known.
  private let era = Mutex<LguestEra?>(nil)
  private let isSilent = Atomic<Bool>(false)
  /// Whether the guest does not say that it has taken what came for it: it is looked at whenever it comes out.
  var looksForInput: Bool { isSilent.load(ordering: .relaxed) }
  /// How the guest begins.
  let beginning: LguestBeginning
  private let memorySize: UInt64
  /// The files behind its disks, in their order.
  var disks: [DiskFile] { hostDevices.diskFiles }
  let hasNetwork: Bool

  /// - Parameters:
  ///   - beginning: How the guest begins.
  ///   - terminal: The host's end of the guest's console.
  ///   - wake: Brings the guest's vCPU out of its sleep.
  ///   - rearm: Called when the timer's deadline has changed.
  init(
    _ memory: GuestMemory, _ configuration: VirtualMachine.Configuration, _ beginning: LguestBeginning,
    _ terminal: SerialConsole,
    wake: @escaping @Sendable () -> Void, rearm: @escaping @Sendable () -> Void
  ) throws(ConfigurationError) {
    let timer = LguestTimer(interrupts, wake: wake, rearm: rearm)
    self.timer = timer
    let console = VirtioConsole(write: { terminal.write($0) }, wantsInput: { terminal.fill() })
    output = console
    memorySize = configuration.memorySize
    hasNetwork = !configuration.networks.isEmpty
    self.beginning = beginning
    let raise: @Sendable (UInt8) -> Void = { [interrupts] number in
      interrupts.raise(number)
      wake()
    }
    let host = DMAHost(GuestDeviceMemory(memory: memory), raise: raise)
    hostDevices = try HostDevices(
      configuration, host, page: LguestDMA.firstPage(memorySize), wantsRoom: { timer.lookAgain() })
    let others = hostDevices.all
    fields = LguestBus(memory, page: memorySize, .fields, devices: others + [console], raise: raise)
    records = LguestBus(memory, page: memorySize, .records, devices: others + [console], raise: raise)
    dma = LguestDMA(
      memory, page: memorySize, host, disks: hostDevices.oldDisks, networks: hostDevices.oldNetworks,
      write: { terminal.write($0) })
    pci = LguestPCI(memory, region: LguestLayout.region(memorySize), devices: [console] + others, raise: raise)
    self.console = LguestConsolePort(ports: [console, dma])
  }

  /// The guest is known: its devices are put where it looks for them. Says why, if that cannot be.
  func register(_ era: LguestEra) -> String? {
    set(era)
    switch era.devices {
    case .buffers: return dma.describe()
    case .fields: fields.describe()
    case .records: records.describe()
    case .pci: break
    }
    return nil
  }

  /// Whether the guest has written more to its console than was taken at once.
  var isBehind: Bool { output.isBehind }

  /// Takes more of it; what is left then is looked for soon.
  func takeOutput() {
    guard isBehind else { return }
    output.goOn()
    if isBehind { timer.lookAgain() }
  }

  /// NOTIFY: false if no device is there.
  func notify(_ address: UInt64) -> Bool {
    switch era.withLock({ $0?.devices }) {
    case .fields?: fields.notify(address)
    case .records?: records.notify(address)
    default: false
    }
  }

  /// Resets everything but RAM and the vCPU.
  func reset() {
    timer.reset()
    pci.reset()
    fields.reset()
    records.reset()
    dma.reset()
    set(nil)
    interrupts.reset()
  }

  private func set(_ new: LguestEra?) {
    era.withLock { $0 = new }
    isSilent.store(new?.devices == .buffers, ordering: .relaxed)
  }

  /// Which bus the guest uses, that bus, and the queues of the devices on it.
  func transferBus(_ archive: inout StateArchive) throws(SavedStateError) {
    var number = era.withLock { $0 }?.rawValue
    try archive.transfer(&number, "era")
    let new = number.flatMap { LguestEra(rawValue: $0) }
    try archive.require(number == new?.rawValue, "era", number ?? 0)
    set(new)
    switch new?.devices {
    case .buffers?: try dma.transfer(&archive)
    case .fields?: try fields.transfer(&archive)
    case .records?: try records.transfer(&archive)
    case .pci?: try pci.transfer(&archive)
    case nil: break
    }
  }

  /// Lets the disks stand, which otherwise write to the guest's memory and are written, until `resume`.
  func pause() { hostDevices.pause() }
  func resume() { hostDevices.resume() }

  /// Has every device look for what its queues hold: nobody has been told of it here.
  func lookAgain() {
    output.lookAgain()
    hostDevices.lookAgain()
  }

  /// Starts the threads of devices.
  func start(_ sandbox: Sandbox?) throws(HostError) { try hostDevices.start(sandbox) }

  /// Ends them, and waits for them.
  func stop() { hostDevices.stop() }

  /// The host side of the interface, with clocks of the machine's.
  func makeHost(
    _ configuration: VirtualMachine.Configuration, _ memory: ParavirtMemory, _ clock: KVMClock,
    _ counter: TimestampCounter
  ) -> LguestHost {
    let limit = LguestLayout.limit(memorySize)
    return LguestHost(
      memory: memory, start: beginning.start, limit: limit,
      hypercallPolicy: configuration.hypercallPolicy, interrupts: interrupts,
      services: LguestServices(
        timestampKilohertz: clock.isTimestampConstant ? UInt32(clamping: counter.kilohertz) : 0,
        guestNumber: UInt16.random(in: 1...UInt16.max),
        wallTime: {
          let now = Machine.wallTime()
          return (UInt32(truncatingIfNeeded: now.seconds), now.nanoseconds)
        }, setTimer: { [timer] in timer.set($0) }, readPort: { [pci] in pci.readPort($0, size: $1) },
        writePort: { [pci] in _ = pci.writePort($0, size: $1, value: $2) }))
  }
}

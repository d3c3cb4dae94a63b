// SPDX-License-Identifier: Apache-2.0
// The APIC bus: every local APIC of the machine, and the rule by which a message finds the ones it is meant for.

public import Saving
import Synchronization

/// All local APICs and what lies between them.
public final class InterruptController: Sendable {
  /// By APIC ID, which is the vCPU's number.
  public let localAPICs: [LocalAPIC]

  private struct Listener { weak var ioapic: IOAPIC? }
  private let listener = Mutex(Listener())

  /// Makes the local APICs of a machine; number 0 is the bootstrap processor.
  ///
  /// - Parameters:
  ///   - cpuCount: 1...254.
  ///   - pic: The 8259 pair whose vectors ExtINT delivers; its output becomes LINT0 of APIC 0, which is left as
  ///     firmware leaves it ("virtual wire").
  ///   - clock: The clock of each vCPU, by APIC ID.
  ///   - wake: Called with an APIC ID when that vCPU may have something new to take. Called on any thread, its own
  ///     included, possibly with device locks held: it may kick or signal, and must not touch a device.
  ///   - rearm: Called with an APIC ID when its timer's deadline changed; same rules.
  public init(
    cpuCount: Int, pic: PIC?, clock: (UInt32) -> Clock, wake: @escaping @Sendable (UInt32) -> Void,
    rearm: @escaping @Sendable (UInt32) -> Void = { _ in }
  ) {
    precondition((1...254).contains(cpuCount), "8-bit APIC IDs")
    localAPICs = (0..<UInt32(cpuCount)).map { id in
      LocalAPIC(
        id: id, isBootstrap: id == 0, clock: clock(id), pic: pic, wake: { wake(id) }, rearm: { rearm(id) })
    }
    for apic in localAPICs { apic.attach(self) }
    if let pic {
      let bootstrap = localAPICs[0]
      pic.connect(InterruptLine { [weak bootstrap] in bootstrap?.setLocalInterrupt(0, $0) })
      bootstrap.enableVirtualWire()
    }
  }

  /// Names the IOAPIC that hears of the end of level-triggered interrupts.
  func attach(_ ioapic: IOAPIC) { listener.withLock { $0.ioapic = ioapic } }

  /// Hands a message to every APIC it is meant for, and says how many accepted it.
  @discardableResult
  public func deliver(_ message: InterruptMessage) -> Int {
    if message.mode == .lowestPriority { return deliverToLowest(message) }
    var count = 0
    switch message.destination {
    case .physical(let id):
      guard let index = Int(exactly: id), index < localAPICs.count else { return 0 }
      count = localAPICs[index].receive(message) ? 1 : 0
    case .logical(let address):
      for apic in localAPICs where apic.matches(logical: address) && apic.receive(message) { count += 1 }
    case .all:
      for apic in localAPICs where apic.receive(message) { count += 1 }
    case .allBut(let id):
      for apic in localAPICs where apic.id != id && apic.receive(message) { count += 1 }
    }
    return count
  }

  /// The candidate with the lowest processor priority takes it; ties go to the lowest APIC ID.
  private func deliverToLowest(_ message: InterruptMessage) -> Int {
    var best: (apic: LocalAPIC, priority: UInt8)?
    for apic in localAPICs where isMeant(apic, message.destination) {
      guard let priority = apic.arbitrationPriority else { continue }
      if best.map({ priority < $0.priority }) ?? true { best = (apic, priority) }
    }
    return best?.apic.receive(message) == true ? 1 : 0
  }

  private func isMeant(_ apic: LocalAPIC, _ destination: InterruptMessage.Destination) -> Bool {
    switch destination {
    case .physical(let id): apic.id == id
    case .logical(let address): apic.matches(logical: address)
    case .all: true
    case .allBut(let id): apic.id != id
    }
  }

  /// The EOI broadcast.
  func endOfInterrupt(_ vector: UInt8) { listener.withLock { $0.ioapic }?.endOfInterrupt(vector) }
}

extension InterruptController: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    for apic in localAPICs {
      try archive.part("APIC \(apic.id)") { archive throws(SavedStateError) in try apic.transfer(&archive) }
    }
  }
}

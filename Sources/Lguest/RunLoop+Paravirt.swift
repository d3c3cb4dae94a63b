// SPDX-License-Identifier: Apache-2.0
// What the run loop does for KVM's paravirtual structures between two stays in the guest. None of it needs an exit of
// its own: it is done when the vCPU is out anyway.

import Devices
import Host
import Paravirt
import Translator

extension RunLoop {
  // MARK: End of interrupt

  /// Tells the guest that nobody waits for the end of the interrupt that is being delivered, if that is so.
  func offerEndOfInterrupt(of vector: UInt8) {
    guard registers.endOfInterrupt.isEnabled, apic.canDeferEndOfInterrupt(of: vector) else { return }
    registers.endOfInterrupt.offer()
  }

  /// Ends the interrupt in service if the guest did so in memory; takes the offer back once another interrupt waits.
  func settleEndOfInterrupt() {
    guard registers.endOfInterrupt.isOffered else { return }
    if registers.endOfInterrupt.settle(withdrawing: apic.hasRequests) {
      apic.endOfInterrupt()
      statistics.interruptsEndedInMemory &+= 1
    }
  }

  // MARK: Page events

  /// User code touched a page that is on its way: the guest puts that task to sleep, or the vCPU waits.
  func meet(absentPage address: UInt64) {
    guard let store = machine.slowMemory else { return }
    guard registers.asyncPageFault.canBegin(
      privilegeLevel: engine.currentPrivilegeLevel, canInterrupt: engine.canAcceptInterrupt),
      let token = registers.asyncPageFault.begin()
    else { return store.wait(for: address) }
    store.fetch(address, for: 0, token: token)
    engine.inject(pageFault: UInt64(token))
    statistics.pagesNotPresent &+= 1
  }

  /// Tells the guest that a page it waits for has come, as an interrupt.
  func deliverPageEvents() {
    if let store = machine.slowMemory, store.hasFills(of: 0) {
      for token in store.takeFills(of: 0) { registers.asyncPageFault.complete(token) }
    }
    guard registers.asyncPageFault.hasReady, apic.isSoftwareEnabled, let vector = registers.asyncPageFault.takeReady()
    else { return }
    apic.receive(vector: vector)
    statistics.pagesReady &+= 1
  }

  // MARK: Steal time

  /// Brings the guest's steal time up to date, now and then.
  func tellStealTime() {
    guard registers.stealTime.register & 1 != 0, steal.look() else { return }
    registers.stealTime.update(total: steal.nanoseconds)
  }
}

/// How long a vCPU waited for its host, as far as it has been looked at: looking is a system call.
struct StealMeter {
  /// Looking costs a microsecond or two; the guest's own clock ticks no faster than this.
  private static let interval: UInt64 = 4_000_000

  private var delay: RunQueueDelay?
  private var first: UInt64 = 0
  private var next: UInt64 = 0
  /// Since the first look.
  private(set) var nanoseconds: UInt64 = 0

  /// Looks, on the vCPU's own thread, if the last time is long ago; says whether it did.
  mutating func look() -> Bool {
    let now = HostClock.monotonic
    guard now >= next else { return false }
    next = now &+ StealMeter.interval
    if delay == nil {
      delay = RunQueueDelay()
      first = delay?.nanoseconds ?? 0
    }
    if let delay { nanoseconds = delay.nanoseconds &- first }
    return true
  }
}

// SPDX-License-Identifier: Apache-2.0
// What the run loop does for KVM's paravirtual structures between two stays in the guest. None of it needs an exit of
// its own: it is done when the vCPU is out anyway.

import Devices
import Engine
import GuestMemory
import Host
import Paravirt
import X86

extension RunLoop {
  // MARK: End of interrupt

  /// Tells the guest that nobody waits for the end of the interrupt that is being delivered, if that is so.
  func offerEndOfInterrupt(of vector: UInt8) {
    guard registers.endOfInterrupt.isEnabled, apic.canDeferEndOfInterrupt(of: vector) else { return }
    registers.endOfInterrupt.offer()
  }

  /// Ends the interrupt in service if the guest did so in memory; takes the offer back once another interrupt waits, or
  /// if the place where it was made is about to change.
  func settleEndOfInterrupt(isMoving: Bool = false) {
    guard registers.endOfInterrupt.isOffered else { return }
    if registers.endOfInterrupt.settle(withdrawing: isMoving || apic.hasRequests) {
      apic.endOfInterrupt()
      statistics.interruptsEndedInMemory &+= 1
    }
  }

  // MARK: Page events

  /// Code of a level that takes part touched a page that is on its way: the guest puts that task to sleep, or the vCPU
  /// waits.
  func meet(absentPage address: UInt64) {
    guard let store = machine.slowMemory else { return }
    guard
      registers.asyncPageFault.canBegin(
        privilegeLevel: engine.currentPrivilegeLevel, canInterrupt: engine.canAcceptInterrupt && engine.isPaging),
      let token = registers.asyncPageFault.begin()
    else { return machine.memory.wait(for: GuestPhysical(address)) }
    store.fetch(address, for: number, token: token)
    engine.raise(.pageFault(UInt64(token), code: 0))
    statistics.pagesNotPresent &+= 1
  }

  /// Tells the guest that a page it waits for has come, as an interrupt.
  func deliverPageEvents() {
    if let store = machine.slowMemory, store.hasFills(of: number) {
      for token in store.takeFills(of: number) { registers.asyncPageFault.complete(token) }
    }
    guard registers.asyncPageFault.hasReady, apic.isSoftwareEnabled, let vector = registers.asyncPageFault.takeReady()
    else { return }
    apic.receive(vector: vector)
    statistics.pagesReady &+= 1
  }

  // MARK: Steal time

  /// How often the host's scheduler is asked: that is a system call, and the guest's own clock ticks no faster.
  private static let hostInterval: UInt64 = 4_000_000

  /// How long the vCPU has waited while it could have run, in nanoseconds: for a thread, and with it for a processor.
  var waited: UInt64 { machine.scheduler.wait(of: number).total &+ waitedForHost }

  /// A thread has taken the vCPU: before it executes anything, what others left for it is done.
  func beginSlice(on thread: VCPUThread?) {
    self.thread = thread
    guard registers.stealTime.register & 1 != 0 else { return }
    if registers.stealTime.resume(total: waited) {
      engine.flushTLB()
      statistics.tlbFlushesSkipped &+= 1
    }
  }

  /// The vCPU could run, and another goes first: it executes nothing until `beginSlice`.
  func noteBeingPreempted() { registers.stealTime.preempt() }

  /// Brings the guest's steal time up to date, now and then.
  func tellStealTime() {
    guard registers.stealTime.register & 1 != 0, let growth = thread?.delay?.growth(after: RunLoop.hostInterval) else {
      return
    }
    waitedForHost &+= growth
    registers.stealTime.update(total: waited)
  }
}

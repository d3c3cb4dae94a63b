// SPDX-License-Identifier: Apache-2.0
// The machine as the paravirtual interfaces see it: RAM, clocks, and other vCPUs to be woken or interrupted.

import Devices
import GuestMemory
import Host
import Paravirt
import Synchronization

/// Guest RAM for structures shared with the guest.
struct ParavirtMemory: GuestPhysicalWriter {
  let memory: GuestMemory

  func contains(_ address: UInt64, byteCount: UInt64) -> Bool {
    Int(exactly: byteCount).map { memory.contains(GuestPhysical(address), count: $0) } ?? false
  }
  func loadByte(at address: UInt64) -> UInt8? { load(address) }
  func loadWord(at address: UInt64) -> UInt32? { load(address) }
  func loadQuadword(at address: UInt64) -> UInt64? { load(address) }
  func has(_ text: String, in range: Range<UInt64>) -> Bool { memory.hasWritten([UInt8](text.utf8), in: range) }
  func exchangeByte(_ value: UInt8, at address: UInt64) -> UInt8? {
    do throws(MemoryError) {
      return try memory.withAtomic(UInt8.self, at: GuestPhysical(address)) {
        $0.exchange(value, ordering: .sequentiallyConsistent)
      }
    } catch { return nil }
  }
  func store(_ value: UInt8, at address: UInt64) -> Bool { put(value, address) }
  func store(_ value: UInt32, at address: UInt64) -> Bool { put(value, address) }
  func store(_ value: UInt64, at address: UInt64) -> Bool { put(value, address) }

  private func load<T: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64) -> T? {
    do throws(MemoryError) { return try memory.load(T.self, at: GuestPhysical(address)) } catch { return nil }
  }

  private func put<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, _ address: UInt64) -> Bool {
    do throws(MemoryError) { try memory.store(value, at: GuestPhysical(address)) } catch { return false }
    return true
  }
}

/// The host's clocks, and the guest's TSC as a fixed distance from the host's.
struct ParavirtTime: GuestTimeSource {
  let timestampOffset: UInt64

  func guestTimestamp() -> UInt64 { HostCPU.timestampCounter &+ timestampOffset }
  func monotonicNanoseconds() -> UInt64 { HostClock.monotonic }
  func wallNanoseconds() -> Int64 { Int64(clamping: HostClock.wall) }
}

/// What the hypercalls of one vCPU may do to the others.
struct ParavirtMachine: HypercallMachine {
  private let controller: InterruptController
  /// By APIC id.
  private let doorbells: [Doorbell]
  private let scheduler: Scheduler
  private let caller: Int

  init(_ machine: Machine, _ caller: Int) {
    controller = machine.platform.interrupts
    doorbells = machine.doorbells
    scheduler = machine.scheduler
    self.caller = caller
  }

  func kick(apicID: UInt32) {
    // It is an interrupt message of its own kind, so a broadcast id reaches all.
    if apicID == .max || apicID == 0xFF { return doorbells.forEach { $0.endHalt() } }
    guard let index = Int(exactly: apicID), doorbells.indices.contains(index) else { return }
    doorbells[index].endHalt()
    // Whoever is kicked has been given a lock: others wait for it.
    _ = scheduler.prefer(index)
  }

  func send(interruptCommand: UInt32, to apicID: UInt32) -> Bool {
    // A bitmap has no broadcast ids: an id without a CPU is nobody.
    guard let index = Int(exactly: apicID), controller.localAPICs.indices.contains(index) else { return false }
    let message = InterruptMessage(commandRegister: interruptCommand, target: apicID, from: apicID)
    switch message.mode {
    case .remoteRead:
      // What a kick is to KVM.
      kick(apicID: apicID)
      return true
    case .systemManagement: return true  // There is nothing to manage.
    case .fixed where message.vector < 16, .lowestPriority where message.vector < 16:
      // KVM requests it, and no processor ever takes it.
      return controller.localAPICs[index].isSoftwareEnabled
    default: return controller.deliver(message) > 0
    }
  }

  func yield(to apicID: UInt32) {
    guard let index = Int(exactly: apicID), doorbells.indices.contains(index), index != caller,
      scheduler.prefer(index)
    else { return }
    doorbells[caller].preempt()
  }
}

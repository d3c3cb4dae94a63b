// SPDX-License-Identifier: Apache-2.0
// What the machine asks of a vCPU: the contract of every engine, between runs.

import CHost
import Synchronization
import X86

extension TranslatedCPU {
  public func completeRead(_ value: UInt64) { busy { complete(read: value) } }

  private func complete(read value: UInt64) {
    if isRestarting {
      processor.state.device.answer(value)
    } else if slow != nil {
      completeSlowRead(value)
    } else {
      processor.state.device.begin()
      do throws(Fault) {
        try processor.completeRead(value)
        processor.state.device.finish()
      } catch {
        processor.state.device.dropWrites()
        processor.state.device.finish()
        fault(error)
      }
    }
  }

  public func completeWrite() { processor.completeWrite() }

  public func refuseMSR() { busy { fault(processor.refuseMSR()) } }

  public var canAcceptInterrupt: Bool { isInterruptible && pendingInterrupt == nil && slow == nil && !isRestarting }

  public func inject(interrupt vector: UInt8) { pendingInterrupt = vector }

  public func injectNMI() { pendingNMI = true }

  public func inject(pageFault address: UInt64) { busy { fault(.pageFault(address, code: 0)) } }

  public func requestInterruptWindow(_ wanted: Bool) {
    windowWanted = wanted
    page[\.interrupt_waiting] = wanted || pendingInterrupt != nil ? 1 : 0
  }

  public func kick() {
    interruptRequest.store(true, ordering: .sequentiallyConsistent)
    unsafe chost_set_attention(page.pointer)
  }

  public subscript(register number: Int) -> UInt64 {
    get { page[register: UInt8(truncatingIfNeeded: number)] }
    set { page[register: UInt8(truncatingIfNeeded: number)] = newValue }
  }

  public var currentPrivilegeLevel: UInt8 { page.privilege }

  /// CPUID.1:EAX, which EDX holds after INIT.
  public var signature: UInt32 { processor.cpuid(1, 0).eax }

  public var isIn64BitMode: Bool { page.isLongMode }

  public var isLongModeActive: Bool { page.isLMA }

  public var timestampCounter: UInt64 { chost_read_tsc() &+ page[\.tsc_offset] }

  /// Guest TSC minus host TSC; moves when the guest writes its TSC.
  public var timestampOffset: UInt64 {
    get { page[\.tsc_offset] }
    set { page[\.tsc_offset] = newValue }
  }

  /// CR8, the task priority as the guest last set or was last told it.
  public var taskPriority: UInt8 {
    get { UInt8(truncatingIfNeeded: page[\.cr8]) & 15 }
    set { page[\.cr8] = UInt64(newValue & 15) }
  }

  /// Whether the guest has written CR8 since this was last asked.
  public func takeTaskPriorityWrite() -> Bool {
    defer { processor.state.taskPriorityWritten = false }
    return processor.state.taskPriorityWritten
  }

  /// Closes the A20 gate, so that address bit 20 is 0 on its way out of the processor (SDM volume 3, 8.7.13.4), or
  /// opens it, before this vCPU's next instruction. Callable from any thread.
  public func setA20(isOpen: Bool) {
    isA20Open.store(isOpen, ordering: .sequentiallyConsistent)
    unsafe chost_set_attention(page.pointer)
  }

  func adoptA20() {
    let cut: UInt64 = isA20Open.load(ordering: .sequentiallyConsistent) ? 0 : 1 << 20
    guard page[\.address_cut] != cut else { return }
    page[\.address_cut] = cut
    unsafe chost_flush_all(page.pointer)
  }

  /// CR0.PG.
  public var isPaging: Bool { page[\.cr0] & CR0.pg != 0 }

  /// Whether code of every level leaves with `VCPUExit.pageAbsent` where a page is absent, not only that of level 3;
  /// the processor's own accesses to its tables wait all the same.
  public var everyLevelLeavesForPages: Bool {
    get { processor.state.everyLevelLeavesForPages }
    set { processor.state.everyLevelLeavesForPages = newValue }
  }

  /// Whether the local APIC exists for CPUID: IA32_APIC_BASE.EN, which the machine keeps.
  public var isAPICEnabled: Bool {
    get { processor.state.isAPICEnabled }
    set { processor.state.isAPICEnabled = newValue }
  }
}

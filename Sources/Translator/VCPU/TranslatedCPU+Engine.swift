// SPDX-License-Identifier: Apache-2.0
// What the machine asks of a vCPU: the contract of every engine, between runs.

import CHost
import Engine
import Synchronization
public import X86

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

  public func raise(_ exception: Exception) {
    busy {
      processor.state.completion = .none
      slow = nil
      dropDeviceAccess()
      fault(Fault(exception))
    }
  }

  public func skip(byteCount: Int) {
    processor.advance(byteCount)
    stepped()
  }

  public var canAcceptInterrupt: Bool { isInterruptible && pendingInterrupt == nil && slow == nil && !isRestarting }

  public func inject(interrupt vector: UInt8) { pendingInterrupt = vector }

  public func injectNMI() { pendingNMI = true }

  public func requestInterruptWindow(_ wanted: Bool) {
    windowWanted = wanted
    page[\.interrupt_waiting] = wanted || pendingInterrupt != nil ? 1 : 0
  }

  public func kick() {
    interruptRequest.store(true, ordering: .sequentiallyConsistent)
    unsafe chost_set_attention(page.pointer)
  }

  public var generalRegisters: GeneralRegisters {
    var registers = GeneralRegisters()
    for number in UInt8(0)..<16 { registers[number] = page[register: number] }
    return registers
  }

  public subscript(register number: UInt8) -> UInt64 {
    get { page[register: number] }
    set { page[register: number] = newValue }
  }

  public var linearInstructionPointer: UInt64 { linearIP }

  public var currentPrivilegeLevel: UInt8 { page.privilege }

  public var signature: UInt32 { processor.cpuid(1, 0).eax }

  public var isIn64BitMode: Bool { page.isLongMode }

  public var isLongModeActive: Bool { page.isLMA }

  public var timestampCounter: UInt64 { chost_read_tsc() &+ page[\.tsc_offset] }

  public var timestampOffset: UInt64 {
    get { page[\.tsc_offset] }
    set { page[\.tsc_offset] = newValue }
  }

  public var taskPriority: UInt8 {
    get { UInt8(truncatingIfNeeded: page[\.cr8]) & 15 }
    set { page[\.cr8] = UInt64(newValue & 15) }
  }

  public func takeTaskPriorityWrite() -> Bool {
    defer { processor.state.taskPriorityWritten = false }
    return processor.state.taskPriorityWritten
  }

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

  public var isProtected: Bool { page.isProtected }

  public var isPaging: Bool { page[\.cr0] & CR0.pg != 0 }

  public var everyLevelLeavesForPages: Bool {
    get { processor.state.everyLevelLeavesForPages }
    set { processor.state.everyLevelLeavesForPages = newValue }
  }

  public var isAPICEnabled: Bool {
    get { processor.state.isAPICEnabled }
    set { processor.state.isAPICEnabled = newValue }
  }

  public func write(register index: UInt32, _ value: UInt64) -> Bool {
    do throws(Fault) { return try processor.writeMSR(index, value) } catch { return false }
  }

  public var nativeHypercall: HypercallOpcode? { processor.state.nativeHypercall }

  public var constantHypercalls: [(number: UInt64, count: UInt64)] { page.constantHypercalls }
}

extension Exception {
  init(_ fault: Fault) { self.init(vector: fault.vector, errorCode: fault.errorCode, address: fault.address) }
}

extension Fault {
  /// An exception that the machine raises; there are no vectors above 31.
  init(_ exception: Exception) {
    self.init(vector: exception.vector & 31, errorCode: exception.errorCode, address: exception.address)
  }
}

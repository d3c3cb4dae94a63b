// SPDX-License-Identifier: Apache-2.0
// Addresses and registers outside the engine: the APIC's page, the bus, model-specific registers, and the task priority that
// CR8 and the APIC share.

import Devices
import Engine
import Logging
import Paravirt
import X86

extension RunLoop {
  /// The offset in this vCPU's APIC page, if that is where the address is.
  private func apicOffset(_ address: UInt64) -> UInt64? {
    guard let base = apic.mmioBase, address >= base, address - base < 4096 else { return nil }
    return address - base
  }

  func read(_ address: UInt64, _ size: UInt8) -> UInt64 {
    if let pci = machine.lguest?.pci { return UInt64(pci.readMemory(address, size: Int(size)) ?? .max) }
    guard let offset = apicOffset(address) else { return machine.platform.mmio.read(address, size: size) }
    return apic.read(offset: offset, size: size)
  }

  func write(_ address: UInt64, _ size: UInt8, _ value: UInt64) {
    if let pci = machine.lguest?.pci {
      _ = pci.writeMemory(address, size: Int(size), value: UInt32(truncatingIfNeeded: value))
      return
    }
    guard let offset = apicOffset(address) else {
      return machine.platform.mmio.write(address, size: size, value: value)
    }
    apic.write(offset: offset, size: size, value: value)
    if offset >> 4 == RunLoop.taskPriorityRegister { adoptTaskPriority() }
  }

  func read(register index: UInt32) -> UInt64? {
    if LocalAPIC.owns(msr: index) { return apic.readMSR(index) }
    if KVMModelSpecificRegisters<ParavirtMemory>.owns(index) { return registers.read(index) }
    return nil
  }

  func write(register index: UInt32, _ value: UInt64) -> Bool {
    if LocalAPIC.owns(msr: index) {
      defer {
        let isBase = index == ModelSpecificRegister.apicBase
        if isBase || index == ModelSpecificRegister.x2APICTaskPriority { adoptTaskPriority() }
        if isBase { engine.isAPICEnabled = apic.isEnabled }
      }
      return apic.writeMSR(index, value)
    }
    if KVMModelSpecificRegisters<ParavirtMemory>.owns(index) {
      defer { engine.everyLevelLeavesForPages = registers.asyncPageFault.isForEveryLevel }
      if KVMModelSpecificRegisters<ParavirtMemory>.movesEndOfInterrupt(index) { settleEndOfInterrupt(isMoving: true) }
      return registers.write(index, value, waited: waited)
    }
    if index == KVMRegistration2007.register, interface == .year2007 { return register2007(value) }
    return false
  }

  /// The registration of 2007; false is #GP. Nothing reads what was registered: the guest calls its stub.
  private func register2007(_ address: UInt64) -> Bool {
    guard let native = engine.nativeHypercall else { return false }
    let record = KVMParaState.register(address, in: ParavirtMemory(memory: machine.memory), native: native)
    machine.logger?.debug("\(record.text)")
    return record.guestVersion != nil
  }

  func refuse(_ index: UInt32) {
    engine.raise(.generalProtection())
    if statistics.count(unknown: Machine.registerName(index)) {
      machine.logger?.debug("\(Machine.registerName(index)) is unknown: #GP")
    }
  }

  private static let taskPriorityRegister: UInt64 = 8

  /// The APIC's task priority changed: CR8 follows.
  func adoptTaskPriority() {
    engine.taskPriority = apic.taskPriority
  }

  /// CR8 was written: the APIC's task priority follows, before anything is asked of the APIC. Writing the same class
  /// again counts, since it clears the subclass (SDM volume 3, 11.8.6).
  func noteTaskPriority() {
    if engine.takeTaskPriorityWrite() { apic.taskPriority = engine.taskPriority }
  }
}

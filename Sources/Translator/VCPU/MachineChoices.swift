// SPDX-License-Identifier: Apache-2.0
// What a machine may do in the guest's place: keep the roots of its address space, and take its traps.

import CHost
public import Engine
import X86

extension TranslatedCPU {
  public var addressSpace: AddressSpace {
    get { processor.state.addressSpace }
    set {
      let isOtherRoot = processor.state.addressSpace.hasKind(of: newValue)
      processor.state.addressSpace = newValue
      switch newValue {
      case .controlRegisters: page[\.space] = UInt32(CHOST_SPACE_REGISTERS)
      case .identity: page[\.space] = UInt32(CHOST_SPACE_IDENTITY)
      case .tables(let root):
        page[\.kept_root] = UInt64(root)
        page[\.space] = UInt32(CHOST_SPACE_NARROW)
      case .extendedTables(let root):
        let start = UInt64(root & ~31) & ~page[\.address_cut]
        let top = (0..<4).map { topEntry(start &+ $0 &* 8) }
        page[\.kept_pdpte] = (top[0], top[1], top[2], top[3])
        page[\.space] = UInt32(CHOST_SPACE_WIDE)
      }
      if isOtherRoot { flushNonglobal() } else { flushTLB() }
    }
  }

  public var machinePage: MachinePagePlace? {
    get { processor.state.machinePage }
    set {
      let old = processor.state.machinePage
      processor.state.machinePage = newValue
      page[\.kept_linear] = UInt64(newValue?.linear ?? 0)
      page[\.kept_page] = newValue?.page.address ?? 0
      if let old, old.linear == newValue?.linear {
        flushPage(linear: UInt64(old.linear))
      } else {
        flushTLB()
      }
    }
  }

  /// A top entry of PAE paging; 0, not present, if there is none.
  private func topEntry(_ physical: UInt64) -> UInt64 {
    guard processor.isRAM(physical) else { return 0 }
    let entry = busy { processor.physicalLoad(UInt64.self, physical) }
    return processor.acceptsPDPTE(entry) ? entry : 0
  }

  public var trapPolicy: TrapPolicy {
    get { processor.state.trapPolicy }
    set {
      processor.state.trapPolicy = newValue
      // An event that a device has yet to be asked about would go the old way.
      if undelivered != nil { dropDeviceAccess() }
      // The light helpers know tables of gates alone.
      page[\.no_light] = newValue != .machine && translation.options.lightPaths ? 0 : 1
      var virtual = VirtualInterrupts(machineFirst: [])
      if case .gates(let gates) = newValue { virtual = gates }
      let words = virtual.machineFirst.words
      page[\.machine_vectors] = (words[0], words[1], words[2], words[3])
      page[\.virtual_flag] = sharedWord(virtual.flag)
      page[\.fault_address] = sharedWord(virtual.faultAddress)
    }
  }

  /// What the vCPU page has of the place of a word that the guest and the machine share.
  private func sharedWord(_ place: UInt64?) -> UInt64 {
    guard let place, place & 3 == 0, processor.isRAM(place) else { return 0 }
    return place &+ 1
  }

  public func forward(_ trap: Trap) {
    busy {
      let kind: Event.Kind =
        switch trap.kind {
        case .exception: .exception
        case .interrupt: .external
        case .software: .int1
        case .nmi: .nmi
        }
      processor.state.forwarded = trap.vector
      defer { processor.state.forwarded = nil }
      deliveryExit = deliver(
        Event(
          vector: trap.vector, kind: kind, errorCode: trap.errorCode, address: trap.address, returnAddress: page[\.rip])
      )
    }
  }

  public var isTaskSwitched: Bool {
    get { page[\.cr0] & CR0.ts != 0 }
    set {
      page[\.cr0] = newValue ? page[\.cr0] | CR0.ts : page[\.cr0] & ~CR0.ts
      page.updateMode()
    }
  }
}

extension AddressSpace {
  /// Whether both are page tables of one format.
  fileprivate func hasKind(of other: AddressSpace) -> Bool {
    switch (self, other) {
    case (.tables, .tables), (.extendedTables, .extendedTables): true
    default: false
    }
  }
}

extension Processor {
  /// Whether an event goes to the machine and not through a gate.
  func isMachines(_ event: Event) -> Bool {
    switch state.trapPolicy {
    case .guest: return false
    case .machine: return true
    case .gates(let virtual):
      if event.vector == state.forwarded { return false }
      return !page.isProtected || page.isLMA || virtual.machineFirst.contains(event.vector) || !hasGate(event.vector)
    }
  }

  /// Whether the interrupt descriptor table has a present gate for a vector.
  private func hasGate(_ vector: UInt8) -> Bool {
    let offset = UInt64(vector) &* 8
    guard offset &+ 7 <= UInt64(page[\.idtr].limit) else { return false }
    do throws(Fault) {
      return try read(UInt8.self, at: page[\.idtr].base &+ offset &+ 5, as: .implicit) & 0x80 != 0
    } catch {
      return false
    }
  }

  /// The word of a guest's own interrupt flag; nil: it has none.
  private var virtualFlag: UInt64? { page[\.virtual_flag] == 0 ? nil : page[\.virtual_flag] &- 1 }

  /// RFLAGS with the interrupt flag that the guest believes in.
  func withVirtualFlag(_ flags: UInt64) -> UInt64 {
    guard let word = virtualFlag else { return flags }
    return flags & ~RFLAGS.if | UInt64(physicalLoad(UInt32.self, word)) & RFLAGS.if
  }

  /// Masks interrupts as an interrupt gate does, if the flag is the guest's own; false if it is not.
  func clearVirtualFlag() -> Bool {
    guard let word = virtualFlag else { return false }
    physicalStore(UInt32(0), word)
    return true
  }

  /// Tells a guest of such gates where a page fault was.
  func storeFaultAddress(_ event: Event) {
    guard event.vector == Vector.pageFault, event.kind == .exception, page[\.fault_address] != 0 else { return }
    physicalStore(UInt32(truncatingIfNeeded: event.address), page[\.fault_address] &- 1)
  }
}

extension Trap {
  /// What is on its way to a handler.
  ///
  /// - Parameter place: RIP of the instruction that has raised it, or that comes next.
  init(_ event: Event, at place: UInt64) {
    let kind: Kind =
      switch event.kind {
      case .exception: .exception
      case .external: .interrupt
      case .software, .int1: .software(at: place)
      case .nmi: .nmi
      }
    self.init(vector: event.vector, kind: kind, errorCode: event.errorCode, address: event.address)
  }
}

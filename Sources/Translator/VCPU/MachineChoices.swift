// SPDX-License-Identifier: Apache-2.0
// What a machine may do in the guest's place: keep the roots of its address space, and take its traps.

import CHost
public import Engine
import X86

extension TranslatedCPU {
  public var addressSpace: AddressSpace {
    get { processor.state.addressSpace }
    set {
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
      flushTLB()
    }
  }

  public var machinePages: MachinePages? {
    get {
      page[\.kept_pages_physical] == 0
        ? nil
        : MachinePages(
          linear: UInt32(truncatingIfNeeded: page[\.kept_pages]), physical: page[\.kept_pages_physical])
    }
    set {
      page[\.kept_pages] = UInt64(newValue?.linear ?? 0) & ~4095
      page[\.kept_pages_physical] = (newValue?.physical ?? 0) & ~4095
      flushTLB()
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
      // The light helpers know the guest's table alone.
      page[\.no_light] = newValue == .guest && translation.options.lightPaths ? 0 : 1
    }
  }
}

extension Trap {
  /// What is on its way to a handler.
  init(_ event: Event) {
    let kind: Kind =
      switch event.kind {
      case .exception: .exception
      case .external: .interrupt
      case .software, .int1: .software
      case .nmi: .nmi
      }
    self.init(vector: event.vector, kind: kind, errorCode: event.errorCode, address: event.address)
  }
}

// SPDX-License-Identifier: Apache-2.0
// The host side of lguest in a saved machine: what the guest has told its host, from which everything else follows. The
// per-CPU page is no part of it: it is filled where the guest goes on. Fields are refused by the rules of the hypercalls
// that set them.

import Engine
public import Saving
import X86

extension LguestHost {
  /// Everything that the guest has told, and the engine's address space and policy that follow. While the vCPU stands;
  /// before the vCPU's own state, for the top entries of PAE paging are loaded with that.
  public mutating func transfer(
    _ archive: inout StateArchive, _ engine: some CPUEngine
  ) throws(SavedStateError) {
    // What is to be forgotten is forgotten now: a vCPU that goes on elsewhere knows nothing that it could forget.
    if !archive.isRestoring { flush.apply(to: engine) }
    try archive.transfer(&hasCalled, "first hypercall")
    try transferEra(&archive)
    try archive.transfer(&kernelBase, "kernel's address")
    try archive.transfer(&isLinear, "addresses without tables")
    try archive.transfer(&isWide, "PAE paging")
    try archive.transfer(&root, "page tables")
    try archive.transfer(&isHalted, "sleep")
    var slot = UInt8(truncatingIfNeeded: ringIndex)
    try archive.transfer(&slot, "slot of the ring", in: 0...UInt8(LguestDataLayout.ringCount - 1))
    ringIndex = Int(slot)
    try tables.transfer(&archive)
    guard archive.isRestoring else { return }
    engine.addressSpace = isLinear ? .identity : isWide ? .extendedTables(root: root) : .tables(root: root)
    if let data { useVirtualFlag(of: data, engine) }
  }

  /// The era, which layout of it struct lguest_data has, and where that is: all or nothing.
  private mutating func transferEra(_ archive: inout StateArchive) throws(SavedStateError) {
    var raw = era?.rawValue
    try archive.transfer(&raw, "era")
    guard let raw else {
      (era, layout, data) = (nil, nil, nil)
      return
    }
    guard let era = LguestEra(rawValue: raw) else { return try archive.require(false, "era", raw) }
    var number = UInt8(truncatingIfNeeded: era.row.layouts.firstIndex { $0 == self.layout } ?? 0)
    try archive.transfer(&number, "layout of lguest_data", in: 0...UInt8(truncatingIfNeeded: era.row.layouts.count - 1))
    var place = data ?? 0
    try archive.transfer(&place, "address of lguest_data")
    let new = era.row.layouts[Int(number)]
    try archive.require(
      place & 3 == 0 && memory.contains(place, byteCount: new.byteCount) && place + new.byteCount <= limit,
      "address of lguest_data", place)
    (self.era, layout, data) = (era, new, place)
  }
}

extension LguestInterrupts: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var all = waiting
    try archive.transfer(&all, "interrupts that wait")
    if archive.isRestoring { set(all) }
  }
}

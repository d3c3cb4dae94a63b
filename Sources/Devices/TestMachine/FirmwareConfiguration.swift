// SPDX-License-Identifier: Apache-2.0
// Ports 0x510 and 0x511 of the test machine: QEMU's firmware configuration device, as far as test suites ask it how
// much memory and how many processors there are (QEMU, docs/specs/fw_cfg.rst).

public import Saving
import Synchronization

/// A selector of items, and a port that gives the selected item byte by byte.
public final class FirmwareConfiguration: Device {
  private struct Selection {
    var item: [UInt8] = []
    var next = 0
  }

  private let items: [UInt16: [UInt8]]
  private let selection = Mutex(Selection())

  /// - Parameter memory: Bytes of RAM.
  public init(memory: UInt64, cpuCount: Int) {
    func little(_ value: UInt64, _ count: Int) -> [UInt8] {
      (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }
    items = [
      0x00: [UInt8]("QEMU".utf8),  // signature
      0x01: little(1, 4),  // interface: ports only, no DMA
      0x03: little(memory, 8),
      0x05: little(UInt64(cpuCount), 2),
      0x0F: little(UInt64(cpuCount), 2),  // processors there could be
      // Some suites ask for it here, where QEMU has a kernel that this machine never has.
      0x11: little(UInt64(cpuCount), 2),
    ]
  }

  /// The selector cannot be read; data beyond an item's end, or of an item that is not there, is zero.
  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    guard offset == 1 else { return .max }
    return selection.withLock { selection in
      guard selection.next < selection.item.count else { return 0 }
      defer { selection.next += 1 }
      return UInt64(selection.item[selection.next])
    }
  }

  /// A 16-bit write to the first port selects; bit 14 asked for writing once and means nothing now.
  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    guard offset == 0, size >= 2 else { return }
    let key = UInt16(truncatingIfNeeded: value) & ~0x4000
    selection.withLock { $0 = Selection(item: items[key] ?? []) }
  }
}

extension FirmwareConfiguration: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try selection.withLock { selection throws(SavedStateError) in
      try archive.transfer(&selection.item, "item", limit: 8)
      try archive.require(selection.item.isEmpty || items.values.contains(selection.item), "item")
      try archive.transfer(&selection.next, "position", in: 0...selection.item.count)
    }
  }
}

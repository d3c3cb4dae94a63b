// SPDX-License-Identifier: Apache-2.0
// A page of the machine's own, in no guest's RAM: what the processor reads at the top of an address space that the machine
// keeps (descriptors, gates, a task-state segment), and what no guest and no device can store to. It need not be one guest's:
// lguest had one for each host processor.

public import Host

/// 4096 bytes, zeros at first.
@safe public final class MachinePage: @unchecked Sendable {
  /// Its size.
  public static let byteCount = 4096

  private let mapping: Mapping

  /// - Throws: `HostError` if the host gives no memory.
  public init() throws(HostError) { mapping = try .anonymous(byteCount: MachinePage.byteCount) }

  /// Where it is in the host's memory, for an engine that holds the page itself.
  public var address: UInt64 { unsafe UInt64(UInt(bitPattern: mapping.base)) }

  /// Stores a number, little-endian, at a multiple of its size; nothing is stored beyond the page.
  public func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at offset: Int) {
    guard offset >= 0, offset <= MachinePage.byteCount - MemoryLayout<T>.size else { return }
    // SAFETY: the bytes are in the page.
    unsafe mapping.base.storeBytes(of: value, toByteOffset: offset, as: T.self)
  }

  /// Loads such a number; 0 beyond the page.
  public func load<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type, at offset: Int) -> T {
    guard offset >= 0, offset <= MachinePage.byteCount - MemoryLayout<T>.size else { return 0 }
    // SAFETY: the bytes are in the page.
    return unsafe mapping.base.loadUnaligned(fromByteOffset: offset, as: T.self)
  }
}

/// Such a page at a linear address of the address spaces that a machine keeps. Code of levels 0 to 2 may read it; nothing
/// else can be done with it.
public struct MachinePagePlace: Sendable {
  /// A multiple of 4096. From here to 4 GiB the guest's own tables map nothing.
  public let linear: UInt32
  /// What is there.
  public let page: MachinePage

  /// A page at an address.
  public init(linear: UInt32, page: MachinePage) { (self.linear, self.page) = (linear & ~4095, page) }
}

// SPDX-License-Identifier: Apache-2.0
// Which pages were written, and which of them hold translated code: a store from outside the translator (a device,
// a loader, a paravirtual clock) must be seen by the code cache exactly as the guest's own stores are.

import Host
import Synchronization

/// What is known about a guest page; the values of CHOST_PAGE_* in chost.h.
public struct PageFlags: OptionSet, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Some translation was made from the page.
  public static let code = PageFlags(rawValue: 1)
  /// Written since RAM was made.
  public static let dirty = PageFlags(rawValue: 2)
  /// Its bytes are in the store and not in RAM (PageStore.swift).
  public static let absent = PageFlags(rawValue: 4)
  /// Accessed by user code since the flag was cleared; kept only where pages may be absent.
  public static let used = PageFlags(rawValue: 8)
}

/// A function in a box: a bare one, read out of a generic container and put back, gains a wrapper each time.
struct CodeWriteHandler: Sendable {
  let call: @Sendable (_ address: UInt64, _ count: Int) -> Void
}

extension GuestMemory {
  /// Registers who is told of stores to pages that hold translated code; replaces the one before.
  ///
  /// Called after the store, on the storing thread, once per touched page with the CODE flag, with the
  /// guest-physical address and the number of bytes written in that page. It may call back into this object.
  public func setCodeWriteHandler(_ handler: (@Sendable (_ address: UInt64, _ count: Int) -> Void)?) {
    codeWriteHandler.withLock { $0 = handler.map { CodeWriteHandler(call: $0) } }
  }

  /// Pages of RAM have a flag byte; other addresses have none.
  @inlinable @inline(__always)
  func flags(ofPage page: UInt64) -> UnsafeMutablePointer<Atomic<UInt8>> {
    // SAFETY: callers pass pages of RAM; an atomic byte has the layout of a byte.
    unsafe UnsafeMutableRawPointer(pageFlags + Int(truncatingIfNeeded: page)).assumingMemoryBound(
      to: Atomic<UInt8>.self)
  }

  /// The flags of the page that holds an address; empty outside RAM.
  public func flags(at address: GuestPhysical) -> PageFlags {
    guard contains(address, count: 1) else { return [] }
    return unsafe PageFlags(rawValue: flags(ofPage: address.page).pointee.load(ordering: .relaxed))
  }

  /// Sets or clears one flag of the page that holds an address; nothing happens outside RAM.
  public func setFlag(_ flag: PageFlags, _ isSet: Bool, at address: GuestPhysical) {
    guard contains(address, count: 1) else { return }
    let flags = unsafe flags(ofPage: address.page)
    if isSet {
      _ = unsafe flags.pointee.bitwiseOr(flag.rawValue, ordering: .sequentiallyConsistent)
    } else {
      _ = unsafe flags.pointee.bitwiseAnd(~flag.rawValue, ordering: .sequentiallyConsistent)
    }
  }

  /// Records that `[address, address + count)`, all RAM, was written: for stores made through `baseAddress`.
  ///
  /// The locked OR is also the barrier between the store and the look at CODE. The translator sets CODE before it
  /// reads a page, so either it reads the new bytes or we see its flag.
  public func didWrite(_ address: GuestPhysical, count: Int) {
    guard count > 0, contains(address, count: count) else { return }
    var start = address.value
    let last = start &+ UInt64(count) &- 1
    while true {
      let end = min(last, start | 4095)
      let before = unsafe flags(ofPage: start >> 12).pointee.bitwiseOr(
        PageFlags.dirty.rawValue, ordering: .sequentiallyConsistent
      ).oldValue
      if before & PageFlags.code.rawValue != 0 {
        // Called outside the lock, so that the handler may store.
        let handler = codeWriteHandler.withLock { $0 }
        handler?.call(start, Int(end &- start) + 1)
      }
      if end == last { return }
      start = end &+ 1
    }
  }

  /// The ranges of pages that were ever written, in ascending order: whatever else is RAM's own reads as zeros.
  public var writtenPages: [Range<UInt64>] {
    var ranges: [Range<UInt64>] = []
    forEachPage(.dirty) { page in
      let address = page << 12
      if let last = ranges.last, last.upperBound == address {
        ranges[ranges.count - 1] = last.lowerBound..<address + 4096
      } else {
        ranges.append(address..<address + 4096)
      }
      return true
    }
    return ranges
  }

  /// Bytes that are searched at a time: pages may go away meanwhile, and must not all be there at once.
  private static let searched: UInt64 = 1 << 16

  /// Whether some bytes, `searched` at most, follow each other in a range of addresses. Only pages that were ever written
  /// are read: no host memory is taken for the others, and no time is spent on them.
  public func hasWritten(_ bytes: [UInt8], in range: Range<UInt64>) -> Bool {
    guard !bytes.isEmpty, bytes.count <= GuestMemory.searched else { return false }
    for pages in writtenPages {
      var part = pages.clamped(to: range)
      while part.count >= bytes.count {
        let count = min(part.count, Int(GuestMemory.searched))
        do throws(MemoryError) {
          let isThere = unsafe try access(GuestPhysical(part.lowerBound), count) {
            unsafe ByteSearch.has(bytes, in: UnsafeRawBufferPointer(start: $0, count: count))
          }
          if isThere { return true }
        } catch { break }
        // What begins in the last bytes may go on behind them.
        part = part.lowerBound + UInt64(count < part.count ? count - (bytes.count - 1) : count)..<part.upperBound
      }
    }
    return false
  }

  /// Calls `body` with the pages of RAM, in a range of page numbers, that have a flag, in ascending order, until it
  /// returns false.
  func forEachPage(_ flag: PageFlags, in range: Range<UInt64> = 0..<UInt64.max, _ body: (UInt64) -> Bool) {
    let pattern = UInt64(flag.rawValue) &* 0x0101_0101_0101_0101
    for part in [0..<lowEnd >> 12, GuestMemory.highStart >> 12..<highEnd >> 12] {
      let part = part.clamped(to: range)
      var page = part.lowerBound
      while page < part.upperBound {
        // Most of a large guest was never touched: eight pages at a time.
        if page % 8 == 0, part.upperBound - page >= 8,
          unsafe UnsafeRawPointer(pageFlags + Int(page)).load(as: UInt64.self) & pattern == 0
        {
          page += 8
          continue
        }
        let flags = unsafe flags(ofPage: page).pointee.load(ordering: .relaxed)
        if flags & flag.rawValue != 0, !body(page) { return }
        page += 1
      }
    }
  }
}

extension GuestMemory {
  /// Gives access to an aligned integer as an atomic, for words a running guest changes too.
  ///
  /// - Parameter body: May read and write; a write is recorded whether or not it happened.
  /// - Throws: `MemoryError` outside RAM or when the address is not aligned to the size.
  public func withAtomic<T: FixedWidthInteger & AtomicRepresentable, Result>(
    _ type: T.Type, at address: GuestPhysical, _ body: (borrowing Atomic<T>) -> Result
  ) throws(MemoryError) -> Result where T.AtomicRepresentation: BitwiseCopyable {
    let size = MemoryLayout<T>.size
    guard address.value % UInt64(size) == 0 else { throw MemoryError(address, byteCount: size) }
    let result = unsafe try access(address, size) {
      unsafe body($0.assumingMemoryBound(to: Atomic<T>.self).pointee)
    }
    didWrite(address, count: size)
    return result
  }
}

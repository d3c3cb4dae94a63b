// SPDX-License-Identifier: Apache-2.0
// Pages that are late: guest RAM that is being fetched from somewhere slow. The flag stands for the fetching only; the
// bytes are in place, so that whoever overlooks it, a device or a page walk, reads what is right, only too soon.

import Synchronization

extension GuestMemory {
  /// Whether the page of an address is on its way; false outside RAM.
  public func isAbsent(_ address: GuestPhysical) -> Bool { flags(at: address).contains(.absent) }

  /// A page has come. Other addresses than those of RAM are ignored.
  public func setPresent(_ address: GuestPhysical) {
    if contains(address, count: 1) { setPresent(page: address.page) }
  }

  /// For pages of RAM.
  func setPresent(page: UInt64) {
    _ = unsafe flags(ofPage: page).pointee.bitwiseAnd(~PageFlags.absent.rawValue, ordering: .sequentiallyConsistent)
  }

  /// Makes absent every page that user code has accessed since the last time, and says how many there were.
  ///
  /// Whoever remembers how a page is reached still gets there: forget it afterwards.
  public func evictUsedPages() -> Int {
    var count = 0
    for part in [0..<lowEnd >> 12, GuestMemory.highStart >> 12..<highEnd >> 12] {
      var page = part.lowerBound
      while page < part.upperBound {
        // Eight pages at a time, as most were never used.
        if page % 8 == 0, part.upperBound - page >= 8,
          unsafe UnsafeRawPointer(pageFlags + Int(page)).load(as: UInt64.self) & 0x0808_0808_0808_0808 == 0
        {
          page += 8
          continue
        }
        let flags = unsafe flags(ofPage: page)
        if unsafe flags.pointee.load(ordering: .relaxed) & PageFlags.used.rawValue != 0 {
          _ = unsafe flags.pointee.bitwiseAnd(~PageFlags.used.rawValue, ordering: .relaxed)
          _ = unsafe flags.pointee.bitwiseOr(PageFlags.absent.rawValue, ordering: .relaxed)
          count += 1
        }
        page += 1
      }
    }
    return count
  }
}

// SPDX-License-Identifier: Apache-2.0
// Translations that a ring-1 guest has changed since it last ran. They are forgotten before it runs again, and not call by
// call: a fork changes thousands of entries of the tables that are in use, and the ring brings 64 of them at a time.

import Engine

/// What has to be forgotten.
struct LguestFlush {
  /// Beyond so many pages it costs less to forget all of the user's.
  private static let mostPages = 8

  private enum Extent { case pages, user, everything }
  private var extent = Extent.pages
  private var pages: [UInt32] = []

  init() { pages.reserveCapacity(LguestFlush.mostPages) }

  /// One address. Those of the kernel may be global.
  mutating func add(_ linear: UInt32, isKernel: Bool) {
    guard extent != .everything, extent != .user || isKernel else { return }
    if pages.count < LguestFlush.mostPages { return pages.append(linear) }
    if isKernel { extent = .everything } else { extent = .user }
  }

  /// All that MOV CR3 forgets.
  mutating func addUser() { if extent == .pages { extent = .user } }

  mutating func addEverything() { extent = .everything }

  /// Forgets it.
  mutating func apply(to engine: some CPUEngine) {
    switch extent {
    case .everything: engine.flushTLB()
    case .user:
      // Setting the space forgets what is not global, and reads the top entries of PAE paging again.
      engine.addressSpace = engine.addressSpace
      for page in pages { engine.flushPage(linear: UInt64(page)) }
    case .pages: for page in pages { engine.flushPage(linear: UInt64(page)) }
    }
    extent = .pages
    pages.removeAll(keepingCapacity: true)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Translations that a ring-1 guest has changed since it last ran. They are forgotten before it runs again, and not call by
// call: a fork changes thousands of entries of the tables that are in use, and the ring brings 64 of them at a time.

import Engine

/// What has to be forgotten.
struct LguestFlush {
  /// Beyond so many pages it costs less to forget all of the user's, or everything.
  private static let mostPages = 4

  private enum Extent { case pages, user, everything }
  private var extent = Extent.pages
  /// Of the user's, and of the kernel's, which may be global.
  private var pages: [UInt32] = [], kernelPages: [UInt32] = []

  init() {
    pages.reserveCapacity(LguestFlush.mostPages)
    kernelPages.reserveCapacity(LguestFlush.mostPages)
  }

  /// One address.
  mutating func add(_ linear: UInt32, isKernel: Bool) {
    guard extent != .everything, extent != .user || isKernel else { return }
    if isKernel {
      if kernelPages.count < LguestFlush.mostPages { kernelPages.append(linear) } else { extent = .everything }
    } else {
      if pages.count < LguestFlush.mostPages { pages.append(linear) } else { extent = .user }
    }
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
      for page in kernelPages { engine.flushPage(linear: UInt64(page)) }
    case .pages:
      if pages.isEmpty && kernelPages.isEmpty { return }
      for page in pages { engine.flushPage(linear: UInt64(page)) }
      for page in kernelPages { engine.flushPage(linear: UInt64(page)) }
    }
    extent = .pages
    pages.removeAll(keepingCapacity: true)
    kernelPages.removeAll(keepingCapacity: true)
  }
}

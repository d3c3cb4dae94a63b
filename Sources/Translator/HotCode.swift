// SPDX-License-Identifier: Apache-2.0
// The second translation of code that is executed often. A vCPU that leaves at a poll, as it does at each of the guest's
// timer interrupts, is likely to be in such code: the block there and those it is linked with are forgotten and, when they
// are next executed, translated with a slot for each access, so that an access waits for a load where it waited for an
// index, a tag and a load. A slot holds one page: a site that keeps changing between pages is found by its misses and
// goes back to the table. Which code this is, is remembered by guest-physical address.

import CHost
import Synchronization

/// Which code is hot, and who uses which site's slot. Part of the code cache, under its lock.
struct HotCode {
  /// Keys of blocks.
  private var blocks: Set<UInt64> = []
  /// Guest-physical addresses of instructions whose operand changes pages too often for a slot.
  private var restless: Set<UInt64> = []
  /// By privilege and direction, the next slot to be given away, and the instructions that have them.
  private var next = [Int](repeating: 0, count: 4)
  private var owners = [UInt64](repeating: 0, count: 4 * Int(CHOST_SITES))

  /// Blocks promoted at once, at most: what a loop calls directly, not the whole program.
  static let mostAtOnce = 32
  /// Misses between two looks, 4 ms apart with Debian's kernels, that make a site restless: each costs 15 ns.
  static let mostMisses: UInt16 = 4000
  /// TSC ticks between two looks, at least: a millisecond or less.
  static let pause: UInt64 = 1 << 21

  func contains(_ key: UInt64) -> Bool { blocks.contains(key) }
  mutating func insert(_ key: UInt64) { blocks.insert(key) }

  /// The displacement from ENV of a slot for the operand of the instruction at `physical`, or nil for none.
  mutating func site(_ physical: UInt64, user: Bool, write: Bool) -> Int32? {
    if restless.contains(physical) { return nil }
    let kind = (user ? 2 : 0) + (write ? 1 : 0)
    let number = next[kind]
    next[kind] = (number + 1) % Int(CHOST_SITES)
    owners[kind * Int(CHOST_SITES) + number] = physical
    let first = (user ? Int(CHOST_SLOTS_PER_PRIVILEGE) : 0) + (write ? Int(CHOST_SITES) : 0)
    return Int32(truncatingIfNeeded: Int(CHOST_SLOTS) + (first + number) * 16)
  }

  /// Takes the slot from the site that has it; the guest-physical address of its instruction.
  mutating func refuse(_ number: Int) -> UInt64 {
    restless.insert(owners[number])
    return owners[number]
  }
}

extension CodeCache {
  /// Promotes the block at host address `entry` and what it is linked with; whether there was anything to promote.
  func heat(_ entry: UInt64) -> Bool {
    guard let first = block(at: entry) else { return false }
    var found = [first]
    var position = 0
    var known: Set<Int32> = [first]
    while position < found.count && found.count < HotCode.mostAtOnce {
      let block = self[found[position]]
      position += 1
      for number in block.firstEdge..<block.firstEdge + block.edgeCount {
        let target = edge(UInt32(truncatingIfNeeded: number)).target
        if target >= 0, known.insert(target).inserted { found.append(target) }
      }
    }
    var any = false
    for index in found {
      let block = self[index]
      guard block.isLive, !block.straddles, !hotCode.contains(block.key) else { continue }
      hotCode.insert(block.key)
      retranslate(index)
      any = true
    }
    return any
  }

  /// The block that the instruction at `physical` belongs to is translated again without a slot for it.
  func refuseSite(_ number: Int) -> Bool {
    let physical = hotCode.refuse(number)
    var any = false
    for index in liveBlocks(at: physical) {
      retranslate(index)
      any = true
    }
    return any
  }
}

extension TranslatedCPU {
  /// The vCPU has left at a poll: looks where it is, and which sites miss too often.
  func sample() {
    // A long string instruction leaves at polls too, without being asked to.
    let now = chost_read_tsc()
    guard page[\.attention] != 0, now &- lastSample > HotCode.pause else { return }
    lastSample = now
    let entry = unsafe chost_lookup(page.pointer, linearIP)
    let translation = translation
    var any = translation.lock.withLock { _ in entry != 0 && translation.cache.heat(entry) }
    let misses = unsafe chost_site_misses(page.pointer)!
    for number in 0..<4 * Int(CHOST_SITES) where unsafe misses[number] != 0 {
      if unsafe misses[number] > HotCode.mostMisses,
        translation.lock.withLock({ _ in translation.cache.refuseSite(number) })
      {
        any = true
      }
      unsafe misses[number] = 0
    }
    if any { translation.forEachCPU { $0 === self ? $0.dropJumpCache() : $0.dropJumpCacheSoon() } }
  }
}

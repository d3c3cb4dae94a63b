// SPDX-License-Identifier: Apache-2.0
// The second translation of code that is executed often. A vCPU that leaves at a poll, as it does at each of the
// guest's timer interrupts, is likely to be in such code: the block there and those it is linked with are forgotten
// and, when they are next executed, translated with a slot for each access, so that an access waits for a load where it
// waited for an index, a tag and a load. A slot holds a run of pages that lie together in the host's memory too: a site
// that keeps changing between others is found by its misses and goes back to the table. Which code this is, is
// remembered by guest-physical address.

import CHost
import Synchronization

/// Which code is hot, and who uses which site's slot. Part of the code cache, under its lock.
struct HotCode {
  /// All code counts as hot: for tests.
  var isEverything = false
  /// Keys of blocks.
  private var blocks: Set<UInt64> = []
  /// Guest-physical addresses of instructions whose operand changes pages too often for a slot.
  private var restless: Set<UInt64> = []
  /// By privilege, direction and class, the next slot to be given away.
  private var next = [Int](repeating: 0, count: 4 * 6)
  /// The guest pages of the latest samples, oldest overwritten first.
  private var samples = [UInt64](repeating: .max, count: HotCode.samplesKept)
  private var nextSample = 0
  /// The instructions that have the slots.
  private var owners = [UInt64](repeating: 0, count: 4 * Int(CHOST_SITES))

  /// The classes of sites: CHOST_CLASSES. Slots are shared once they run out, but only within a class.
  private static let ends: InlineArray<6, Int> = [512, 640, 768, 896, 960, 1024]
  private static let sizes: InlineArray<6, Int> = [8, 16, 32, 64, 128, 256]

  /// Blocks promoted at once, at most: what a loop calls directly, not the whole program.
  static let mostAtOnce = 32
  /// Misses between two looks, 4 ms apart with Debian's kernels, that make a site restless: each costs 15 ns.
  static let mostMisses: UInt16 = 500
  /// A page is hot when it is met twice within so many looks. What a large program executes all over its code is not:
  /// its sites would be more than there are slots.
  static let samplesKept = 16
  /// Blocks and instructions remembered, each.
  static let mostRemembered = 1 << 16
  /// TSC ticks between two looks, at least: a millisecond or less.
  static let pause: UInt64 = 1 << 21

  /// Notes that the guest page `page` was being executed; whether it is hot.
  mutating func sample(_ page: UInt64) -> Bool {
    let isHot = samples.contains(page)
    samples[nextSample] = page
    nextSample = (nextSample + 1) % HotCode.samplesKept
    return isHot
  }

  func contains(_ key: UInt64) -> Bool { isEverything || blocks.contains(key) }
  mutating func insert(_ key: UInt64) { HotCode.add(key, to: &blocks) }

  /// What is remembered is a hint: when it becomes too much, it begins anew.
  private static func add(_ value: UInt64, to set: inout Set<UInt64>) {
    if set.count >= HotCode.mostRemembered { set.removeAll(keepingCapacity: true) }
    set.insert(value)
  }

  /// The displacement from ENV of a slot for `size` bytes that the instruction at `physical` accesses, or nil for none.
  mutating func site(_ physical: UInt64, size: Int, user: Bool, write: Bool) -> Int32? {
    if restless.contains(physical) { return nil }
    let kind = (user ? 2 : 0) + (write ? 1 : 0)
    var group = 0
    while HotCode.sizes[group] < size { group += 1 }
    let first = group == 0 ? 0 : HotCode.ends[group - 1]
    let number = first + next[kind * 6 + group]
    next[kind * 6 + group] = (number - first + 1) % (HotCode.ends[group] - first)
    owners[kind * Int(CHOST_SITES) + number] = physical
    let slot = (user ? Int(CHOST_SLOTS_PER_PRIVILEGE) : 0) + (write ? Int(CHOST_SITES) : 0) + number
    return Int32(truncatingIfNeeded: Int(CHOST_SLOTS) + slot * Int(CHOST_SLOT_SIZE))
  }

  /// The largest operand of a site, by its number among those of its privilege and direction.
  static func largest(_ number: Int) -> Int {
    var group = 0
    while ends[group] <= number { group += 1 }
    return sizes[group]
  }

  /// Takes the slot from the site that has it; the guest-physical address of its instruction.
  mutating func refuse(_ number: Int) -> UInt64 {
    HotCode.add(owners[number], to: &restless)
    return owners[number]
  }
}

extension CodeCache {
  /// Promotes the block at host address `entry` and what it is linked with.
  func heat(_ entry: UInt64) {
    guard let first = block(at: entry), hotCode.sample(self[first].page) else { return }
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
    for index in found {
      let block = self[index]
      guard block.isLive, !block.straddles, !hotCode.contains(block.key) else { continue }
      hotCode.insert(block.key)
      retranslate(index)
    }
  }

  /// The blocks that use a site's slot are translated again without it.
  func refuseSite(_ number: Int) {
    for index in liveBlocks(at: hotCode.refuse(number)) { retranslate(index) }
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
    if entry != 0 { translation.lock.withLock { _ in translation.cache.heat(entry) } }
    guard let misses = unsafe chost_site_misses(page.pointer) else { return }
    for number in 0..<4 * Int(CHOST_SITES) {
      let found = unsafe misses[number]
      if found == 0 { continue }
      unsafe misses[number] = 0
      if found > HotCode.mostMisses { translation.lock.withLock { _ in translation.cache.refuseSite(number) } }
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// From RIP to translated code: the block is looked up, or its page is protected and the block made, and the edge that led
// here is linked.

import CHost
import Engine
import GuestMemory
import Synchronization
import X86

extension TranslatedCPU {
  /// The entry for the code at RIP, translating it if need be; nil after a fault has been delivered.
  ///
  /// `split`: the block that checks every access by itself.
  func findEntry(step: Bool, split: Bool = false) -> UInt64? {
    if step && page[\.mode] & UInt32(CHOST_MODE_STEP) == 0 {
      page[\.mode] |= UInt32(CHOST_MODE_STEP)
      defer { page.updateMode() }
      return findEntry(step: false)
    }
    let linear = linearIP
    page[\.linear] = linear
    let found = unsafe split ? 0 : chost_lookup(page.pointer, linear)
    if found != 0 { return found }
    do throws(Fault) {
      return try translate(linear, split: split)
    } catch {
      fault(error)
      return nil
    }
  }

  private func translate(_ linear: UInt64, split: Bool) throws(Fault) -> UInt64? {
    let started = chost_read_tsc()
    let mode = page[\.mode] | (split ? UInt32(CHOST_MODE_SPLIT) : 0)
    if mode & UInt32(CHOST_MODE_CPL) == 3 { hasMetUserCode = true }
    let cache = translation.cache
    var second = Block.noPage
    while true {
      let physical = try codePage(linear)
      if second != Block.noPage { second = try codePage((linear | 4095) &+ 1) & ~4095 }
      let made = translation.lock.withLock { _ in
        let made = cache.make(physical, secondPage: second, mode: mode)
        cache.count(ticks: chost_read_tsc() &- started)
        return made
      }
      switch made {
      case .block(let index):
        if translation.isStored(beside: physical, by: self) || translation.isStored(beside: second, by: self) {
          translation.retranslate(index, for: self)
          continue
        }
        return cache.entry(index)
      case .needsSecondPage: second = 0
      // In between another vCPU has discarded the last block of the page, which is no longer protected, or the page has
      // gone away.
      case .needsPage: break
      case .needsRoom: makeRoom()
      case .tooLong: throw .generalProtection()
      case .refused:
        deliveryExit = .failed("no form of the code at \(hex(linear)) is accepted by the checker")
        return nil
      }
    }
  }

  /// Translates a linear code address and marks the page as holding code.
  private func codePage(_ linear: UInt64) throws(Fault) -> UInt64 {
    if page.isLongMode {
      guard Processor.isCanonical(linear) else { throw .generalProtection() }
    } else {
      guard linear &- page[.cs].base <= UInt64(page[.cs].limit) else { throw .generalProtection() }
    }
    let physical = try processor.translate(linear, UInt32(CHOST_ACCESS_FETCH) | processor.authority.rights)
    guard processor.isRAM(physical) else { throw .invalidOpcode }
    if translation.lock.withLock({ _ in translation.cache.isCode(physical) }) { return physical }
    // Nobody may have the right to write the page unseen once it counts as code: whoever finds the mark relies on it.
    translation.alone(as: self) {
      translation.lock.withLock { _ in translation.cache.markCode(physical) }
      translation.forEachCPU { unsafe chost_protect_page($0.page.pointer, physical & ~4095) }
    }
    return physical
  }

  /// Forgets everything, if it must: nobody may be executing what is about to be overwritten.
  private func makeRoom() {
    translation.alone(as: self) {
      let flushed = translation.lock.withLock { _ in
        if translation.cache.hasRoom { return false }
        translation.collectHistogram()
        translation.cache.flush()
        return true
      }
      if flushed { translation.forEachCPU { unsafe chost_flush_all($0.page.pointer) } }
    }
  }

  /// Links an edge to the block at RIP, which is translated if need be.
  func link(_ index: UInt32) {
    let cache = translation.cache
    // Edges are given new meanings when everything is forgotten.
    let missing = translation.lock.withLock { _ in cache.link(index) ? nil : (cache.edge(index).kind, cache.generation)
    }
    guard let (kind, generation) = missing, findEntry(step: false, split: kind == .split) != nil else { return }
    translation.lock.withLock { _ in if cache.generation == generation { _ = cache.link(index) } }
  }
}

// SPDX-License-Identifier: Apache-2.0
// Blocks that are forgotten: because their bytes have changed, because a better form is wanted, or all at once.

import CHost
import GuestMemory
import Host

extension CodeCache {
  /// Sends whoever comes to a dead block by a jump cache, of whatever vCPU, to look for the code again. Its first
  /// instruction is longer than the jump (`BlockBuilder.entries`), so that none is ever half executed.
  private func close(_ block: Block) {
    let jump = UInt64(
      UInt32(bitPattern: Int32(truncatingIfNeeded: stubs.jumpMiss &- (codeStart &+ UInt64(block.hot) &+ 5))))
    let word = unsafe (code.writable + Int(block.hot)).assumingMemoryBound(to: UInt64.self)
    unsafe word.pointee = word.pointee & ~0xFF_FFFF_FFFF | jump << 8 | 0xE9
  }

  /// `count` bytes at a guest-physical address have changed: forgets the blocks made from them.
  func bytesChanged(_ physical: UInt64, count: Int) {
    guard count > 0 else { return }
    var page = physical >> 12
    let last = (physical &+ UInt64(count) &- 1) >> 12
    while page <= last && page < pageCount {
      let start = page << 12
      let from = max(physical, start) &- start
      let to = min(physical &+ UInt64(count), start &+ 4096) &- start
      discard(page: page, bytes: Int(from)..<Int(to))
      page &+= 1
    }
  }

  private func discard(page: UInt64, bytes: Range<Int>) {
    // A store beside code, or to a page without any, is the common case.
    let touched = BlockTranslator.chunks(bytes.lowerBound, bytes.count)
    guard unsafe chunks[Int(page)] & touched != 0 else { return }
    var left: UInt64 = 0
    var previous: Int32 = -1
    var index = firstBlock(ofPage: page)
    while index >= 0 {
      let block = unsafe blocks[Int(index)]
      let next = block.nextInPage
      if block.rests(on: bytes) {
        if previous < 0 {
          unsafe pages[Int(page)] = next &+ 1
        } else {
          unsafe blocks[Int(previous)].nextInPage = next
        }
        forget(index)
      } else {
        previous = index
        left |= block.chunks
      }
      index = next
    }
    // Blocks of other pages that end in this one.
    for number in straddlers[page << 12] ?? [] {
      let block = unsafe blocks[Int(number)]
      if bytes.lowerBound < Int(block.offset) + Int(block.length) - 4096 {
        removeFromPageList(number)
        forget(number)
      } else {
        left |= 1
      }
    }
    unsafe chunks[Int(page)] = left
    if left == 0 { markCode(page << 12, false) }
  }

  /// Live blocks of one page that hold the instruction at `physical`.
  func liveBlocks(at physical: UInt64) -> [Int32] {
    var found: [Int32] = []
    var index = firstBlock(ofPage: physical >> 12)
    while index >= 0 {
      let block = self[index]
      let offset = Int(physical & 4095)
      if Int(block.offset) <= offset && offset < Int(block.offset) + Int(block.length) && !block.straddles {
        found.append(index)
      }
      index = block.nextInPage
    }
    return found
  }

  /// Forgets a block whose bytes have not changed, so that it is translated again when it is next executed.
  func retranslate(_ index: Int32) {
    removeFromPageList(index)
    forget(index)
  }

  /// The instruction at a guest-physical address has faulted in the host, where it should not. Its blocks are translated
  /// again, carefully; false if that was not the first time, or once too often.
  func distrust(_ physical: UInt64, _ text: String, limit: Int) -> Bool {
    let goesOn = softFaults.note(physical, text, limit: limit)
    for index in liveBlocks(at: physical) { retranslate(index) }
    return goesOn
  }

  private func removeFromPageList(_ number: Int32) {
    let block = unsafe blocks[Int(number)]
    let page = Int(block.page >> 12)
    var index = unsafe pages[page] &- 1
    if index == number {
      unsafe pages[page] = block.nextInPage &+ 1
      return
    }
    while index >= 0 {
      let next = unsafe blocks[Int(index)].nextInPage
      if next == number {
        unsafe blocks[Int(index)].nextInPage = block.nextInPage
        return
      }
      index = next
    }
  }

  private func forget(_ index: Int32) {
    let block = unsafe blocks[Int(index)]
    while unsafe blocks[Int(index)].incoming >= 0 { unlink(edge: unsafe blocks[Int(index)].incoming) }
    for edge in block.firstEdge..<block.firstEdge + block.edgeCount { unlink(edge: edge) }
    if block.straddles {
      straddlers[block.secondPage]?.removeAll { $0 == index }
      if straddlers[block.secondPage]?.isEmpty == true { straddlers[block.secondPage] = nil }
      unsafe chost_straddle_remove(straddles, block.key, block.secondPage)
    } else {
      unsafe _ = chost_block_remove(table, UInt64(CodeCache.tableSlots - 1), block.key)
    }
    close(block)
    unsafe blocks[Int(index)].isLive = false
    counters.discards &+= 1
  }

  /// Forgets everything. No vCPU may be in translated code.
  func flush() {
    for index in 0..<blockCount where unsafe blocks[index].isLive {
      let block = unsafe blocks[index]
      for page in [block.page, block.straddles ? block.secondPage : block.page] where page >> 12 < pageCount {
        unsafe pages[Int(page >> 12)] = 0
        unsafe chunks[Int(page >> 12)] = 0
        markCode(page, false)
      }
    }
    tableRegion.discard(at: 0, byteCount: tableRegion.byteCount)
    straddleRegion.discard(at: 0, byteCount: straddleRegion.byteCount)
    hotUsed = CodeCache.hotStart
    coldUsed = CodeCache.coldStart
    blockCount = 0
    edgeCount = 0
    faultCount = 0
    straddlers.removeAll()
    generation &+= 1
    counters.flushes &+= 1
  }
}

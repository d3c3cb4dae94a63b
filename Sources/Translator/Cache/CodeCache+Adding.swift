// SPDX-License-Identifier: Apache-2.0
// Blocks that are made: bytes are emitted in the first form that the checker accepts, and published with their edges and
// fault sites.

import CHost
import GuestMemory
import Host
import X86

extension CodeCache {
  /// Whether another block surely fits; if not the caller flushes.
  var hasRoom: Bool {
    let need = CodeCache.roomForBlock
    return hotUsed + need < min(hotLimit, CodeCache.coldStart) && coldUsed + need < CodeCache.codeBytes
      && blockCount + 1 < min(CodeCache.maximumBlocks, CodeCache.tableSlots * 2 / 3)
      && edgeCount + BlockBuilder.maximumEdges < CodeCache.maximumEdges
      && faultCount + BlockBuilder.maximumFaults < CodeCache.maximumFaults
  }

  /// Whether the page of an address is marked as holding translated code.
  func isCode(_ physical: UInt64) -> Bool {
    let page = physical >> 12
    return page < pageCount && memory.flags(at: GuestPhysical(physical)).contains(.code)
  }

  /// Marks a page as holding translated code, or not. Other threads change its other flags.
  func markCode(_ physical: UInt64, _ isCode: Bool = true) {
    guard physical >> 12 < pageCount else { return }
    memory.setFlag(.code, isCode, at: GuestPhysical(physical))
  }

  /// Whether code may be read: the page is protected, and its bytes are there.
  private func isReadable(_ physical: UInt64) -> Bool {
    isCode(physical) && !memory.isAbsent(GuestPhysical(physical))
  }

  /// Finds or translates the block at guest-physical `physical`, which continues at the start of `secondPage` if its
  /// first instruction does.
  func make(_ physical: UInt64, secondPage: UInt64, mode: UInt32) -> Made {
    if let found = find(physical, mode: mode, secondPage: secondPage) {
      // Another may have its place in the table of those that straddle.
      if secondPage != Block.noPage { publish(self[found]) }
      return .block(found)
    }
    guard hasRoom else { return .needsRoom }
    guard isReadable(physical), secondPage == Block.noPage || isReadable(secondPage) else { return .needsPage }
    let offset = Int(physical & 4095)
    let base = unsafe UnsafePointer(memory.baseAddress.assumingMemoryBound(to: UInt8.self) + Int(physical & ~4095))
    if secondPage == Block.noPage {
      return unsafe translate(GuestCode(page: base), offset, physical, secondPage, mode)
    }
    let next = unsafe UnsafePointer(memory.baseAddress.assumingMemoryBound(to: UInt8.self) + Int(secondPage))
    var joined = InlineArray<16, UInt8>(repeating: 0)
    for index in 0..<15 {
      let position = offset + index
      joined[index] = unsafe position < 4096 ? base[position] : next[position - 4096]
    }
    var span = joined.mutableSpan
    return unsafe span.withUnsafeMutableBufferPointer {
      guard let start = $0.baseAddress else { return .tooLong }
      return unsafe translate(
        GuestCode(page: base, straddling: UnsafePointer(start)), offset, physical, secondPage, mode)
    }
  }

  private func translate(
    _ bytes: GuestCode, _ offset: Int, _ physical: UInt64, _ secondPage: UInt64, _ mode: UInt32
  ) -> Made {
    translator.isHot = hotCode.contains(key(physical, mode: mode))
    switch translator.decode(bytes, offset: offset, mode: mode) {
    case .instructions(let count):
      guard let index = add(bytes, count: count, physical: physical, secondPage: secondPage, mode: mode) else {
        return .refused
      }
      return .block(index)
    case .straddles: return secondPage == Block.noPage ? .needsSecondPage : .tooLong
    default: return .tooLong
    }
  }

  /// Emits the `count` instructions in the translator's buffer as a block at `physical`, in the first form that is not
  /// refused; nil if all are.
  func add(
    _ bytes: GuestCode, count: Int, physical: UInt64, secondPage: UInt64, mode: UInt32
  ) -> Int32? {
    let last = translator[count - 1]
    let isTrusted = softFaults.trusts(
      physical, count: Int(last.offset) + Int(last.instruction.length) - Int(physical & 4095))
    for form in BlockForm.allCases where isTrusted || form != .full {
      let block = emit(
        bytes, count: form == .helper ? 1 : count, physical: physical, secondPage: secondPage, mode: mode, form: form)
      if isAccepted(block, form) { return insert(block) }
    }
    return nil
  }

  /// Emits a block in a form behind the others, and records its edges and faults there.
  private func emit(
    _ bytes: GuestCode, count: Int, physical: UInt64, secondPage: UInt64, mode: UInt32, form: BlockForm
  ) -> Block {
    let index = Int32(truncatingIfNeeded: blockCount)
    let hot = unsafe CodeEmitter(
      writable: code.writable + hotUsed, executable: codeStart + UInt64(hotUsed),
      capacity: CodeCache.coldStart - hotUsed)
    let cold = unsafe CodeEmitter(
      writable: code.writable + coldUsed, executable: codeStart + UInt64(coldUsed),
      capacity: CodeCache.codeBytes - coldUsed)
    let emitted = translator.emit(
      bytes, count: count, mode: mode, page: physical >> 12, hot: hot, cold: cold, stubs: stubs,
      firstEdge: UInt32(truncatingIfNeeded: edgeCount), number: blockCount, hotCode: &hotCode, form: form)

    var block = Block()
    block.key = key(physical, mode: mode)
    block.hot = UInt32(truncatingIfNeeded: hotUsed)
    block.hotCount = UInt32(truncatingIfNeeded: emitted.hotCount)
    block.cold = UInt32(truncatingIfNeeded: coldUsed)
    block.coldCount = UInt32(truncatingIfNeeded: emitted.coldCount)
    block.pollOffset = UInt16(truncatingIfNeeded: emitted.pollOffset)
    block.plainOffset = UInt16(truncatingIfNeeded: emitted.plainOffset)
    block.offset = UInt16(truncatingIfNeeded: physical & 4095)
    block.length = UInt16(truncatingIfNeeded: emitted.length)
    block.instructions = UInt16(truncatingIfNeeded: count)
    func range(_ peek: Range<Int>) -> (start: UInt16, end: UInt16) {
      (UInt16(truncatingIfNeeded: peek.lowerBound), UInt16(truncatingIfNeeded: peek.upperBound))
    }
    block.targetPeek = range(emitted.targetPeek)
    block.nextPeek = range(emitted.nextPeek)
    block.secondPage = secondPage
    block.isLive = true
    block.firstEdge = Int32(truncatingIfNeeded: edgeCount)
    block.edgeCount = Int32(truncatingIfNeeded: emitted.edgeCount)
    for number in 0..<emitted.edgeCount {
      let site = emitted.edges[number]
      unsafe edges[edgeCount + number] = Edge(
        block: index, target: -1, nextIncoming: -1, end: UInt32(truncatingIfNeeded: site.end &- codeStart),
        stub: UInt32(truncatingIfNeeded: site.stub &- codeStart), targetOffset: site.target, kind: site.kind)
    }
    block.firstFault = Int32(truncatingIfNeeded: faultCount)
    block.faultCount = Int32(truncatingIfNeeded: emitted.faultCount)
    for number in 0..<emitted.faultCount {
      unsafe faults[faultCount + number] = CachedFault(
        translator.faults[number], from: codeStart &+ UInt64(block.hot))
    }
    return block
  }

  /// Makes the block that was emitted last one of the others.
  private func insert(_ emitted: Block) -> Int32 {
    var block = emitted
    let index = Int32(truncatingIfNeeded: blockCount)
    edgeCount += Int(block.edgeCount)
    faultCount += Int(block.faultCount)
    let page = Int(block.page >> 12)
    block.nextInPage = unsafe pages[page] &- 1
    unsafe blocks[blockCount] = block
    unsafe pages[page] = index &+ 1
    unsafe chunks[page] |= block.chunks
    if block.straddles {
      straddlers[block.secondPage, default: []].append(index)
      unsafe chunks[Int(block.secondPage >> 12)] |= 1
    }
    blockCount += 1
    hotUsed += (Int(block.hotCount) + 15) & ~15
    coldUsed += Int(block.coldCount)
    counters.blocks &+= 1
    counters.guestBytes &+= UInt64(block.length)
    counters.hostBytes &+= UInt64(block.hotCount + block.coldCount)
    publish(block)
    return index
  }
}

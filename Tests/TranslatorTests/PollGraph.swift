// SPDX-License-Identifier: Apache-2.0
// Proves of translated code that no loop goes round without looking whether the vCPU is wanted: the control flow of all
// live blocks is read back from the host code, instruction by instruction, whatever the cache believes of its edges.
// Without the instructions that read the attention word it must have no cycle.

import CHost
import Host
import X86

@testable import Translator

/// The control flow of a cache's live blocks.
@safe struct PollGraph {
  private struct Node {
    /// Offsets in the code memory.
    var next: [UInt32] = []
    var polls = false
    /// RET: goes on behind some call.
    var returns = false
  }

  private let cache: CodeCache
  private let decoder = Decoder()
  private var nodes: [UInt32: Node] = [:]
  /// Where calls come back to.
  private var afterCalls: [UInt32] = []
  private(set) var problem: String?
  private(set) var blocks = 0
  /// Direct jumps and calls between blocks.
  private(set) var links = 0
  var instructions: Int { nodes.count }

  init(_ cache: CodeCache) {
    self.cache = cache
    cache.forEachLiveBlock { block in
      blocks += 1
      scan(block, block.hot, block.hotCount)
      scan(block, block.cold, block.coldCount)
    }
    cache.forEachLiveBlock { checkEntries($0) }
    if problem == nil { findCycle() }
  }

  private mutating func fail(_ text: String) { problem = problem ?? text }

  private func name(_ offset: UInt32) -> String {
    var text = "host code \(offset)"
    cache.forEachLiveBlock { block in
      if offset >= block.hot && offset < block.hot + block.hotCount {
        text += " (guest \(String(block.page | UInt64(block.offset), radix: 16)) + \(offset - block.hot))"
      }
      if offset >= block.cold && offset < block.cold + block.coldCount {
        text += " (guest \(String(block.page | UInt64(block.offset), radix: 16)), cold)"
      }
    }
    return text
  }

  /// Reads the instructions of one half of a block.
  private mutating func scan(_ block: Block, _ start: UInt32, _ count: UInt32) {
    func isElsewhere(_ offset: UInt32) -> Bool {
      offset >= UInt32(CodeCache.hotStart) && offset &- block.hot >= block.hotCount
        && offset &- block.cold >= block.coldCount
    }
    var offset = start
    let end = start + count
    while offset < end {
      let left = Int(min(end - offset, 15))
      let decoded = unsafe decoder.decode(
        UnsafeRawPointer(cache.code.writable) + Int(offset), count: left, code: .code64)
      guard case .complete(let i) = decoded else { return fail("no instruction at \(name(offset))") }
      let after = offset + UInt32(i.length)
      var node = Node()
      node.polls =
        i.isMemory && i.base == RegisterMap.env && i.index == 0xFF && i.displacement == Slot.attention
      let row = OpcodeTable.shared[i.row]
      let isOne = row.map == .one
      switch row.rule {
      case .jcc, .loop: node.next = [after, target(after, i)]
      case .jump where isOne: node.next = [target(after, i)]
      case .call where isOne:
        let to = target(after, i)
        node.next = [after, to]
        // A refusal skips the jump behind the call.
        if cache.codeStart + UInt64(to) == cache.stubs.groupMiss { node.next.append(after + 5) }
        if to >= UInt32(CodeCache.hotStart)
          || [cache.stubs.jumpMiss, cache.stubs.callMiss].contains(cache.codeStart + UInt64(to))
        {
          afterCalls.append(after)
        }
      case .callIndirect:
        node.next = [after]
        afterCalls.append(after)
      case .jumpIndirect: break
      case .ret: node.returns = true
      default: node.next = [after]
      }
      links += node.next.count { $0 != after && isElsewhere($0) }
      nodes[offset] = node
      offset = after
    }
  }

  private func target(_ after: UInt32, _ i: Instruction) -> UInt32 {
    after &+ UInt32(truncatingIfNeeded: i.immediate)
  }

  /// Whoever comes by a jump cache, a return or a backward edge passes a poll before the block begins.
  private mutating func checkEntries(_ block: Block) {
    for entry in [block.hot, block.hot + UInt32(block.pollOffset)] {
      var offset = entry
      while let node = nodes[offset], !node.polls {
        guard offset < block.hot + UInt32(block.plainOffset), node.next.count == 1 else {
          return fail("an entry without a poll: \(name(entry))")
        }
        offset = node.next[0]
      }
      if nodes[offset] == nil { return fail("an entry that leads nowhere: \(name(entry))") }
    }
  }

  private func successors(_ offset: UInt32) -> [UInt32] {
    guard let node = nodes[offset], !node.polls else { return [] }
    return node.returns ? afterCalls : node.next
  }

  /// Depth first, without recursion: blocks are many.
  private mutating func findCycle() {
    /// On the path, or done.
    var isOpen: [UInt32: Bool] = [:]
    for start in nodes.keys where isOpen[start] == nil {
      var path: [(offset: UInt32, left: [UInt32])] = [(start, successors(start))]
      isOpen[start] = true
      while let last = path.last {
        guard let next = last.left.last else {
          isOpen[last.offset] = false
          path.removeLast()
          continue
        }
        path[path.count - 1].left.removeLast()
        switch isOpen[next] {
        case true?:
          return fail("a loop without a poll through \(name(next)) and \(name(last.offset))")
        case false?: break
        case nil:
          guard nodes[next] != nil else { continue }
          isOpen[next] = true
          path.append((next, successors(next)))
        }
      }
    }
  }
}

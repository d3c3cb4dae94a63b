// SPDX-License-Identifier: Apache-2.0
// Direct edges between blocks: a jump that leads to its own exit until the target exists, is then pointed at it, and leads
// back to the exit when the target is forgotten.

import CHost
import Host

extension CodeCache {
  /// Points an edge at its target block; false if there is none yet, and there would be use for it.
  func link(_ index: UInt32) -> Bool {
    let edge = self.edge(index)
    guard edge.block >= 0, edge.target < 0, self[edge.block].isLive else { return true }
    let source = self[edge.block]
    guard let target = find(source.page | UInt64(edge.targetOffset), mode: CodeCache.targetMode(edge, of: source))
    else {
      return false
    }
    let block = self[target]
    let entry: UInt64 =
      switch edge.kind {
      case .forward: UInt64(block.hot) + UInt64(block.plainOffset)
      case .backward: UInt64(block.hot) + UInt64(block.pollOffset)
      case .afterCall, .split: UInt64(block.hot)
      }
    patch(edge.end, to: entry)
    unsafe edges[Int(index)].target = target
    unsafe edges[Int(index)].nextIncoming = block.incoming
    unsafe blocks[Int(target)].incoming = Int32(truncatingIfNeeded: index)
    counters.links &+= 1
    return true
  }

  /// Stores a rel32, which lies inside an aligned quadword, at once.
  func patch(_ end: UInt32, to target: UInt64) {
    let value = Int32(truncatingIfNeeded: Int64(target) - Int64(end))
    unsafe (code.writable + Int(end) - 4).storeBytes(of: value, as: Int32.self)
  }

  func unlink(edge index: Int32) {
    let edge = unsafe edges[Int(index)]
    guard edge.target >= 0 else { return }
    patch(edge.end, to: UInt64(edge.stub))
    unsafe edges[Int(index)].target = -1
    // Take it out of the target's list.
    var position = unsafe blocks[Int(edge.target)].incoming
    if position == index {
      unsafe blocks[Int(edge.target)].incoming = edge.nextIncoming
      return
    }
    while position >= 0 {
      let next = unsafe edges[Int(position)].nextIncoming
      if next == index {
        unsafe edges[Int(position)].nextIncoming = edge.nextIncoming
        return
      }
      position = next
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// How often each block ran: which code a guest's time goes to, and how much of what it executes is translated. Every
// block counts its entries in a table behind the vCPU page, as long as `TranslationOptions.countsBlocks` asks for it.

import CHost
import Engine
import Synchronization

/// Executions of blocks, by place in guest-physical memory and mode.
final class BlockHistogram: Sendable {
  private struct Place: Hashable {
    let key: UInt64
    let instructions: UInt64
  }

  private let totals = Mutex<[Place: UInt64]>([:])

  /// The blocks entered at least once, the heaviest first.
  var rows: [BlockCount] {
    let rows = totals.withLock { totals in
      totals.map { place, count in
        BlockCount(
          physical: place.key >> UInt64(CHOST_MODE_BITS),
          mode: UInt32(truncatingIfNeeded: place.key & (1 << UInt64(CHOST_MODE_BITS) &- 1)),
          instructions: place.instructions, executions: count)
      }
    }
    return rows.sorted { ($0.weight, $1.physical) > ($1.weight, $0.physical) }
  }

  /// Where block `index` counts, from ENV.
  static func slot(_ index: Int) -> Int32 {
    Int32(truncatingIfNeeded: Int(CHOST_PAGE_BYTES) &- Int(CHOST_ENV) &+ index &* 8)
  }

  /// Bytes behind the vCPU page that the table takes.
  static let byteCount = CodeCache.maximumBlocks * 8

  /// Takes what a vCPU has counted for the blocks of `cache`, and begins anew. Not while the vCPU runs.
  func collect(_ page: VCPUPage, _ cache: CodeCache) {
    totals.withLock { totals in
      for index in 0..<cache.blockCount {
        let counter = unsafe UnsafeMutableRawPointer(page.pointer)
          .advanced(by: Int(CHOST_PAGE_BYTES) &+ index &* 8).assumingMemoryBound(to: UInt64.self)
        let count = unsafe counter.pointee
        guard count != 0 else { continue }
        unsafe counter.pointee = 0
        let block = cache[Int32(truncatingIfNeeded: index)]
        totals[Place(key: block.key, instructions: UInt64(block.instructions)), default: 0] &+= count
      }
    }
  }
}

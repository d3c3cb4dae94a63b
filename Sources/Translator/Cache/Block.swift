// SPDX-License-Identifier: Apache-2.0
// What the code cache knows of a block: where it came from and where it is, its edges to others, and which of its host
// instructions may fault. Millions of them may lie in tables, so they are small and refer to each other by number.

import CHost
import Host

/// One translated block. Offsets are from the start of the code memory.
struct Block {
  var key: UInt64 = 0
  var hot: UInt32 = 0
  var hotCount: UInt32 = 0
  var cold: UInt32 = 0
  var coldCount: UInt32 = 0
  /// Offsets of the polling and the plain entry from `hot`, which is the indirect one.
  var pollOffset: UInt16 = 0
  var plainOffset: UInt16 = 0
  /// Offset and number of guest bytes.
  var offset: UInt16 = 0
  var length: UInt16 = 0
  /// Number of guest instructions.
  var instructions: UInt16 = 0
  /// Bytes of the page that the translation rests on besides its own, as offsets: at a branch's target and behind
  /// the block.
  var targetPeek: (start: UInt16, end: UInt16) = (0, 0)
  var nextPeek: (start: UInt16, end: UInt16) = (0, 0)
  /// For a block that continues on another page: that page's guest-physical address, else `noPage`.
  var secondPage: UInt64 = Block.noPage
  var nextInPage: Int32 = -1
  /// First edge that leads here.
  var incoming: Int32 = -1
  var firstEdge: Int32 = 0
  var edgeCount: Int32 = 0
  var firstFault: Int32 = 0
  var faultCount: Int32 = 0
  var isLive = false

  static let noPage = UInt64.max
  var page: UInt64 { key >> UInt64(CHOST_MODE_BITS) & ~4095 }
  var mode: UInt32 { UInt32(truncatingIfNeeded: key & ((1 << UInt64(CHOST_MODE_BITS)) &- 1)) }
  var straddles: Bool { secondPage != Block.noPage }

  /// Whether it rests on a byte of `range` of its (first) page.
  func rests(on range: Range<Int>) -> Bool {
    func overlaps(_ start: Int, _ end: Int) -> Bool { start < range.upperBound && range.lowerBound < end }
    return overlaps(Int(offset), Int(offset) + Int(length)) || overlaps(Int(targetPeek.start), Int(targetPeek.end))
      || overlaps(Int(nextPeek.start), Int(nextPeek.end))
  }

  /// The 64-byte chunks of its (first) page that it rests on.
  var chunks: UInt64 {
    func chunks(_ range: (start: UInt16, end: UInt16)) -> UInt64 {
      range.end > range.start ? BlockTranslator.chunks(Int(range.start), Int(range.end - range.start)) : 0
    }
    return BlockTranslator.chunks(Int(offset), Int(length)) | chunks(targetPeek) | chunks(nextPeek)
  }
}

/// A direct edge between two blocks of a page.
struct Edge {
  /// The block it leaves.
  var block: Int32 = -1
  /// The block it is linked to, or -1.
  var target: Int32 = -1
  /// Next edge with the same target.
  var nextIncoming: Int32 = -1
  /// Offset of the byte after the rel32, and of the stub.
  var end: UInt32 = 0
  var stub: UInt32 = 0
  /// Offset of the target in the guest page.
  var targetOffset: UInt16 = 0
  var kind = EdgeKind.forward
}

/// A recorded fault site, in eight bytes: there are millions.
struct CachedFault {
  /// Offset from the start of the block's hot half.
  private let place: UInt16
  /// Bits 11:0 the guest instruction's offset in its page, bits 15:12 `FaultState`.
  private let word: UInt16
  let pendingStack: Int32

  init(_ site: FaultSite, from start: UInt64) {
    place = UInt16(truncatingIfNeeded: site.address &- start)
    word = site.offset & 0xFFF | site.state.rawValue << 12
    pendingStack = site.pendingStack
  }

  /// Whether it is the host instruction so far from the start of the block's hot half.
  func isAt(_ distance: UInt32) -> Bool { UInt32(place) == distance }
  var offset: UInt16 { word & 0xFFF }
  var state: FaultState { FaultState(rawValue: word >> 12) }
}

/// What the cache has done, for `--stats`.
struct CodeCacheCounters {
  var blocks: UInt64 = 0
  var guestBytes: UInt64 = 0
  var hostBytes: UInt64 = 0
  var links: UInt64 = 0
  var discards: UInt64 = 0
  var flushes: UInt64 = 0
  var ticks: UInt64 = 0
  /// Blocks that the checker has judged, and those of them that it refused in their full and in their simple form.
  var checked: UInt64 = 0
  var refused: UInt64 = 0
  var refusedTwice: UInt64 = 0
}

extension CodeCache {
  /// What `make` came to.
  enum Made {
    case block(Int32)
    /// The first instruction continues on the next page, which has to be found first.
    case needsSecondPage
    /// A page is no longer marked as code.
    case needsPage
    /// Everything has to be forgotten first.
    case needsRoom
    /// The first instruction has more than 15 bytes.
    case tooLong
    /// The checker accepts the block in no form.
    case refused
  }

  /// The mode word of the block that an edge of `block` leads to.
  static func targetMode(_ edge: Edge, of block: Block) -> UInt32 {
    let mode = block.mode & ~UInt32(CHOST_MODE_SPLIT)
    return edge.kind == .split ? mode | UInt32(CHOST_MODE_SPLIT) : mode
  }

  /// The scratch area of vCPU `number` (0..<64): room for one instruction at a time, and its cold half.
  func scratch(_ number: Int) -> (hot: CodeEmitter, cold: CodeEmitter) {
    let half = CodeCache.scratchBytes / 2
    let offset = 4096 + (number & 63) * CodeCache.scratchBytes
    func part(_ offset: Int) -> CodeEmitter {
      unsafe CodeEmitter(writable: code.writable + offset, executable: codeStart + UInt64(offset), capacity: half)
    }
    return (part(offset), part(offset + half))
  }
}

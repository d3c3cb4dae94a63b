// SPDX-License-Identifier: Apache-2.0
// A guest's translated code, shared by its vCPUs: where blocks are, how they are found, linked, and forgotten.
//
// A block's key is the guest-physical address of its first byte and the mode word; so one page of libc is translated
// once however many processes map it, and no CR3 write forgets anything. Blocks are linked by patching the
// rel32 of an edge; only targets in the same guest page are, which stay right whatever the page tables say.
// When memory runs out everything is forgotten: stated, rare and cheap (a boot uses a fraction of it).

import CHost
import GuestMemory
import Host
import X86

/// The code cache. Every method but the lookups needs the engine's lock.
@safe final class CodeCache: @unchecked Sendable {
  static let codeBytes = 256 << 20
  static let coldStart = 160 << 20
  static let maximumBlocks = 1 << 20
  static let maximumEdges = 2 << 20
  static let maximumFaults = 16 << 20
  static let tableSlots = 1 << 20

  let code: DualMapping
  private let blockRegion: Mapping
  private let edgeRegion: Mapping
  private let faultRegion: Mapping
  let tableRegion: Mapping
  private let pageRegion: Mapping
  private let chunkRegion: Mapping
  let straddleRegion: Mapping
  let blocks: UnsafeMutablePointer<Block>
  let edges: UnsafeMutablePointer<Edge>
  let faults: UnsafeMutablePointer<CachedFault>
  /// First block of each guest page plus one; 0 is none.
  let pages: UnsafeMutablePointer<Int32>
  let pageCount: UInt64
  let table: UnsafeMutablePointer<chost_block_slot>
  /// The same for blocks that straddle pages, as far as they fit.
  let straddles: UnsafeMutablePointer<chost_straddle_slot>
  let memory: GuestMemory
  /// A word per guest page: bit c is set if its 64-byte chunk c may hold bytes that blocks rest on.
  let chunks: UnsafeMutablePointer<UInt64>
  /// Host bytes of hot code after which everything is forgotten.
  let hotLimit: Int

  private(set) var stubs = CodeStubs()
  private(set) var checkedStubs = CheckedStubs()
  var hotUsed = 0
  var coldUsed = 0
  var blockCount = 0
  var edgeCount = 0
  var faultCount = 0
  var counters = CodeCacheCounters()
  /// Judges what is emitted; nil: nobody does.
  let checker: BlockChecker?
  /// What was refused first, for people, and who is told of it.
  var refusal: String?
  var refused: (@Sendable (String) -> Void)?
  /// Forms that count as refused, whatever they are: for tests.
  var refusedForms: Set<BlockForm> = []
  /// What is translated with a slot for each access.
  var hotCode = HotCode()
  /// What went wrong where, and is translated without optimizations since.
  var softFaults = SoftFaults()
  /// Counts the times everything was forgotten.
  var generation: UInt64 = 0
  let translator: BlockTranslator

  init(
    memory: GuestMemory, translator: BlockTranslator, hotLimit: Int = CodeCache.coldStart, isChecked: Bool = true
  ) throws(HostError) {
    checker = isChecked ? BlockChecker() : nil
    self.memory = memory
    self.hotLimit = max(hotLimit, CodeCache.hotStart + CodeCache.roomForBlock + 1)
    self.translator = translator
    code = try DualMapping(byteCount: CodeCache.codeBytes)
    blockRegion = try .anonymous(byteCount: CodeCache.maximumBlocks * MemoryLayout<Block>.stride)
    edgeRegion = try .anonymous(byteCount: CodeCache.maximumEdges * MemoryLayout<Edge>.stride)
    faultRegion = try .anonymous(byteCount: CodeCache.maximumFaults * MemoryLayout<CachedFault>.stride)
    tableRegion = try .anonymous(byteCount: CodeCache.tableSlots * MemoryLayout<chost_block_slot>.stride)
    pageCount = max(memory.highEnd > GuestMemory.highStart ? memory.highEnd : memory.lowEnd, 4096) >> 12
    pageRegion = try .anonymous(byteCount: Int(pageCount) * 4)
    chunkRegion = try .anonymous(byteCount: Int(pageCount) * 8)
    straddleRegion = try .anonymous(byteCount: Int(CHOST_STRADDLES) * MemoryLayout<chost_straddle_slot>.stride)
    unsafe straddles = straddleRegion.base.assumingMemoryBound(to: chost_straddle_slot.self)
    unsafe chunks = chunkRegion.base.assumingMemoryBound(to: UInt64.self)
    unsafe blocks = blockRegion.base.assumingMemoryBound(to: Block.self)
    unsafe edges = edgeRegion.base.assumingMemoryBound(to: Edge.self)
    unsafe faults = faultRegion.base.assumingMemoryBound(to: CachedFault.self)
    unsafe table = tableRegion.base.assumingMemoryBound(to: chost_block_slot.self)
    unsafe pages = pageRegion.base.assumingMemoryBound(to: Int32.self)
    var emitter = unsafe CodeEmitter(writable: code.writable, executable: codeStart, capacity: 4096)
    stubs = CodeStubs(&emitter)
    checkedStubs = CheckedStubs(stubs, codeStart: codeStart)
    hotUsed = CodeCache.hotStart
    coldUsed = CodeCache.coldStart
    guard chost_register_code(codeStart, codeEnd) == 0 else {
      throw HostError("register", "translated code", reason: "too many virtual machines in this process")
    }
  }

  deinit { chost_unregister_code(codeStart) }

  /// Blocks start here; before it are trampolines and the vCPUs' scratch areas.
  static let hotStart = 64 << 10
  static let scratchBytes = 512
  /// Host bytes of the largest instruction that was emitted into a scratch area, of `scratchBytes / 2`.
  var largestScratch = 0
  var codeStart: UInt64 { unsafe UInt64(UInt(bitPattern: code.executable)) }
  var codeEnd: UInt64 { codeStart + UInt64(CodeCache.codeBytes) }

  // MARK: Finding

  func key(_ physical: UInt64, mode: UInt32) -> UInt64 { physical << UInt64(CHOST_MODE_BITS) | UInt64(mode) }

  /// The live block at a guest-physical address, if it does not straddle pages (or straddles into `secondPage`).
  func find(_ physical: UInt64, mode: UInt32, secondPage: UInt64 = Block.noPage) -> Int32? {
    let wanted = key(physical, mode: mode)
    if secondPage == Block.noPage {
      let entry = unsafe chost_block_find(table, UInt64(CodeCache.tableSlots - 1), wanted)
      return entry == 0 ? nil : block(at: entry)
    }
    var index = firstBlock(ofPage: physical >> 12)
    while index >= 0 {
      let block = unsafe blocks[Int(index)]
      if block.key == wanted && block.secondPage == secondPage { return index }
      index = block.nextInPage
    }
    return nil
  }

  /// Puts a block where jumps find it.
  func publish(_ block: Block) {
    if block.straddles {
      unsafe chost_straddle_insert(straddles, block.key, block.secondPage, UInt64(block.hot))
    } else {
      unsafe chost_block_insert(table, UInt64(CodeCache.tableSlots - 1), block.key, codeStart + UInt64(block.hot))
    }
  }

  func firstBlock(ofPage page: UInt64) -> Int32 {
    page < pageCount ? unsafe pages[Int(page)] &- 1 : -1
  }

  subscript(index: Int32) -> Block { unsafe blocks[Int(index)] }
  func edge(_ index: UInt32) -> Edge { unsafe edges[Int(index)] }

  /// Host address of a block's indirect entry.
  func entry(_ index: Int32) -> UInt64 { codeStart + UInt64(self[index].hot) }

  func forEachLiveBlock(_ body: (Block) -> Void) {
    for index in 0..<blockCount where unsafe blocks[index].isLive { body(unsafe blocks[index]) }
  }

  /// The block that has the host address in its hot half, live or not.
  func block(at address: UInt64) -> Int32? {
    let offset = UInt32(truncatingIfNeeded: address &- codeStart)
    // Blocks are placed in increasing order of address.
    var low = 0
    var high = blockCount
    while low < high {
      let middle = (low + high) / 2
      if unsafe blocks[middle].hot <= offset { low = middle + 1 } else { high = middle }
    }
    return low > 0 ? Int32(truncatingIfNeeded: low - 1) : nil
  }

  /// The guest instruction a faulting host address belongs to.
  func faultingInstruction(at address: UInt64) -> (block: Block, fault: CachedFault)? {
    let offset = UInt32(truncatingIfNeeded: address &- codeStart)
    guard let number = block(at: address) else { return nil }
    let block = self[number]
    for index in Int(block.firstFault)..<Int(block.firstFault + block.faultCount) {
      let fault = unsafe faults[index]
      if fault.isAt(offset &- block.hot) { return (block, fault) }
    }
    return nil
  }

  // MARK: What adding and forgetting keep

  static let roomForBlock = BlockTranslator.maximumInstructions * BlockTranslator.roomPerInstruction

  /// Live blocks that continue on a second page, by that page's guest-physical address. The page before it in RAM need
  /// not be the one before it in any address space.
  var straddlers: [UInt64: [Int32]] = [:]

  /// Adds the time a translation took, in TSC ticks.
  func count(ticks: UInt64) { counters.ticks &+= ticks }
}

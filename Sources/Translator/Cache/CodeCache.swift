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
  private let tableRegion: Mapping
  private let pageRegion: Mapping
  private let chunkRegion: Mapping
  private let straddleRegion: Mapping
  let blocks: UnsafeMutablePointer<Block>
  let edges: UnsafeMutablePointer<Edge>
  private let faults: UnsafeMutablePointer<CachedFault>
  /// First block of each guest page plus one; 0 is none.
  private let pages: UnsafeMutablePointer<Int32>
  private let pageCount: UInt64
  let table: UnsafeMutablePointer<chost_block_slot>
  /// The same for blocks that straddle pages, as far as they fit.
  let straddles: UnsafeMutablePointer<chost_straddle_slot>
  private let memory: GuestMemory
  /// A word per guest page: bit c is set if its 64-byte chunk c may hold bytes that blocks rest on.
  let chunks: UnsafeMutablePointer<UInt64>
  /// Host bytes of hot code after which everything is forgotten.
  private let hotLimit: Int

  private(set) var stubs = CodeStubs()
  private(set) var checkedStubs = CheckedStubs()
  private var hotUsed = 0
  private var coldUsed = 0
  private(set) var blockCount = 0
  private var edgeCount = 0
  private var faultCount = 0
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
  private(set) var softFaults = SoftFaults()
  /// Counts the times everything was forgotten.
  private(set) var generation: UInt64 = 0
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
  private func publish(_ block: Block) {
    if block.straddles {
      unsafe chost_straddle_insert(straddles, block.key, block.secondPage, UInt64(block.hot))
    } else {
      unsafe chost_block_insert(table, UInt64(CodeCache.tableSlots - 1), block.key, codeStart + UInt64(block.hot))
    }
  }

  private func firstBlock(ofPage page: UInt64) -> Int32 {
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

  // MARK: Adding

  static let roomForBlock = BlockTranslator.maximumInstructions * BlockTranslator.roomPerInstruction

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

  /// Live blocks that continue on a second page, by that page's guest-physical address. The page before it in RAM need
  /// not be the one before it in any address space.
  private var straddlers: [UInt64: [Int32]] = [:]

  /// Adds the time a translation took, in TSC ticks.
  func count(ticks: UInt64) { counters.ticks &+= ticks }

  // MARK: Forgetting

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

// SPDX-License-Identifier: Apache-2.0
// Turns guest bytes into a block: decode to the next branch, find which flags are live, emit by the row's rule. A
// block never leaves its guest page; an instruction that does is a block of its own.

import CHost
import X86

/// The bytes a block is made from.
@safe struct GuestCode {
  /// The page's bytes.
  let page: UnsafePointer<UInt8>
  /// Bytes of the one instruction that continues on the next page, contiguous; else nil.
  let straddling: UnsafePointer<UInt8>?

  init(page: UnsafePointer<UInt8>, straddling: UnsafePointer<UInt8>? = nil) {
    unsafe self.page = page
    unsafe self.straddling = straddling
  }
}

/// What `BlockTranslator.decode` found.
enum DecodedBlock {
  /// Instructions 0..<count of the buffer are the block.
  case instructions(count: Int)
  /// The first instruction continues on the next page, whose bytes are needed.
  case straddles
  /// The first instruction is longer than 15 bytes: #GP.
  case tooLong
}

/// Decoding and translation, without knowledge of caches and vCPUs. One per code cache; used under its lock.
@safe final class BlockTranslator: @unchecked Sendable {
  /// Most instructions in a block.
  static let maximumInstructions = 48
  /// Most host bytes per guest instruction in either half, generously; checked against the room left.
  static let roomPerInstruction = 400
  /// Most conditional branches inside a hot block.
  static let maximumBranches = 4

  let table: OpcodeTable
  let decoder: Decoder
  /// One byte per row: non-zero if the CPU model does not have the row's feature.
  private let missing: UnsafeMutablePointer<Bool>
  private let traits: UnsafeMutablePointer<RowTraits>
  /// The row that stands for each row: TZCNT and LZCNT are BSF and BSR on a CPU without them.
  private let substitutes: UnsafeMutablePointer<UInt16>
  let buffer: UnsafeMutablePointer<BlockInstruction>
  let faults: UnsafeMutablePointer<FaultSite>
  let edges = WorkArray(
    repeating: EdgeSite(end: 0, stub: 0, target: 0, kind: .forward), count: BlockBuilder.maximumEdges)
  let groups = WorkArray(repeating: AccessGroup(), count: Int(CHOST_GROUPS))
  let candidates = WorkArray(repeating: AccessGroup(), count: AccessPlanner.most)
  /// Sixteen bytes that stand for guest code where there is none to look at.
  let scratchBytes: UnsafePointer<UInt8>
  /// One instruction a block, no direct edges: for comparing against.
  let singleInstruction: Bool
  /// Every flag is live everywhere.
  let exactFlags: Bool
  /// Every block counts its executions (BlockHistogram.swift).
  let countsBlocks: Bool
  /// PAUSE leaves now and then (`TranslationOptions.pausesToExit`).
  let countsPauses: Bool
  /// Hypercall instructions that do not raise #UD.
  let acceptedHypercalls: [HypercallOpcode]
  /// The next block is translated with a slot for each access.
  var isHot = false

  init(
    table: OpcodeTable = .shared, supports: (Feature) -> Bool, singleInstruction: Bool = false,
    exactFlags: Bool = false,
    countsBlocks: Bool = false, countsPauses: Bool = false, acceptedHypercalls: [HypercallOpcode] = [.vmcall]
  ) {
    self.table = table
    decoder = Decoder(table: table)
    self.singleInstruction = singleInstruction
    self.exactFlags = exactFlags
    self.countsBlocks = countsBlocks
    self.countsPauses = countsPauses
    self.acceptedHypercalls = acceptedHypercalls
    let rows = table.count
    unsafe missing = .allocate(capacity: rows)
    unsafe traits = .allocate(capacity: rows)
    for number in 0..<rows {
      let row = table[UInt16(truncatingIfNeeded: number)]
      unsafe (missing + number).initialize(to: !supports(row.feature))
      unsafe (traits + number).initialize(to: RowTraits(row))
    }
    unsafe substitutes = .allocate(capacity: rows)
    for number in 0..<rows {
      let row = table[UInt16(truncatingIfNeeded: number)]
      var stand = number
      if row.map == .x0F && row.prefix == .pF3 && (row.byte == 0xBC || row.byte == 0xBD), !supports(row.feature) {
        stand =
          (0..<rows).first {
            let other = table[UInt16(truncatingIfNeeded: $0)]
            return other.map == .x0F && other.byte == row.byte && other.prefix != .pF3 && other.form == .modRM
          } ?? number
      }
      unsafe (substitutes + number).initialize(to: UInt16(truncatingIfNeeded: stand))
    }
    unsafe buffer = .allocate(capacity: BlockTranslator.maximumInstructions)
    unsafe buffer.initialize(repeating: BlockInstruction(), count: BlockTranslator.maximumInstructions)
    unsafe faults = .allocate(capacity: BlockBuilder.maximumFaults)
    let zeros = UnsafeMutablePointer<UInt8>.allocate(capacity: 16)
    unsafe zeros.initialize(repeating: 0, count: 16)
    unsafe scratchBytes = UnsafePointer(zeros)
  }

  deinit {
    unsafe missing.deallocate()
    unsafe traits.deallocate()
    unsafe substitutes.deallocate()
    unsafe buffer.deallocate()
    unsafe faults.deallocate()
    edges.deallocate()
    groups.deallocate()
    candidates.deallocate()
    unsafe scratchBytes.deallocate()
  }

  func substitute(_ row: UInt16) -> UInt16 { unsafe substitutes[Int(row)] }
  func isMissing(_ row: UInt16) -> Bool { unsafe missing[Int(row)] }
  func traits(of row: UInt16) -> RowTraits { unsafe traits[Int(row)] }
  subscript(index: Int) -> BlockInstruction { unsafe buffer[index] }

  static func codeSize(_ mode: UInt32) -> CodeSize {
    if mode & UInt32(CHOST_MODE_LONG) != 0 { return .code64 }
    return mode & UInt32(CHOST_MODE_CODE32) != 0 ? .code32 : .code16
  }

  // MARK: Decoding

  /// Decodes the block that starts at `offset` of the page into the buffer.
  func decode(_ bytes: GuestCode, offset: Int, mode: UInt32) -> DecodedBlock {
    let code = BlockTranslator.codeSize(mode)
    if let straddling = unsafe bytes.straddling {
      switch unsafe decoder.decode(straddling, count: 15, code: code) {
      case .complete(let instruction):
        store(0, instruction, offset)
        return .instructions(count: 1)
      case .needsMore, .tooLong: return .tooLong
      }
    }
    let single = singleInstruction || mode & UInt32(CHOST_MODE_STEP) != 0
    var position = offset
    var count = 0
    var branches = 0
    loop: while count < BlockTranslator.maximumInstructions && position < 4096 {
      switch unsafe decoder.decode(bytes.page + position, count: min(15, 4096 - position), code: code) {
      case .complete(let instruction):
        store(count, instruction, position)
        count += 1
        position += Int(instruction.length)
        let rule = table[instruction.row].rule
        if rule == .jcc && isHot && !single && branches < BlockTranslator.maximumBranches {
          // Hot code goes on behind a branch that is not taken.
          branches += 1
          continue
        }
        if single || rule.traits.contains(.endsBlock) { break loop }
      case .needsMore:
        if count == 0 { return .straddles }
        break loop
      case .tooLong:
        if count == 0 { return .tooLong }
        break loop
      }
    }
    // STI at the very end would put a poll into its shadow.
    if count > 1, !single, table[self[count - 1].instruction.row].rule == .sti { count -= 1 }
    return .instructions(count: count)
  }

  private func store(_ index: Int, _ instruction: Instruction, _ offset: Int) {
    unsafe buffer[index].instruction = instruction
    unsafe buffer[index].instruction.row = substitute(instruction.row)
    unsafe buffer[index].offset = Int32(truncatingIfNeeded: offset)
    unsafe buffer[index].operandGroup = -1
    unsafe buffer[index].stackGroup = -1
  }

  /// The chunks that `count` bytes at `offset` touch.
  static func chunks(_ offset: Int, _ count: Int) -> UInt64 {
    let first = UInt64(max(0, min(offset, 4095)) >> 6)
    let last = UInt64(max(0, min(offset + max(count, 1) - 1, 4095)) >> 6)
    return (UInt64.max << first) & (UInt64.max >> (63 &- last))
  }

  // MARK: Translation

  /// The result of emitting a block.
  struct Emitted {
    var pollOffset: Int
    var plainOffset: Int
    var needsFlags: Bool
    var hotCount: Int
    var coldCount: Int
    var faultCount: Int
    /// Until the next block is emitted.
    var edges: WorkArray<EdgeSite>
    var edgeCount: Int
    /// Guest bytes.
    var length: Int
    /// Bytes of successors, looked at for the flags they read: at the branch's target and behind the block.
    var targetPeek: Range<Int>
    var nextPeek: Range<Int>
  }

  /// Emits the `count` decoded instructions as block `number` of the cache.
  func emit(
    _ bytes: GuestCode, count: Int, mode: UInt32, page: UInt64, hot: consuming CodeEmitter,
    cold: consuming CodeEmitter, stubs: CodeStubs, firstEdge: UInt32, number: Int = 0, hotCode: inout HotCode,
    form: BlockForm = .full
  ) -> Emitted {
    let first = self[0]
    let last = self[count - 1]
    let end = Int(last.offset) + Int(last.instruction.length)
    var targetPeek = 0..<0
    var nextPeek = 0..<0

    // What is live where the block ends.
    let lastRow = table[last.instruction.row]
    let target = Int64(end) &+ Int64(bitPattern: last.instruction.immediate)
    var liveAtTarget = BlockTranslator.allFlags
    var liveAtNext = BlockTranslator.allFlags
    let straddles = unsafe bytes.straddling != nil
    if !straddles && !exactFlags && mode & UInt32(CHOST_MODE_STEP) == 0 {
      switch lastRow.rule {
      case .jump, .call:
        liveAtTarget = liveFlags(bytes, at: target, mode: mode, peek: &targetPeek)
      case .jcc, .loop:
        liveAtTarget = liveFlags(bytes, at: target, mode: mode, peek: &targetPeek)
        liveAtNext = liveFlags(bytes, at: Int64(end), mode: mode, peek: &nextPeek)
      default:
        if !lastRow.rule.traits.contains(.endsBlock) {
          liveAtNext = liveFlags(bytes, at: Int64(end), mode: mode, peek: &nextPeek)
        }
      }
    }
    var live: UInt8 =
      switch lastRow.rule {
      case .jump, .call: liveAtTarget
      case .jcc, .loop: liveAtTarget | liveAtNext
      default: lastRow.rule.traits.contains(.endsBlock) ? BlockTranslator.allFlags : liveAtNext
      }
    var index = count
    while index > 0 {
      index -= 1
      let row = table[self[index].instruction.row]
      if row.rule == .jcc && index < count - 1 && !exactFlags {
        let item = self[index]
        let after = Int64(item.offset) &+ Int64(item.instruction.length)
        live |= liveFlags(
          bytes, at: after &+ Int64(bitPattern: item.instruction.immediate), mode: mode, peek: &targetPeek)
      }
      unsafe buffer[index].liveAfter = live
      if exactFlags || form == .helper || row.rule.traits.contains(.leavesForSwift) {
        live = BlockTranslator.allFlags
      } else {
        live =
          live & ~row.overwrites(self[index].instruction)
          | row.flags.reads(condition: self[index].instruction.opcode)
      }
      unsafe buffer[index].liveBefore = live
    }

    let needsFlags = live != 0
    var builder = unsafe BlockBuilder(
      hot: hot, cold: cold, mode: mode, bytes: bytes, decoder: decoder, stubs: stubs, firstEdge: firstEdge,
      faults: faults, edges: edges, groups: groups, row: lastRow)
    builder.pageNumber = page
    builder.form = form
    if form != .full { forgetGroups(count) }
    if count > 1 && builder.canGroup && !straddles { planGroups(&builder, count: count) }
    let entries = builder.entries(
      offset: first.offset, needsFlags: needsFlags, passesFlags: needsFlags && !exactFlags && passesFlags(count))
    if countsBlocks { builder.count(in: BlockHistogram.slot(number)) }
    if form == .simple { builder.count(in: Slot.simpleInstructions, by: count) }
    var ended = false
    for index in 0..<count where !ended {
      let item = self[index]
      builder.current = item
      builder.row = table[item.instruction.row]
      builder.traits = traits(of: item.instruction.row)
      builder.isLast = index == count - 1
      builder.flagsAreLive = item.liveBefore != 0
      if isHot && form == .full { planSite(&builder, &hotCode) }
      if builder.movesStackLater() { continue }
      builder.prepareStackPointer()
      builder.prepareRegisters()
      let done = form != .helper && builder.hasRoom && translate(&builder, liveAtTarget: liveAtTarget)
      if !done {
        builder.settleStackPointer()
        builder.settleRegisters()
        builder.exitInstruction()
        ended = true
      } else if index == count - 1 {
        finish(&builder, rule: builder.row.rule, liveAtNext: liveAtNext, next: Int64(end))
      }
    }
    return Emitted(
      pollOffset: entries.poll, plainOffset: entries.plain, needsFlags: needsFlags, hotCount: builder.hot.count,
      coldCount: builder.cold.count, faultCount: builder.faultCount, edges: builder.edges,
      edgeCount: builder.edgeCount, length: end - Int(first.offset), targetPeek: targetPeek, nextPeek: nextPeek)
  }

  /// Ends a block after its last instruction.
  private func finish(_ b: inout BlockBuilder, rule: Rule, liveAtNext: UInt8, next: Int64) {
    b.settleStackPointer()
    b.settleRegisters()
    if rule.traits.contains(.goesElsewhere) { return }
    if rule == .system || rule == .popSegment {
      // MOV CR3 and INVLPG may have changed what the next address means, a segment register the mode.
      b.goIndirect(to: next)
    } else if b.has(Int(CHOST_MODE_STEP)) {
      b.exit(Int(CHOST_EXIT_STEP), at: Int32(truncatingIfNeeded: next))
    } else {
      b.go(to: next, liveAtTarget: liveAtNext)
    }
  }

  /// Translates the builder's current instruction; false if Swift must execute it.
  private func translate(_ b: inout BlockBuilder, liveAtTarget: UInt8) -> Bool {
    if isMissing(b.instruction.row) { return b.row.rule == .nop }
    let step = b.has(Int(CHOST_MODE_STEP))
    switch b.row.rule {
    case .copy, .cmpxchgWide: return b.copy()
    case .nop: return true
    case .pause: return b.pause(isCounted: countsPauses)
    case .lea: return b.lea()
    case .x87, .mmx:
      return b.has(Int(CHOST_MODE_EM)) || b.has(Int(CHOST_MODE_TS)) ? false : b.copy()
    case .sse:
      return b.has(Int(CHOST_MODE_EM)) || b.has(Int(CHOST_MODE_TS)) || !b.has(Int(CHOST_MODE_OSFXSR)) ? false : b.copy()
    case .avx:
      return b.has(Int(CHOST_MODE_TS)) || !b.has(Int(CHOST_MODE_AVX)) ? false : b.copy()
    case .wait: return b.has(Int(CHOST_MODE_MP)) && b.has(Int(CHOST_MODE_TS)) ? false : b.copy()
    case .push: return b.push()
    case .pop: return b.pop()
    case .leave: return b.leave()
    case .pushFlags: return b.pushFlags()
    case .pushSegment: return b.pushSegment()
    case .popSegment: return b.popSegment()
    case .movs: return b.string(Int(CHOST_STRING_MOVS))
    case .stos: return b.string(Int(CHOST_STRING_STOS))
    case .lods: return b.string(Int(CHOST_STRING_LODS))
    case .scas: return b.string(Int(CHOST_STRING_SCAS))
    case .cmps: return b.string(Int(CHOST_STRING_CMPS))
    case .incDec32: return b.incDec32()
    case .moffs: return b.moffs()
    case .bitMemory: return b.bitMemory()
    case .xlat: return b.xlat()
    case .movSegment: return b.movSegment()
    case .cli: return b.cli()
    case .sti: return b.sti()
    case .clac: return b.setAlignmentCheck(false)
    case .stac: return b.setAlignmentCheck(true)
    case .cld: return b.setDirection(false)
    case .std: return b.setDirection(true)
    case .rdtsc, .rdtscp: return b.rdtsc()
    case .swapgs: return b.swapgs()
    case .rdfsbase: return b.rdfsbase()
    case .wrfsbase: return b.wrfsbase()
    case .saveState, .restoreState: return b.stateImage()
    case .hypercall: return b.hypercall(acceptedHypercalls)
    case .syscall: return step ? false : b.syscall()
    case .sysret: return step ? false : b.sysret()
    case .popFlags: return step ? false : b.popFlags()
    case .system: return b.system()
    // A stepped branch must stop at its target: Swift executes it.
    case .jump: return step ? false : b.jump(liveAtTarget: liveAtTarget)
    case .jcc: return step ? false : b.conditionalJump()
    case .loop: return step ? false : b.loop()
    case .call: return step ? false : b.call(liveAtTarget: liveAtTarget)
    case .jumpIndirect: return step ? false : b.jumpIndirect()
    case .callIndirect: return step ? false : b.callIndirect()
    case .ret: return step ? false : b.ret()
    case .undefined, .cpuid, .enter, .pushAll, .popAll, .ins, .outs, .gather, .maskMove, .decimal, .bound, .arpl:
      return false
    }
  }
}

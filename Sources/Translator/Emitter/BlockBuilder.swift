// SPDX-License-Identifier: Apache-2.0
// Emits one block: the state that the rules (Rules/*.swift) share while they turn decoded guest instructions into
// host code, and the three services every rule needs: where the arithmetic flags are, leaving a block, and
// the entries.
//
// Flags live in host EFLAGS. A check of the software TLB destroys them, so before one they are saved to the
// page if anything may still read them (liveness, computed backwards over the block), and loaded back only in
// front of a reader. At direct edges they are in EFLAGS, at indirect ones in the page.

import CHost
import X86

/// One decoded instruction of a block with what the liveness pass found.
struct BlockInstruction {
  var instruction = Instruction()
  /// Offset from the start of the page.
  var offset: Int32 = 0
  /// Flags (FlagMask bits) that somebody may read: before it and after it.
  var liveBefore: UInt8 = 0
  var liveAfter: UInt8 = 0
  /// The groups that its operand and its access to the stack belong to, or -1, and where they are in them
  /// (AccessPlan.swift).
  var operandGroup: Int8 = -1
  var stackGroup: Int8 = -1
  var operandPosition: Int64 = 0
  var stackPosition: Int64 = 0
}

/// How much a block does for speed. What the checker refuses in one form is translated in the next.
enum BlockForm: UInt8, CaseIterable {
  /// All that the rules know.
  case full
  /// Every access is checked by itself, through the tables of the software TLB.
  case simple
  /// One instruction, which Swift executes.
  case helper
}

/// Which entry of its target an edge leads to.
enum EdgeKind: UInt8 {
  /// The plain entry.
  case forward
  /// The polling entry: every loop has such an edge.
  case backward
  /// From behind a call to the block that follows it: the indirect entry, T0 = linear address, flags in the page.
  case afterCall
  /// From a group's check that failed to the same instruction in a block whose accesses are checked one by one: the
  /// indirect entry too.
  case split
}

/// Where a direct edge's patchable jump is.
struct EdgeSite {
  /// Executable address just after the rel32.
  var end: UInt64
  /// The stub that asks for the link.
  var stub: UInt64
  /// Offset of the target in the page.
  var target: UInt16
  var kind: EdgeKind
}

/// A host instruction that may raise an exception, and what the guest's state is in front of it. Every access to guest
/// memory is one: that an earlier access has succeeded is no reason for a later one to, and should a check be wrong,
/// Swift executes the guest's instruction.
struct FaultSite {
  var address: UInt64
  /// Offset of the guest instruction from the start of the page.
  var offset: UInt16
  var state: FaultState
  /// What RSP is still to be moved by.
  var pendingStack: Int32
}

/// Where parts of the guest's state are at a fault site, and what may happen there.
struct FaultState: OptionSet {
  let rawValue: UInt16
  /// The flags are in the page, not in EFLAGS.
  static let flagsSaved = FaultState(rawValue: 1 << 0)
  /// RAX and RDX are in `scratch[0]` and `scratch[1]`.
  static let restoresScratch = FaultState(rawValue: 1 << 1)
  /// RDI is in `scratch[0]`.
  static let restoresRDI = FaultState(rawValue: 1 << 2)
  /// The guest's instruction raises exceptions of its own: #DE, #MF, #XM, #GP for its operand.
  static let canRaise = FaultState(rawValue: 1 << 3)
}

/// Emits one block. What is asked of it for each instruction is inlined: a call that borrows it moves the whole of it.
@safe struct BlockBuilder: ~Copyable {
  var hot: CodeEmitter
  var cold: CodeEmitter
  let mode: UInt32
  let code: CodeSize
  let stubs: CodeStubs
  let bytes: GuestCode
  let decoder: Decoder
  /// Number of the first edge of this block.
  let firstEdge: UInt32

  var hostFlags = false
  var pageFlags = false
  /// The instruction being translated.
  var current = BlockInstruction()
  var row: Opcode
  var traits: RowTraits
  /// It ends the block.
  var isLast = false
  /// Some flag may still be read at this point.
  var flagsAreLive = false

  /// Most direct edges: those of its last instruction, one for each other branch and one for each group.
  static let maximumEdges = 4 + BlockTranslator.maximumBranches + Int(CHOST_GROUPS)
  let edges: WorkArray<EdgeSite>
  var edgeCount = 0
  /// The guest-physical number of the page.
  var pageNumber: UInt64 = 0
  var form = BlockForm.full
  let groups: WorkArray<AccessGroup>
  /// What RSP has moved by since its host register was last changed: a chain of PUSHes and POPs is one addition, made
  /// before RSP itself is read or the block can be left (Rules/StackPointer.swift).
  var pendingStack: Int32 = 0
  var held = HeldRegisters()
  /// The current instruction neither accesses memory nor can leave the block.
  var worksOnRegisters = false
  /// RDI holds the operand's address, and `scratch[0]` the guest's value.
  var lendsRDI = false
  /// Displacement of the slot of the current instruction's operand, if it has one of its own.
  var site: Int32?
  /// Recorded by the caller into the cache.
  var faults: UnsafeMutablePointer<FaultSite>
  var faultCount = 0
  /// A guest instruction makes three accesses at most.
  static let maximumFaults = 3 * BlockTranslator.maximumInstructions

  init(
    hot: consuming CodeEmitter, cold: consuming CodeEmitter, mode: UInt32, bytes: GuestCode, decoder: Decoder,
    stubs: CodeStubs, firstEdge: UInt32, faults: UnsafeMutablePointer<FaultSite>, edges: WorkArray<EdgeSite>,
    groups: WorkArray<AccessGroup>, row: Opcode
  ) {
    self.hot = hot
    self.cold = cold
    self.mode = mode
    code = BlockTranslator.codeSize(mode)
    self.stubs = stubs
    self.bytes = bytes
    self.decoder = decoder
    self.firstEdge = firstEdge
    unsafe self.faults = faults
    self.edges = edges
    self.groups = groups
    self.row = row
    traits = RowTraits(row)
  }

  var instruction: Instruction {
    @inline(__always) get { current.instruction }
  }
  var privilege: UInt8 { UInt8(truncatingIfNeeded: mode & UInt32(CHOST_MODE_CPL)) }
  var isLong: Bool { mode & UInt32(CHOST_MODE_LONG) != 0 }
  /// Whether another guest instruction surely fits.
  var hasRoom: Bool {
    min(hot.room, cold.room) >= BlockTranslator.roomPerInstruction
  }
  func has(_ bit: Int) -> Bool { mode & UInt32(bit) != 0 }
  /// Offset of the next instruction.
  var nextOffset: Int32 { current.offset &+ Int32(instruction.length) }

  // MARK: Flags

  /// Call before emitting host code that destroys EFLAGS. Uses T1.
  mutating func clobberFlags() {
    if hostFlags && !pageFlags && flagsAreLive {
      settleRegisters()
      hot.saveFlags(scratch: RegisterMap.t1, to: .env(Slot.flags))
      pageFlags = true
    }
    hostFlags = false
  }

  /// Makes EFLAGS current. Uses `scratch`.
  mutating func needHostFlags(scratch: HostRegister = RegisterMap.t2) {
    if !hostFlags && pageFlags {
      settleRegisters()
      hot.restoreFlags(scratch: scratch, from: .env(Slot.flags))
    }
    hostFlags = true
  }

  /// Makes the page's copy current. Uses T1.
  mutating func needPageFlags() {
    if !pageFlags && hostFlags { hot.saveFlags(scratch: RegisterMap.t1, to: .env(Slot.flags)) }
    pageFlags = true
  }

  /// Loads EFLAGS if the instruction reads flags, or leaves unwritten ones that are read later.
  mutating func prepareFlags(scratch: HostRegister = RegisterMap.t2) {
    let reads = row.flags.reads(condition: instruction.opcode)
    let may = row.flags.writesMaybe
    let keeps = may != 0 && current.liveAfter & ~row.overwrites(instruction) != 0
    if reads != 0 || keeps { needHostFlags(scratch: scratch) }
  }

  /// Notes that the instruction's own flags are in EFLAGS.
  mutating func finishFlags() {
    if row.flags.writesMaybe != 0 {
      hostFlags = true
      pageFlags = false
    }
    flagsAreLive = current.liveAfter != 0
  }

  // MARK: Leaving

  /// The exit information word for the current instruction.
  func info(_ reason: Int, offset: Int32, size: Int = 0, write: Bool = false, flagsSaved: Bool) -> UInt32 {
    var word = UInt32(bitPattern: offset) & UInt32(CHOST_INFO_OFFSET)
    word |= UInt32(size > 254 ? 255 : size) << UInt32(CHOST_INFO_SIZE_SHIFT)
    word |= UInt32(reason) << UInt32(CHOST_INFO_REASON_SHIFT)
    if write { word |= UInt32(CHOST_INFO_WRITE) }
    if privilege == 3 { word |= UInt32(CHOST_INFO_USER) }
    if flagsSaved { word |= UInt32(CHOST_INFO_FLAGS_SAVED) }
    return word
  }

  /// Leaves to Swift unconditionally, with RIP at `offset`.
  mutating func exit(_ reason: Int, at offset: Int32) {
    let saved = pageFlags || !hostFlags
    hot.storeImmediate32(.env(Slot.exitInfo), info(reason, offset: offset, flagsSaved: saved))
    hot.jump(to: stubs.exit)
  }

  /// Swift executes the current instruction.
  mutating func exitInstruction() { exit(Int(CHOST_EXIT_INSTRUCTION), at: current.offset) }

  /// A cold stub that leaves so that Swift executes the current instruction; returns its address.
  mutating func coldExitInstruction() -> UInt64 {
    let address = cold.address
    let word = info(
      Int(CHOST_EXIT_INSTRUCTION), offset: current.offset, flagsSaved: pageFlags || !hostFlags)
    cold.storeImmediate32(.env(Slot.exitInfo), word)
    cold.jump(to: stubs.exit)
    return address
  }

  /// How an edge leaves.
  enum Departure {
    case jump, call
    case branch(UInt8)
  }

  /// A direct edge to `target` in this page. The jump that `emit` writes is patched once the target exists.
  mutating func edge(to target: Int32, by departure: Departure = .jump, afterCall: Bool = false) {
    let stub = cold.address
    if afterCall { cold.store(.env(Slot.linear), RegisterMap.t0) }
    cold.storeImmediate32(.env(Slot.exitData), firstEdge &+ UInt32(edgeCount))
    let reason = afterCall ? Int(CHOST_EXIT_RETURN) : Int(CHOST_EXIT_LINK)
    cold.storeImmediate32(.env(Slot.exitInfo), info(reason, offset: target, flagsSaved: afterCall || !hostFlags))
    cold.jump(to: stubs.exit)
    var opcodeBytes: UInt64 = 1
    if case .branch = departure { opcodeBytes = 2 }
    hot.padDisplacement(behind: opcodeBytes)
    switch departure {
    case .jump: hot.jump(to: stub)
    case .call: hot.call(stub)
    case .branch(let condition): hot.jump(if: condition, to: stub)
    }
    if edgeCount < BlockBuilder.maximumEdges {
      edges[edgeCount] = EdgeSite(
        end: hot.address, stub: stub, target: UInt16(truncatingIfNeeded: target),
        kind: afterCall ? .afterCall : (target <= current.offset ? .backward : .forward))
      edgeCount &+= 1
    }
  }

  /// In the cold half: goes on at the current instruction in a block that checks every access by itself. The flags are
  /// in the page.
  mutating func coldSplit() {
    let t0 = RegisterMap.t0
    cold.load(t0, .env(Slot.pageAddress))
    cold.lea(t0, HostMemory(t0, current.offset))
    cold.padDisplacement(behind: 1)
    let stub = cold.address &+ 5
    cold.jump(to: stub)
    cold.store(.env(Slot.linear), t0)
    cold.storeImmediate32(.env(Slot.exitData), firstEdge &+ UInt32(edgeCount))
    cold.storeImmediate32(.env(Slot.exitInfo), info(Int(CHOST_EXIT_RETURN), offset: current.offset, flagsSaved: true))
    cold.jump(to: stubs.exit)
    if edgeCount < BlockBuilder.maximumEdges {
      edges[edgeCount] = EdgeSite(
        end: stub, stub: stub, target: UInt16(truncatingIfNeeded: current.offset), kind: .split)
      edgeCount &+= 1
    }
  }

  /// Notes that the host instruction about to be emitted may raise an exception.
  mutating func mayFault(canRaise: Bool = false, restoresScratch: Bool = false) {
    guard faultCount < BlockBuilder.maximumFaults else { return }
    var state: FaultState = hostFlags ? [] : .flagsSaved
    if canRaise { state.insert(.canRaise) }
    if restoresScratch { state.insert(.restoresScratch) }
    if lendsRDI { state.insert(.restoresRDI) }
    unsafe faults[faultCount] = FaultSite(
      address: hot.address, offset: UInt16(truncatingIfNeeded: current.offset), state: state, pendingStack: pendingStack
    )
    faultCount &+= 1
  }

  // MARK: Entries

  /// Emits the three entries: indirect (T0 = linear address, flags in the page), polling, plain. The first instruction
  /// has room for the jump of `CodeCache.close`. Returns the
  /// offsets of the latter two from the first. `passesFlags`: the flags are wanted in the page.
  mutating func entries(offset: Int32, needsFlags: Bool, passesFlags: Bool = false) -> (poll: Int, plain: Int) {
    if passesFlags { return entriesToPage(offset: offset) }
    let begin = hot.count
    hot.leaLong(RegisterMap.t1, RegisterMap.t0, -offset)
    hot.store(.env(Slot.pageAddress), RegisterMap.t1)
    if needsFlags { hot.restoreFlags(scratch: RegisterMap.t1, from: .env(Slot.flags)) }
    let poll = hot.count &- begin
    let stub = cold.address
    cold.storeImmediate32(
      .env(Slot.exitInfo), info(Int(CHOST_EXIT_ATTENTION), offset: offset, flagsSaved: !needsFlags))
    if needsFlags {
      // Without touching EFLAGS: JRCXZ, RCX waiting in T1.
      hot.mov(RegisterMap.t1, RegisterMap.rcx)
      hot.load32(RegisterMap.rcx, .env(Slot.attention))
      hot.byte(0xE3)
      hot.byte(8)
      hot.mov(RegisterMap.rcx, RegisterMap.t1)  // 3 bytes
      hot.jump(to: stub)  // 5 bytes
      hot.mov(RegisterMap.rcx, RegisterMap.t1)
    } else {
      hot.alu32(.cmp, .env(Slot.attention), immediate: 0)
      hot.jump(if: CodeEmitter.notEqual, to: stub)
    }
    cold.jump(to: stubs.exit)
    hostFlags = needsFlags
    pageFlags = false
    return (poll, hot.count &- begin)
  }

  /// Counts in a slot off ENV, leaving EFLAGS alone. Behind the plain entry, which all ways in pass.
  mutating func count(in slot: Int32, by step: Int = 1) {
    hot.load(RegisterMap.t1, .env(slot))
    hot.lea(RegisterMap.t1, HostMemory(RegisterMap.t1, Int32(truncatingIfNeeded: step)))
    hot.store(.env(slot), RegisterMap.t1)
  }

  /// The same for a block that has the flags in the page throughout: the direct entries save them.
  private mutating func entriesToPage(offset: Int32) -> (poll: Int, plain: Int) {
    let begin = hot.count
    hot.leaLong(RegisterMap.t1, RegisterMap.t0, -offset)
    hot.store(.env(Slot.pageAddress), RegisterMap.t1)
    let stub = cold.address
    cold.storeImmediate32(.env(Slot.exitInfo), info(Int(CHOST_EXIT_ATTENTION), offset: offset, flagsSaved: true))
    cold.jump(to: stubs.exit)
    func poll(_ code: inout CodeEmitter) -> UInt64 {
      code.alu32(.cmp, .env(Slot.attention), immediate: 0)
      code.jump(if: CodeEmitter.notEqual, to: stub)
      code.jump(to: stub)
      return code.address
    }
    let first = poll(&hot)
    let pollOffset = hot.count &- begin
    hot.saveFlags(scratch: RegisterMap.t1, to: .env(Slot.flags))
    let second = poll(&hot)
    let plainOffset = hot.count &- begin
    hot.saveFlags(scratch: RegisterMap.t1, to: .env(Slot.flags))
    hot.patch(first, to: hot.address)
    hot.patch(second, to: hot.address)
    hostFlags = false
    pageFlags = true
    return (pollOffset, plainOffset)
  }
}

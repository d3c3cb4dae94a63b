// SPDX-License-Identifier: Apache-2.0
// The checker: judges every block before it runs. It decodes what was emitted and follows every path through it once,
// with what is known of each register, and proves that each access stays in the vCPU page, where it may, or in what a
// comparison with the software TLB or a slot has shown to be the guest's; that nothing reaches the host's kernel; that
// no address of the host's reaches a register of the guest's; that the shadow stack is used in its one form; and that
// every branch ends where it may. It knows the registers' roles and the shape of a check, and of the translator nothing:
// what it reads are the emitted bytes, the mode, and the edges that may be linked later. It allocates nothing.
//
// Emitted code is structured, which makes one pass enough: hot code branches forward, or to cold code, which comes back
// to a later place in the hot half or leaves. So a path into cold code is followed at once, and what it knows where it
// comes back waits there for the hot path.

import CHost

/// Judges blocks, one after the other: used under the cache's lock.
@safe final class BlockChecker: @unchecked Sendable {
  private let states = CheckedStates()
  private let page = PagePlaces()
  private let encodings = HostEncodings.shared

  private let isStepwise: Bool

  /// - Parameter isStepwise: every instruction is looked at by itself, whatever form code has: to be compared with.
  init(isStepwise: Bool = false) { self.isStepwise = isStepwise }

  deinit {
    states.deallocate()
    page.deallocate()
  }

  /// Judges a block.
  func check(_ block: CheckedBlock) -> CheckVerdict {
    var pass = CheckPass(block, states: states, page: page, encodings: encodings, isStepwise: isStepwise)
    pass.run()
    return CheckVerdict(problem: pass.problem, place: pass.place)
  }
}

/// One pass over a block.
@safe struct CheckPass: ~Copyable {
  let text: CheckedText
  let block: CheckedBlock
  let page: PagePlaces
  let encodings: HostEncodings
  private let states: CheckedStates
  /// Of code of level 3, whose tables and slots are others.
  let isUser: Bool
  /// Code in its usual forms is judged at once.
  let knowsForms: Bool
  let stackSlot: Int
  let slots: Int

  private(set) var problem: CheckProblem?
  /// The instruction looked at, and the end of it.
  private(set) var place = 0
  var next = 0
  /// The instruction itself, where it is decoded to: copies of it cost more than all the rest.
  var host = HostInstruction()
  /// What is known here, and which of the states it is.
  var state: CheckedState
  /// How many of the four instructions that clear the x87 pointers stand right before this one; before the next.
  var clearing = 0, clearingNext = 0
  private var current = 0
  private(set) var isCold = false
  /// Where the path reaches something that has to be seen to first.
  private(set) var stop = 0
  /// How far the hot half has been looked at; the next entry there.
  private var hotPlace = 0
  private var nextEntry: Int
  /// States in use; of those, the ones that wait in the hot half.
  private var used: UInt32 = 1
  private var waiting: UInt32 = 0
  private var places = InlineArray<16, Int>(repeating: 0)
  /// A miss that has been judged, and comes back behind the next instruction of the hot path.
  private var miss = CheckPass.noMiss
  /// Paths to be followed: their states, whose places are in `places`; the last is the latest.
  private var paths = InlineArray<16, UInt8>(repeating: 0)
  private var pathCount = 0
  /// The number of the next unknown.
  private var nextID: UInt64 = CheckPass.firstID
  private var steps = 0
  /// Edges seen, a bit each.
  private var seenEdges: UInt64 = 0

  // Unknowns with a meaning: 0; the address of the guest's page; T0 at the indirect entry.
  static let pageID: UInt64 = 1, entryID: UInt64 = 2, firstID: UInt64 = 3
  private static let mostSteps = 1 << 14
  private static var noMiss: Miss { Miss(place: Int.max, address: CheckedValue(.sum), answer: CheckedValue(.sum)) }

  @inline(__always)
  init(
    _ block: CheckedBlock, states: CheckedStates, page: PagePlaces, encodings: HostEncodings, isStepwise: Bool
  ) {
    knowsForms = page.areNear && !isStepwise
    text = block.text
    self.block = block
    self.states = states
    self.page = page
    self.encodings = encodings
    isUser = block.mode & UInt32(CHOST_MODE_CPL) == 3
    stackSlot = page.stack &+ (isUser ? 16 : 0)
    slots = Int(CHOST_SLOTS) &+ (isUser ? Int(CHOST_SLOT_BYTES) : 0)
    state = states[0]
    nextEntry = min(block.pollEntry, block.plainEntry)
  }

  /// Notes what is wrong.
  mutating func refuse(_ problem: CheckProblem) {
    if self.problem == nil { self.problem = problem }
  }

  mutating func run() {
    if enters() {
      nextEntry = Int.max
      updateStop()
    } else {
      forget()
      state[Role.t0] = CheckedValue(.sum, CheckPass.entryID)
      place = block.hot.lowerBound
      // What is closed later (`CodeCache.close`) is overwritten by a jump of five bytes, while others execute it.
      if block.pollEntry != Int.max && !(decodeAny() && next &- place >= 5) { return refuse(.middle) }
      next = place
      updateStop()
    }
    while problem == nil {
      place = next
      if place >= stop {
        arrive()
        if problem != nil { return }
      }
      if !step() { break }
    }
    if problem == nil && seenEdges.nonzeroBitCount != block.edgeCount { refuse(.edge) }
  }

  // MARK: Knowledge

  @inline(__always)
  mutating func unknown() -> CheckedValue {
    let id = nextID
    nextID = id &+ 1
    if id >= CheckedValue.secretID { refuse(.size) }
    return CheckedValue(.sum, id)
  }

  /// Nothing is known of register (or kept value) `number`, but that it comes from `value`.
  @inline(__always)
  mutating func lose(_ number: Int, from value: CheckedValue) {
    state[number] = unknown()
    if value.isSecret { state[number].head |= CheckedValue.secretID << 16 }
  }

  /// Whoever goes on elsewhere shows the guest its registers: none tells where something of the host's lies. `register`:
  /// another that does not.
  @inline(__always)
  mutating func hideSecrets(_ register: Int = 0) {
    // RAX RCX RDX RBX RBP RSI RDI R8 R9 R10 R12.
    var all = state[register].head | state[12].head
    for number in 0..<11 where number != Role.rsp { all |= state[number].head }
    if all & CheckedValue.secretBits != 0 { refuse(.secret) }
  }

  /// Nothing is known of register (or kept value) `number`.
  @inline(__always)
  mutating func lose(_ number: Int) { state[number] = unknown() }

  @inline(__always)
  mutating func loseFlags() { state[CheckedState.flags] = CheckedValue(.sum) }

  /// Nothing is known of anything.
  mutating func forget() {
    let id = nextID
    nextID = id &+ UInt64(CheckedState.registers)
    if nextID > CheckedValue.secretID { return refuse(.size) }
    for number in 0..<Role.t2 { state[number] = CheckedValue(.sum, id &+ UInt64(number)) }
    // The scratch registers hold what they held elsewhere.
    for number in Role.t2..<CheckedState.registers {
      state[number] = CheckedValue(.sum, id &+ UInt64(number) | CheckedValue.secretID)
    }
    for number in CheckedState.registers...CheckedState.known { state[number] = CheckedValue(.sum) }
  }

  /// What the vCPU page keeps as value `number`: what it kept elsewhere, if nothing was stored here.
  @inline(__always)
  mutating func kept(_ number: Int) -> CheckedValue {
    if state.known >> UInt64(number &- CheckedState.groups) & 1 != 0 { return state[number] }
    var value = unknown()
    value.head |= CheckedValue.secretID << 16
    return value
  }

  @inline(__always)
  mutating func keep(_ number: Int, _ value: CheckedValue) {
    state[number] = value
    state.known |= 1 << UInt64(number &- CheckedState.groups)
  }

  /// Joins what is known here with what is known in `other`, which comes to the same place.
  private mutating func join(_ other: CheckedState) {
    for number in 0..<CheckedState.registers where state[number] != other[number] { join(number, other[number]) }
    var left = state.known & other.known
    state.known = left
    while left != 0 {
      let number = CheckedState.groups &+ left.trailingZeroBitCount
      left &= left &- 1
      if state[number] != other[number] { join(number, other[number]) }
    }
    if state[CheckedState.flags] != other[CheckedState.flags] { loseFlags() }
    for number in [CheckedState.exit, CheckedState.string] where state[number] != other[number] {
      state[number] = CheckedValue(.sum)
    }
    let a = state[CheckedState.stack], b = other[CheckedState.stack]
    if (a.head ^ b.head) & 1 != 0 { return refuse(.frame) }
    if a != b { state[CheckedState.stack] = CheckedValue(head: a.head & 1, offset: 0) }
  }

  /// Joins what is known here with what is known after a miss, which comes to the same place.
  mutating func join(_ miss: Miss) {
    let address = state[Role.t0]
    if address != miss.address { lose(Role.t0, from: address.isSecret ? address : miss.address) }
    if state[Role.t1] != miss.answer { join(Role.t1, miss.answer) }
    afterMiss()
  }

  /// Joins value `number` with another one.
  private mutating func join(_ number: Int, _ b: CheckedValue) {
    let a = state[number]
    if a.isKind(.addend) && b.isKind(.addend) && a.isOf(b) {
      state[number] = CheckedValue(
        .addend, a.id, a.offset, more: a.isWritable && b.isWritable ? CheckedValue.writable : 0,
        extra: min(a.extra, b.extra))
      return
    }
    if a.isKind(.host) && b.isKind(.host) {
      let low = max(a.offset, b.offset)
      // Windows are small: no sum overflows (`CheckedValue.host`).
      let high = min(a.offset &+ a.extra, b.offset &+ b.extra)
      if low < high {
        state[number] = CheckedValue(
          .host, 0, low, more: a.isWritable && b.isWritable ? CheckedValue.writable : 0, extra: high &- low)
        return
      }
    }
    lose(number, from: a.isSecret ? a : b)
  }

  // MARK: Paths

  /// Works out where the current path has to stop next.
  private mutating func updateStop() {
    if isCold {
      stop = block.cold.upperBound
      return
    }
    stop = min(block.hot.upperBound, nextEntry)
    var left = waiting
    while left != 0 {
      stop = min(stop, places[left.trailingZeroBitCount & 15])
      left &= left &- 1
    }
    stop = min(stop, miss.place)
  }

  /// The path has come to its stop, or beyond.
  private mutating func arrive() {
    clearingNext = 0
    if isCold || place == block.hot.upperBound { return refuse(.end) }
    if place > stop { return refuse(.middle) }
    if place == miss.place {
      join(miss)
      miss = CheckPass.noMiss
    }
    var left = waiting
    while left != 0 {
      let number = left.trailingZeroBitCount
      left &= left &- 1
      guard places[number & 15] == place else { continue }
      join(states[number])
      release(number)
    }
    if place == nextEntry {
      // Whoever comes from outside knows nothing but where the shadow stack is.
      if isPushed { return refuse(.frame) }
      hideSecrets()
      forget()
      nextEntry = nextEntry < block.plainEntry ? block.plainEntry : Int.max
    }
    updateStop()
  }

  @inline(__always)
  private mutating func release(_ number: Int) {
    used &= ~(1 << UInt32(truncatingIfNeeded: number))
    waiting &= ~(1 << UInt32(truncatingIfNeeded: number))
  }

  /// A copy of what is known here; its number, or -1.
  private mutating func fork() -> Int {
    let number = (~used).trailingZeroBitCount
    guard number < CheckedStates.count else {
      refuse(.size)
      return -1
    }
    used |= 1 << UInt32(truncatingIfNeeded: number)
    states[number].copy(from: state)
    return number
  }

  /// State `number` comes to `target` in the hot half, which the hot path has not passed yet.
  private mutating func wait(_ number: Int, at target: Int) {
    guard target >= hotPlace && target < block.hot.upperBound else { return refuse(.branch) }
    places[number & 15] = target
    waiting |= 1 << UInt32(truncatingIfNeeded: number)
    if !isCold { updateStop() }
  }

  /// State `number` goes on at `place`, when the current path has ended.
  private mutating func push(_ number: Int, at place: Int) {
    guard pathCount < CheckedStates.count else { return refuse(.size) }
    places[number & 15] = place
    paths[pathCount & 15] = UInt8(truncatingIfNeeded: number)
    pathCount &+= 1
  }

  /// The current path goes on as state `number` at `place`.
  private mutating func go(_ number: Int, to place: Int) {
    clearingNext = 0
    steps &+= 1
    if steps > CheckPass.mostSteps { refuse(.size) }
    current = number
    state = states[number]
    next = place
    isCold = block.cold.contains(place)
    updateStop()
  }

  /// A branch that may be taken, to `target`. In cold code both ways are followed, the branch's first. `passing`: the
  /// comparison before it has shown something to who goes on behind it.
  mutating func mayBranch(to target: Int, passing: Bool = false) {
    if !isCold { hotPlace = next }
    if block.cold.contains(target) && !exits(at: target) {
      if let miss = misses(at: target) {
        self.miss = miss
        stop = min(stop, miss.place)
      } else {
        let number = fork()
        if number < 0 { return }
        if passing { state[CheckedState.flags].head |= CheckedValue.passed << 8 }
        push(current, at: next)
        return go(number, to: target)
      }
    }
    if block.hot.contains(target) {
      let number = fork()
      if number >= 0 { wait(number, at: target) }
    } else if !block.cold.contains(target) {
      leave(to: target)
    }
    if passing { state[CheckedState.flags].head |= CheckedValue.passed << 8 }
  }

  /// A jump to `target`. Returns false if no path is left.
  mutating func jump(to target: Int) -> Bool {
    if !isCold { hotPlace = next }
    if block.cold.contains(target) {
      if exits(at: target) { return endPath() }
      go(current, to: target)
      return true
    }
    if block.hot.contains(target) {
      let wasCold = isCold
      isCold = true
      wait(current, at: target)
      isCold = wasCold
      return endPath(isWaiting: true)
    }
    leave(to: target)
    return endPath()
  }

  /// The path is at its end. Returns false if there is no other.
  mutating func endPath(isWaiting: Bool = false) -> Bool {
    if !isCold { hotPlace = next }
    if !isWaiting { release(current) }
    if problem != nil { return false }
    if pathCount > 0 {
      pathCount &-= 1
      let number = Int(paths[pathCount & 15])
      go(number, to: places[number & 15])
      return true
    }
    // The hot path has ended: what waits next begins it anew.
    isCold = false
    updateStop()
    let target = stop
    guard target < block.hot.upperBound else { return false }
    var left = waiting
    while left != 0 {
      let number = left.trailingZeroBitCount
      left &= left &- 1
      guard places[number & 15] == target else { continue }
      waiting &= ~(1 << UInt32(truncatingIfNeeded: number))
      go(number, to: target)
      return true
    }
    // An entry, whose path knows nothing.
    let number = fork()
    if number < 0 { return false }
    go(number, to: target)
    state[CheckedState.stack] = CheckedValue(.sum)
    return true
  }

  /// A second path from here on, which goes on at `target` with what `edit` makes of what is known.
  mutating func also(at target: Int, losing register: Int) {
    guard block.cold.contains(target) else { return refuse(.branch) }
    let number = fork()
    if number < 0 { return }
    push(number, at: target)
    states[number][register] = unknown()
    states[number][CheckedState.flags] = CheckedValue(.sum)
  }

  /// A guest's call of cold code, whose frame is complete: what it does, before where it returns to.
  mutating func enterFrame(_ target: Int) {
    let number = fork()
    if number < 0 { return }
    states[number][CheckedState.stack] = CheckedValue(.sum)
    if !isCold { hotPlace = next }
    returned()
    push(current, at: next)
    go(number, to: target)
  }

  // MARK: Edges

  /// The number of the edge whose branch ends at `next`, or -1. Its target must be what the edge has recorded.
  mutating func edge(to target: Int) -> Int {
    guard let edges = unsafe block.edges else { return -1 }
    for number in 0..<block.edgeCount {
      let edge = unsafe edges[number]
      guard Int(edge.end) == next else { continue }
      // It is patched as a whole, while others execute it.
      guard Int(edge.stub) == target, (next &- 4) & 7 <= 4, number < 64 else {
        refuse(.edge)
        return -1
      }
      seenEdges |= 1 << UInt64(truncatingIfNeeded: number)
      return number
    }
    return -1
  }

  /// Whether bytes from `start` to `end` are patched when an edge is linked, other than those of a branch that ends at
  /// `branch`.
  @inline(__always)
  func isPatched(_ start: Int, _ end: Int, but branch: Int) -> Bool {
    guard let edges = unsafe block.edges else { return false }
    for number in 0..<block.edgeCount {
      let last = Int(unsafe edges[number].end)
      if last > start && last &- 4 < end && last != branch { return true }
    }
    return false
  }

  /// The edge with a number from `edge(to:)`.
  func recordedEdge(_ number: Int) -> Edge {
    guard let edges = unsafe block.edges else { return Edge() }
    return unsafe edges[number]
  }
}

/// The registers' roles.
enum Role {
  static var rax: Int { @inline(__always) get { 0 } }
  static var rcx: Int { @inline(__always) get { 1 } }
  static var rdx: Int { @inline(__always) get { 2 } }
  static var rsp: Int { @inline(__always) get { 4 } }
  /// The vCPU page.
  static var env: Int { @inline(__always) get { 11 } }
  /// What is pushed; addends and requests; linear addresses.
  static var t2: Int { @inline(__always) get { 13 } }
  static var t1: Int { @inline(__always) get { 14 } }
  static var t0: Int { @inline(__always) get { 15 } }

  /// ENV and RSP.
  @inline(__always)
  static func isReserved(_ register: Int) -> Bool { 0x810 >> (register & 15) & 1 != 0 }
}

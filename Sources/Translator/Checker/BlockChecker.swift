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
  let states: CheckedStates
  /// Of code of level 3, whose tables and slots are others.
  let isUser: Bool
  /// Of code of level 0: what is the kernel's of the vCPU page is not that of levels 1 and 2, whose tables are the same.
  let isKernel: Bool
  /// Code in its usual forms is judged at once.
  let knowsForms: Bool
  let stackSlot: Int
  let slots: Int

  var problem: CheckProblem?
  /// The instruction looked at, and the end of it.
  private(set) var place = 0
  var next = 0
  /// The instruction itself, where it is decoded to: copies of it cost more than all the rest.
  var host = HostInstruction()
  /// What is known here, and which of the states it is.
  var state: CheckedState
  /// How many of the four instructions that clear the x87 pointers stand right before this one; before the next.
  var clearing = 0, clearingNext = 0
  var current = 0
  var isCold = false
  /// Where the path reaches something that has to be seen to first.
  var stop = 0
  /// How far the hot half has been looked at; the next entry there.
  var hotPlace = 0
  var nextEntry: Int
  /// States in use; of those, the ones that wait in the hot half.
  var used: UInt32 = 1
  var waiting: UInt32 = 0
  var places = InlineArray<16, Int>(repeating: 0)
  /// A miss that has been judged, and comes back behind the next instruction of the hot path.
  var miss = CheckPass.noMiss
  /// Paths to be followed: their states, whose places are in `places`; the last is the latest.
  var paths = InlineArray<16, UInt8>(repeating: 0)
  var pathCount = 0
  /// The number of the next unknown.
  var nextID: UInt64 = CheckPass.firstID
  var steps = 0
  /// Edges seen, a bit each.
  var seenEdges: UInt64 = 0

  // Unknowns with a meaning: 0; the address of the guest's page; T0 at the indirect entry.
  static let pageID: UInt64 = 1, entryID: UInt64 = 2, firstID: UInt64 = 3
  static let mostSteps = 1 << 14
  static var noMiss: Miss { Miss(place: Int.max, address: CheckedValue(.sum), answer: CheckedValue(.sum)) }

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
    isKernel = block.mode & UInt32(CHOST_MODE_CPL) == 0
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
}

// SPDX-License-Identifier: Apache-2.0
// What the checker is given and what it says: a block's bytes and where its halves, entries and edges are, the
// trampolines that it may go to, and why code is refused.

import CHost

/// Code to be judged. Places are offsets into the code memory.
@safe struct CheckedBlock {
  let text: CheckedText
  var hot: Range<Int>
  var cold: Range<Int>
  /// The polling and the plain entry; Int.max for none.
  var pollEntry = Int.max
  var plainEntry = Int.max
  var mode: UInt32
  /// Offset in the guest page of the block's first byte: that of T0 at the indirect entry.
  var offset = 0
  /// The edges, by number in the cache.
  var edges: UnsafePointer<Edge>?
  var firstEdge = 0
  var edgeCount = 0
  var stubs: CheckedStubs
  /// Displacement from ENV of what counts the block's executions, or 0.
  var counter = 0
  /// One instruction, its operand in the bounce buffer.
  var isScratch = false
}

/// The bytes.
@safe struct CheckedText {
  private let base: UnsafeRawPointer

  /// - Parameter base: the code memory. Twenty-four bytes behind every block may be read.
  init(_ base: UnsafeRawPointer) { unsafe self.base = base }

  @inline(__always)
  subscript(_ place: Int) -> UInt8 { unsafe base.load(fromByteOffset: place, as: UInt8.self) }
  @inline(__always)
  func word(_ place: Int) -> UInt64 { unsafe base.loadUnaligned(fromByteOffset: place, as: UInt64.self) }
  @inline(__always)
  func word32(_ place: Int) -> Int { Int(unsafe base.loadUnaligned(fromByteOffset: place, as: UInt32.self)) }
  @inline(__always)
  func int32(_ place: Int) -> Int32 { unsafe base.loadUnaligned(fromByteOffset: place, as: Int32.self) }
  @inline(__always)
  func int64(_ place: Int) -> Int { unsafe base.loadUnaligned(fromByteOffset: place, as: Int.self) }
}

/// Where the trampolines are.
struct CheckedStubs {
  var exit = 0, tlbMiss = 0, slotMiss = 0, groupMiss = 0, jumpMiss = 0, branchMiss = 0, callMiss = 0, string = 0,
    light = 0

  init() {}

  init(_ stubs: CodeStubs, codeStart: UInt64) {
    func place(_ address: UInt64) -> Int { Int(truncatingIfNeeded: address &- codeStart) }
    exit = place(stubs.exit)
    tlbMiss = place(stubs.tlbMiss)
    slotMiss = place(stubs.slotMiss)
    groupMiss = place(stubs.groupMiss)
    jumpMiss = place(stubs.jumpMiss)
    branchMiss = place(stubs.branchMiss)
    callMiss = place(stubs.callMiss)
    string = place(stubs.string)
    light = place(stubs.light)
  }
}

/// Why code is refused.
enum CheckProblem: String {
  case encoding = "an encoding that is never emitted"
  case instruction = "an instruction that must not be executed"
  case reserved = "ENV or the host's stack pointer as an operand"
  case address = "an address of an odd form"
  case unchecked = "an address that was not checked"
  case outside = "more than was checked"
  case readOnly = "a store through a check for reading"
  case place = "a place of the vCPU page that it may not access so"
  case secret = "an address of the host's where the guest would see it"
  case request = "a miss with a wrong request"
  case branch = "a branch to where none may go"
  case middle = "a branch into the middle of an instruction"
  case end = "the end of the code"
  case edge = "an edge that is not what was recorded"
  case frame = "the shadow stack in another form than its one"
  case jump = "an indirect transfer that was not looked up"
  case exit = "an exit without its reason"
  case helper = "a helper called with what it does not know"
  case pointers = "a state image with the host's addresses of the last x87 instruction and operand"
  case components = "a state image of components that are not the guest's"
  case size = "more paths than there may be"
}

/// What the checker says.
struct CheckVerdict {
  var problem: CheckProblem?
  /// Where, as an offset into the code memory.
  var place = 0
}

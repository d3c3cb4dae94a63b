// SPDX-License-Identifier: Apache-2.0
// What the checker knows of a register: sixteen bytes, compared and copied as they are. Everything it knows at a place in
// the code is an array of these.

/// What is known of a value. A sum is an unknown plus a constant, modulo 2^64 as registers and addresses are.
struct CheckedValue: Equatable, BitwiseCopyable {
  /// The kind in bits 7:0, more of it in bits 15:8, the unknown's number in bits 31:16, and a size or a displacement from
  /// ENV in bits 63:32.
  var head: UInt64
  var offset: Int

  init(_ kind: Kind, _ id: UInt64 = 0, _ offset: Int = 0, more: UInt64 = 0, extra: Int = 0) {
    let more = kind == .addend || kind == .host ? more | CheckedValue.secret : more
    head = kind.rawValue | more << 8 | id << 16 | UInt64(truncatingIfNeeded: extra) << 32
    self.offset = offset
  }

  init(head: UInt64, offset: Int) {
    self.head = head
    self.offset = offset
  }

  enum Kind: UInt64 {
    /// Unknown `id` plus `offset`. Unknown 0 is 0, so that this is a constant. With an offset of 0, `extra` may say that
    /// the unknown is less than it.
    case sum
    /// Stages of the index of a linear address's TLB entry: its lower half, that shifted, masked.
    case low, shifted, entry
    /// A linear address minus the tag of the entry or slot at `extra`.
    case distance
    /// What turns linear addresses into host addresses, for `extra` bytes from sum(id, offset) on.
    case addend
    /// A host address, from which `extra` bytes from `offset` on may be accessed.
    case host
    /// Stages of the index of a linear address in a jump cache.
    case product, jumpIndex
    /// Bits of the guest's XCR0.
    case components
    // Of the flags.
    /// A distance was compared: `extra` is the displacement of its tag, and from bit 20 on the size less one.
    case compared
    /// A region's start was compared with the tag at a displacement, as in `compared`.
    case region
    /// A linear address was compared with the tag that its index in the jump cache leads to.
    case jumpTag
    /// T0 was compared with the return address in the frame on the shadow stack.
    case frame
    /// RSP was compared with the top of the shadow stack.
    case top
  }

  @inline(__always)
  func isKind(_ kind: Kind) -> Bool { head & 0xFF == kind.rawValue }
  var id: UInt64 {
    @inline(__always) get { head >> 16 & 0xFFFF }
  }
  /// Never negative.
  var extra: Int {
    @inline(__always) get { Int(truncatingIfNeeded: head >> 32) }
  }
  var isSum: Bool {
    @inline(__always) get { isKind(.sum) }
  }
  var isConstant: Bool {
    @inline(__always) get { head == 0 }
  }
  /// Of addends and host addresses: stores are allowed.
  var isWritable: Bool {
    @inline(__always) get { head & CheckedValue.writable << 8 != 0 }
  }

  /// It tells where something of the host's lies, or may: what the scratch registers hold on the way in may be such.
  var isSecret: Bool {
    @inline(__always) get { head & CheckedValue.secretBits != 0 }
  }

  /// The same unknown and offset, whatever else is said of it.
  @inline(__always)
  func isOf(_ other: CheckedValue) -> Bool { (head ^ other.head) & 0xFFFF_0000 == 0 && offset == other.offset }

  /// The same of another kind.
  @inline(__always)
  func turned(_ kind: Kind, extra: Int = 0) -> CheckedValue {
    CheckedValue(
      head: head & 0xFFFF_0000 | kind.rawValue | UInt64(truncatingIfNeeded: extra) << 32, offset: offset)
  }

  // `more`.
  static let writable: UInt64 = 1
  /// Of addends and host addresses.
  static let secret: UInt64 = 32
  /// In an unknown's number: it may be one.
  static let secretID: UInt64 = 0x8000
  static let secretBits = secret << 8 | secretID << 16
  /// Of flags: bits 3:0 are the condition that must not hold, and this says that it did not.
  static let passed: UInt64 = 16
}

/// Everything known at a place in the code.
@safe struct CheckedState {
  private let values: UnsafeMutablePointer<CheckedValue>

  /// Behind the sixteen registers: the flags; the exit information word stored last (bit 32: known) and the edge's number;
  /// the string operation; the shadow stack, see `CheckPass.isPushed`.
  static let flags = 16, exit = 17, string = 18, stack = 19
  /// A bit for each of the values behind this that is known: what groups keep in the vCPU page, and two words of scratch
  /// there. Most blocks store none.
  static let known = 20
  static let groups = 21, scratch = 29
  static let registers = 16
  static let count = 31
  static let stride = 32

  init(_ values: UnsafeMutablePointer<CheckedValue>) { unsafe self.values = values }

  /// - Parameter number: 0..<count.
  subscript(_ number: Int) -> CheckedValue {
    @inline(__always) get { unsafe values[number] }
    @inline(__always) nonmutating set { unsafe values[number] = newValue }
  }

  /// Bit n: value `groups` + n is known.
  var known: UInt64 {
    @inline(__always) get { unsafe values[CheckedState.known].head }
    @inline(__always) nonmutating set { unsafe values[CheckedState.known].head = newValue }
  }

  @inline(__always)
  func copy(from other: CheckedState) {
    for number in 0...CheckedState.known { self[number] = other[number] }
    if known == 0 { return }
    for number in CheckedState.groups..<CheckedState.count { self[number] = other[number] }
  }
}

/// States to work with.
@safe struct CheckedStates {
  private let memory: UnsafeMutablePointer<CheckedValue>
  /// How many: as many as paths that wait at once.
  static let count = 16

  init() {
    unsafe memory = .allocate(capacity: CheckedStates.count * CheckedState.stride)
    unsafe memory.initialize(
      repeating: CheckedValue(.sum), count: CheckedStates.count * CheckedState.stride)
  }

  /// - Parameter number: 0..<CheckedStates.count.
  subscript(_ number: Int) -> CheckedState {
    @inline(__always) get { unsafe CheckedState(memory + number &* CheckedState.stride) }
  }

  func deallocate() { unsafe memory.deallocate() }
}

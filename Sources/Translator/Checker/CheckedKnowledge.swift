// SPDX-License-Identifier: Apache-2.0
// What a pass knows: values become unknown, are kept in the vCPU page, and are joined where paths meet.

extension CheckPass {
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
  mutating func join(_ other: CheckedState) {
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
  mutating func join(_ number: Int, _ b: CheckedValue) {
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

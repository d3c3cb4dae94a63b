// SPDX-License-Identifier: Apache-2.0
// A machine that executes emitted code with concrete values and says whether it got out: an access outside what the
// entries of its tables map, a host address where the guest would see it, control somewhere else. It knows what the
// tables, the stubs and the shadow stack are, and nothing of how a check looks.
//
// What the code meets is up to the machine, which is hostile: an entry of a table is made up when it is looked at, so
// that the address lies at the very beginning of its window, at the last place that the comparison behind it lets pass,
// or far away. Registers and memory of the guest are random, and so is all that an instruction computes that no check
// is made of. What it calls dangerous is dangerous; what it calls harmless may be so in these runs only.

import CHost
import X86

@testable import Translator

/// What a mutant did that it may not.
enum MutantDanger: String, CaseIterable {
  case outside = "memory outside every window"
  case readOnly = "a store through a window for reading"
  case privilege = "what belongs to the other privilege"
  case place = "a place of the vCPU page"
  case secret = "a host address where the guest sees it"
  case control = "control to where none may go"
  case middle = "control to the middle of an instruction"
  case frame = "a broken shadow stack"
  case request = "a helper told something that is not so"
  case instruction = "an instruction for the host's kernel, or one that changes its state"
}

/// How a run goes: which of the possibilities are met. `near`: places around the change, where `variant` is met.
struct MutantRun {
  var seed: UInt64
  var near = -1
  var variant = 0
  /// Executes what is in the middle of an instruction.
  var goesOn = false
}

@safe final class MutantMachine {
  let code: MutantCode
  var danger: MutantDanger?

  var registers = InlineArray<16, UInt64>(repeating: 0)
  /// Registers that hold something computed from an address of the host's, a bit each.
  var secrets: UInt16 = 0
  var flags: (cf: Bool, zf: Bool, sf: Bool, of: Bool)?
  var place = 0
  var run = MutantRun(seed: 0)
  private var drawn: UInt64 = 0

  /// The vCPU page up to its tables, and what was stored to it in this run.
  var page = [UInt64](repeating: 0, count: MutantPage.granules)
  var pageSecrets = [Bool](repeating: false, count: MutantPage.granules)
  private let pagePattern: [UInt64]
  var hasInfo = false, hasData = false, hasString = false

  /// Memory that may be accessed.
  struct Window {
    var start: UInt64
    var count: UInt64
    var isWritable: Bool
    var isMine: Bool
  }
  var windows: [Window] = []
  /// Entries met so far, by the displacement of their tag.
  struct Entry {
    var key: Int
    var tag: UInt64
    var value: UInt64
    var bound: UInt64
  }
  var entries: [Entry] = []
  var nextHost: UInt64 = 0

  /// What was pushed on the shadow stack, and frames that were there.
  struct Pushed {
    var address: UInt64
    var value: UInt64
    var isSecret: Bool
    var isCode: Bool
  }
  var pushed: [Pushed] = []
  var stackStart: UInt64 = 0

  static let env: UInt64 = 0x5A00_0000_0080
  static let stackTop: UInt64 = 0x7F10_0000_0000
  /// The guest's registers.
  static let guestRegisters: UInt16 = 0b0001_0111_1110_1111

  init(_ code: MutantCode, pattern: [UInt64]) {
    self.code = code
    pagePattern = pattern
  }

  // MARK: Chance

  static func mix(_ a: UInt64, _ b: UInt64) -> UInt64 {
    var z = (a ^ b &* 0x9E37_79B9_7F4A_7C15) &+ 0x9E37_79B9_7F4A_7C15
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }

  /// The same in every run with this seed, whatever else happens.
  func chance(_ salt: UInt64) -> UInt64 {
    MutantMachine.mix(run.seed, UInt64(truncatingIfNeeded: place) &* 64 &+ salt)
  }

  func draw() -> UInt64 {
    drawn &+= 1
    return MutantMachine.mix(run.seed ^ 0xD1CE, drawn)
  }

  /// Which possibility a check meets: 0, the first place of its window; 1, the last; others are misses of all kinds.
  func choice() -> Int {
    if run.near >= 0 && abs(place &- run.near) < 64 { return run.variant }
    switch run.seed & 7 {
    case 0, 1: return 0
    case 2, 3: return 1
    case 4, 5: return Int(chance(1) & 1)
    default: return Int(chance(1) & 7)
    }
  }

  func fail(_ what: MutantDanger) { if danger == nil { danger = what } }

  // MARK: Running

  /// Runs from one of the entries. `visit` is told of every instruction's place.
  func start(_ run: MutantRun, _ visit: (Int) -> Void) -> MutantDanger? {
    self.run = run
    danger = nil
    drawn = 0
    let isLong = code.block.mode & UInt32(CHOST_MODE_LONG) != 0
    let mask: UInt64 = isLong ? .max >> 17 : 0xFFFF_FFFF
    for number in page.indices { page[number] = pagePattern[number] ^ run.seed }
    pageSecrets = MutantPage.secrets
    func set(_ displacement: Int, _ value: UInt64) { page[MutantPage.granule(displacement)] = value }
    let pageAddress = draw() & mask & ~4095
    set(MutantPage.pageAddress, pageAddress)
    set(MutantPage.attention, draw() & 7 == 0 ? 1 : 0)
    set(MutantPage.xcr0, 7)
    set(MutantPage.flags, draw() & 0x400 | 0x200)
    let user: UInt64 = code.isUser ? 1 : 0
    set(MutantPage.shadowTop, MutantMachine.stackTop &+ user << 36)
    set(MutantPage.shadowTop + 8, MutantMachine.stackTop &+ (1 - user) << 36)
    hasInfo = false
    hasData = false
    hasString = false
    nextHost = 0x6000_0000_0000 + UInt64(draw() & 0xFFFF) << 12
    pushed.removeAll(keepingCapacity: true)
    stackStart = MutantMachine.stackTop &- 16 &* (draw() % 3)
    forget()
    registers[4] = stackStart
    registers[11] = MutantMachine.env
    switch chance(2) % 3 {
    case 0:
      place = code.block.hot.lowerBound
      registers[15] = pageAddress &+ UInt64(code.block.offset)
      secrets &= ~(1 << 15)
    case 1 where code.block.pollEntry != Int.max: place = code.block.pollEntry
    default: place = code.block.plainEntry
    }
    var left = 300
    while left > 0, danger == nil {
      left -= 1
      guard let step = code.step(at: place) else {
        fail(.control)
        break
      }
      visit(place)
      if !execute(step) { break }
    }
    return danger
  }

  /// Nothing is known of the guest's registers, the tables have other entries, and the scratch registers hold what they
  /// held elsewhere.
  func forget() {
    let isLong = code.block.mode & UInt32(CHOST_MODE_LONG) != 0
    for number in 0..<16 where number != 4 && number != 11 {
      let value = draw()
      registers[number] = value & 7 == 0 ? value >> 58 : value >> (isLong ? 17 : 32)
    }
    secrets = 0b1110_1000_0001_0000
    flags = nil
    windows.removeAll(keepingCapacity: true)
    entries.removeAll(keepingCapacity: true)
  }

  /// A place for a window, far from all others.
  func host() -> UInt64 {
    nextHost &+= 1 << 36
    return nextHost
  }

  // MARK: Registers

  func isSecret(_ number: Int) -> Bool { secrets >> UInt16(number & 15) & 1 != 0 }

  /// - Parameter size: bytes; 4 clear the upper half, fewer leave the rest alone.
  func set(_ number: Int, _ value: UInt64, _ size: Int, _ isSecret: Bool) {
    let number = number & 15
    if number == 11 { return fail(.place) }
    let bit: UInt16 = 1 << UInt16(number)
    switch size {
    case 8: registers[number] = value
    case 4: registers[number] = value & 0xFFFF_FFFF
    default:
      let mask: UInt64 = (1 << UInt64(size * 8)) &- 1
      registers[number] = registers[number] & ~mask | value & mask
      if isSecret { secrets |= bit }
      return
    }
    if isSecret { secrets |= bit } else { secrets &= ~bit }
  }

  // MARK: Leaving

  /// What holds wherever other code goes on: the shadow stack is one of frames, and no register of the guest's tells
  /// where the host's memory is. Returns whether it does.
  @discardableResult
  func leave(needsT0: Bool) -> Bool {
    if secrets & MutantMachine.guestRegisters != 0 { fail(.secret) }
    if needsT0 && isSecret(15) { fail(.secret) }
    var at = registers[4]
    if at > MutantMachine.stackTop || at & 15 != 0 { fail(.frame) }
    while at < stackStart, danger == nil {
      guard let code = pushed.last(where: { $0.address == at }), code.isCode,
        let data = pushed.last(where: { $0.address == at &+ 8 }), !data.isCode
      else {
        fail(.frame)
        break
      }
      at &+= 16
    }
    return danger == nil
  }

  /// To a linked block.
  func follow(_ edge: Edge) {
    let isByAddress = edge.kind == .afterCall || edge.kind == .split
    guard leave(needsT0: isByAddress) else { return }
    // The block there works out where its page begins.
    if isByAddress && registers[15] & 4095 != UInt64(edge.targetOffset) { fail(.control) }
  }

  /// To the exit stub.
  private func exit() {
    guard leave(needsT0: false) else { return }
    if !hasInfo { return fail(.request) }
    let word = page[MutantPage.granule(MutantPage.exitInfo)]
    checkReason(UInt32(truncatingIfNeeded: word))
    let reason = Int(word >> UInt64(CHOST_INFO_REASON_SHIFT) & 0xFF)
    if reason == Int(CHOST_EXIT_LINK) || reason == Int(CHOST_EXIT_RETURN) {
      let number = Int(word >> 32) - code.block.firstEdge
      if !hasData || number < 0 || number >= code.block.edgeCount { fail(.request) }
    }
  }

  /// A reason that Swift knows and that asks for nothing that is not there.
  func checkReason(_ word: UInt32) {
    switch Int(word >> UInt32(CHOST_INFO_REASON_SHIFT)) {
    case Int(CHOST_EXIT_MEMORY), Int(CHOST_EXIT_LINK), Int(CHOST_EXIT_ATTENTION), Int(CHOST_EXIT_INSTRUCTION),
      Int(CHOST_EXIT_STEP), Int(CHOST_EXIT_RETURN):
      break
    default: fail(.request)
    }
  }

  /// T1 says what Swift executes if the target is not canonical.
  func checkRefusal() {
    if registers[14] >> UInt64(CHOST_INFO_REASON_SHIFT) != UInt64(CHOST_EXIT_INSTRUCTION) { fail(.request) }
  }

  /// A jump. Returns false where the run ends.
  func go(to target: Int) -> Bool {
    let stubs = code.block.stubs
    if target == stubs.exit {
      exit()
      return false
    }
    if target == stubs.jumpMiss || target == stubs.branchMiss {
      if target == stubs.branchMiss { checkRefusal() }
      leave(needsT0: true)
      return false
    }
    if code.number(at: target) == nil && !(run.goesOn && code.contains(target)) {
      fail(code.contains(target) ? .middle : .control)
      return false
    }
    place = target
    return true
  }

  // MARK: The shadow stack

  /// Whether an address lies on it.
  func isOnStack(_ address: UInt64) -> Bool {
    address &- (MutantMachine.stackTop &- 0x8000) < 0x8040
  }

  func push(_ value: UInt64, isSecret: Bool, isCode: Bool) {
    registers[4] &-= 8
    guard isOnStack(registers[4]), registers[4] & 7 == 0 else { return fail(.frame) }
    pushed.removeAll { $0.address == registers[4] }
    pushed.append(Pushed(address: registers[4], value: value, isSecret: isSecret, isCode: isCode))
  }

  /// What lies there; `hint` is what it is compared with.
  func stackWord(_ address: UInt64, hint: UInt64?) -> (value: UInt64, isSecret: Bool) {
    if let word = pushed.last(where: { $0.address == address }) { return (word.value, word.isSecret || word.isCode) }
    guard address >= stackStart, address & 15 == 8 else { return (draw(), true) }
    if address >= MutantMachine.stackTop { return (1 << 63, false) }
    let value = choice() < 2 ? hint ?? draw() : draw()
    pushed.append(Pushed(address: address, value: value, isSecret: false, isCode: false))
    return (value, false)
  }

  /// RET.
  func ret() {
    let top = registers[4]
    let frame = stackWord(top &+ 8, hint: nil)
    guard isOnStack(top), top & 15 == 0 else { return fail(.frame) }
    if !pushed.contains(where: { $0.address == top && $0.isCode }) && top < stackStart { return fail(.frame) }
    // Code behind a call relies on T0 being the address that was pushed.
    if frame.value != registers[15] || frame.isSecret { return fail(.frame) }
    leave(needsT0: true)
  }

  /// A guest's call, complete on the shadow stack, has come back.
  func comeBack() {
    guard leave(needsT0: false) else { return }
    registers[4] &+= 8
    let address = stackWord(registers[4], hint: nil)
    let stack = registers[4]
    forget()
    registers[4] = stack
    registers[15] = address.value
    if !address.isSecret { secrets &= ~(1 << 15) }
  }
}

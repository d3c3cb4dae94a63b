// SPDX-License-Identifier: Apache-2.0
// The independent checker (rule 21): decodes an emitted block with the guest's own decoder and proves, by following
// every path with an abstract value per register, that each memory access stays in the vCPU page or was checked
// against the software TLB, that nothing reaches the host's kernel, and that every branch ends where it may.
// It knows the registers' roles and the shape of a check, and nothing of the rules that emit code.

import CHost
import Host
import X86

struct BlockChecker {
  private let code: CheckedCode
  private let table: OpcodeTable
  private let decoder: Decoder
  private var places: [UInt64: Place] = [:]
  private var work: [UInt64] = []
  /// The instruction whose paths are followed.
  private var current: UInt64 = 0
  /// What is wrong with an instruction by what is known before it, which may change while paths still join.
  private var problems: [UInt64: String] = [:]

  private init(_ code: CheckedCode) {
    self.code = code
    table = .shared
    decoder = Decoder()
  }

  /// What is wrong with the code, or nil.
  static func check(_ code: CheckedCode) -> String? {
    var checker = BlockChecker(code)
    var start = CheckedState()
    for number in 0..<Int(CheckedState.count) { start[UInt8(number)] = .sum(id: -1 - number, offset: 0) }
    checker.arrive(code.hot.lowerBound, start)
    for entry in code.entries { checker.arrive(entry, start) }
    // An instruction is looked at again for every path that joins before it: few.
    var steps = (code.hotBytes.count + code.coldBytes.count) * 16
    while let address = checker.work.popLast() {
      checker.problems[address] = nil
      checker.current = address
      checker.step(address)
      steps -= 1
      if steps == 0 { return "paths without end" }
    }
    guard let (address, problem) = checker.problems.min(by: { $0.key < $1.key }) else { return nil }
    return "at 0x\(String(address, radix: 16)): \(problem)"
  }

  private mutating func fail(_ address: UInt64, _ text: String) {
    problems[address] = text
  }

  // MARK: Paths

  /// What is known at an instruction, and where from.
  private struct Place {
    var state: CheckedState
    /// The instruction before it, and what is known after that; more of them where paths join.
    var before: UInt64
    var joined: [(before: UInt64, state: CheckedState)] = []
  }

  /// A path reaches `address` with `state`, from the current instruction. What came from there earlier no longer counts.
  private mutating func arrive(_ address: UInt64, _ state: CheckedState) {
    guard var place = places[address] else {
      places[address] = Place(state: state, before: current)
      work.append(address)
      return
    }
    var known = state
    if !place.joined.isEmpty || place.before != current {
      if place.joined.isEmpty { place.joined = [(place.before, place.state)] }
      if let index = place.joined.firstIndex(where: { $0.before == current }) {
        place.joined[index].state = state
      } else {
        place.joined.append((current, state))
      }
      known = place.joined[0].state
      for (_, other) in place.joined.dropFirst() {
        for number in UInt8(0)..<CheckedState.count {
          known[number] = join(known[number], other[number], Int(truncatingIfNeeded: address) << 8 | Int(number) | 0x80)
        }
        if known.flags != other.flags { known.flags = .nothing }
      }
    }
    let isNew = known != place.state
    place.state = known
    places[address] = place
    if isNew { work.append(address) }
  }

  private func join(_ a: CheckedValue, _ b: CheckedValue, _ id: Int) -> CheckedValue {
    if a == b { return a }
    switch (a, b) {
    case (.addend(let i, let o, let s, let w), .addend(let j, let p, let t, let v)) where i == j && o == p:
      return .addend(id: i, offset: o, size: min(s, t), write: w && v)
    case (.host(let l, let h, let w), .host(let m, let k, let v)):
      return .host(low: max(l, m), high: min(h, k), write: w && v)
    default: return .sum(id: id, offset: 0)
    }
  }

  private func bytes(at address: UInt64) -> [UInt8]? {
    if code.hot.contains(address) { return Array(code.hotBytes[Int(address - code.hot.lowerBound)...].prefix(15)) }
    if code.cold.contains(address) { return Array(code.coldBytes[Int(address - code.cold.lowerBound)...].prefix(15)) }
    return nil
  }

  /// A branch to `target`.
  private mutating func go(_ address: UInt64, to target: UInt64, _ state: CheckedState) {
    if code.hot.contains(target) || code.cold.contains(target) {
      arrive(target, state)
    } else if !code.exits.contains(target) && target != code.stubs.exit && target != code.stubs.jumpMiss {
      fail(address, "a branch to 0x\(String(target, radix: 16))")
    }
  }

  // MARK: Instructions

  private mutating func step(_ address: UInt64) {
    guard let bytes = bytes(at: address), var state = places[address]?.state else {
      return fail(address, "the end of the code")
    }
    guard case .complete(let i) = decoder.decode(bytes.span, code: .code64), i.isValid else {
      return fail(address, "no instruction")
    }
    let row = table[i.row]
    let next = address + UInt64(i.length)
    let traits = RowTraits(row)
    if i.isMemory && row.rule != .lea && row.rule != .nop {
      let write = traits.memoryWrites || row.rule == .saveState
      if let reason = refusal(i, size: max(traits.memoryBytes(i), 1), write: write, state) {
        return fail(address, "\(row.name): \(reason)")
      }
    }
    switch row.rule {
    case .jump: return go(address, to: next &+ i.immediate, state)
    case .jcc:
      go(address, to: next &+ i.immediate, state)
      // JA after a comparison with a constant, JAE after one with a site's bound.
      if case .compared(let id, let offset, let table, let size) = state.flags,
        i.opcode & 15 == ((BlockChecker.slot(table)?.most ?? 0) > 0 ? 3 : 7)
      {
        state.flags = .compared(id: id, offset: offset, table: table, size: size | BlockChecker.passed)
      }
      if i.opcode & 15 == 5, case .region(let slot, let size, _) = state.flags {
        state.flags = .region(slot: slot, size: size, passed: true)
      }
      return arrive(next, state)
    case .loop:
      state[1] = fresh(address, 1)
      go(address, to: next &+ i.immediate, state)
      return arrive(next, state)
    case .jumpIndirect:
      if !isTransferThroughPage(i, state) { fail(address, "an indirect jump") }
      return
    case .call: return call(address, to: next &+ i.immediate, next, state)
    case .callIndirect:
      if !isTransferThroughPage(i, state) { return fail(address, "an indirect call") }
      return arrive(next, afterCall(address))
    case .ret: return
    case .push:
      // The shadow stack; its guard pages stand below it.
      if i.isMemory { fail(address, "a push from memory") }
      return arrive(next, state)
    case .copy, .nop, .pause, .lea, .x87, .mmx, .sse, .avx, .wait, .bitMemory, .cmpxchgWide, .rdtsc, .rdtscp,
      .saveState,
      .restoreState:
      break
    default: return fail(address, "\(row.name) must not be executed")
    }
    if i.segmentPrefix != 0xFF || i.hasAddressSizePrefix { return fail(address, "\(row.name) with a prefix") }
    if row.hasImplicitMemory { return fail(address, "\(row.name) has a hidden operand") }
    let before = state
    effect(address, i, row, traits, &state)
    if state[RegisterMap.env] != before[RegisterMap.env] { return fail(address, "ENV is overwritten") }
    let movesStack = row.rule == .lea && i.reg == 4 && i.base == 4 && i.index == 0xFF && abs(i.displacement) <= 16
    if state[4] != before[4] && !movesStack { return fail(address, "the host's stack pointer is overwritten") }
    arrive(next, state)
  }

  func fresh(_ address: UInt64, _ register: UInt8) -> CheckedValue {
    .sum(id: Int(truncatingIfNeeded: address) << 8 | Int(register), offset: 0)
  }

  private func afterCall(_ address: UInt64) -> CheckedState {
    var state = CheckedState()
    for number in UInt8(0)..<CheckedState.count { state[number] = fresh(address, number) }
    return state
  }

  private mutating func call(_ address: UInt64, to target: UInt64, _ next: UInt64, _ before: CheckedState) {
    if target == code.stubs.tlbMiss {
      // T0 = linear address, T1 = information word; T1 = addend afterwards.
      guard let (id, offset) = before[RegisterMap.t0].linear, case .constant(let word) = before[RegisterMap.t1] else {
        return fail(address, "a TLB miss without address or information")
      }
      var state = before
      let size = Int(word >> UInt64(CHOST_INFO_SIZE_SHIFT) & 255)
      state[RegisterMap.t1] = .addend(
        id: id, offset: offset, size: size == 255 ? 1024 : max(size, 1), write: word & UInt64(CHOST_INFO_WRITE) != 0)
      state.flags = .nothing
      return arrive(next, state)
    }
    if target == code.stubs.slotMiss || target == code.stubs.groupMiss {
      guard let state = slotMiss(before) else { return fail(address, "a miss of a slot with a wrong request") }
      // A group that is refused goes on behind the JMP that follows.
      if target == code.stubs.groupMiss {
        arrive(next + 5, before.without(RegisterMap.t1, fresh(address, RegisterMap.t1)))
      }
      return arrive(next, state)
    }
    let known = target == code.stubs.string || target == code.stubs.light || target == code.stubs.jumpMiss
    if !known && !code.exits.contains(target) && !code.cold.contains(target) {
      return fail(address, "a call of 0x\(String(target, radix: 16))")
    }
    if code.cold.contains(target) { arrive(target, before) }
    arrive(next, afterCall(address))
  }

  /// What is known after a miss of a slot or a group: T0 = linear address, T1 = the request before, its answer
  /// afterwards.
  private func slotMiss(_ before: CheckedState) -> CheckedState? {
    guard let (id, offset) = before[RegisterMap.t0].linear, case .constant(let word) = before[RegisterMap.t1] else {
      return nil
    }
    let size = max(Int(word >> UInt64(CHOST_INFO_SIZE_SHIFT) & 255), 1)
    let write = word & UInt64(CHOST_INFO_WRITE) != 0
    let slot = Int64(word >> UInt64(CHOST_REQUEST_SLOT_SHIFT) & 0xFFFFF)
    var state = before
    state.flags = .nothing
    state[RegisterMap.t1] = .addend(id: id, offset: offset, size: size, write: write)
    if slot != 0 {
      guard let kind = BlockChecker.slot(slot), kind.isRegion || size < 255, kind.writes || !write,
        kind.most == 0 || size <= kind.most
      else { return nil }
      if kind.isRegion {
        guard kind.writes == write else { return nil }
        let start = Int(word >> UInt64(CHOST_REQUEST_OFFSET_SHIFT))
        state[RegisterMap.t1] = .host(low: start, high: start + size, write: write)
      }
    }
    return state
  }

  /// What the slot at a displacement from ENV is, if there is one; `most`: the largest operand of a site.
  static func slot(_ displacement: Int64) -> (isRegion: Bool, writes: Bool, most: Int)? {
    if displacement == Int64(Slot.stack) || displacement == Int64(Slot.stack) + 16 { return (false, true, 0) }
    let position = displacement - Int64(CHOST_SLOTS)
    guard position >= 0, position < 2 * Int64(CHOST_SLOT_BYTES), position % Int64(CHOST_SLOT_SIZE) == 0 else {
      return nil
    }
    let number = position / Int64(CHOST_SLOT_SIZE) % Int64(CHOST_SLOTS_PER_PRIVILEGE)
    let sites = Int64(CHOST_SITES)
    if number < 2 * sites { return (false, number >= sites, HotCode.largest(Int(number % sites))) }
    return (true, number >= 2 * sites + Int64(CHOST_REGIONS), 0)
  }

  /// The register that stands for what a group keeps at a displacement from ENV.
  static func kept(_ displacement: Int32) -> UInt8? {
    let position = displacement &- Slot.groups
    return position >= 0 && position < 8 * Int32(CHOST_GROUPS) && position % 8 == 0 ? 16 + UInt8(position / 8) : nil
  }

  /// The value of `page_va`: a multiple of the page size.
  static let pageAddress = Int.min + 1

  static let passed = 1 << 20

  // MARK: Operands

  /// JMP or CALL through a slot of the vCPU page: a stub, or an entry of the jump cache.
  private func isTransferThroughPage(_ i: Instruction, _ state: CheckedState) -> Bool {
    guard i.isMemory, i.base == RegisterMap.env else { return false }
    if i.index == 0xFF { return false }
    guard case .bounded(let most) = state[i.index], most < UInt64(CHOST_JUMP_ENTRIES), i.scale == 3 else {
      return false
    }
    let start = Int32(CHOST_JUMP_TARGETS)
    return i.displacement == start || i.displacement == start &+ 2 &* 8 &* Int32(CHOST_JUMP_ENTRIES)
  }

  /// Why an access is not proved to be allowed, or nil.
  private func refusal(_ i: Instruction, size: Int, write: Bool, _ state: CheckedState) -> String? {
    if i.segment >= 4 || i.hasAddressSizePrefix || i.isRIPRelative || i.base == 0xFF { return "an odd address" }
    let displacement = Int64(i.displacement)
    let pageEnd = Int64(CHOST_PAGE_BYTES) - Int64(CHOST_ENV)
    if i.base == RegisterMap.env {
      if i.index == 0xFF {
        if write {
          let stack = Int64(Slot.stack)
          let isState = displacement >= -Int64(CHOST_ENV) && displacement + Int64(size) <= Int64(CHOST_TABLES)
          return isState && (displacement + Int64(size) <= stack || displacement >= stack + 32)
            ? nil : "a store to the tables"
        }
        return displacement >= -Int64(CHOST_ENV) && displacement + Int64(size) <= pageEnd
          ? nil : "outside the vCPU page"
      }
      switch state[i.index] {
      case .entry where i.scale == 0:
        let tables = Int64(CHOST_TLB_READ)..<Int64(CHOST_JUMP_TAGS)
        return tables.contains(displacement) && !write ? nil : "not a TLB entry"
      case .bounded(let most) where i.scale == 3 && most < UInt64(CHOST_JUMP_ENTRIES):
        return displacement >= Int64(CHOST_JUMP_TAGS) && displacement < Int64(CHOST_PRIVATE) && !write
          ? nil : "not the jump cache"
      default: return "an unknown index into the vCPU page"
      }
    }
    if i.base == 4 && i.index == 0xFF {
      return displacement >= 0 && displacement <= 8 && !write ? nil : "the shadow stack"
    }
    if i.index == 0xFF {
      guard case .host(let low, let high, let writable) = state[i.base] else { return "an unchecked address" }
      return displacement >= Int64(low) && displacement + Int64(size) <= Int64(high) && (writable || !write)
        ? nil : "more than was checked"
    }
    guard let (id, offset) = state[i.base].linear, i.scale == 0,
      case .addend(let checkedID, let start, let checked, let writable) = state[i.index]
    else { return "an unchecked address" }
    let from = offset + displacement - start
    guard id == checkedID, from >= 0, from + Int64(size) <= Int64(checked) else {
      return "another address than was checked"
    }
    return writable || !write ? nil : "a store through a read check"
  }
}

extension CodeCache {
  /// A copy of emitted code.
  private func codeBytes(_ offset: UInt32, _ count: UInt32) -> [UInt8] {
    unsafe [UInt8](UnsafeRawBufferPointer(start: code.writable + Int(offset), count: Int(count)))
  }

  /// Checks a live block; nil if nothing is wrong with it.
  func check(_ index: Int32) -> String? {
    let block = self[index]
    guard block.isLive else { return nil }
    func range(_ start: UInt32, _ count: UInt32) -> Range<UInt64> {
      codeStart + UInt64(start)..<codeStart + UInt64(start + count)
    }
    var exits: Set<UInt64> = []
    for number in block.firstEdge..<block.firstEdge + block.edgeCount {
      let target = edge(UInt32(truncatingIfNeeded: number)).target
      guard target >= 0 else { continue }
      let other = self[target]
      let start = codeStart + UInt64(other.hot)
      exits.formUnion([start, start + UInt64(other.pollOffset), start + UInt64(other.plainOffset)])
    }
    return BlockChecker.check(
      CheckedCode(
        hot: range(block.hot, block.hotCount), cold: range(block.cold, block.coldCount),
        hotBytes: codeBytes(block.hot, block.hotCount), coldBytes: codeBytes(block.cold, block.coldCount), exits: exits,
        stubs: stubs,
        entries: [
          codeStart + UInt64(block.hot) + UInt64(block.pollOffset),
          codeStart + UInt64(block.hot) + UInt64(block.plainOffset),
        ]))
  }
}

// SPDX-License-Identifier: Apache-2.0
// The memory of the machine that judges mutants: the vCPU page with its tables, whose entries are made up as the run
// wants them, the shadow stack, windows, and nothing else.

import CHost
import X86

@testable import Translator

extension MutantMachine {
  /// Reads `size` bytes. `hint`: what is subtracted from or compared with them, and in which register it is.
  func load(_ address: UInt64, _ size: Int, hint: UInt64? = nil, register: Int = -1) -> (value: UInt64, isSecret: Bool)
  {
    let offset = address &- (MutantMachine.env &- UInt64(CHOST_ENV))
    if offset < UInt64(CHOST_PAGE_BYTES), offset &+ UInt64(size) <= UInt64(CHOST_PAGE_BYTES) {
      return loadPage(Int(offset) - Int(CHOST_ENV), size, hint, register)
    }
    if isOnStack(address) { return size == 8 ? stackWord(address, hint: hint) : (draw(), true) }
    touch(address, size, write: false)
    return (draw(), false)
  }

  /// Stores.
  func store(_ address: UInt64, _ size: Int, _ value: UInt64, _ isSecret: Bool) {
    let offset = address &- (MutantMachine.env &- UInt64(CHOST_ENV))
    if offset < UInt64(CHOST_PAGE_BYTES), offset &+ UInt64(size) <= UInt64(CHOST_PAGE_BYTES) {
      return storePage(Int(offset) - Int(CHOST_ENV), size, value, isSecret)
    }
    if isOnStack(address) { return fail(.frame) }
    touch(address, size, write: true)
    if isSecret { fail(.secret) }
  }

  /// An access to the guest's memory.
  private func touch(_ address: UInt64, _ size: Int, write: Bool) {
    for window in windows {
      let offset = address &- window.start
      guard offset < window.count, offset &+ UInt64(size) <= window.count else { continue }
      if !window.isMine { return fail(.privilege) }
      if write && !window.isWritable { return fail(.readOnly) }
      return
    }
    fail(.outside)
  }

  // MARK: The vCPU page

  private func loadPage(_ displacement: Int, _ size: Int, _ hint: UInt64?, _ register: Int) -> (UInt64, Bool) {
    let first = MutantPage.granule(displacement), last = MutantPage.granule(displacement + size - 1)
    if last >= page.count || displacement >= MutantPage.stack && displacement < MutantPage.stack + 32 {
      return loadTable(displacement, size, hint, register)
    }
    if code.level != 0, (first...last).contains(where: { [.kernel, .kernelOnly].contains(MutantPage.places[$0]) }) {
      fail(.privilege)
    }
    let isSecret = (first...last).contains { pageSecrets[$0] }
    if size > 8 { return (draw(), isSecret) }
    let shift = UInt64(displacement & 7) * 8
    var value = page[first] >> shift
    if last != first { value |= page[last] << (64 - shift) }
    return (size == 8 ? value : value & (1 << UInt64(size * 8) &- 1), isSecret)
  }

  private func storePage(_ displacement: Int, _ size: Int, _ value: UInt64, _ isSecret: Bool) {
    let first = MutantPage.granule(displacement), last = MutantPage.granule(displacement + size - 1)
    guard last < page.count else { return fail(.place) }
    var left = size, value = value
    for number in first...last {
      let from = number == first ? displacement & 7 : 0
      let count = min(8 - from, left)
      let mask = (count == 8 ? UInt64.max : 1 << UInt64(count * 8) &- 1) << UInt64(from * 8)
      let word = page[number] & ~mask | value << UInt64(from * 8) & mask
      storeWord(number, word, mask, isSecret)
      left -= count
      value = left > 0 ? value >> UInt64(count & 7 * 8) : value
    }
  }

  /// Changes the bits `mask` of eight bytes of the page, which become `word`.
  private func storeWord(_ number: Int, _ word: UInt64, _ mask: UInt64, _ isSecret: Bool) {
    let low = mask & 0xFFFF_FFFF == 0xFFFF_FFFF
    switch MutantPage.places[number] {
    case .engine, .kernelOnly: return fail(.place)
    case .guest: if isSecret { return fail(.secret) }
    case .kernel:
      if code.level != 0 { return fail(.privilege) }
      if isSecret { return fail(.secret) }
    case .scratch: pageSecrets[number] = isSecret || mask != .max && pageSecrets[number]
    case .pageAddress: if isSecret || word & 4095 != 0 { return fail(.place) }
    case .exit:
      hasInfo = hasInfo || low
      hasData = hasData || mask >> 32 == 0xFFFF_FFFF
    case .string: hasString = hasString || low
    case .flags:
      if (word ^ page[number]) & ~(code.level != 0 ? 0x400 : 0x4_0600) != 0 { return fail(.place) }
    }
    page[number] = word
  }

  // MARK: Tables

  private func loadTable(_ displacement: Int, _ size: Int, _ hint: UInt64?, _ register: Int) -> (UInt64, Bool) {
    // Not a field of an entry: whatever the guest has made of it.
    guard size == 8, displacement & 7 == 0 else { return (hint ?? draw(), true) }
    switch MutantEntry(displacement) {
    case .none: return (hint ?? draw(), displacement < Int(CHOST_BOUNCE))
    case .tlb(let isUser, let isWritable, let index, let field):
      let mayHit = hint.map { Int($0 >> 12 & 4095) == index } ?? false
      let entry = entry(displacement - field * 8) {
        table($0, hint: mayHit ? hint : nil, register, size: 4096, isWritable, isUser)
      }
      return field == 0 ? (entry.tag, false) : (entry.value, true)
    case .stack(let isUser, let field):
      let entry = entry(displacement - field * 8) { table($0, hint: hint, register, size: 4096, true, isUser) }
      return field == 0 ? (entry.tag, false) : (entry.value, true)
    case .site(let isUser, let isWritable, let most, let field):
      let entry = entry(displacement - field * 8) { key in
        let size = most + 16 + Int(chance(5) % 200)
        var entry = table(key, hint: hint, register, size: size, isWritable, isUser, last: size - most)
        entry.bound = UInt64(size - most + 1)
        return entry
      }
      return field == 0 ? (entry.tag, false) : field == 1 ? (entry.value, true) : (field == 2 ? entry.bound : 0, false)
    case .region(let isUser, let isWritable, let field):
      let entry = entry(displacement - field * 8) { region($0, hint: hint, isWritable, isUser) }
      return field == 0 ? (entry.tag, false) : field == 1 ? (entry.value, true) : (0, false)
    case .jump(_, let index, let isTarget):
      let entries = Int(CHOST_JUMP_ENTRIES) * 8
      let entry = entry(isTarget ? displacement - entries : displacement) { key in
        let mayHit = hint.map { MutantMachine.jumpIndex($0) == index } ?? false
        let tag = mayHit && choice() < 2 ? hint ?? 0 : draw() | 1 << 62
        return Entry(key: key, tag: tag, value: draw(), bound: 0)
      }
      return isTarget ? (entry.value, true) : (entry.tag, false)
    }
  }

  static func jumpIndex(_ address: UInt64) -> Int {
    Int(
      (UInt32(truncatingIfNeeded: address) &* UInt32(bitPattern: Int32(CHOST_JUMP_FACTOR))) >> UInt32(CHOST_JUMP_SHIFT))
  }

  private func entry(_ key: Int, _ make: (Int) -> Entry) -> Entry {
    if let entry = entries.first(where: { $0.key == key }) { return entry }
    let new = make(key)
    entries.append(new)
    return new
  }

  /// An entry for `hint`, which is so far above its tag as the run wants; nil: for some other address.
  private func table(
    _ key: Int, hint: UInt64?, _ register: Int, size: Int, _ isWritable: Bool, _ isUser: Bool, last: Int? = nil
  ) -> Entry {
    let start = host()
    windows.append(
      Window(start: start, count: UInt64(size), isWritable: isWritable, isMine: isUser == code.isUser))
    var tag = draw()
    if let hint {
      let most = UInt64(truncatingIfNeeded: bound(register) ?? last ?? 4088)
      let distance: UInt64 =
        switch choice() {
        case 0: 0
        case 1: most
        case 2: most &+ 1
        case 3: 1 << 32
        case 4: 1 << 63
        case 5: .max
        case 6: UInt64(size)
        default: draw()
        }
      tag = hint &- distance
    }
    return Entry(key: key, tag: tag, value: start &- tag, bound: 0)
  }

  /// The largest distance that the next instructions let pass: what a register is compared with.
  private func bound(_ register: Int) -> Int? {
    guard register >= 0 else { return nil }
    var at = code.step(at: place)?.next ?? place
    for _ in 0..<3 {
      guard let step = code.step(at: at) else { return nil }
      if step.row.map == .one, step.i.opcode | 2 == 0x83, !step.i.isMemory, step.i.modRM >> 3 & 7 == 7,
        Int(step.i.rm) == register
      {
        return Int(truncatingIfNeeded: Int64(bitPattern: step.i.immediate))
      }
      at = step.next
    }
    return nil
  }

  private func region(_ key: Int, hint: UInt64?, _ isWritable: Bool, _ isUser: Bool) -> Entry {
    let start = host()
    var tag = draw()
    if let hint {
      switch choice() {
      case 0, 1: tag = hint
      case 2: tag = hint &+ 64
      case 3: tag = hint &- 64
      case 4: tag = hint ^ 1 << 63
      case 5: tag = hint &+ 1 << 32
      case 6: tag = hint &- 4096
      default: break
      }
    }
    // Pages begin at a multiple of their size; what begins elsewhere is a chunk.
    windows.append(
      Window(start: start, count: tag & 4095 == 0 ? 4096 : 64, isWritable: isWritable, isMine: isUser == code.isUser))
    return Entry(key: key, tag: tag, value: start, bound: 0)
  }

  // MARK: Helpers

  /// What a call of a stub does. Returns false where the run ends.
  func callStub(_ target: Int, next: Int) -> Bool {
    let stubs = code.block.stubs
    place = next
    if target == stubs.light || target == stubs.string {
      guard leave(needsT0: false) else { return false }
      let word = UInt32(truncatingIfNeeded: registers[14])
      if target == stubs.light { checkLight(word) } else { checkString(word) }
      let stack = registers[4]
      forget()
      registers[4] = stack
      return danger == nil && chance(9) & 7 != 0
    }
    return miss(target)
  }

  private func checkLight(_ word: UInt32) {
    checkReason(word)
    switch Int(truncatingIfNeeded: registers[15]) {
    case Int(CHOST_LIGHT_SYSCALL), Int(CHOST_LIGHT_POPF), Int(CHOST_LIGHT_SYSENTER), Int(CHOST_LIGHT_INT),
      Int(CHOST_LIGHT_SEGMENT):
      break
    // A kernel of level 1 returns too, but not in IA-32e mode.
    case Int(CHOST_LIGHT_IRET) where code.level == 1 && code.block.mode & UInt32(CHOST_MODE_LMA) == 0: break
    case 0...Int(CHOST_LIGHT_HYPERCALL): if code.level != 0 { fail(.privilege) }
    default: fail(.request)
    }
  }

  private func checkString(_ word: UInt32) {
    checkReason(word)
    let operation = page[MutantPage.granule(MutantPage.string)]
    if !hasString || operation & 15 > UInt64(CHOST_STRING_CMPS) || operation >> 8 & 3 == 0 { return fail(.request) }
    if operation >> 12 & 15 > 2 || operation >> 16 & 15 > 5 { return fail(.request) }
    if (operation >> 24 & 1 != 0) != code.isUser { fail(.privilege) }
  }

  /// The answer to a miss: a window of what was asked for and not a byte more.
  private func miss(_ target: Int) -> Bool {
    let stubs = code.block.stubs
    let linear = registers[15], request = registers[14]
    if isSecret(15) { fail(.secret) }
    // Where it is refused, the registers are the guest's and RIP is what the word says.
    if target != stubs.groupMiss {
      checkReason(UInt32(truncatingIfNeeded: request))
      if secrets & MutantMachine.guestRegisters != 0 { fail(.secret) }
    }
    if registers[4] > MutantMachine.stackTop || registers[4] & 15 != 0 { fail(.frame) }
    let isWrite = request & UInt64(CHOST_INFO_WRITE) != 0
    let isUser = request & UInt64(CHOST_INFO_USER) != 0
    let field = request >> UInt64(CHOST_INFO_SIZE_SHIFT) & 255
    let size = field == 255 ? 1024 : max(field, 1)
    if isUser != code.isUser { fail(.privilege) }
    guard danger == nil else { return false }
    let isRefused = chance(3) & 7 == 0
    if target == stubs.groupMiss && (isRefused || chance(3) & 7 == 1) {
      registers[14] = 0
      secrets &= ~(1 << 14)
      place &+= 5
      return true
    }
    if isRefused { return false }
    let start = host()
    windows.append(Window(start: start, count: size, isWritable: isWrite, isMine: true))
    var answer = start &- linear
    let displacement = Int(request >> UInt64(CHOST_REQUEST_SLOT_SHIFT) & 0xF_FFFF)
    if target != stubs.tlbMiss, displacement >= Int(CHOST_SLOTS) {
      let number =
        (displacement - Int(CHOST_SLOTS)) / Int(CHOST_SLOT_SIZE) - (isUser ? Int(CHOST_SLOTS_PER_PRIVILEGE) : 0)
      let sites = Int(CHOST_SITES)
      guard number >= 0, number < Int(CHOST_SLOTS_PER_PRIVILEGE) else {
        fail(.request)
        return false
      }
      if number < 2 * sites {
        if number >= sites && !isWrite { fail(.readOnly) }
      } else {
        let isForWriting = number >= 2 * sites + Int(CHOST_REGIONS)
        if isForWriting && !isWrite { fail(.readOnly) }
        // The slot is filled as if the whole of what begins there were in the page of the address.
        let begin = linear &- request >> UInt64(CHOST_REQUEST_OFFSET_SHIFT)
        if begin & 4095 <= 4096 - 64 && begin & ~4095 != linear & ~4095 { fail(.outside) }
        answer = answer &+ begin
      }
    }
    registers[14] = answer
    secrets |= 1 << 14
    flags = nil
    return danger == nil
  }
}

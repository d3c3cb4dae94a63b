// SPDX-License-Identifier: Apache-2.0
// A guest for programs made of bytes: a kernel's tables in every format of paging, whose handlers halt, memory that
// only the supervisor may use, and the engine around it, in which any fail-soft fault and any block that the checker
// refuses is a failure.

import Engine
import GuestMemory
import Host
import Synchronization
import TestSupport
import X86

@testable import Translator

/// A machine without devices.
final class EngineGuest {
  static let pml4: UInt64 = 0x1000, pdpt: UInt64 = 0x2000, directory: UInt64 = 0x3000, table: UInt64 = 0x4000
  static let gdt: UInt64 = 0x5000, idt: UInt64 = 0x6000, tss: UInt64 = 0x7000
  /// Tables of two levels, and the list of four directories of PAE.
  static let directory32: UInt64 = 0x8000, table32: UInt64 = 0xC000, list: UInt64 = 0xA000
  static let ldt: UInt64 = 0x9000, idt32: UInt64 = 0xD000, tss32: UInt64 = 0xE000
  static let code: UInt64 = 0x10000, data: UInt64 = 0x20000, stack: UInt64 = 0x80000, stack0: UInt64 = 0x90000
  static let interruptStack: UInt64 = 0xA0000, handlers: UInt64 = 0xB0000
  /// What programs of level 3 may use, twice.
  static let userPages: Range<UInt64> = 0x10..<0x90
  static let userRegion: Range<UInt64> = 0x20_0000..<0x40_0000
  /// What they may not, and nobody changes.
  static let secrets: [UInt64] = [0x10_0000, 0x1F_8000, 0x40_0000]
  static let secretBytes = 0x2000
  static let byteCount: UInt64 = 8 << 20

  let memory: GuestMemory
  let translation: Translation
  let cpus: [TranslatedCPU]
  /// The tables and handlers as they were made.
  private var tables: [(place: UInt64, bytes: [UInt8])] = []
  private static let tables: [Range<UInt64>] = [0x1000..<0xF000, handlers..<handlers + 0x2000]
  var cpu: TranslatedCPU { cpus[0] }

  private static let cpuid = CPUIDTable([
    .init(0, subleaf: nil, eax: 7, ebx: 0x756E_6547, ecx: 0x6C65_746E, edx: 0x4965_6E69),
    .init(1, subleaf: nil, eax: 0x106CA, ebx: 0, ecx: 0xFFFF_FFFF & ~(1 << 3), edx: 0x178B_FBFF),
    .init(7, subleaf: 0, eax: 0, ebx: 0x0010_04A9, ecx: 4, edx: 0),
    .init(0x8000_0000, subleaf: nil, eax: 0x8000_0001, ebx: 0, ecx: 0, edx: 0),
    .init(0x8000_0001, subleaf: nil, eax: 0, ebx: 0, ecx: 0x21, edx: 0x2C10_0800),
  ])

  /// - Parameter edit: What the engine does otherwise than by default.
  init(cpus count: Int = 1, _ edit: (inout TranslationOptions) -> Void = { _ in }) throws {
    memory = try GuestMemory(byteCount: EngineGuest.byteCount)
    var options = TranslationOptions(
      cpuid: [CPUIDTable](repeating: EngineGuest.cpuid, count: count), supports: { _ in true })
    options.softFaultLimit = 1
    edit(&options)
    let translation = try Translation(memory: memory, options: options)
    self.translation = translation
    cpus = try (0..<count).map { try translation.makeCPU($0) }
    try makeTables()
    for piece in EngineGuest.tables { tables.append((piece.lowerBound, try bytes(piece))) }
  }

  // MARK: Memory

  func poke<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: UInt64) throws {
    try memory.store(value, at: GuestPhysical(address))
  }

  func peek<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type = T.self, at address: UInt64) throws -> T {
    try memory.load(type, at: GuestPhysical(address))
  }

  func load(_ bytes: [UInt8], at address: UInt64 = EngineGuest.code) throws {
    try memory.copy(from: bytes, to: GuestPhysical(address))
  }

  static func isUser(page: UInt64) -> Bool { userPages.contains(page) }

  private func bytes(_ range: Range<UInt64>) throws -> [UInt8] {
    try memory.bytes(at: GuestPhysical(range.lowerBound), count: range.count)
  }

  /// Makes tables and handlers what they were. What has not changed is left alone: it may be translated.
  func restoreTables() throws {
    for piece in tables where try bytes(piece.place..<piece.place + UInt64(piece.bytes.count)) != piece.bytes {
      try load(piece.bytes, at: piece.place)
    }
  }

  private func makeTables() throws {
    typealias Guest = EngineGuest
    try poke(Guest.pdpt | 7, at: Guest.pml4)
    try poke(Guest.directory | 7, at: Guest.pdpt)
    // The last of four gigabytes is not RAM.
    try poke(0xC000_0000 | UInt64(0x87), at: Guest.pdpt + 24)
    try poke(Guest.table | 7, at: Guest.directory)
    for index in UInt64(1)..<512 {
      let isUser = Guest.userRegion.contains(index << 21)
      try poke(index << 21 | (isUser ? 0x87 : 0x83), at: Guest.directory + index * 8)
    }
    for page in UInt64(0)..<512 {
      try poke(page << 12 | (Guest.isUser(page: page) ? 7 : 3), at: Guest.table + page * 8)
    }
    try poke(Guest.directory | 1, at: Guest.list)
    for index in UInt64(1)..<4 { try poke(UInt64(0), at: Guest.list + index * 8) }
    try poke(UInt32(Guest.table32 | 7), at: Guest.directory32)
    for index in UInt64(1)..<1024 { try poke(UInt32(index << 22 | 0x83), at: Guest.directory32 + index * 4) }
    for page in UInt64(0)..<1024 {
      let isUser = Guest.isUser(page: page) || Guest.userRegion.contains(page << 12)
      try poke(UInt32(page << 12 | (isUser ? 7 : 3)), at: Guest.table32 + page * 4)
    }
    let descriptors: [UInt64] = [
      0, 0x00CF_9B00_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF,  // 8 10 18: kernel
      0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_1300_0000_FFFF,  // 20 28 30: user
      Guest.tss << 16 | 0x0000_8B00_0000_0067, 0,  // 40: TSS
      0x0000_9B00_0000_FFFF, 0x0000_9300_0000_FFFF,  // 50 58: 16-bit code and data
      0x0040_9700_0000_0FFF, 0x0040_9302_0000_00FF,  // 60: expand-down, 68: 256 bytes at 20000
      0x00CF_9100_0000_FFFF, 0x00CF_F900_0000_FFFF,  // 70: read-only, 78: execute-only of level 3
      0x0000_FB01_0000_FFFF, 0x0000_F302_0000_FFFF,  // 80 88: 16-bit, level 3, at 10000 and 20000
      0x0040_F700_0000_0FFF, 0x0040_F302_0000_00FF,  // 90: expand-down, 98: 256 bytes at 20000, of level 3
      0x0000_8200_9000_00FF, 0,  // A0: LDT
      0x0000_EC00_0010_0000 | (Guest.handlers & 0xFFFF), 0,  // B0: call gate
      0x0000_8900_E000_0067, 0x0000_E500_00C0_0000,  // C0: a TSS for 32 bits that is free, C8: task gate
      0x00CF_FF00_0000_FFFF, 0x00C0_F340_0000_0FFF,  // D0: conforming, D8: a part of the first 16 MiB
    ]
    for (index, value) in descriptors.enumerated() {
      try poke(value, at: Guest.gdt + UInt64(index) * 8)
      try poke(value, at: Guest.ldt + UInt64(index % 32) * 8)
    }
    try poke(Guest.stack0, at: Guest.tss + 4)
    try poke(Guest.interruptStack, at: Guest.tss + 36)
    try poke(UInt16(0x68), at: Guest.tss + 102)
    try poke(UInt32(Guest.stack0), at: Guest.tss32 + 4)
    try poke(UInt32(0x18), at: Guest.tss32 + 8)
    try poke(UInt16(0x68), at: Guest.tss32 + 102)
    for vector in UInt64(0)..<256 {
      let target = Guest.handlers + vector * 16
      let access: UInt64 = [3, 4, 0x80].contains(vector) ? 0xEE : 0x8E
      let low = target & 0xFFFF | access << 40 | (target >> 16) << 48
      try poke(low | 0x10 << 16, at: Guest.idt + vector * 16)
      try poke(UInt64(0), at: Guest.idt + vector * 16 + 8)
      try poke(low | 0x08 << 16, at: Guest.idt32 + vector * 8)
      // HLT, and HLT again.
      try poke(UInt32(0x90FD_EBF4), at: target)
    }
    // SYSCALL and SYSENTER.
    try poke(UInt32(0x90FD_EBF4), at: Guest.handlers + 0x1000)
    for base in Guest.secrets {
      for offset in stride(from: UInt64(0), to: UInt64(Guest.secretBytes), by: 8) {
        try poke(Guest.secret(base + offset), at: base + offset)
      }
    }
  }

  /// What is in a word that nobody may read.
  static func secret(_ address: UInt64) -> UInt64 { 0x5EC2_E7A1_0000_0000 | address }

  // MARK: States

  static func segment(_ selector: UInt16, _ attributes: UInt32, base: UInt64 = 0, limit: UInt32 = .max) -> Segment {
    Segment(selector: selector, base: base, limit: limit, attributes: attributes)
  }

  /// 64-bit mode.
  static func long(user: Bool) -> CPUState {
    var state = CPUState()
    state.cs = user ? segment(0x33, 0xA0FB) : segment(0x10, 0xA09B)
    setData(&state, user ? segment(0x2B, 0xC0F3) : segment(0x18, 0xC093))
    state.tr = segment(0x40, 0x8B, base: tss, limit: 0x67)
    state.ldtr = .unusable
    state.gdtr = DescriptorTable(base: gdt, limit: 0xEF)
    state.idtr = DescriptorTable(base: idt, limit: 0xFFF)
    state.cr0 = 0x8001_0033
    state.cr3 = pml4
    state.cr4 = 0x4_06B0
    state.efer = 0xD01
    state.xcr0 = 7
    state.star = 0x0020_0010_0000_0000
    (state.lstar, state.cstar, state.sysenterEIP) = (handlers + 0x1000, handlers + 0x1000, handlers + 0x1000)
    (state.sysenterCS, state.sysenterESP) = (0x10, stack0)
    state.rip = code
    state.registers[4] = stack
    return state
  }

  static func setData(_ state: inout CPUState, _ segment: Segment) {
    for path in [\CPUState.ss, \.ds, \.es, \.fs, \.gs] { state[keyPath: path] = segment }
  }

  /// Protected mode without long mode: PAE, two levels or no paging at all.
  static func protected(user: Bool, paging: Int) -> CPUState {
    var state = long(user: user)
    state.efer = 0x800
    state.cs = user ? segment(0x23, 0xC0FB) : segment(0x08, 0xC09B)
    state.tr = segment(0x40, 0x8B, base: tss32, limit: 0x67)
    state.idtr = DescriptorTable(base: idt32, limit: 0x7FF)
    switch paging {
    case 0:
      state.cr3 = list
      state.cr4 = 0x6B0
    case 1:
      state.efer = 0
      state.cr3 = directory32
      state.cr4 = 0x690
    default:
      state.efer = 0
      state.cr0 = 0x33
      state.cr3 = 0
      state.cr4 = 0x600
    }
    return state
  }

  static func real(_ input: inout FuzzInput) -> CPUState {
    var state = CPUState()
    state.cr0 = 0x10
    for path in [\CPUState.ss, \.ds, \.es, \.fs, \.gs] {
      let selector = input.word(UInt16.self) & 0x1FFF
      state[keyPath: path] = Segment(selector: selector, base: UInt64(selector) << 4, limit: 0xFFFF, attributes: 0x93)
    }
    state.cs = Segment(selector: 0x1000, base: 0x10000, limit: 0xFFFF, attributes: 0x9B)
    state.rip = 0
    state.idtr = DescriptorTable(base: 0, limit: 0x3FF)
    return state
  }

  /// Registers, flags, and at times breakpoints.
  static func setRegisters(_ state: inout CPUState, _ input: inout FuzzInput) {
    for number in 0..<16 where number != 4 { state.registers[number] = input.value() }
    if input.chance(8) {
      state.registers[4] = input.value()
    } else {
      state.registers[4] = stack &- UInt64(input.byte())
    }
    state.rflags = state.rflags & 0x2_0000 | UInt64(input.word(UInt32.self)) & 0x20_4CD5 | 2
    if input.chance(4) { state.rflags |= 0x200 }
    if input.chance(8) { state.rflags |= 0x4_0000 }
    if input.chance(16) { state.rflags |= 0x100 }
    if input.chance(16) {
      state.dr7 = UInt64(input.word(UInt32.self)) & 0xFFFF_03FF | 0x400
      state.dr0 = code &+ UInt64(input.byte())
      state.dr1 = stack &- 8
      state.dr2 = UInt64(input.word(UInt32.self)) % (6 << 20)
    }
    if input.chance(8) { state.cr0 |= UInt64(input.byte()) & 0xE }
    if input.chance(8) {
      state.fs.base = input.value()
      state.gs.base = input.value()
      if state.efer & 0x400 == 0 || state.cs.attributes & 0x2000 == 0 {
        state.fs.base &= 0xFFFF_FFFF
        state.gs.base &= 0xFFFF_FFFF
      } else {
        // Canonical, as WRMSR and WRFSBASE demand.
        state.fs.base = UInt64(bitPattern: Int64(bitPattern: state.fs.base << 16) >> 16)
        state.gs.base = UInt64(bitPattern: Int64(bitPattern: state.gs.base << 16) >> 16)
      }
    }
  }

  // MARK: Running

  /// Runs one vCPU from a state, with random answers to what it asks, until it halts, is kicked or asked often enough.
  ///
  /// - Returns: False after a triple fault: what a processor is then is nobody's affair.
  @discardableResult
  func run(_ number: Int, _ random: inout SeededGenerator, exits: Int = 12) throws -> Bool {
    let cpu = cpus[number]
    for _ in 0..<exits {
      if random.next() % 4 == 0 && cpu.canAcceptInterrupt { cpu.inject(interrupt: UInt8(random.next() & 0xFF)) }
      if random.next() % 16 == 0 { cpu.injectNMI() }
      if random.next() % 4 == 0 { cpu.requestInterruptWindow(random.next() % 2 == 0) }
      switch cpu.run() {
      case .portRead, .mmioRead: cpu.completeRead(random.next())
      case .msrRead: random.next() % 2 == 0 ? cpu.completeRead(random.next()) : cpu.raise(.generalProtection())
      case .msrWrite: random.next() % 2 == 0 ? cpu.completeWrite() : cpu.raise(.generalProtection())
      case .kicked: return true
      case .shutdown: return false
      case .failed(let text): throw FuzzFailure("the engine failed: \(text)")
      case .halt: if random.next() % 4 != 0 { return true }
      default: break
      }
    }
    return true
  }

  /// What a guest comes to by itself is no reason to refuse a saved machine.
  func checkState() throws {
    if let register = cpu.processor.impossibleRegister(in: cpu.processor.registers) {
      throw FuzzFailure("impossible \(register.name) \(String(register.value, radix: 16))")
    }
  }

  /// Ends an instruction that is half done: the state may be replaced only between two.
  func settle(_ number: Int, _ random: inout SeededGenerator) throws {
    for _ in 0..<1000 where !cpus[number].isAtBoundary {
      cpus[number].kick()
      try run(number, &random, exits: 1)
    }
    if !cpus[number].isAtBoundary { throw FuzzFailure("an instruction does not end") }
  }

  /// Whether the engine is content with itself.
  func check(_ refusals: Refusals) throws {
    let counters = translation.counters
    if counters.softFaults != 0 { throw FuzzFailure("fail-soft fault: \(counters.firstSoftFault ?? "")") }
    if counters.refused != 0 { throw FuzzFailure("the checker refuses a block: \(refusals.first)") }
  }

  /// That nobody wrote where only the supervisor may, but the processor.
  func checkSupervisorMemory() throws {
    for base in EngineGuest.secrets {
      for offset in stride(from: UInt64(0), to: UInt64(EngineGuest.secretBytes), by: 8) {
        let address = base + offset
        let value = try peek(UInt64.self, at: address)
        if value != EngineGuest.secret(address) {
          throw FuzzFailure("supervisor memory at \(String(address, radix: 16)) is \(String(value, radix: 16))")
        }
      }
    }
    for vector in UInt64(0)..<256 where try peek(UInt8.self, at: EngineGuest.handlers + vector * 16) != 0xF4 {
      throw FuzzFailure("the handler of vector \(vector) is changed")
    }
    for page in UInt64(0)..<512 {
      let entry = try peek(UInt64.self, at: EngineGuest.table + page * 8) & ~0x60
      if entry != page << 12 | (EngineGuest.isUser(page: page) ? 7 : 3) {
        throw FuzzFailure("the entry of page \(page) is \(String(entry, radix: 16))")
      }
    }
  }

  /// That no register holds what only the supervisor may read.
  func checkRegisters() throws {
    let state = cpu.state
    for (number, value) in state.registers.enumerated()
    where value >> 32 == 0x5EC2_E7A1 && EngineGuest.secrets.contains(where: { value & 0xFFFF_E000 == $0 & ~0x1FFF }) {
      throw FuzzFailure("register \(number) holds a word of the supervisor's: \(String(value, radix: 16))")
    }
  }
}

/// What the checker said of the first block that it refused.
final class Refusals: Sendable {
  private let text = Mutex("")
  var first: String { text.withLock { $0 } }
  func note(_ line: String) { text.withLock { if $0.isEmpty { $0 = line } } }
}

/// Kicks vCPUs again and again until it is stopped: programs end by themselves seldom.
final class Kicking: Sendable {
  private let flag: Flag
  private let thread: HostThread

  init(_ cpus: [TranslatedCPU], every microseconds: UInt64 = 300) throws {
    let over = Flag()
    flag = over
    thread = try HostThread(name: "kicking") {
      while !over.isSet {
        HostClock.sleep(until: HostClock.after(nanoseconds: microseconds * 1000))
        for cpu in cpus { cpu.kick() }
      }
    }
  }

  func stop() {
    flag.set()
    thread.join()
  }

  private final class Flag: Sendable {
    private let value = Atomic<Bool>(false)
    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
  }
}

/// Runs `body` on this thread, made fit for translated code.
func onPreparedThread(_ body: () throws -> Void) throws {
  var failure: (any Error)?
  try HostCPU.withPreparedThread { () throws(HostError) in
    do { try body() } catch { failure = error }
  }
  if let failure { throw failure }
}

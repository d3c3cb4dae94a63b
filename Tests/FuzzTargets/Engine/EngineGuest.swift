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
final class EngineGuest: TestKernel {
  /// Tables of two levels, and the list of four directories of PAE.
  static let directory32: UInt64 = 0x8000, table32: UInt64 = 0xC000, list: UInt64 = 0xA000
  static let ldt: UInt64 = 0x9000, idt32: UInt64 = 0xD000, tss32: UInt64 = 0xE000
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

  static let moreDescriptors: [UInt64] = [
    0x0000_FB01_0000_FFFF, 0x0000_F302_0000_FFFF,  // 80 88: 16-bit, level 3, at 10000 and 20000
    0x0040_F700_0000_0FFF, 0x0040_F302_0000_00FF,  // 90: expand-down, 98: 256 bytes at 20000, of level 3
    0x0000_8200_9000_00FF, 0,  // A0: LDT
    0x0000_EC00_0010_0000 | (handlers & 0xFFFF), 0,  // B0: call gate
    0x0000_8900_E000_0067, 0x0000_E500_00C0_0000,  // C0: a TSS for 32 bits that is free, C8: task gate
    0x00CF_FF00_0000_FFFF, 0x00C0_F340_0000_0FFF,  // D0: conforming, D8: a part of the first 16 MiB
    0, 0,
  ]

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
  static func isUser(region: UInt64) -> Bool { userRegion.contains(region) }

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
    try makeKernelTables()
    try poke(Guest.directory | 1, at: Guest.list)
    for index in UInt64(1)..<4 { try poke(UInt64(0), at: Guest.list + index * 8) }
    try poke(UInt32(Guest.table32 | 7), at: Guest.directory32)
    for index in UInt64(1)..<1024 { try poke(UInt32(index << 22 | 0x83), at: Guest.directory32 + index * 4) }
    for page in UInt64(0)..<1024 {
      let isUser = Guest.isUser(page: page) || Guest.userRegion.contains(page << 12)
      try poke(UInt32(page << 12 | (isUser ? 7 : 3)), at: Guest.table32 + page * 4)
    }
    for (index, value) in Guest.descriptors.enumerated() { try poke(value, at: Guest.ldt + UInt64(index % 32) * 8) }
    try poke(UInt32(Guest.stack0), at: Guest.tss32 + 4)
    try poke(UInt32(0x18), at: Guest.tss32 + 8)
    try poke(UInt16(0x68), at: Guest.tss32 + 102)
    for vector in UInt8(0)...255 {
      let gate = Guest.gate(vector, to: Guest.kernelCode32, privilege: Guest.privilege(ofGate: vector))
      try poke(gate, at: Guest.idt32 + UInt64(vector) * 8)
    }
    // SYSCALL and SYSENTER.
    try poke(UInt32(0x90FD_EBF4), at: Guest.systemCallHandler)
    for base in Guest.secrets {
      for offset in stride(from: UInt64(0), to: UInt64(Guest.secretBytes), by: 8) {
        try poke(Guest.secret(base + offset), at: base + offset)
      }
    }
  }

  /// What is in a word that nobody may read.
  static func secret(_ address: UInt64) -> UInt64 { 0x5EC2_E7A1_0000_0000 | address }

  // MARK: States

  /// 64-bit mode, with SYSENTER.
  static func long(user: Bool) -> CPUState {
    var state = longState(user: user)
    (state.cstar, state.sysenterEIP) = (systemCallHandler, systemCallHandler)
    (state.sysenterCS, state.sysenterESP) = (UInt64(kernelCode), stack0)
    return state
  }

  /// Protected mode without long mode: PAE, two levels or no paging at all.
  static func protected(user: Bool, paging: Int) -> CPUState {
    var state = long(user: user)
    state.efer = EFER.nxe
    state.cs = user ? segment(0x23, 0xC0FB) : segment(0x08, 0xC09B)
    state.tr = segment(0x40, 0x8B, base: tss32, limit: 0x67)
    state.idtr = DescriptorTable(base: idt32, limit: 0x7FF)
    switch paging {
    case 0:
      state.cr3 = list
      state.cr4 &= ~CR4.osxsave
    case 1:
      state.efer = 0
      state.cr3 = directory32
      state.cr4 &= ~(CR4.osxsave | CR4.pae)
    default:
      state.efer = 0
      state.cr0 &= ~(CR0.pg | CR0.wp)
      state.cr3 = 0
      state.cr4 = CR4.osxmmexcpt | CR4.osfxsr
    }
    return state
  }

  static func real(_ input: inout FuzzInput) -> CPUState {
    var state = CPUState()
    state.cr0 = CR0.et
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
      if state.efer & EFER.lma == 0 || state.cs.attributes & 0x2000 == 0 {
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
  try PreparedThread.run { () throws(HostError) in
    do { try body() } catch { failure = error }
  }
  if let failure { throw failure }
}

// SPDX-License-Identifier: Apache-2.0
// A ring-1 guest of lguest without devices, of any era: a vCPU, its host and two per-CPU pages, which it may share with
// another guest. Whatever it does, its level is not 0, its control registers and tables stay what the host made them, and
// the pages hold nothing that leads to level 0.

import Engine
import GuestMemory
import Host
import Synchronization
import TestSupport
import X86

@testable import Lguest
@testable import Paravirt
@testable import Translator

/// A machine of `--abi lguest`.
final class LguestGuest {
  static let byteCount: UInt64 = 4 << 20, memorySize: UInt64 = 3 << 20
  static let kernelBase: UInt32 = 0xC000_0000
  /// A directory of 32-bit paging; the four top entries of PAE paging and their directory; entries for all RAM.
  static let narrow: UInt64 = 0x8000, wide: UInt64 = 0xA000, directory: UInt64 = 0xB000
  static let narrowTable: UInt64 = 0x9000, wideTables: UInt64 = 0xC000
  static let code: UInt64 = 0x1_0000, data: UInt64 = 0x2_0000, stack: UInt64 = 0x8_0000, stack1: UInt64 = 0x9_0000
  static let handlers: UInt64 = 0xB_0000

  /// What is chosen once.
  struct Choice {
    var era: LguestEra
    var layout: LguestDataLayout
    var policy: HypercallPolicy
    /// Where struct lguest_data is.
    var place: UInt64
    var lightPaths = true

    init(_ input: inout FuzzInput) {
      era = input.choose(LguestEra.allCases)
      layout = input.choose(era.row.layouts)
      policy = input.choose(HypercallPolicy.allCases)
      place = input.chance(8) ? input.value(addresses: LguestGuest.byteCount) & 0xFFFF_FFFF : LguestGuest.data + 0x4000
    }
  }

  /// Why `run` came back.
  enum End { case over, kicked, halted, enough }

  let choice: Choice
  let memory: GuestMemory
  let ram: any GuestPhysicalWriter
  let translation: Translation
  let cpu: TranslatedCPU
  let interrupts = LguestInterrupts()
  var host: LguestHost
  private let pages: [LguestPage]
  private let watch: Patience
  private let refusals = Refusals()
  /// What the vCPU left for in the last run, and what became of it.
  private(set) var log: [(exit: VCPUExit, effect: LguestEffect)] = []
  private(set) var isOver = false
  private var isHalted = false

  static func makePages() throws -> [LguestPage] {
    [LguestPage(try MachinePage()), LguestPage(try MachinePage(), policy: .everything)]
  }

  /// How long a run may take, in ns.
  static let patience: UInt64 = 2_000_000

  init(_ choice: Choice, _ pages: [LguestPage], patience: UInt64 = patience) throws {
    (self.choice, self.pages, watch) = (choice, pages, Patience(limit: patience))
    memory = try GuestMemory(byteCount: LguestGuest.byteCount)
    ram = ParavirtMemory(memory: memory)
    // What is random is left out: two guests are compared.
    var options = TranslationOptions(cpuid: [EngineGuest.cpuid], supports: { $0 != .rdrand && $0 != .rdseed })
    options.softFaultLimit = 1
    options.exactFlags = true
    options.lightPaths = choice.lightPaths
    options.nativeHypercall = choice.policy == .native ? .vmcall : nil
    options.hypercallPolicy = .fault
    options.refused = { [refusals] in refusals.note($0) }
    translation = try Translation(memory: memory, options: options)
    cpu = try translation.makeCPU(0)
    let start = LguestStart(
      memorySize: LguestGuest.memorySize, room: 0x18_0000..<LguestGuest.memorySize,
      pageOffset: choice.era == .linux2_6_23 ? LguestGuest.kernelBase : nil)
    host = LguestHost(
      memory: ram, start: start, limit: LguestGuest.byteCount, hypercallPolicy: choice.policy, interrupts: interrupts,
      services: LguestServices(
        timestampKilohertz: 0, wallTime: { (1_700_000_000, 5) }, setTimer: { _ in },
        readPort: { port, size in port & 1 == 0 ? UInt32(port) &* UInt32(size) : nil }, writePort: { _, _, _ in }))
    makeTables()
    reset()
    try watch.watch(cpu)
  }

  deinit { watch.stop() }

  /// At the kernel's first instruction, as after a restart.
  func reset() {
    interrupts.reset()
    var state = LguestHost.firstState(entry: LguestGuest.code)
    state.cr4 |= CR4.tsd
    cpu.state = state
    host.reset(cpu)
    (isOver, isHalted) = (false, false)
  }

  /// All RAM at 0 and at the kernel's address, in both formats; only the kernel may use what is above the stacks, and
  /// nobody changes the tables.
  func makeTables() {
    for page in UInt64(0)..<LguestGuest.byteCount >> 12 {
      let isTable = (8..<14).contains(page)
      let entry = page << 12 | (isTable ? 1 : EngineGuest.isUser(page: page) ? 7 : 3)
      ram.store(UInt32(entry), at: LguestGuest.narrowTable + page * 4)
      ram.store(entry, at: LguestGuest.wideTables + page * 8)
    }
    for entry in [UInt64(0), UInt64(LguestGuest.kernelBase >> 22)] {
      ram.store(UInt32(LguestGuest.narrowTable | 7), at: LguestGuest.narrow + entry * 4)
    }
    for top in [UInt64(0), 3] { ram.store(LguestGuest.directory | 1, at: LguestGuest.wide + top * 8) }
    for half in UInt64(0)..<2 {
      ram.store((LguestGuest.wideTables + half << 12) | 7, at: LguestGuest.directory + half * 8)
    }
  }

  /// A structure that can be registered.
  func makeData() {
    let (layout, place) = (choice.layout, choice.place)
    for offset in 0..<layout.byteCount { ram.store(UInt8(0), at: place + offset) }
    for slot in UInt64(0)..<64 { ram.store(UInt8(0xFF), at: place + layout.status + slot) }
    if let offset = layout.kernelAddress { ram.store(LguestGuest.kernelBase, at: place + offset) }
    if let offset = layout.syscallVector { ram.store(LguestDataLayout.systemCall, at: place + offset) }
    switch layout.iretWindow {
    case .point(let offset): ram.store(UInt32(LguestGuest.code), at: place + offset)
    case .range(let start, let end):
      ram.store(LguestGuest.kernelBase + UInt32(LguestGuest.code), at: place + start)
      ram.store(LguestGuest.kernelBase + UInt32(LguestGuest.code) + 8, at: place + end)
    }
    let name: [UInt8] = choice.era == .linux2_6_24 ? [UInt8]("Linux version 2.6.24".utf8) : [0]
    for (index, byte) in name.enumerated() { ram.store(byte, at: 1 << 20 + UInt64(index)) }
  }

  // MARK: Calls

  /// The registers of a call.
  func setCall(_ number: UInt32, _ arguments: [UInt32]) {
    cpu[register: GPR.rax] = UInt64(number)
    for (index, value) in arguments.prefix(3).enumerated() {
      cpu[register: choice.era.row.convention.registers[index]] = UInt64(value)
    }
  }

  /// Makes a call from level 1.
  func call(_ name: LguestCall, _ arguments: UInt32...) {
    guard let number = name.number(in: choice.era) else { return }
    setCall(number, arguments)
    _ = note(host.take(Trap(vector: LguestCall.vector, kind: .software(at: cpu.state.rip)), on: cpu))
  }

  /// Leaves a call in a slot of the ring.
  func queue(_ slot: Int, _ words: [UInt32]) {
    let (layout, place) = (choice.layout, choice.place)
    for (index, value) in words.prefix(4).enumerated() {
      let word = UInt64(choice.era.row.convention.ring[index])
      ram.store(value, at: place + layout.calls + UInt64(slot) * layout.callBytes + word * 4)
    }
    ram.store(UInt8(0), at: place + layout.status + UInt64(slot))
  }

  // MARK: Running

  /// What the machine does of it; false: the guest does not go on.
  private func note(_ effect: LguestEffect) -> Bool {
    var effect = effect
    while effect != .none && !isOver {
      switch effect {
      case .none, .registered, .notify, .send: break
      case .bind(let key, _, _, _, let isAnswered): if isAnswered { cpu[register: GPR.rax] = UInt64(key & 1) }
      case .halt: isHalted = true
      case .shutdown, .killed: isOver = true
      }
      if !isOver { effect = host.goOn(on: cpu) }
    }
    return !isOver
  }

  /// Runs until the guest is over, sleeps for nothing, has taken too long or left often enough.
  func run(_ random: inout SeededGenerator, exits: Int) throws -> End {
    log = []
    watch.begin()
    defer { watch.end() }
    while !isOver && log.count < exits {
      if random.next() % 4 == 0 { interrupts.raise(UInt8(random.next() % 8)) }
      if isHalted {
        guard host.news.isThere else { return .halted }
        isHalted = false
      }
      _ = host.deliver(to: cpu)
      host.resume(on: pages[random.next() % 8 == 0 ? 1 : 0], cpu)
      try checkPages()
      let exit = cpu.run()
      var effect = LguestEffect.none
      switch exit {
      case .portRead, .mmioRead, .msrRead: cpu.completeRead(random.next())
      case .msrWrite: cpu.completeWrite()
      case .trap(let trap): effect = host.take(trap, on: cpu)
      case .hypercall: effect = host.takeNativeHypercall(cpu)
      case .shutdown: throw FuzzFailure("a triple fault of a ring-1 guest")
      case .failed(let text): throw FuzzFailure("the engine failed: \(text)")
      default: break
      }
      log.append((exit, effect))
      _ = note(effect)
      try check()
      if exit == .kicked { return .kicked }
    }
    return isOver ? .over : .enough
  }

  /// Ends an instruction that is half done.
  func settle() throws {
    for _ in 0..<1000 where !cpu.isAtBoundary {
      cpu.kick()
      switch cpu.run() {
      case .portRead, .mmioRead, .msrRead: cpu.completeRead(0)
      case .msrWrite: cpu.completeWrite()
      default: break
      }
    }
    if !cpu.isAtBoundary { throw FuzzFailure("an instruction does not end") }
  }

  // MARK: Checks

  /// What no guest can change.
  func check() throws {
    let counters = translation.counters
    if counters.softFaults != 0 { throw FuzzFailure("fail-soft fault: \(counters.firstSoftFault ?? "")") }
    if counters.refused != 0 { throw FuzzFailure("the checker refuses a block: \(refusals.first)") }
    let (state, first) = (cpu.state, LguestHost.firstState(entry: 0))
    func fail(_ what: String, _ value: UInt64) -> FuzzFailure { FuzzFailure("\(what) is \(String(value, radix: 16))") }
    if cpu.currentPrivilegeLevel == 0 || state.cs.attributes & 0x60 == 0 || state.ss.attributes & 0x1_0060 == 0 {
      throw fail("level 0: CS", UInt64(state.cs.selector))
    }
    if state.rflags & (RFLAGS.iopl | RFLAGS.vm | RFLAGS.vif | RFLAGS.vip) != 0 { throw fail("RFLAGS", state.rflags) }
    // The guest's own flag is a word, which has to be aligned.
    if host.data.map({ $0 & 3 == 0 }) ?? true, state.rflags & RFLAGS.if == 0 { throw fail("RFLAGS", state.rflags) }
    if state.cr0 & ~CR0.ts != first.cr0 { throw fail("CR0", state.cr0) }
    if state.cr3 != 0 || state.efer != 0 || state.cr4 != first.cr4 | CR4.tsd { throw fail("CR4", state.cr4) }
    guard state.gdtr == first.gdtr, state.idtr == first.idtr, state.tr == first.tr, state.ldtr == first.ldtr else {
      throw fail("a table's register: TR", UInt64(state.tr.selector))
    }
    if state.registers.contains(where: { $0 >> 32 != 0 }) { throw FuzzFailure("a register of more than 32 bits") }
    if let register = cpu.processor.impossibleRegister(in: cpu.processor.registers) {
      throw fail("impossible \(register.name)", register.value)
    }
  }

  /// That nothing in the pages leads to level 0.
  private func checkPages() throws {
    for page in pages.map(\.page) {
      for index in 0..<32 {
        let value = page.load(UInt64.self, at: index * 8)
        let isPresent = value >> 47 & 1 != 0
        if value != 0
          && (value >> 45 & 3 == 0 || [10, 11, 16, 31].contains(index) || isPresent && value >> 44 & 1 == 0)
        {
          throw FuzzFailure("descriptor \(index) is \(String(value, radix: 16))")
        }
      }
      for vector in 0..<256 {
        let gate = page.load(UInt64.self, at: LguestPage.gates + vector * 8)
        if gate != 0 && (gate >> 16 & 0xFFFF != 0x61 || gate >> 41 & 0x4F != 0x47 || [2, 8, 15, 0x1F].contains(vector))
        {
          throw FuzzFailure("gate \(vector) is \(String(gate, radix: 16))")
        }
      }
      let task = (0..<26).map { page.load(UInt32.self, at: LguestPage.taskState + $0 * 4) }
      let others = task.indices.filter { ![3, 4, 25].contains($0) && task[$0] != 0 }
      if !others.isEmpty || task[4] != 0 && task[4] & 3 != 1 || task[25] != 0x68_0000 {
        throw FuzzFailure("the task-state segment is \(task)")
      }
    }
  }
}

/// Kicks a vCPU whose run takes too long, and no other: a program that ends by itself ends the same way each time.
private final class Patience: Sendable {
  private let limit: UInt64
  /// 0: nothing runs; all ones: it is over.
  private let deadline = Atomic<UInt64>(0)

  init(limit: UInt64) { self.limit = limit }

  func watch(_ cpu: TranslatedCPU) throws {
    _ = try HostThread(name: "patience") { [self, weak cpu] in
      while true {
        HostClock.sleep(until: HostClock.after(nanoseconds: limit / 2))
        let deadline = deadline.load(ordering: .acquiring)
        if deadline == .max { return }
        if deadline != 0 && HostClock.monotonic > deadline { cpu?.kick() }
      }
    }
  }

  func begin() { deadline.store(HostClock.after(nanoseconds: limit), ordering: .releasing) }
  func end() { deadline.store(0, ordering: .releasing) }
  func stop() { deadline.store(.max, ordering: .releasing) }
}

// SPDX-License-Identifier: Apache-2.0
// lguest's hypercalls, performed: first those that wait in the ring, in order, then the one that was made.

import Engine
import X86

extension LguestHost {
  /// What a number is called in the guest's era; nil if it is no call of it.
  public func callName(_ number: Int) -> String? {
    calls.indices.contains(number) ? calls[number]?.rawValue : nil
  }

  /// A call as the guest left it: its number and three arguments. A fourth, the upper half of SET_PTE's entry, is not
  /// needed, for the engine reads the guest's own tables.
  struct Call {
    let number: UInt32
    let arguments: (UInt32, UInt32, UInt32)
  }

  /// INT 1Fh, or VMCALL, from level 1. EIP is past it.
  mutating func performHypercall(_ engine: some CPUEngine) -> LguestEffect {
    hasCalled = true
    let registers = engine.generalRegisters
    func word(_ number: UInt8) -> UInt32 { UInt32(truncatingIfNeeded: registers[number]) }
    let number = word(GPR.rax)
    guard let convention else {
      return number == LguestCall.initializeNumber
        ? initialize(registers, engine) : kill("hypercall \(number) before LGUEST_INIT")
    }
    let places = convention.registers
    let call = Call(number: number, arguments: (word(places[0]), word(places[1]), word(places[2])))
    return finish(call, engine)
  }

  /// What waits in the ring comes first. If it leads to something for the machine, the call waits for that.
  private mutating func finish(_ call: Call, _ engine: some CPUEngine) -> LguestEffect {
    if let effect = drainRing(engine) {
      unfinished = call
      return effect
    }
    unfinished = nil
    return perform(call, engine)
  }

  /// Goes on after something that the machine has done: the rest of the ring, and the call that was made. To be asked until
  /// there is nothing more to do, before the guest goes on.
  public mutating func goOn(on engine: some CPUEngine) -> LguestEffect {
    var effect = LguestEffect.none
    if let call = unfinished { effect = finish(call, engine) }
    return conclude(effect, engine)
  }

  /// Performs what waits in the ring; what ends the guest is returned.
  mutating func drainRing(_ engine: some CPUEngine) -> LguestEffect? {
    guard let data, let layout, let order = convention?.ring else { return nil }
    let count = LguestDataLayout.ringCount
    // What is put there meanwhile waits for the next call: at most once around.
    for _ in 0..<count {
      let index = ringIndex
      let status = data + layout.status + UInt64(index)
      if memory.loadByte(at: status) ?? 0xFF == 0xFF { return nil }
      ringIndex = (index + 1) % count
      let place = data + layout.calls + UInt64(index) * layout.callBytes
      let words = loadSlot(place)
      func word(_ argument: Int) -> UInt32 { words[order[argument]] }
      isOfRing = true
      defer { isOfRing = false }
      let effect = perform(Call(number: word(0), arguments: (word(1), word(2), word(3))), engine)
      memory.store(UInt8(0xFF), at: status)
      if effect != .none { return effect }
    }
    return nil
  }

  /// The first four words of a slot, in which that is.
  private func loadSlot(_ place: UInt64) -> InlineArray<4, UInt32> {
    let first = memory.loadQuadword(at: place) ?? 0, second = memory.loadQuadword(at: place + 8) ?? 0
    return [
      UInt32(truncatingIfNeeded: first), UInt32(truncatingIfNeeded: first >> 32), UInt32(truncatingIfNeeded: second),
      UInt32(truncatingIfNeeded: second >> 32),
    ]
  }

  private mutating func perform(_ call: Call, _ engine: some CPUEngine) -> LguestEffect {
    let (a, b, c) = call.arguments
    guard call.number < calls.count, let name = calls[Int(call.number)] else {
      return kill("Bad hypercall \(call.number)")
    }
    callCounts[Int(call.number)] &+= 1
    switch name {
    case .flushAsync, .sendInterrupts: return .none
    case .initialize: return kill("second LGUEST_INIT")
    case .shutdown: return shutdown(UInt64(a), restarts: b == 2)
    case .loadGDT: return loadGDT(UInt64(a), count: b)
    case .newPageTable: newPageTable(a, engine)
    case .flushTLB: if a == 0 { flush.addUser() } else { flush.addEverything() }
    case .loadIDTEntry:
      do { try tables.setGate(a, low: b, high: c) } catch { return kill(error.reason) }
    case .setStack: return setStack(a, b, pages: c)
    case .taskSwitched: engine.isTaskSwitched = a != 0
    case .setClockEvent: services.setTimer(a == 0 ? nil : a)
    case .halt:
      isHalted = true
      return .halt
    case .setPTE:
      if b >= LguestHost.reserved { return kill("attempt to set pte into Switcher pages") }
      let isKernel = b >= kernelBase
      if a == root || isKernel { flush.add(b, isKernel: isKernel) }
    case .setPMD:
      guard isWide else { return kill("Bad hypercall \(call.number)") }
      if isDirectory(a) { flush.addUser() }
    case .setPGD:
      if b >= (isWide ? 4 : 1024) { return kill("attempt to set pgd \(b)") }
      if a == root { flush.addUser() }
    case .loadTLS:
      guard memory.contains(UInt64(a), byteCount: 24) else { return kill("bad address 0x\(String(a, radix: 16))") }
      tables.setThreadDescriptors((descriptor(at: a, 0), descriptor(at: a, 1), descriptor(at: a, 2)))
    case .loadGDTEntry:
      guard a < LguestTables.descriptorCount else { return kill("too large GDT index \(a)") }
      tables.setDescriptor(a, low: b, high: c)
    case .notify: return .notify(UInt64(a))
    case .getWallClock: if !isOfRing { engine[register: GPR.rax] = UInt64(services.wallTime().seconds) }
    case .bindDMA:
      return .bind(key: a, buffers: b, count: c >> 8, interrupt: UInt8(truncatingIfNeeded: c), isAnswered: !isOfRing)
    case .sendDMA: return .send(key: a, buffer: b)
    }
    return .none
  }

  private mutating func initialize(_ registers: GeneralRegisters, _ engine: some CPUEngine) -> LguestEffect {
    guard
      let found = LguestEra.identify(
        registers, memory, kernel: kernel, isWordStart: start.pageOffset != nil, limit: LguestHost.reserved),
      found.address + found.layout.byteCount <= limit
    else {
      let place = UInt32(truncatingIfNeeded: registers[GPR.rbx] == 0 ? registers[GPR.rdx] : registers[GPR.rbx])
      return kill("bad guest page at 0x\(String(place, radix: 16)): no struct lguest_data of a known kernel")
    }
    let (era, layout, address) = found
    (self.era, self.layout, data) = (era, layout, address)
    callCounts[Int(LguestCall.initializeNumber)] &+= 1
    kernelBase = start.pageOffset ?? layout.kernelAddress.flatMap { memory.loadWord(at: address + $0) } ?? 0
    memory.store(services.timestampKilohertz, at: address + layout.timestampKilohertz)
    memory.store(0 &- LguestHost.reserved, at: address + layout.reserveMemory)
    if let place = layout.guestNumber {
      for index in UInt64(0)..<2 {
        memory.store(UInt8(truncatingIfNeeded: services.guestNumber >> UInt16(index * 8)), at: address + place + index)
      }
    }
    writeTime()
    useVirtualFlag(of: address, engine)
    flush.addEverything()
    if let place = layout.firstTables {
      guard
        let root = makeFirstTables(engine, (era.row.mapsIdentity ? [0] : []) + (era.row.mapsKernel ? [kernelBase] : []))
      else { return kill("no room for page tables") }
      memory.store(root, at: address + place)
    }
    return .registered(era)
  }

  /// RAM in which the kernel's texts are.
  private var kernel: Range<UInt64> { 1 << 20..<max(1 << 20, min(start.room.upperBound, 64 << 20)) }

  /// Makes tables with all RAM at these linear addresses, and lets the guest run in them.
  @discardableResult
  mutating func makeFirstTables(_ engine: some CPUEngine, _ linears: [UInt32]) -> UInt32? {
    // PAE came with 2.6.31. Its kernels show the top entry of a page walk, which others have not, with this text.
    let isWide = era == .linux2_6_31 && memory.has("*pdpt = ", in: kernel)
    var tables = LguestFirstTables(memory, start, isWide: isWide)
    guard let root = tables.make(at: linears, limit: LguestHost.reserved) else { return nil }
    (isLinear, self.isWide) = (false, isWide)
    self.root = root
    engine.addressSpace = isWide ? .extendedTables(root: root) : .tables(root: root)
    return root
  }

  private mutating func shutdown(_ address: UInt64, restarts: Bool) -> LguestEffect {
    guard let text = bytes(at: address, limit: 127) else {
      return restarts ? .shutdown(text: "", restarts: true) : kill("bad address 0x\(String(address, radix: 16))")
    }
    return .shutdown(text: String(decoding: text, as: UTF8.self), restarts: restarts)
  }

  /// The text at an address up to a zero; nil outside RAM.
  public func bytes(at address: UInt64, limit most: Int) -> [UInt8]? {
    guard address < limit, var next = memory.loadByte(at: address) else { return nil }
    var bytes: [UInt8] = []
    while next != 0 && bytes.count < most {
      bytes.append(next)
      next = memory.loadByte(at: address + UInt64(bytes.count)) ?? 0
    }
    return bytes
  }

  private mutating func loadGDT(_ address: UInt64, count: UInt32) -> LguestEffect {
    guard count <= LguestTables.descriptorCount, memory.contains(address, byteCount: UInt64(count) * 8) else {
      return kill("bad GDT at 0x\(String(address, radix: 16))")
    }
    for index in 0..<count {
      let value = descriptor(at: UInt32(truncatingIfNeeded: address), UInt64(index))
      tables.setDescriptor(
        index, low: UInt32(truncatingIfNeeded: value), high: UInt32(truncatingIfNeeded: value >> 32))
    }
    return .none
  }

  /// Of a table of the guest's that is in its RAM.
  private func descriptor(at address: UInt32, _ index: UInt64) -> UInt64 {
    memory.loadQuadword(at: UInt64(address) + index * 8) ?? 0
  }

  private mutating func newPageTable(_ table: UInt32, _ engine: some CPUEngine) {
    if isLinear {
      // A directory's entry has its rights and A and D; a top entry of PAE paging is present and no more.
      isWide = (memory.loadQuadword(at: UInt64(table)) ?? 0) & 0xFFFF_FFFF_0000_0FFF == 1
      isLinear = false
    }
    root = table
    engine.addressSpace = isWide ? .extendedTables(root: root) : .tables(root: root)
  }

  /// Whether a page is one of the directories that the current top entries of PAE paging lead to.
  private func isDirectory(_ page: UInt32) -> Bool {
    (0..<4).contains {
      (memory.loadQuadword(at: UInt64(root) + $0 * 8) ?? 0) & 0xFFFF_F000 == UInt64(page) & 0xFFFF_F000
    }
  }

  private mutating func setStack(_ selector: UInt32, _ pointer: UInt32, pages: UInt32) -> LguestEffect {
    guard LguestTables.acceptsStack(selector) else { return kill("bad stack segment \(selector)") }
    guard pages <= 2 else { return kill("bad stack pages \(pages)") }
    tables.setStack(UInt16(truncatingIfNeeded: selector), pointer)
    return .none
  }
}

// SPDX-License-Identifier: Apache-2.0
// The host side of lguest on a vCPU that runs nothing: layouts, the ring, and when an interrupt is delivered and how.

import Engine
import Paravirt
import ScriptedEngine
import Synchronization
import Testing
import X86

@testable import Paravirt

@Suite("lguest's host") struct LguestHostTests {
  private static let data: UInt64 = 0x100, ram: UInt64 = 0x20_0000, limit = ram
  private static let iret: UInt32 = 0x1000, kernel: UInt32 = 0xC000_0000

  /// A guest that has called LGUEST_INIT.
  private final class Setup {
    let memory = TestMemory(count: Int(LguestHostTests.ram), keepsHistory: false)
    let cpu = ScriptedCPU()
    let interrupts = LguestInterrupts()
    let timer = Mutex<[UInt32?]>([])
    var host: LguestHost
    let era: LguestEra

    init(
      _ era: LguestEra, initialized: Bool = true, _ layout: LguestDataLayout? = nil, text: String = "",
      policy: HypercallPolicy = .patch
    ) {
      self.era = era
      let layout = layout ?? era.row.layouts[0]
      host = LguestHost(
        memory: memory,
        start: LguestStart(
          memorySize: LguestHostTests.ram, room: 0x10_2000..<LguestHostTests.ram,
          pageOffset: era == .linux2_6_23 ? LguestHostTests.kernel : nil),
        limit: LguestHostTests.limit, hypercallPolicy: policy, interrupts: interrupts,
        services: LguestServices(
          timestampKilohertz: 2_000_000, wallTime: { (1_700_000_000, 5) }, setTimer: { _ in },
          readPort: { _, _ in nil },
          writePort: { _, _, _ in }))
      host.begin(cpu)
      cpu.currentPrivilegeLevel = 1
      cpu.canAcceptInterrupt = true
      cpu.code = [UInt8](repeating: 0, count: 4096)
      cpu.state = LguestHost.firstState(entry: 0x1000)
      cpu.state[register: GPR.rsp] = 0x1F00
      let data = LguestHostTests.data
      for index in UInt64(0)..<64 { memory.store(UInt8(0xFF), at: data + layout.status + index) }
      if let place = layout.kernelAddress { memory.store(LguestHostTests.kernel, at: data + place) }
      if let place = layout.syscallVector { memory.store(UInt32(0x80), at: data + place) }
      for (index, byte) in (era == .linux2_6_24 ? "Linux version 2.6.24" : text).utf8.enumerated() {
        memory.store(byte, at: 0x10_0003 + UInt64(index))
      }
      switch layout.iretWindow {
      case .point(let place): memory.store(LguestHostTests.iret, at: data + place)
      case .range(let start, let end):
        let first = LguestHostTests.iret + (era == .linux2_6_23 ? LguestHostTests.kernel : 0)
        memory.store(first, at: data + start)
        memory.store(first + 3, at: data + end)
      }
      if initialized {
        #expect(call(.initialize, UInt32(data)) == .registered(era))
        #expect(host.layout == layout && host.era == era)
      }
    }

    @discardableResult
    func call(_ call: LguestCall, _ a: UInt32 = 0, _ b: UInt32 = 0, _ c: UInt32 = 0) -> LguestEffect {
      cpu[register: GPR.rax] = UInt64(call.number(in: era) ?? 99)
      for register in [GPR.rbx, GPR.rcx, GPR.rdx, GPR.rsi] { cpu[register: register] = 0 }
      for (index, value) in [a, b, c].enumerated() {
        cpu[register: era.row.convention.registers[index]] = UInt64(value)
      }
      return host.take(Trap(vector: LguestCall.vector, kind: .software(at: cpu.state.rip)), on: cpu)
    }

    subscript(offset: UInt64) -> UInt32 {
      get { memory.loadWord(at: LguestHostTests.data + offset) ?? 0 }
      set { memory.store(newValue, at: LguestHostTests.data + offset) }
    }

    func queue(_ slot: UInt64, _ words: [UInt32]) {
      let layout = era.row.layouts[0]
      for (index, word) in words.prefix(4).enumerated() {
        self[layout.calls + slot * layout.callBytes + UInt64(era.row.convention.ring[index]) * 4] = word
      }
      memory.store(UInt8(0), at: LguestHostTests.data + layout.status + slot)
    }

    func gate(_ vector: UInt32, _ handler: UInt32, type: UInt32 = 0x8E) {
      call(.loadIDTEntry, vector, handler & 0xFFFF, handler & 0xFFFF_0000 | type << 8)
    }
  }

  @Test("each era is recognised by what is registered, and struct lguest_data filled in", arguments: LguestEra.allCases)
  func eras(era: LguestEra) {
    let setup = Setup(era)
    let layout = era.row.layouts[0]
    #expect(setup[layout.reserveMemory] == 0x40_0000 && setup[layout.timestampKilohertz] == 2_000_000)
    if let time = layout.time { #expect(setup[time] == 1_700_000_000 && setup[time + 4] == 5) }
    #expect(setup.call(.initialize, UInt32(Self.data)) == .killed("second LGUEST_INIT"))
    // The first reason stays.
    #expect(setup.call(.setStack, 0) == .killed("second LGUEST_INIT"))
  }

  @Test("2.6.23 with the time, and without") func times() {
    let setup = Setup(.linux2_6_23, .from2_6_23WithTime)
    #expect(setup[12] == 1_700_000_000 && setup[16] == 5 && setup[1108] == 0x40_0000)
  }

  @Test("first page tables: where an era has RAM in them", arguments: LguestEra.allCases)
  func firstTables(era: LguestEra) {
    let setup = Setup(era)
    guard era.row.mapsIdentity || era.row.mapsKernel else {
      #expect(setup.cpu.addressSpace == .identity)
      return
    }
    let root = UInt32(Self.ram) - 4096
    #expect(setup.cpu.addressSpace == .tables(root: root))
    if let place = era.row.layouts[0].firstTables { #expect(setup[place] == root) }
    let (low, high) = (setup.memory.loadWord(at: UInt64(root)), setup.memory.loadWord(at: UInt64(root) + 768 * 4))
    let table = root - 4096
    #expect(low == (era.row.mapsIdentity ? table | 7 : 0) && high == (era.row.mapsKernel ? table | 7 : 0))
    #expect(setup.memory.loadWord(at: UInt64(table)) == 7)
    let last: UInt32 = 511 << 12 | 7
    #expect(setup.memory.loadWord(at: UInt64(table) + 511 * 4) == last)
    #expect(setup.memory.loadWord(at: UInt64(table) + 512 * 4) == 0)
  }

  @Test("first page tables of a PAE kernel") func wideTables() {
    let setup = Setup(.linux2_6_31, text: "*pdpt = %016Lx ")
    let root = Self.ram - 4096
    #expect(setup.cpu.addressSpace == .extendedTables(root: UInt32(root)))
    for top in [UInt64(0), 3] {
      guard let directory = setup.memory.loadQuadword(at: root + top * 8), directory & 0xFFF == 1,
        let table = setup.memory.loadQuadword(at: directory & ~0xFFF), table & 0xFFF == 7
      else {
        Issue.record("top entry \(top)")
        continue
      }
      #expect(setup.memory.loadQuadword(at: table & ~0xFFF + 8 * 511) == 511 << 12 | 7)
    }
    #expect(setup.memory.loadQuadword(at: root + 8) == 0)
  }

  @Test("a number is the call of its era") func numbers() {
    for era in LguestEra.allCases {
      let calls = LguestCall.calls(in: era)
      for call in LguestCall.allCases {
        #expect(calls.firstIndex(of: call).map { UInt32($0) } == call.number(in: era))
      }
      #expect(calls[13] == (era == .linux2_6_23 ? .sendDMA : era < .linux2_6_31 ? nil : .setPMD))
      #expect(calls[3] == (era < .linux2_6_31 ? .loadGDT : nil) && calls[20...].allSatisfy { $0 == nil })
      #expect(calls[17] == (era == .linux2_6_23 || era == .linux4_0 ? nil : .notify))
      // A number is told by the name that it has in the era, also while a guest that has restarted is not known again.
      var setup = Setup(era)
      let name = era == .linux2_6_23 ? "SEND_DMA" : era < .linux2_6_31 ? nil : "SET_PMD"
      #expect(setup.host.callName(13) == name && setup.host.callName(1) == "LGUEST_INIT")
      setup.host.reset(setup.cpu)
      #expect(setup.host.era == nil && setup.host.callName(13) == name)
      setup = Setup(era, initialized: false)
      #expect([-1, 1, 13, 20, .max].allSatisfy { setup.host.callName($0) == nil })
    }
    let setup = Setup(.linux4_0)
    #expect(setup.call(.notify) == .killed("Bad hypercall 99"))
  }

  @Test("calls of 2.6.23 that have a result, and the ring that any trap drains") func oldest() {
    let setup = Setup(.linux2_6_23)
    #expect(
      setup.call(.bindDMA, 7, 0x4000, 3 << 8 | 5)
        == .bind(key: 7, buffers: 0x4000, count: 3, interrupt: 5, isAnswered: true))
    #expect(setup.call(.sendDMA, 7, 0x4000) == .send(key: 7, buffer: 0x4000))
    #expect(setup.call(.getWallClock) == .none && setup.cpu[register: GPR.rax] == 1_700_000_000)
    setup.gate(3, 0x4000_0000, type: 0xEF)
    setup.queue(0, [8, 8])
    #expect(setup.host.take(Trap(vector: 3, kind: .software(at: 0x1000)), on: setup.cpu) == .none)
    #expect(setup.cpu.isTaskSwitched && setup.host.ringIndex == 1)
  }

  @Test("nothing but LGUEST_INIT comes first") func early() {
    let setup = Setup(.linux4_0, initialized: false)
    #expect(setup.call(.halt) == .killed("hypercall 10 before LGUEST_INIT"))
    let second = Setup(.linux4_0, initialized: false)
    guard case .killed = second.call(.initialize, 0xFFFF_FF00) else {
      Issue.record("outside RAM")
      return
    }
  }

  @Test("struct lguest_data is at a multiple of 4") func unaligned() {
    let setup = Setup(.linux3_1, initialized: false)
    let layout = LguestDataLayout.from3_1
    for offset in (UInt64(0)..<layout.byteCount).reversed() {
      setup.memory.store(setup.memory.loadByte(at: Self.data + offset) ?? 0, at: Self.data + offset + 1)
    }
    let word = setup.memory.loadWord(at: Self.data + 1 + layout.status)
    #expect(word == .max && !layout.fits(setup.memory, Self.data + 1, limit: LguestHost.reserved))
  }

  @Test("the ring is drained in order, over its end, and stops at a free slot", arguments: LguestEra.allCases)
  func ring(era: LguestEra) {
    let setup = Setup(era)
    let status = Self.data + era.row.layouts[0].status
    for start in stride(from: UInt64(0), to: 128, by: 40) {
      for index in start..<start + 40 {
        setup.queue(index % 64, [LguestCall.taskSwitched.number(in: setup.era) ?? 99, UInt32(index % 2)])
      }
      #expect(setup.call(.flushAsync) == .none)
      #expect(setup.cpu.isTaskSwitched)
      #expect(setup.host.ringIndex == Int((start + 40) % 64))
    }
    #expect((0..<64).allSatisfy { setup.memory.loadByte(at: status + $0) == 0xFF })
    // A slot that is not the next one waits.
    setup.queue(63, [LguestCall.taskSwitched.number(in: setup.era) ?? 99, 0])
    setup.call(.flushAsync)
    #expect(setup.cpu.isTaskSwitched)
  }

  @Test("what a call in the ring leads to comes first, then the rest of the ring and the call that was made")
  func interrupted() {
    let setup = Setup(.linux3_1)
    func number(_ call: LguestCall) -> UInt32 { call.number(in: setup.era) ?? 99 }
    setup.queue(0, [number(.notify), 0x7000])
    setup.queue(1, [number(.taskSwitched), 0])
    setup.queue(2, [number(.halt)])
    #expect(setup.call(.taskSwitched, 8) == .notify(0x7000) && !setup.cpu.isTaskSwitched)
    #expect(setup.host.goOn(on: setup.cpu) == .halt && !setup.cpu.isTaskSwitched && setup.host.ringIndex == 3)
    #expect(setup.host.goOn(on: setup.cpu) == .none && setup.cpu.isTaskSwitched)
    #expect(setup.host.goOn(on: setup.cpu) == .none)
    // In the ring a call has no result.
    let old = Setup(.linux2_6_23)
    old.queue(0, [LguestCall.bindDMA.number(in: old.era) ?? 99, 7, 0x4000, 3 << 8 | 5])
    #expect(
      old.call(.getWallClock) == .bind(key: 7, buffers: 0x4000, count: 3, interrupt: 5, isAnswered: false))
    #expect(old.host.goOn(on: old.cpu) == .none && old.cpu[register: GPR.rax] == 1_700_000_000)
  }

  @Test("the lowest interrupt that is not blocked, when they are on; the rest is pending") func interrupts() {
    let setup = Setup(.linux4_0)
    setup.gate(0x22, 0x1234_5678)
    setup.interrupts.raise(5)
    setup.interrupts.raise(2)
    setup.interrupts.raise(0)
    setup[LguestDataLayout.blockedInterrupts] = 1
    setup.cpu.state.rip = 0x1800
    setup[LguestDataLayout.irqEnabled] = 0
    #expect(setup.host.deliver(to: setup.cpu) == .later && setup[20] == 0x200)
    setup[LguestDataLayout.irqEnabled] = 0x200
    // The instruction pointer of this vCPU is that of the IRET: 4.0's guests have the frame already. Of its flags only
    // those are taken that IRET of level 1 may change.
    setup.cpu.data[0x1F08] = [0xFF, 0xFF, 0xFF, 0xFF]
    #expect(setup.host.deliver(to: setup.cpu) == .done)
    let flags = RFLAGS.arithmetic | RFLAGS.df | RFLAGS.ac | RFLAGS.id | RFLAGS.ones | RFLAGS.if
    #expect(setup.cpu.state.rflags == flags)
    #expect(setup.cpu.state.rip == 0x1234_5678 && setup.cpu.state[register: GPR.rsp] == 0x1F00)
    #expect(setup[LguestDataLayout.irqEnabled] == 0 && setup[20] == 0x200)
    #expect(setup.interrupts.waiting == 1 << 5 | 1)
  }

  @Test("before 4.0 an IRET comes to its end first; elsewhere the gate takes the interrupt") func window() {
    let setup = Setup(.linux3_1)
    setup.gate(0x21, 0x4000_1000)
    setup.interrupts.raise(1)
    setup[LguestDataLayout.irqEnabled] = 0x200
    #expect(setup.host.deliver(to: setup.cpu) == .later && setup[20] == 0)
    setup[1376] = 0
    setup[1380] = 0
    setup.cpu.canAcceptInterrupt = false
    #expect(setup.host.deliver(to: setup.cpu) == .later && setup.interrupts.waiting == 2)
    setup.cpu.canAcceptInterrupt = true
    #expect(setup.host.deliver(to: setup.cpu) == .done)
    #expect(setup.cpu.events.last == .injected(0x21) && setup.interrupts.waiting == 0 && setup[20] == 0)
  }

  @Test("frames show the guest's own flag, in struct lguest_data") func virtualFlag() {
    let setup = Setup(.linux3_1)
    let (data, first): (UInt64, VectorSet) = (Self.data, [6, 13, 0x1F])
    #expect(
      setup.cpu.trapPolicy == .gates(VirtualInterrupts(machineFirst: first, flag: data, faultAddress: data + 8)))
  }

  @Test("VMCALL of level 1: replaced, performed or refused; elsewhere #UD", arguments: HypercallPolicy.allCases)
  func hypercallInstruction(policy: HypercallPolicy) {
    let setup = Setup(.linux3_1, policy: policy)
    setup.gate(6, 0x4000_0000)
    let invalid = Trap(vector: 6, kind: .exception)
    func take(_ bytes: [UInt8], level: UInt8 = 1) -> [ScriptedCPU.Event] {
      setup.cpu.code = bytes
      setup.cpu.events = []
      setup.cpu.currentPrivilegeLevel = level
      setup.cpu[register: GPR.rax] = 8
      setup.cpu[register: GPR.rbx] = 8
      #expect(setup.host.take(invalid, on: setup.cpu) == .none)
      return setup.cpu.events
    }
    let vmcall: [UInt8] = [0x0F, 0x01, 0xC1]
    let events = take(vmcall)
    switch policy {
    case .patch:
      #expect(events == [.stored(0x1000, [0xCD, 0x1F, 0x90], .debugger), .refetched] && !setup.cpu.isTaskSwitched)
    case .emulate: #expect(events == [.skipped(3)] && setup.cpu.isTaskSwitched)
    case .native, .fault: #expect(events == [.forwarded(invalid)] && !setup.cpu.isTaskSwitched)
    }
    // Another instruction, and another level.
    for (bytes, level) in [([0x0F, 0x01, 0xD9], 1), ([0x0F, 0x0B, 0xC1], 1), (vmcall, 3)] as [([UInt8], UInt8)] {
      #expect(take(bytes, level: level) == [.forwarded(invalid)])
    }
    let counts = setup.host.instructionCounts
    #expect(counts.traps == 4 && counts.rewritten == (policy == .patch ? 1 : 0))
    #expect(counts.emulated == (policy == .emulate ? 1 : 0))
    // The processor's own, which does not look at levels.
    setup.cpu.state.rip = 0x1003
    #expect(setup.host.takeNativeHypercall(setup.cpu) == .none)
    #expect(setup.cpu.state.rip == 0x1000 && setup.cpu.events.last == .forwarded(invalid))
    setup.cpu.currentPrivilegeLevel = 1
    #expect(setup.host.takeNativeHypercall(setup.cpu) == .none && setup.cpu.isTaskSwitched)
  }

  @Test("changes of page tables forget as little as they can") func flushes() {
    let setup = Setup(.linux3_1)
    setup.memory.store(UInt64(0x3001), at: 0x1000)
    setup.memory.store(UInt64(0x4001), at: 0x1018)
    #expect(setup.call(.newPageTable, 0x1000) == .none)
    #expect(setup.cpu.addressSpace == .extendedTables(root: 0x1000))
    _ = setup.host.deliver(to: setup.cpu)
    func flushes(_ call: LguestCall, _ a: UInt32, _ b: UInt32 = 0) -> [ScriptedCPU.Event] {
      (setup.cpu.events, setup.cpu.addressSpace) = ([], .identity)
      setup.call(call, a, b)
      #expect(setup.cpu.events == [] && setup.cpu.addressSpace == .identity)
      _ = setup.host.deliver(to: setup.cpu)
      return setup.cpu.events
    }
    #expect(flushes(.setPTE, 0x1000, 0x1234_5678) == [.flushedPage(0x1234_5678)])
    #expect(flushes(.setPTE, 0x2000, 0x1234_5678) == [] && setup.cpu.addressSpace == .identity)
    #expect(flushes(.setPTE, 0x2000, 0xC234_5678) == [.flushedPage(0xC234_5678)])
    #expect(flushes(.flushTLB, 1) == [.flushed])
    for (call, a) in [(LguestCall.flushTLB, UInt32(0)), (.setPMD, 0x4000), (.setPGD, 0x1000)] {
      let count = setup.cpu.addressSpaceCount
      #expect(flushes(call, a) == [] && setup.cpu.addressSpaceCount == count + 2)
    }
    for (call, a) in [(LguestCall.setPMD, UInt32(0x5000)), (.setPGD, 0x2000)] {
      let count = setup.cpu.addressSpaceCount
      #expect(flushes(call, a) == [] && setup.cpu.addressSpaceCount == count + 1)
    }
    // Many pages are the user's all; the kernel's are forgotten by themselves, or with everything.
    setup.cpu.events = []
    for page in UInt32(0)..<20 { setup.call(.setPTE, 0x1000, page << 12) }
    let count = setup.cpu.addressSpaceCount
    _ = setup.host.deliver(to: setup.cpu)
    #expect(setup.cpu.addressSpaceCount == count + 1 && !setup.cpu.events.contains(.flushed))
    for page in UInt32(0)..<20 { setup.call(.setPTE, 0x1000, 0xC000_0000 + page << 12) }
    setup.cpu.events = []
    _ = setup.host.deliver(to: setup.cpu)
    #expect(setup.cpu.events == [.flushed])
    setup.cpu.events = []
    _ = setup.host.deliver(to: setup.cpu)
    #expect(setup.cpu.events == [])
  }

  @Test("HALT ends whatever the flag says; a gate that is absent keeps the interrupt") func halt() {
    let setup = Setup(.linux4_0)
    #expect(setup.call(.halt) == .halt)
    #expect(!setup.host.news.isThere)
    setup.interrupts.raise(3)
    #expect(setup.host.news.isThere)
    #expect(setup.host.deliver(to: setup.cpu) == .nothing)
    #expect(setup[LguestDataLayout.irqEnabled] == 0x200 && setup.interrupts.waiting == 1 << 3)
  }

  @Test("software interrupts need a gate that lets them, and INT 1Fh needs level 1") func levels() {
    let setup = Setup(.linux4_0)
    setup.gate(13, 0x4000_0000)
    setup.gate(0x80, 0x5000_0000, type: 0xEF)
    setup.call(.setStack, 0x69, 0x1E00, 1)
    setup.cpu.currentPrivilegeLevel = 3
    for (vector, code) in [(UInt8(0x80), UInt32?.none), (0x1F, 0xFA), (0x40, 0x202), (3, 0x1A)] {
      for length in UInt64(1)...15 {
        setup.cpu.state.rip = 0x1000 + length
        setup.cpu.events = []
        let software = Trap(vector: vector, kind: .software(at: 0x1000))
        #expect(setup.host.take(software, on: setup.cpu) == .none)
        let trap = code.map { Trap(vector: 13, kind: .exception, errorCode: $0) } ?? software
        #expect(setup.cpu.events == [.forwarded(trap)])
        #expect(setup.cpu.state.rip == (code == nil ? 0x1000 + length : 0x1000))
      }
    }
  }
}

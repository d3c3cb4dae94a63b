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
  private static let data: UInt64 = 0x100, limit: UInt64 = 0x2000, page: UInt64 = 0x2000
  private static let iret: UInt32 = 0x1000

  /// A guest that has called LGUEST_INIT.
  private final class Setup {
    let memory = TestMemory(keepsHistory: false)
    let cpu = ScriptedCPU()
    let interrupts = LguestInterrupts()
    let timer = Mutex<[UInt32?]>([])
    var host: LguestHost<TestMemory>

    init(_ layout: LguestDataLayout, initialized: Bool = true) {
      host = LguestHost(
        memory: memory, limit: LguestHostTests.limit, page: LguestHostTests.page, interrupts: interrupts,
        services: LguestServices(
          timestampKilohertz: 2_000_000, wallTime: { (1_700_000_000, 5) }, setTimer: { _ in },
          readPort: { _, _ in nil },
          writePort: { _, _, _ in }))
      host.prepare(cpu)
      cpu.currentPrivilegeLevel = 1
      cpu.code = [UInt8](repeating: 0, count: 4096)
      cpu.state = LguestHost<TestMemory>.firstState(entry: 0x1000)
      cpu.state[register: GPR.rsp] = 0x1F00
      let data = LguestHostTests.data
      for index in UInt64(0)..<64 { memory.store(UInt8(0xFF), at: data + layout.status + index) }
      memory.store(UInt32(0xC000_0000), at: data + layout.kernelAddress)
      memory.store(UInt32(0x80), at: data + layout.syscallVector)
      switch layout.iretWindow {
      case .point(let place): memory.store(LguestHostTests.iret, at: data + place)
      case .range(let start, let end):
        memory.store(LguestHostTests.iret, at: data + start)
        memory.store(LguestHostTests.iret + 3, at: data + end)
      }
      if initialized {
        #expect(call(.initialize, UInt32(data)) == .none)
        #expect(host.layout == layout)
      }
    }

    @discardableResult
    func call(_ call: LguestCall, _ a: UInt32 = 0, _ b: UInt32 = 0, _ c: UInt32 = 0) -> LguestEffect {
      cpu[register: GPR.rax] = UInt64(call.rawValue)
      (cpu[register: GPR.rbx], cpu[register: GPR.rcx], cpu[register: GPR.rdx]) = (UInt64(a), UInt64(b), UInt64(c))
      return host.take(Trap(vector: LguestCall.vector, kind: .software), on: cpu)
    }

    subscript(offset: UInt64) -> UInt32 {
      get { memory.loadWord(at: LguestHostTests.data + offset) ?? 0 }
      set { memory.store(newValue, at: LguestHostTests.data + offset) }
    }

    func queue(_ slot: UInt64, _ words: [UInt32]) {
      let layout = LguestDataLayout.from4_0
      for (index, word) in words.enumerated() { self[layout.calls + slot * 20 + UInt64(index) * 4] = word }
      memory.store(UInt8(0), at: LguestHostTests.data + layout.status + slot)
    }

    func gate(_ vector: UInt32, _ handler: UInt32, type: UInt32 = 0x8E) {
      call(.loadIDTEntry, vector, handler & 0xFFFF, handler & 0xFFFF_0000 | type << 8)
    }
  }

  @Test("each layout is recognised, and filled in", arguments: [0, 1, 2])
  func layouts(number: Int) {
    let layout = LguestDataLayout.all[number]
    let setup = Setup(layout)
    #expect(setup[layout.reserveMemory] == 0x40_0000 && setup[layout.timestampKilohertz] == 2_000_000)
    #expect(setup[12] == 1_700_000_000 && setup[16] == 5)
    #expect(setup.call(.initialize, UInt32(Self.data)) == .killed("second LGUEST_INIT"))
    // The first reason stays.
    #expect(setup.call(.setStack, 0) == .killed("second LGUEST_INIT"))
  }

  @Test("nothing but LGUEST_INIT comes first") func early() {
    let setup = Setup(.from4_0, initialized: false)
    #expect(setup.call(.halt) == .killed("hypercall 10 before LGUEST_INIT"))
    let second = Setup(.from4_0, initialized: false)
    guard case .killed = second.call(.initialize, 0xFFFF_FF00) else {
      Issue.record("outside RAM")
      return
    }
  }

  @Test("the ring is drained in order, over its end, and stops at a free slot") func ring() {
    let setup = Setup(.from4_0)
    for start in stride(from: UInt64(0), to: 128, by: 40) {
      for index in start..<start + 40 {
        setup.queue(index % 64, [LguestCall.taskSwitched.rawValue, UInt32(index % 2)])
      }
      #expect(setup.call(.flushAsync) == .none)
      #expect(setup.cpu.state.cr0 & CR0.ts != 0)
      #expect(setup.host.ringIndex == Int((start + 40) % 64))
    }
    #expect((0..<64).allSatisfy { setup.memory.loadByte(at: Self.data + 24 + $0) == 0xFF })
    // A slot that is not the next one waits.
    setup.queue(63, [LguestCall.taskSwitched.rawValue, 0])
    setup.call(.flushAsync)
    #expect(setup.cpu.state.cr0 & CR0.ts != 0)
  }

  @Test("the lowest interrupt that is not blocked, when they are on; the rest is pending") func interrupts() {
    let setup = Setup(.from4_0)
    setup.gate(0x22, 0x1234_5678)
    setup.interrupts.raise(5)
    setup.interrupts.raise(2)
    setup.interrupts.raise(0)
    setup[LguestDataLayout.blockedInterrupts] = 1
    setup.cpu.state.rip = 0x1800
    setup[LguestDataLayout.irqEnabled] = 0
    #expect(setup.host.deliver(to: setup.cpu) == .later && setup[20] == 0x200)
    setup[LguestDataLayout.irqEnabled] = 0x200
    // The instruction pointer of this vCPU is that of the IRET: 4.0's guests have the frame already.
    #expect(setup.host.deliver(to: setup.cpu) == .done)
    #expect(setup.cpu.state.rip == 0x1234_5678 && setup.cpu.state[register: GPR.rsp] == 0x1F00)
    #expect(setup[LguestDataLayout.irqEnabled] == 0 && setup[20] == 0x200)
    #expect(setup.interrupts.waiting == 1 << 5 | 1)
  }

  @Test("before 4.0 an IRET comes to its end first; elsewhere a frame is stored") func frames() {
    let setup = Setup(.from3_1)
    setup.gate(0x21, 0x4000_1000)
    setup.interrupts.raise(1)
    setup[LguestDataLayout.irqEnabled] = 0x200
    #expect(setup.host.deliver(to: setup.cpu) == .later && setup[20] == 0)
    setup[1376] = 0
    setup[1380] = 0
    #expect(setup.host.deliver(to: setup.cpu) == .done)
    let stored = setup.cpu.events.compactMap { event -> (UInt64, [UInt8])? in
      if case .stored(let address, let bytes, .data) = event { (address, bytes) } else { nil }
    }
    #expect(stored.count == 1 && stored[0].0 == 0x1F00 - 12)
    #expect(stored[0].1 == [0, 0x10, 0, 0, 0x61, 0, 0, 0, 0x02, 0x02, 0, 0])
    #expect(setup.cpu.state.rip == 0x4000_1000 && setup[20] == 0)
  }

  @Test("HALT ends whatever the flag says; a gate that is absent keeps the interrupt") func halt() {
    let setup = Setup(.from4_0)
    #expect(setup.call(.halt) == .halt)
    #expect(!setup.host.news.isThere)
    setup.interrupts.raise(3)
    #expect(setup.host.news.isThere)
    #expect(setup.host.deliver(to: setup.cpu) == .nothing)
    #expect(setup[LguestDataLayout.irqEnabled] == 0x200 && setup.interrupts.waiting == 1 << 3)
  }

  @Test("software interrupts need a gate that lets them, and INT 1Fh needs level 1") func levels() {
    let setup = Setup(.from4_0)
    setup.gate(13, 0x4000_0000)
    setup.gate(0x80, 0x5000_0000, type: 0xEF)
    setup.call(.setStack, 0x69, 0x1E00, 1)
    setup.cpu.currentPrivilegeLevel = 3
    for (vector, handler, code) in [(0x80, 0x5000_0000, 0), (0x1F, 0x4000_0000, 0xFA), (0x40, 0x4000_0000, 0x202)] {
      setup.cpu.state.rip = 0x1002
      setup.cpu.state.cs.selector = 0x73
      setup.cpu.state.ss.selector = 0x7B
      setup.cpu.events = []
      #expect(setup.host.take(Trap(vector: UInt8(vector), kind: .software), on: setup.cpu) == .none)
      #expect(setup.cpu.state.rip == UInt64(handler) && setup.cpu.state.ss.selector == 0x69)
      guard case .stored(let address, let bytes, _)? = setup.cpu.events.last else {
        Issue.record("no frame")
        continue
      }
      #expect(address == 0x1E00 - UInt64(bytes.count) && bytes.count == (code == 0 ? 20 : 24))
      if code != 0 { #expect(Int(bytes[0]) | Int(bytes[1]) << 8 == code && bytes[4] == 0 && bytes[5] == 0x10) }
    }
  }
}

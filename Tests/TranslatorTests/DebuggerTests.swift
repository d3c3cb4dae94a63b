// SPDX-License-Identifier: Apache-2.0
// What the engine offers a debugger: single steps, breakpoints, and memory by linear address.

import Engine
import GuestMemory
import Synchronization
import Testing
import X86

@testable import Translator

@Suite("For a debugger", .serialized) struct DebuggerTests {
  private func guest(_ name: String = "debugged", _ edit: (inout TranslationOptions) -> Void = { _ in }) throws
    -> KernelGuest
  {
    let guest = try KernelGuest(edit: edit)
    guest.load(name)
    guest.start { $0.registers[7] = KernelGuest.data }
    return guest
  }

  /// Runs to HLT; what came before.
  private func finish(_ cpu: TranslatedCPU, limit: Int = 1000) -> [VCPUExit] {
    var exits: [VCPUExit] = []
    while exits.count < limit {
      let exit = cpu.run()
      if exit == .halt { return exits }
      exits.append(exit)
    }
    Issue.record("no HLT: \(exits.suffix(3))")
    return exits
  }

  /// Where every instruction begins that the engine executes when nobody steps, by its own trace.
  private func traced() throws -> [UInt64] {
    let lines = Mutex<[String]>([])
    let guest = try guest { $0.trace = { line in lines.withLock { $0.append(line) } } }
    _ = finish(guest.cpu)
    return lines.withLock { $0 }.compactMap { line in
      line.split(separator: " ").first.flatMap { UInt64($0.dropFirst(2), radix: 16) }
    }
  }

  @Test("a step is an instruction, or an element of a repeated one; exits come in between") func steps() throws {
    let guest = try guest()
    guest.cpu.isSingleStepping = true
    var places = [guest.cpu.linearInstructionPointer]
    var exits: [VCPUExit] = []
    for _ in 0..<100 {
      let exit = guest.cpu.run()
      if exit == .stepped {
        places.append(guest.cpu.linearInstructionPointer)
      } else {
        exits.append(exit)
        if exit == .halt { break }
      }
    }
    #expect(exits == [.portWrite(port: 0x80, size: 1, value: 0), .halt])
    // HLT itself is the last that began.
    #expect(places == (try traced()))
    let state = guest.cpu.state
    let free = try self.guest()
    _ = finish(free.cpu)
    #expect(state.registers == free.cpu.state.registers && state.rflags == free.cpu.state.rflags)
    // HLT is done: its step is told before anything else, but nobody who no longer steps hears of it.
    #expect(guest.cpu.run() == .stepped)
    guest.start { $0.registers[7] = KernelGuest.data }
    var exit = VCPUExit.stepped
    for _ in 0..<100 where exit == .stepped { exit = guest.cpu.run() }
    #expect(exit == .portWrite(port: 0x80, size: 1, value: 0))
    guest.cpu.isSingleStepping = false
    #expect(guest.cpu.run() == .halt)
  }

  @Test("a faulting instruction is a step too, to the first of the handler's") func fault() throws {
    let guest = try guest("undefined")
    guest.cpu.isSingleStepping = true
    #expect(guest.cpu.run() == .stepped)
    #expect(guest.cpu.linearInstructionPointer == KernelGuest.handlers + 6 * 16)
  }

  @Test("the guest's own single steps are not disturbed") func both() throws {
    let guest = try guest("nops")
    guest.start { $0.rflags |= RFLAGS.tf }
    guest.cpu.isSingleStepping = true
    #expect(guest.cpu.run() == .stepped && guest.cpu.linearInstructionPointer == KernelGuest.code + 1)
    guest.cpu.isSingleStepping = false
    let frame = guest.exception()
    #expect(frame?.vector == 1 && frame?.rip == KernelGuest.code + 1)
  }

  @Test("a breakpoint stops before its instruction, each time; the next run executes it") func breakpoints() throws {
    let guest = try guest()
    // Translated before there is one.
    _ = finish(guest.cpu)
    guest.start { $0.registers[7] = KernelGuest.data }
    let loop = KernelGuest.mark("debugged.loop", in: "debugged")
    let string = KernelGuest.mark("debugged.string", in: "debugged")
    guest.cpu.breakpoints = [loop, string]
    var hits: [UInt64] = []
    for _ in 0..<100 {
      let exit = guest.cpu.run()
      if exit == .halt { break }
      if exit == .breakpoint { hits.append(guest.cpu.linearInstructionPointer) }
      // Lifted and planted again at each stop, as debuggers do.
      let all = guest.cpu.breakpoints
      guest.cpu.breakpoints = []
      guest.cpu.breakpoints = all
    }
    #expect(hits == [loop, loop, loop, string])
    guest.cpu.breakpoints = []
    guest.start { $0.registers[7] = KernelGuest.data }
    #expect(guest.cpu.run() == .portWrite(port: 0x80, size: 1, value: 0) && guest.cpu.run() == .halt)
  }

  @Test("an interrupt that comes at a breakpoint leads to the handler's, and back to the first") func interrupted()
    throws
  {
    let guest = try guest("nops")
    let handler = KernelGuest.handlers + 0x40 * 16
    guest.load("iretq", at: handler)
    guest.start { $0.rflags |= RFLAGS.if }
    guest.cpu.breakpoints = [KernelGuest.code + 1, handler]
    #expect(guest.cpu.run() == .breakpoint && guest.cpu.linearInstructionPointer == KernelGuest.code + 1)
    guest.cpu.inject(interrupt: 0x40)
    #expect(guest.cpu.run() == .breakpoint && guest.cpu.linearInstructionPointer == handler)
    #expect(guest.cpu.run() == .breakpoint && guest.cpu.linearInstructionPointer == KernelGuest.code + 1)
    #expect(guest.cpu.run() == .halt)
    // So does a RIP that the debugger sets.
    guest.start()
    #expect(guest.cpu.run() == .breakpoint)
    guest.start { $0.rip = handler }
    #expect(guest.cpu.run() == .breakpoint && guest.cpu.linearInstructionPointer == handler)
  }

  @Test("what had no effect is no step, and its breakpoint is not told again") func again() throws {
    for isKicked in [false, true] {
      let guest = try KernelGuest { $0.hypercallPolicy = .patch }
      // A call that is replaced runs again; a kick comes before the instruction.
      guest.load(isKicked ? "nops" : "call_foreign")
      guest.start()
      guest.cpu.breakpoints = [KernelGuest.code]
      guest.cpu.isSingleStepping = true
      #expect(guest.cpu.run() == .breakpoint)
      if isKicked {
        guest.cpu.kick()
        #expect(guest.cpu.run() == .kicked)
      } else {
        #expect(guest.cpu.run() == .foreignHypercall)
        #expect(guest.cpu.write(linear: KernelGuest.code + 2, [HypercallOpcode.vmcall.rawValue], as: .data) == nil)
        guest.cpu.refetchCode()
        #expect(guest.cpu.run() == .hypercall)
      }
      #expect(guest.cpu.run() == .stepped)
      #expect(guest.cpu.linearInstructionPointer == KernelGuest.code + (isKicked ? 1 : 3))
    }
  }

  @Test("a page that is away is no step") func absentPage() throws {
    let guest = try KernelGuest(fetchDelay: 1_000_000)
    guest.load("debugged_load")
    guest.start(user: true)
    // Once, so that its pages count as used.
    #expect(guest.exception()?.vector == 13)
    guest.start(user: true)
    let place = GuestPhysical(KernelGuest.data)
    let behind = KernelGuest.mark("debugged_load.behind", in: "debugged_load")
    #expect(guest.translation.evictUsedPages() > 0 && guest.memory.isAbsent(place))
    guest.cpu.breakpoints = [KernelGuest.code]
    guest.cpu.isSingleStepping = true
    // Code and tables that are away are waited for or told first.
    var exits: [VCPUExit] = []
    while exits.last != .stepped && exits.count < 10 {
      exits.append(guest.cpu.run())
      if case .pageAbsent(let address)? = exits.last { guest.memory.wait(for: GuestPhysical(address)) }
    }
    #expect(exits.filter { $0 == .breakpoint }.count == 1 && exits.contains(.pageAbsent(address: KernelGuest.data)))
    #expect(exits.last == .stepped && guest.cpu.linearInstructionPointer == behind)
  }

  @Test("an exception that is raised in the middle of an instruction ends it") func raised() throws {
    // rdmsr of a register that nobody has; then an addition to a device.
    let guest = try guest("debugged_rdmsr")
    guest.start { $0.registers[1] = 0x4B56_4D01 }
    #expect(guest.cpu.run() == .msrRead(index: 0x4B56_4D01) && !guest.cpu.isAtBoundary)
    guest.cpu.raise(.generalProtection())
    #expect(guest.cpu.isAtBoundary)
    var frame = guest.exception()
    #expect(frame?.vector == 13 && frame?.rip == KernelGuest.code)

    guest.load("debugged_add")
    guest.start { $0.registers[3] = KernelGuest.device }
    #expect(guest.cpu.run() == .mmioRead(address: KernelGuest.device, size: 4) && !guest.cpu.isAtBoundary)
    guest.cpu.raise(.pageFault(KernelGuest.device, code: 0))
    #expect(guest.cpu.isAtBoundary)
    frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.rip == KernelGuest.code && guest.cpu.state.cr2 == KernelGuest.device)
  }

  @Test("memory as the code sees it, and as a debugger does") func memory() throws {
    let guest = try guest()
    let cpu = guest.cpu
    let place = KernelGuest.data + 4094
    guest.setPage(KernelGuest.data + 4096, (KernelGuest.data + 4096) | 1)
    guest.cpu.flushTLB()
    let entry = KernelGuest.table + (KernelGuest.data >> 12) * 8
    #expect(cpu.write(linear: place, [1, 2, 3, 4], as: .data) == .pageFault(KernelGuest.data + 4096, code: 3))
    #expect(guest.peek(UInt16.self, at: place) == 0, "a part was stored")
    // The first page was accessed, and the debugger's own access leaves no trace.
    guest.setPage(KernelGuest.data, KernelGuest.data | 7)
    guest.cpu.flushTLB()
    #expect(cpu.write(linear: place, [1, 2, 3, 4], as: .debugger) == nil)
    #expect(cpu.read(linear: place, count: 4, as: .debugger) == [1, 2, 3, 4])
    #expect(guest.peek(UInt64.self, at: entry) & 0x60 == 0)
    #expect(cpu.read(linear: place, count: 4, as: .data) == [1, 2, 3, 4])
    #expect(guest.peek(UInt64.self, at: entry) & 0x60 == 0x20)

    // What is not mapped, not RAM or not canonical ends a read, and refuses a store.
    guest.setPage(KernelGuest.data + 4096, 0)
    guest.cpu.flushTLB()
    for access in [LinearAccess.data, .code, .debugger] {
      #expect(cpu.read(linear: place, count: 4, as: access) == [1, 2])
      #expect(cpu.read(linear: KernelGuest.device, count: 1, as: access) == [])
      #expect(cpu.read(linear: 1 << 47, count: 1, as: access) == [])
      #expect(cpu.write(linear: 1 << 47, [1], as: access) == .generalProtection())
    }
    #expect(cpu.read(linear: KernelGuest.code, count: 100_000, as: .debugger).count == 4096)
    #expect(cpu.read(linear: KernelGuest.code, count: -1, as: .debugger).isEmpty)
    #expect(cpu.write(linear: place + 2, [], as: .data) == nil)
    #expect(cpu.write(linear: place + 2, [1], as: .debugger) == .pageFault(place + 2, code: 2))
    #expect(cpu.write(linear: KernelGuest.data, [UInt8](repeating: 1, count: 4097), as: .debugger) != nil)
    #expect(guest.peek(UInt8.self, at: KernelGuest.data) == 0)
    #expect(cpu.storeFault(linear: KernelGuest.data, count: 4096, as: .data) == nil)
    #expect(cpu.storeFault(linear: KernelGuest.data, count: 4097, as: .data) != nil)
    #expect(guest.peek(UInt8.self, at: KernelGuest.data) == 0)
  }

  @Test("a debugger's store to code runs") func code() throws {
    let guest = try guest("debugged_move")
    #expect(guest.cpu.run() == .halt && guest.cpu[register: 0] == 1)
    #expect(guest.cpu.write(linear: KernelGuest.code + 1, [2], as: .debugger) == nil)
    guest.start()
    #expect(guest.cpu.run() == .halt && guest.cpu[register: 0] == 2)
  }

  @Test("user pages with SMAP, and pages of the kernel from level 3, are a debugger's to read") func privileges() throws
  {
    let guest = try guest()
    guest.setPage(KernelGuest.data, KernelGuest.data | 3)
    guest.start(user: true)
    #expect(guest.cpu.read(linear: KernelGuest.data, count: 1, as: .data).isEmpty)
    #expect(guest.cpu.read(linear: KernelGuest.data, count: 1, as: .debugger) == [0])
    guest.setPage(KernelGuest.data, KernelGuest.data | 7)
    guest.start { $0.cr4 |= 1 << 21 }
    #expect(guest.cpu.read(linear: KernelGuest.data, count: 1, as: .data).isEmpty)
    #expect(guest.cpu.read(linear: KernelGuest.data, count: 1, as: .debugger) == [0])
  }
}

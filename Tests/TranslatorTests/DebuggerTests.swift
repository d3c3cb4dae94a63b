// SPDX-License-Identifier: Apache-2.0
// What the engine offers a debugger: single steps, breakpoints, and memory by linear address.

import Engine
import GuestMemory
import Synchronization
import Testing
import X86

@testable import Translator

@Suite("For a debugger", .serialized) struct DebuggerTests {
  /// mov $3, %ecx; 1: dec %ecx; jnz 1b; push %rcx; mov %rax, (0x20ffc); pop %rdx; lock incl (0x20000); rep stosb; out
  /// %al, $0x80; cpuid; hlt
  private static let program: [UInt8] =
    [0xB9, 3, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xFC, 0x51, 0x48, 0x89, 0x04, 0x25, 0xFC, 0x0F, 0x02, 0x00, 0x5A]
    + [
      0xF0, 0xFF, 0x04, 0x25, 0x00, 0x00, 0x02, 0x00, 0xB9, 2, 0, 0, 0, 0xF3, 0xAA, 0xE6, 0x80, 0x31, 0xC0, 0x31, 0xC9,
    ]
    + [0x0F, 0xA2, 0xF4]

  private func guest(_ program: [UInt8] = program, _ edit: (inout TranslationOptions) -> Void = { _ in }) throws
    -> KernelGuest
  {
    let guest = try KernelGuest(edit: edit)
    guest.load(program)
    guest.start { $0.registers[7] = KernelGuest.data }
    return guest
  }

  /// Where every instruction begins that the engine executes when nobody steps, by its own trace.
  private func traced() throws -> [UInt64] {
    let lines = Mutex<[String]>([])
    let guest = try guest { $0.trace = { line in lines.withLock { $0.append(line) } } }
    while guest.cpu.run() != .halt {}
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
    while free.cpu.run() != .halt {}
    #expect(state.registers == free.cpu.state.registers && state.rflags == free.cpu.state.rflags)
    // HLT is done: its step is told before anything else, and then the guest runs free.
    #expect(guest.cpu.run() == .stepped)
  }

  @Test("a faulting instruction is a step too, to the first of the handler's") func fault() throws {
    let guest = try guest([0x0F, 0x0B])
    guest.cpu.isSingleStepping = true
    #expect(guest.cpu.run() == .stepped)
    #expect(guest.cpu.linearInstructionPointer == KernelGuest.handlers + 6 * 16)
  }

  @Test("the guest's own single steps are not disturbed") func both() throws {
    let guest = try guest([0x90, 0x90])
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
    while guest.cpu.run() != .halt {}
    guest.start { $0.registers[7] = KernelGuest.data }
    let (loop, string) = (KernelGuest.code + 5, KernelGuest.code + 32)
    guest.cpu.breakpoints = [loop, string]
    var hits: [UInt64] = []
    while true {
      let exit = guest.cpu.run()
      if exit == .halt { break }
      if exit == .breakpoint { hits.append(guest.cpu.linearInstructionPointer) }
    }
    #expect(hits == [loop, loop, loop, string])
    guest.cpu.breakpoints = []
    guest.start { $0.registers[7] = KernelGuest.data }
    #expect(guest.cpu.run() == .portWrite(port: 0x80, size: 1, value: 0) && guest.cpu.run() == .halt)
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
    #expect(cpu.write(linear: KernelGuest.code, [], as: .debugger) == nil)
  }

  @Test("a debugger's store to code runs") func code() throws {
    let guest = try guest([0xB0, 1, 0xF4])
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

// SPDX-License-Identifier: Apache-2.0
// What becomes of the other vendor's hypercall instruction, and the register that a guest of 2007 registers with.

import Engine
import Paravirt
import ScriptedEngine
import Synchronization
import Testing
import X86

@Suite struct PatchingTests {
  private func answer(
    _ code: [UInt8], _ native: HypercallOpcode, _ policy: HypercallPolicy, level: UInt8 = 0, isProtected: Bool = true,
    isWritable: Bool = true
  ) -> (HypercallPatching.Outcome, ScriptedCPU) {
    let cpu = ScriptedCPU()
    cpu.code = code
    cpu.currentPrivilegeLevel = level
    cpu.isProtected = isProtected
    cpu.isCodeWritable = isWritable
    return (HypercallPatching(native: native, policy: policy).answer(cpu), cpu)
  }

  @Test("the instruction is replaced by the vendor's own, in its last byte", arguments: HypercallOpcode.allCases)
  func patch(native: HypercallOpcode) throws {
    let foreign = try #require(HypercallOpcode.allCases.first { $0 != native })
    let (outcome, cpu) = answer(foreign.bytes, native, .patch)
    #expect(outcome == .patched && cpu.code == native.bytes)
    // The guest's own store, of one byte.
    #expect(cpu.events == [.stored(cpu.linearInstructionPointer + 2, [native.rawValue], .data), .refetched])
  }

  @Test func emulate() {
    let (outcome, cpu) = answer(HypercallOpcode.vmmcall.bytes, .vmcall, .emulate, level: 3)
    #expect(outcome == .perform && cpu.code == HypercallOpcode.vmmcall.bytes && cpu.events == [.skipped(3)])
  }

  @Test(
    "what is no hypercall reaches the guest unchanged",
    arguments: [[0x0F, 0x0B, 0x00], [0x0F, 0x01], [], [0x0F, 0x01, 0xC8]])
  func other(code: [UInt8]) {
    for policy in HypercallPolicy.allCases {
      let (outcome, cpu) = answer(code, .vmcall, policy)
      #expect(outcome == .refused && cpu.code == code && cpu.events == [.raised(.invalidOpcode)])
    }
  }

  @Test("another vCPU was first: what it wrote is fetched") func raced() {
    let (outcome, cpu) = answer(HypercallOpcode.vmcall.bytes, .vmcall, .patch)
    #expect(outcome == .retried && cpu.events == [.refetched])
  }

  @Test("the guest's write protection is obeyed") func readOnly() {
    let (outcome, cpu) = answer(HypercallOpcode.vmmcall.bytes, .vmcall, .patch, isWritable: false)
    #expect(outcome == .refused && cpu.events == [.raised(ScriptedCPU.storeFault)])
  }

  @Test("KVM's rules: VMMCALL in real mode is #UD, VMCALL outside level 0 is #GP") func rules() {
    let (real, cpu) = answer(HypercallOpcode.vmmcall.bytes, .vmcall, .patch, isProtected: false)
    #expect(real == .refused && cpu.events == [.raised(.invalidOpcode)])
    let (user, other) = answer(HypercallOpcode.vmcall.bytes, .vmmcall, .patch, level: 3)
    #expect(user == .refused && other.events == [.raised(.generalProtection())])
    #expect(answer(HypercallOpcode.vmcall.bytes, .vmmcall, .patch, isProtected: false).0 == .patched)
  }
}

@Suite struct API2007Tests {
  /// A page at 0x1000 that names the stub, as the guests of that time filled it.
  private func memory(version: UInt32 = 1, stub: UInt64 = 0x2010) -> TestMemory {
    let memory = TestMemory()
    memory.store(version, at: 0x1000)
    memory.store(UInt32.max, at: 0x1004)
    memory.store(UInt32(4096), at: 0x1008)
    memory.store(UInt32.max, at: 0x100C)
    memory.store(stub, at: 0x1010)
    // mov $-38, %eax; ret
    memory.store(UInt64(0xC3_FFFF_FFDA_B8), at: 0x2010)
    return memory
  }

  private func word(_ memory: TestMemory, _ address: UInt64) -> UInt32? { memory.loadWord(at: address) }

  @Test("the stub becomes the vendor's instruction and a return", arguments: HypercallOpcode.allCases)
  func registers(native: HypercallOpcode) {
    let memory = memory()
    let record = KVMParaState.register(0x1000, in: memory, native: native)
    #expect(record.registration?.page == 0x1000 && record.registration?.stub == 0x2010)
    #expect(word(memory, 0x1004) == 1 && word(memory, 0x100C) == 0)
    #expect(word(memory, 0x2010) == 0xC3_00_01_0F | UInt32(native.rawValue) << 16)
    // What stood behind the four bytes still does.
    #expect(memory.load(2, at: 0x2014) == 0xC3FF)
    #expect(record.text.contains("0x1000") && record.text.contains("successfully"))
  }

  @Test(
    "older guests are served, newer ones refused",
    arguments: [(0, true), (1, true), (2, false), (.max, false)] as [(UInt32, Bool)])
  func versions(version: UInt32, isServed: Bool) {
    let memory = memory(version: version)
    let record = KVMParaState.register(0x1000, in: memory, native: .vmcall)
    #expect((record.registration != nil) == isServed && record.guestVersion == version)
    // The host's version is told in any case.
    #expect(word(memory, 0x1004) == 1 && word(memory, 0x100C) == (isServed ? 0 : .max))
    #expect((word(memory, 0x2010) == 0xFFDA_B8 | 0xFF00_0000) == !isServed)
  }

  @Test(
    "an address that is no page of RAM is #GP, and nothing changes",
    arguments: [0x1001, 0x1800, 0x3000, .max, 0xFFFF_FFFF_FFFF_F000] as [UInt64])
  func badPage(address: UInt64) {
    let memory = memory()
    let before = memory.bytes.withLock { $0 }
    #expect(KVMParaState.register(address, in: memory, native: .vmcall).guestVersion == nil)
    #expect(memory.bytes.withLock { $0 } == before)
  }

  @Test(
    "a stub that is not all RAM is refused by `ret`, not by a fault",
    arguments: [0x2FFD, 0x3000, .max, .max - 3] as [UInt64])
  func badStub(stub: UInt64) {
    let memory = memory(stub: stub)
    let record = KVMParaState.register(0x1000, in: memory, native: .vmcall)
    #expect(record.registration == nil && record.guestVersion == 1 && word(memory, 0x100C) == .max)
  }

  @Test("a stub across pages, and one on top of `ret`") func corners() {
    var memory = memory(stub: 0x1FFE)
    #expect(KVMParaState.register(0x1000, in: memory, native: .vmmcall).registration != nil)
    #expect(memory.load(4, at: 0x1FFE) == 0xC3D9_010F)
    memory = self.memory(stub: 0x100C)
    #expect(KVMParaState.register(0x1000, in: memory, native: .vmcall).registration != nil)
    #expect(word(memory, 0x100C) == 0, "the result is written last")
  }

  @Test("registering again replaces") func again() {
    let memory = memory()
    _ = KVMParaState.register(0x1000, in: memory, native: .vmcall)
    memory.store(UInt64(0x2100), at: 0x1010)
    #expect(KVMParaState.register(0x1000, in: memory, native: .vmcall).registration?.stub == 0x2100)
    #expect(word(memory, 0x2100) == 0xC3C1_010F)
  }

  @Test("both register conventions; the host program answers, or -KVM_EINVAL") func calls() throws {
    let setup = TestMemory()
    let clock = KVMClock(
      counter: try #require(TimestampCounter(kilohertz: 1_000_000)), isTimestampConstant: true, source: TestTime())
    func calls(_ interface: KVMInterface, _ program: (@Sendable (HypercallRequest) -> UInt64?)?) -> KVMHypercalls<
      TestMemory, TestMachine
    > {
      KVMHypercalls(
        features: .standard, clock: clock, memory: setup, machine: TestMachine(count: 1), interface: interface,
        program: program)
    }
    let sum = calls(.year2007) { request in
      request.arguments.enumerated().reduce(request.number << 32) { $0 + $1.element * UInt64($1.offset + 1) }
    }
    let cpu = ScriptedCPU()
    for number in 0..<16 { cpu.registers[number] = UInt64(number) + 1 | 1 << 40 }
    cpu.currentPrivilegeLevel = 3  // nobody asked in 2007
    // RAX; RDI RSI RDX RCX R8 R9.
    let long: [UInt64] = [8, 7, 3, 2, 9, 10].map { $0 | 1 << 40 }
    #expect(
      sum.perform(on: cpu).result
        == long.enumerated().reduce((1 | 1 << 40) << 32) { $0 &+ $1.element * UInt64($1.offset + 1) })
    // EBX; EAX ECX EDX ESI EDI EBP, cut to 32 bits.
    for number in 0..<16 { cpu.registers[number] = UInt64(number) + 1 | 1 << 40 }
    cpu.isLongModeActive = false
    let short: [UInt64] = [1, 2, 3, 7, 8, 6]
    let expected = short.enumerated().reduce(UInt64(0)) { $0 + $1.element * UInt64($1.offset + 1) }
    let record = sum.perform(on: cpu)
    #expect(record.number == 4 && record.result == expected && cpu.registers[0] == expected)
    #expect(calls(.year2007, nil).perform(on: cpu).result == 0xFFFF_FFFF)
    cpu.isLongModeActive = true
    #expect(calls(.year2007, nil).perform(on: cpu).result == .max)

    // Six months later: RAX, RBX, RCX, RDX, RSI, and no call that exists, whatever the program offers.
    cpu.registers[0] = 1
    #expect(calls(.refactored) { _ in 7 }.perform(on: cpu).result == UInt64(bitPattern: -1000))
    cpu.isLongModeActive = false
    #expect(calls(.refactored, nil).perform(on: cpu).result == 0xFFFF_FC18)
  }

  @Test("a program's own hypercalls in today's interface") func program() throws {
    let clock = KVMClock(
      counter: try #require(TimestampCounter(kilohertz: 1_000_000)), isTimestampConstant: true, source: TestTime())
    let calls = KVMHypercalls(
      features: .standard, clock: clock, memory: TestMemory(), machine: TestMachine(count: 1)
    ) { $0.number == 0x1000 ? $0.arguments[0] + $0.arguments[3] : nil }
    let cpu = ScriptedCPU()
    (cpu.registers[0], cpu.registers[3], cpu.registers[6]) = (0x1000, 40, 2)
    #expect(calls.perform(on: cpu).result == 42)
    cpu.registers[0] = 0x1001
    #expect(calls.perform(on: cpu).result == UInt64(bitPattern: -1000))
    cpu.registers[0] = 0x1000
    cpu.currentPrivilegeLevel = 3
    #expect(calls.perform(on: cpu).result == UInt64(bitPattern: -1))
  }
}

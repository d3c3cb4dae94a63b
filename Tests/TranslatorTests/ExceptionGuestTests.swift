// SPDX-License-Identifier: Apache-2.0
// Every exception an instruction can raise, from translated code: vector, error code, CR2, the pushed frame, and
// that no register has changed.

import GuestMemory
import Testing
import X86

@testable import Translator

/// What a guest of exceptions.S does when `registers` are set.
struct FaultCase: Sendable, CustomTestStringConvertible {
  let name: String
  let vector: UInt8
  var error: UInt64 = 0
  var cr2: UInt64?
  var registers: [Int: UInt64] = [:]
  var user = false
  /// The pushed RIP is that of the next instruction.
  var isTrap = false
  var edit: @Sendable (inout CPUState) -> Void = { _ in }
  var prepare: @Sendable (KernelGuest) -> Void = { _ in }

  init(
    _ name: String, _ vector: UInt8, error: UInt64 = 0, cr2: UInt64? = nil, _ registers: [Int: UInt64] = [:],
    user: Bool = false, isTrap: Bool = false, edit: @escaping @Sendable (inout CPUState) -> Void = { _ in },
    prepare: @escaping @Sendable (KernelGuest) -> Void = { _ in }
  ) {
    self.name = name
    self.vector = vector
    self.error = error
    self.cr2 = cr2
    self.registers = registers
    self.user = user
    self.isTrap = isTrap
    self.edit = edit
    self.prepare = prepare
  }

  var testDescription: String { "\(name)\(user ? " (user)" : "") #\(vector)" }

  /// Runs the case and checks everything.
  func check(on guest: KernelGuest, location: SourceLocation = #_sourceLocation) {
    guest.load(name)
    guest.start(user: user) { state in
      for number in 0..<16 where number != 4 { state.registers[number] = 0x1111_1111_0000_0000 * UInt64(number) + 0x77 }
      state.registers[3] = KernelGuest.data
      for (number, value) in registers { state.registers[number] = value }
      state.rflags = 0x8D7
      edit(&state)
    }
    prepare(guest)
    let before = guest.initial
    guard let frame = guest.exception() else {
      Issue.record(
        "\(testDescription): no exception; stopped at \(String(guest.cpu.state.rip, radix: 16))",
        sourceLocation: location)
      return
    }
    let state = guest.cpu.state
    let at = KernelGuest.mark(name + ".at", in: name, at: before.rip)
    let fault = vector != 1 && vector != 3 && vector != 4 && vector != 0x80 && vector != 8
    let expected = Delivered(
      vector: vector, error: error, rip: isTrap ? frame.rip : at, cs: UInt64(before.cs.selector),
      rflags: before.rflags | (fault ? RFLAGS.rf : 0), rsp: before.registers[4], ss: UInt64(before.ss.selector))
    #expect(frame == expected, "\(testDescription)", sourceLocation: location)
    if let cr2 { #expect(state.cr2 == cr2, "\(testDescription)", sourceLocation: location) }
    for number in 0..<16 where number != 4 {
      #expect(
        state.registers[number] == before.registers[number], "\(testDescription) r\(number)", sourceLocation: location)
    }
    // Bytes 28...31 are MXCSR_MASK, which the host fills in.
    let vectors = state.xsave[32..<512] == before.xsave[32..<512]
    #expect(vectors, "\(testDescription): vector registers", sourceLocation: location)
  }
}

@Suite("Exceptions in translated code") struct ExceptionGuestTests {
  static let odd: UInt64 = KernelGuest.data + 3
  static let outside: UInt64 = 0x0000_8000_0000_0000

  static let simple: [FaultCase] = [
    FaultCase("div8", 0, [1: 0]), FaultCase("div16", 0, [1: 0xFFFF_0000]), FaultCase("div32", 0, [1: 0xF << 32]),
    FaultCase("div64", 0, [1: 0]), FaultCase("div_r14", 0, [14: 0]), FaultCase("div_memory", 0),
    FaultCase("div8_high", 0, [1: 0x00FF]), FaultCase("div64", 0, [1: 5, 2: 5]),
    FaultCase("idiv8", 0, [0: 0x8000, 1: 1]), FaultCase("idiv16", 0, [0: 0x8000, 1: 0xFFFF, 2: 0xFFFF]),
    FaultCase("idiv32", 0, [0: 0x8000_0000, 1: 0xFFFF_FFFF, 2: 0xFFFF_FFFF]),
    FaultCase("idiv64", 0, [0: 1 << 63, 1: .max, 2: .max]), FaultCase("idiv_memory", 0),
    FaultCase("ud2", 6), FaultCase("ud1", 6), FaultCase("ud_0f04", 6), FaultCase("ud_lock_nop", 6),
    FaultCase("ud_lock_register", 6), FaultCase("ud_lock_mov", 6), FaultCase("ud_lock_cmp", 6),
    FaultCase("ud_push_cs", 6), FaultCase("ud_into", 6), FaultCase("ud_daa", 6), FaultCase("ud_lea_register", 6),
    FaultCase("ud_mov_cs", 6), FaultCase("ud_cr1", 6), FaultCase("ud_far_register", 6),
    FaultCase("x87", 7) { $0.cr0 |= 8 }, FaultCase("x87", 7) { $0.cr0 |= 4 }, FaultCase("mmx", 7) { $0.cr0 |= 8 },
    FaultCase("mmx", 6) { $0.cr0 |= 4 }, FaultCase("sse", 7) { $0.cr0 |= 8 }, FaultCase("sse", 6) { $0.cr0 |= 4 },
    FaultCase("sse", 6) { $0.cr4 &= ~0x200 }, FaultCase("avx", 7) { $0.cr0 |= 8 },
    FaultCase("avx", 6) { $0.cr4 &= ~(1 << 18) }, FaultCase("avx", 6) { $0.xcr0 = 3 },
    FaultCase("wait", 7) { $0.cr0 |= 8 | 2 }, FaultCase("fxsave", 7) { $0.cr0 |= 8 },
    FaultCase("xsave", 7) { $0.cr0 |= 8 }, FaultCase("xsave", 6) { $0.cr4 &= ~(1 << 18) },
    FaultCase("fxsave", 13, [3: odd]), FaultCase("xsave", 13, [3: KernelGuest.data + 16]),
    FaultCase("movaps_load", 13, [3: odd]), FaultCase("movaps_store", 13, [3: odd]),
    FaultCase("addps_memory", 13, [3: odd]), FaultCase("vmovaps_store", 13, [3: KernelGuest.data + 16]),
    FaultCase("cmpxchg16", 13, [3: KernelGuest.data + 8]),
    FaultCase("movaps_load", 13, [3: KernelGuest.data + 0xFF8]),
    FaultCase("ldmxcsr", 13, prepare: { $0.poke(UInt32(0xFFFF_0000), at: KernelGuest.data) }),
    FaultCase("too_long", 13), FaultCase("int3", 3, isTrap: true), FaultCase("int80", 0x80, isTrap: true),
    FaultCase("icebp", 1, isTrap: true),
    FaultCase("divps", 19) { $0.xsave.replaceSubrange(24..<28, with: [0, 0x1D, 0, 0]) },
    FaultCase("mov_ds", 13, error: 0x200, [0: 0x200]), FaultCase("mov_ds", 11, error: 0x38, [0: 0x38]),
    FaultCase("mov_ss", 12, error: 0x38, [0: 0x38]), FaultCase("mov_ss", 13, [0: 0]) { $0.efer = $0.efer },
    FaultCase("mov_ss", 13, error: 0x70, [0: 0x70]), FaultCase("mov_fs", 13, error: 0x78, [0: 0x78]),
    FaultCase("mov_to_cr3", 13, [0: 1 << 60]), FaultCase("xsetbv", 13, [0: 2, 1: 0, 2: 0]),
    FaultCase("wrmsr", 13, [0: 0, 1: 0xC000_0100, 2: 0x8000]),
    FaultCase("mov_dr7", 1, isTrap: true) { $0.dr7 |= 1 << 13 },
  ]

  @Test("Exceptions that need no memory", arguments: simple.filter { !($0.name == "mov_ss" && $0.registers[0] == 0) })
  func raised(_ item: FaultCase) throws { item.check(on: try KernelGuest()) }

  @Test("Non-canonical addresses: #GP, on the stack #SS") func nonCanonical() throws {
    let guest = try KernelGuest()
    let outside = Self.outside
    let data = [
      "load1", "load2", "load4", "load8", "store1", "store2", "store4", "store8", "store_immediate", "add_memory",
      "add_from",
      "adc_memory", "xadd_locked", "xchg_memory", "cmpxchg_locked", "cmpxchg16", "push_memory", "pop_memory",
      "call_memory", "jump_memory", "movaps_load", "movups_store", "vmovups_load", "fld_memory", "fstp_memory",
      "fxsave",
      "xsave", "ldmxcsr", "load_high",
    ]
    for name in data { FaultCase(name, 13, [3: outside]).check(on: guest) }
    for name in data { FaultCase(name, 13, [3: outside], user: true).check(on: guest) }
    FaultCase("load8", 13, [3: outside - 4]).check(on: guest)
    FaultCase("store8", 13, [3: outside - 4]).check(on: guest)
    FaultCase("load_r15", 13, [3: outside - 8, 14: 8]).check(on: guest)
    FaultCase("load_fs", 13, [3: 8]) { $0.fs.base = outside - 8 }.check(on: guest)
    FaultCase("load_rbp", 12, [5: outside]).check(on: guest)
    FaultCase("leave", 12, [5: outside]).check(on: guest)
    let stack = [
      "push_register", "push_immediate", "push_flags", "call_near", "call_register", "pop_register", "ret", "pop_flags",
      "enter",
    ]
    for name in stack {
      // A stack that cannot hold the frame: the handler runs on another.
      for vector in [8, 12] { guest.setGate(UInt8(vector), stack: 1) }
      let pops = ["pop_register", "ret", "pop_flags"].contains(name)
      FaultCase(name, 12, [0: KernelGuest.code, 4: pops ? outside : outside + 8]).check(on: guest)
      // The address that an empty entry for the stack's page has.
      FaultCase(name, 12, [0: KernelGuest.code, 4: pops ? (1 << 63) + 16 : (1 << 63) + 24]).check(on: guest)
    }
    for vector in [8, 12] { guest.setGate(UInt8(vector)) }
    FaultCase("call_register", 13, [0: outside]).check(on: guest)
    FaultCase("jump_register", 13, [0: outside]).check(on: guest)
    let store: @Sendable (KernelGuest) -> Void = { $0.poke(outside, at: KernelGuest.data) }
    FaultCase("call_memory", 13, prepare: store).check(on: guest)
    FaultCase("jump_memory", 13, prepare: store).check(on: guest)
    FaultCase("ret", 13, prepare: { $0.poke(outside, at: KernelGuest.stack) }).check(on: guest)
    FaultCase("ret_pop", 13, prepare: { $0.poke(outside, at: KernelGuest.stack) }).check(on: guest)
    FaultCase(
      "iret", 13,
      prepare: {
        for (index, value) in [outside, KernelGuest.kernelCode, 2, KernelGuest.stack, KernelGuest.kernelData]
          .enumerated()
        {
          $0.poke(value, at: KernelGuest.stack + UInt64(index) * 8)
        }
      }
    ).check(on: guest)
    for name in ["movs", "rep_movsb", "rep_movsq", "rep_lodsb", "repe_cmpsb"] {
      FaultCase(name, 13, [1: 5, 6: outside, 7: KernelGuest.data]).check(on: guest)
    }
    for name in ["movs", "rep_movsb", "rep_stosb", "rep_stosd", "repne_scasb"] {
      FaultCase(name, 13, [1: 5, 6: KernelGuest.data, 7: outside]).check(on: guest)
    }
  }

  @Test("What only the supervisor may do is #GP(0) at level 3") func privileged() throws {
    let guest = try KernelGuest()
    for name in [
      "hlt", "cli", "sti", "in_dx", "out_dx", "mov_cr0", "mov_to_cr3", "mov_dr7", "lgdt", "lidt", "ltr", "lmsw", "clts",
      "invlpg", "wbinvd", "rdmsr", "wrmsr", "swapgs", "sysret", "xsetbv",
    ] {
      FaultCase(name, 13, user: true).check(on: guest)
    }
    FaultCase("int21", 13, error: 0x21 * 8 + 2, user: true).check(on: guest)
    FaultCase("clac", 6, user: true).check(on: guest)
  }
}

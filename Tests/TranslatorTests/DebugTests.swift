// SPDX-License-Identifier: Apache-2.0
// #DB: single-stepping over every kind of instruction, instruction and data breakpoints.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite("Debug exceptions") struct DebugTests {
  /// Single-steps user code: the handler's IRET goes on. Returns the RIPs of the traps, relative to the code.
  private func steps(_ guest: KernelGuest, _ name: String, most: Int = 20, _ edit: (inout CPUState) -> Void = { _ in })
    -> [UInt64]
  {
    guest.load(name)
    guest.load("handler_hlt_iretq", at: KernelGuest.handlers + 16)
    guest.start {
      $0.rflags = 0x102
      edit(&$0)
    }
    var result: [UInt64] = []
    while result.count < most {
      guard guest.cpu.run() == .halt, let frame = guest.frame(), frame.vector == 1 else { break }
      #expect(guest.cpu.state.dr6 & 0x4000 != 0)
      #expect(guest.cpu.state.rflags & 0x100 == 0)
      result.append(frame.rip &- KernelGuest.code)
    }
    return result
  }

  @Test("Every instruction traps once, branches at their target") func stepping() throws {
    let guest = try KernelGuest()
    #expect(steps(guest, "step_plain", most: 8) == [2, 3, 4, 5, 7, 10, 14, 15])
    let rep = steps(guest, "step_rep", most: 7) { $0.registers[7] = KernelGuest.data }
    // MOV ECX, then one trap for each of three elements, the last behind the instruction.
    #expect(rep == [5, 5, 5, 7, 8, 9, 10])
    // MOV SS: no trap behind it, one behind the instruction that follows.
    #expect(steps(guest, "step_mov_ss", most: 4) { $0.registers[0] = 0x18 } == [3, 4, 5, 6])
    // PUSHF shows TF; POPF that clears it still traps behind itself.
    #expect(steps(guest, "step_popf") == [2, 3, 4, 5, 6])
    // POPF that sets it: the trap comes one instruction later.
    #expect(steps(guest, "step_begin", most: 1) { $0.rflags = 2 } == [7])
  }

  @Test("SYSCALL and SYSRET trap by the TF they load") func systemCalls() throws {
    let guest = try KernelGuest()
    guest.load("handler_hlt_iretq", at: KernelGuest.handlers + 16)
    guest.load("trap_syscall")
    guest.load("halt", at: 0x50000)
    guest.start(user: true) {
      $0.rflags = 0x102
      $0.sfmask = 0x100
      $0.lstar = 0x50000
    }
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu.state.rip == 0x50001)
    #expect(guest.cpu.state.registers[11] == 0x102)
    // SYSRET with TF in R11 traps right after itself.
    guest.load("trap_sysret")
    guest.load("nops", at: 0x50000)
    guest.start {
      $0.registers[1] = 0x50000
      $0.registers[11] = 0x102
    }
    #expect(guest.cpu.run() == .halt)
    let frame = guest.frame()
    #expect(frame?.vector == 1 && frame?.rip == 0x50000 && frame?.cs == KernelGuest.userCode)
  }

  @Test("Instruction breakpoints are faults, RF lets the instruction through") func execution() throws {
    let guest = try KernelGuest()
    guest.load("execution")
    let at = KernelGuest.mark("execution.at", in: "execution")
    guest.start {
      $0.dr0 = at
      $0.dr7 = 0x402
    }
    let frame = guest.exception()
    #expect(frame == Delivered(vector: 1, rip: at))
    #expect(guest.cpu.state.dr6 & 0xF == 1)
    #expect(guest.cpu[register: 0] == 0)
    // The handler sets RF in the image and returns: once through, and not again at the same place.
    guest.load("handler_hlt_iretq", at: KernelGuest.handlers + 16)
    guest.poke(UInt64(0x10002), at: guest.cpu[register: 4] + 16)
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 0] == 1 && guest.cpu.state.rip == KernelGuest.code + 6)
    #expect(guest.cpu.state.rflags & RFLAGS.rf == 0)
  }

  @Test(
    "Data breakpoints are traps behind the access",
    arguments: ["store8", "add_memory", "push_register", "load4", "movups_load"])
  func data(name: String) throws {
    let guest = try KernelGuest()
    let isLoad = name.contains("load")
    guest.load(name)
    guest.start {
      $0.registers[3] = KernelGuest.data
      $0.dr1 = name == "push_register" ? KernelGuest.stack - 8 : KernelGuest.data
      $0.dr7 = 0x408 | (isLoad ? 0xF0_0000 : 0xD0_0000)
    }
    let frame = guest.exception()
    #expect(frame?.vector == 1)
    #expect(guest.cpu.state.dr6 & 0xF == 2)
    let at = KernelGuest.mark(name + ".at", in: name)
    #expect(frame.map { $0.rip > at && $0.rip <= at + 8 } == true)
  }

  @Test("#MF, #XM and #AC") func arithmetic() throws {
    let guest = try KernelGuest()
    // Division by zero with #ZE unmasked: the next waiting x87 instruction raises #MF.
    guest.load("x87_zero")
    guest.start {
      $0.xsave[0] = 0x7B
      $0.xsave[512] = 1
    }
    let frame = guest.exception()
    #expect(frame?.vector == 16 && frame?.rip == KernelGuest.mark("x87_zero.at", in: "x87_zero"))
    FaultCase("divps", 19, edit: { $0.xsave.replaceSubrange(24..<26, with: [0, 0x1D]) }).check(on: guest)
    FaultCase(
      "load8", 17, [3: KernelGuest.data + 1], user: true,
      edit: {
        $0.cr0 |= 1 << 18; $0.rflags |= 1 << 18
      }
    ).check(on: guest)
    FaultCase(
      "store4", 17, [3: KernelGuest.data + 2], user: true,
      edit: {
        $0.cr0 |= 1 << 18; $0.rflags |= 1 << 18
      }
    ).check(on: guest)
    FaultCase(
      "push_register", 17, [4: KernelGuest.stack + 1], user: true,
      edit: {
        $0.cr0 |= 1 << 18; $0.rflags |= 1 << 18
      }
    ).check(
      on: guest)
    FaultCase(
      "rep_movsq", 17, [1: 2, 6: KernelGuest.data, 7: KernelGuest.data + 0x101], user: true,
      edit: {
        $0.cr0 |= 1 << 18; $0.rflags |= 1 << 18
      }
    )
    .check(on: guest)
  }
}

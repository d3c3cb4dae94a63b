// SPDX-License-Identifier: Apache-2.0
// What a guest can do wrong with a hypercall instruction, by the rules of docs/kvm-paravirt.md, section 7: those that
// need a CPU and are not in HypercallInstructionTests.swift.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct HypercallRuleTests {
  private static let vmcall = HypercallOpcode.vmcall.bytes, vmmcall = HypercallOpcode.vmmcall.bytes

  @Test("5: LOCK is #UD; REX changes nothing") func prefixes() throws {
    for bytes in HypercallOpcode.allCases.map(\.bytes) {
      let guest = try KernelGuest()
      guest.load([0xF0] + bytes)
      #expect(guest.exception()?.vector == 6)
      guest.load([0x48] + bytes)
      guest.start()
      #expect(guest.cpu.run() == .hypercall && guest.cpu.state.rip == KernelGuest.code + 4)
    }
  }

  @Test("7: a call in the last bytes there are is made, and the fetch behind it faults") func last() throws {
    let guest = try KernelGuest()
    let next = KernelGuest.code + 4096
    guest.load(Self.vmcall, at: next - 3)
    guest.setPage(next, 0)
    guest.start { $0.rip = next - 3 }
    #expect(guest.cpu.run() == .hypercall && guest.cpu.state.rip == next)
    let frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.rip == next)
  }

  @Test("8: a call across pages of which one is absent is that page's fault") func split() throws {
    let guest = try KernelGuest { $0.hypercallPolicy = .patch }
    let next = KernelGuest.code + 4096
    guest.load(Self.vmmcall, at: next - 1)
    guest.setPage(next, 0)
    guest.start { $0.rip = next - 1 }
    let frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.rip == next - 1 && guest.cpu.state.cr2 == next)
  }

  @Test("11: ud2 is #UD under every policy", arguments: HypercallPolicy.allCases) func other(policy: HypercallPolicy)
    throws
  {
    let guest = try KernelGuest { $0.hypercallPolicy = policy }
    guest.load("undefined")
    let frame = guest.exception()
    #expect(frame?.vector == 6 && frame?.rip == KernelGuest.code)
  }

  @Test("12: a breakpoint on a call comes first, also where the call is not the CPU's own") func breakpoint() throws {
    for (policy, bytes) in [(HypercallPolicy.native, Self.vmcall), (.emulate, Self.vmmcall)] {
      let guest = try KernelGuest { $0.hypercallPolicy = policy }
      guest.load(bytes)
      guest.start {
        $0.dr0 = KernelGuest.code
        $0.dr7 = 0x402
      }
      let frame = guest.exception()
      #expect(frame?.vector == 1 && frame?.rip == KernelGuest.code)
      // With RF the instruction is executed.
      guest.start {
        $0.dr0 = KernelGuest.code
        $0.dr7 = 0x402
        $0.rflags |= 1 << 16
      }
      #expect(guest.cpu.run() == (policy == .native ? .hypercall : .foreignHypercall))
    }
  }

  @Test("13: the shadow of STI ends behind the call") func shadow() throws {
    let guest = try KernelGuest()
    guest.load("call_shadow")
    guest.start()
    guest.cpu.requestInterruptWindow(true)
    #expect(guest.cpu.run() == .hypercall && guest.cpu.state.rip == KernelGuest.code + 4)
    #expect(guest.cpu.run() == .interruptWindow && guest.cpu.state.rip == KernelGuest.code + 4)
  }

  @Test("14: a site that is replaced again and again lets interrupts in") func loop() throws {
    let guest = try KernelGuest { $0.hypercallPolicy = .patch }
    guest.load(Self.vmmcall)
    guest.start { $0.rflags |= 1 << 9 }
    for _ in 0..<10 {
      #expect(guest.cpu.run() == .foreignHypercall && guest.cpu.state.rip == KernelGuest.code)
      #expect(guest.cpu.write(linear: KernelGuest.code, HypercallOpcode.vmcall.bytes, as: .data) == nil)
      guest.cpu.refetchCode()
      guest.load(Self.vmmcall)
    }
    #expect(guest.cpu.canAcceptInterrupt)
    guest.cpu.inject(interrupt: 0x40)
    let frame = guest.exception()
    #expect(frame?.vector == 0x40 && frame?.rip == KernelGuest.code)
  }
}

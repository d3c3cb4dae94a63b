// SPDX-License-Identifier: Apache-2.0
// VMCALL and VMMCALL in translated code: which of them leaves for what, and the store that replaces one.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct HypercallInstructionTests {
  private static let vmcall = HypercallOpcode.vmcall.bytes, vmmcall = HypercallOpcode.vmmcall.bytes

  /// What the machine does to replace the instruction: in the guest's name; the fault is the guest's if it may not.
  private func replace(_ cpu: TranslatedCPU) -> Bool {
    let place = cpu.linearInstructionPointer
    guard
      let fault = cpu.storeFault(linear: place, count: 3, as: .data)
        ?? cpu.write(linear: place + 2, [HypercallOpcode.vmcall.rawValue], as: .data)
    else { return true }
    cpu.raise(fault)
    return false
  }

  private func guest(_ policy: HypercallPolicy, native: HypercallOpcode = .vmcall) throws -> KernelGuest {
    try KernelGuest { options in
      options.hypercallPolicy = policy
      options.nativeHypercall = native
    }
  }

  @Test("the vendor's own leaves with RIP behind it, under every policy", arguments: HypercallPolicy.allCases)
  func own(policy: HypercallPolicy) throws {
    for native in HypercallOpcode.allCases {
      let guest = try guest(policy, native: native)
      guest.load(native.bytes + [0xF4])
      #expect(guest.cpu.run() == .hypercall && guest.cpu.state.rip == KernelGuest.code + 3)
      #expect(guest.cpu.run() == .halt)
    }
  }

  @Test("a call with one answer is answered in place and counted, and only at level 0") func constant() throws {
    let guest = try KernelGuest { $0.constantHypercalls = [1: 0, 2: -1000] }
    guest.load("call_constants")
    guest.start { $0.registers[3] = 77 }
    // The second one leaves RAX = -1000, which has no answer of its own.
    #expect(guest.cpu.run() == .hypercall)
    #expect(
      guest.cpu[register: 3] == 0 && guest.cpu[register: 0] == UInt64(bitPattern: -1000) && guest.cpu[register: 1] == 3)
    #expect(guest.cpu.run() == .hypercall && guest.cpu[register: 0] == 5)
    #expect(guest.translation.counters.hypercalls == [1: 1, 2: 1])

    guest.start(user: true)
    #expect(guest.cpu.run() == .hypercall && guest.cpu[register: 0] == 1)
  }

  @Test("the other one") func foreign() throws {
    var guest = try guest(.native)
    guest.load("call_foreign")
    #expect(guest.cpu.run() == .hypercall && guest.cpu.state.rip == KernelGuest.code + 3)

    guest = try self.guest(.fault)
    guest.load(Self.vmmcall)
    #expect(guest.exception()?.vector == 6)

    guest = try self.guest(.emulate)
    guest.load("call_foreign_twice")
    for call in UInt64(0)..<2 {
      #expect(guest.cpu.run() == .foreignHypercall && guest.cpu.state.rip == KernelGuest.code + call * 3)
      #expect(guest.cpu.read(linear: guest.cpu.linearInstructionPointer, count: 3, as: .code) == Self.vmmcall)
      guest.cpu.skip(byteCount: 3)
    }
    #expect(guest.cpu.run() == .halt)
  }

  @Test("a #UD that is asked for arrives at the instruction, without effect") func reflected() throws {
    for isPrivileged in [false, true] {
      let guest = try guest(.emulate)
      guest.load(Self.vmmcall)
      #expect(guest.cpu.run() == .foreignHypercall)
      guest.cpu.raise(isPrivileged ? .generalProtection() : .invalidOpcode)
      let frame = guest.exception()
      #expect(frame?.vector == (isPrivileged ? 13 : 6) && frame?.rip == KernelGuest.code)
    }
  }

  @Test("a prefixed form is never touched", arguments: [[0x66], [0xF2], [0xF3], [0x48]])
  func prefixed(prefix: [UInt8]) throws {
    for policy in [HypercallPolicy.emulate, .patch, .fault] {
      let guest = try guest(policy)
      guest.load(prefix + Self.vmmcall)
      #expect(guest.exception()?.vector == 6)
      #expect((0..<4).map { guest.peek(UInt8.self, at: KernelGuest.code + $0) } == prefix + Self.vmmcall)
    }
  }

  @Test(
    "a replaced instruction runs, is seen by the guest, and its page counts as written", arguments: [0, 4094, 4095])
  func patched(offset: UInt64) throws {
    let guest = try guest(.patch)
    let place = KernelGuest.code + offset
    guest.load("call_read", at: place)
    guest.start { $0.rip = place }
    #expect(guest.cpu.run() == .foreignHypercall && guest.cpu.state.rip == place)
    #expect(replace(guest.cpu))
    guest.cpu.refetchCode()
    #expect(guest.cpu.run() == .hypercall && guest.cpu.state.rip == place + 3)
    #expect(guest.cpu.run() == .halt && guest.cpu[register: 0] == 0xC1)
    #expect(guest.peek(UInt8.self, at: place + 2) == 0xC1)
  }

  @Test("a store that the guest may not make is its page fault", arguments: [false, true]) func protected(
    isSecondPage: Bool
  ) throws {
    let guest = try guest(.patch)
    let place = KernelGuest.code + (isSecondPage ? 4095 : 0)
    guest.load(Self.vmmcall, at: place)
    let readOnly = isSecondPage ? KernelGuest.code + 4096 : KernelGuest.code
    guest.setPage(readOnly, readOnly | 5)
    guest.start { $0.rip = place }
    #expect(guest.cpu.run() == .foreignHypercall)
    #expect(!replace(guest.cpu))
    let frame = guest.exception()
    #expect(frame?.vector == 14 && frame?.error == 3 && frame?.rip == place)
    #expect(guest.cpu.state.cr2 == (isSecondPage ? readOnly : place))
    #expect(guest.peek(UInt8.self, at: place + 2) == 0xD9)
    // With CR0.WP clear, level 0 may.
    guest.start {
      $0.rip = place
      $0.cr0 &= ~(1 << 16)
    }
    #expect(guest.cpu.run() == .foreignHypercall && replace(guest.cpu))
    #expect(guest.cpu.run() == .hypercall)
  }

  @Test("user code: the store is the user's") func user() throws {
    let guest = try guest(.patch)
    guest.load(Self.vmmcall)
    guest.setPage(KernelGuest.code, KernelGuest.code | 5)
    guest.start(user: true)
    #expect(guest.cpu.run() == .foreignHypercall && guest.cpu.currentPrivilegeLevel == 3)
    #expect(!replace(guest.cpu))
    #expect(guest.exception()?.error == 7)
  }

  @Test("a stepped call traps behind it, however it was made") func stepped() throws {
    let guest = try guest(.emulate)
    guest.load("call_foreign")
    guest.start { $0.rflags |= 1 << 8 }
    #expect(guest.cpu.run() == .foreignHypercall)
    guest.cpu.skip(byteCount: 3)
    let frame = guest.exception()
    #expect(frame?.vector == 1 && frame?.rip == KernelGuest.code + 3)
  }
}

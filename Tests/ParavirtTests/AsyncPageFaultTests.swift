// SPDX-License-Identifier: Apache-2.0
// Asynchronous page faults from both sides: tokens, their order, and a guest that does not do its part.

import Paravirt
import Testing
import X86

@Suite struct AsyncPageFaultTests {
  private let memory = TestMemory()
  private let address: UInt64 = 0x1FC0
  private typealias Fault = KVMAsyncPageFault<TestMemory>

  /// Enabled as Linux does it, with the first event, which wakes everybody, taken.
  private func enabled(bits: UInt64 = 0b1001, vector: UInt64 = 0xF3) throws -> Fault {
    var fault = Fault(features: .standard, memory: memory, cpu: 3)
    try #require(fault.write(interrupt: vector) == true)
    try #require(fault.write(enable: address | bits) == true)
    try #require(fault.takeReady() == UInt8(vector))
    try #require(guestTakes(&fault) == .max)
    return fault
  }

  /// The guest's interrupt handler: reads the token, clears it, acknowledges.
  private func guestTakes(_ fault: inout Fault) -> UInt32? {
    let token = memory.loadWord(at: address + 4)
    memory.store(UInt32(0), at: address + 4)
    fault.acknowledge(1)
    return token
  }

  private func begin(_ fault: inout Fault) throws -> UInt32 {
    let token = fault.begin()
    return try #require(token)
  }

  @Test func aPageIsAnnouncedAndComes() throws {
    var fault = try enabled()
    #expect(fault.canBegin(privilegeLevel: 3, canInterrupt: true))
    let token = try begin(&fault)
    #expect(token != 0 && token != .max && token & 0xFFF == 3)
    #expect(memory.loadWord(at: address) == 1)
    #expect(fault.takeReady() == nil)
    fault.complete(token)
    #expect(fault.takeReady() == 0xF3)
    #expect(guestTakes(&fault) == token)
    #expect(fault.takeReady() == nil && fault.outstanding == 0)
  }

  @Test func theNextEventWaitsForTheLastToBeTaken() throws {
    var fault = try enabled()
    let tokens = try (0..<3).map { _ in try begin(&fault) }
    #expect(Set(tokens).count == 3)
    for token in tokens.reversed() { fault.complete(token) }
    #expect(fault.takeReady() == 0xF3)
    #expect(fault.takeReady() == nil)
    // Acknowledged, but not taken: it stays queued, and nobody spins on it.
    fault.acknowledge(1)
    #expect(fault.takeReady() == nil && !fault.hasReady)
    #expect(guestTakes(&fault) == tokens[2])
    #expect(fault.takeReady() == 0xF3)
    #expect(guestTakes(&fault) == tokens[1])
    #expect(fault.takeReady() == 0xF3)
    #expect(guestTakes(&fault) == tokens[0])
  }

  @Test func acknowledgeLooksAtBitZeroOnly() throws {
    var fault = try enabled()
    fault.complete(try begin(&fault))
    memory.store(UInt32(7), at: address + 4)
    #expect(fault.takeReady() == nil)
    memory.store(UInt32(0), at: address + 4)
    fault.acknowledge(.max - 1)
    #expect(fault.takeReady() == nil)
    fault.acknowledge(.max)
    #expect(fault.takeReady() == 0xF3)
  }

  @Test func kernelCodeWaitsUnlessItAskedNotTo() throws {
    let user = try enabled()
    #expect(!user.canBegin(privilegeLevel: 0, canInterrupt: true))
    #expect(user.canBegin(privilegeLevel: 1, canInterrupt: true))
    #expect(!user.canBegin(privilegeLevel: 3, canInterrupt: false))
    var always = try enabled(bits: 0b1011)
    #expect(always.canBegin(privilegeLevel: 0, canInterrupt: true) && always.isForEveryLevel && !user.isForEveryLevel)
    always.reset()
    #expect(!always.isForEveryLevel)
  }

  @Test func noMoreThanTheQueueHolds() throws {
    var fault = try enabled()
    for _ in 0..<Fault.capacity {
      #expect(fault.canBegin(privilegeLevel: 3, canInterrupt: true))
      _ = try begin(&fault)
    }
    #expect(!fault.canBegin(privilegeLevel: 3, canInterrupt: true))
  }

  @Test func tokensAreNeverNothingNorEverything() throws {
    let memory = TestMemory(count: 64, keepsHistory: false)
    var fault = Fault(features: .standard, memory: memory, cpu: 0xFFF)
    #expect(fault.write(enable: 9) == true)
    for _ in 0..<(1 << 20) + 5 {
      let token = try begin(&fault)
      if token == 0 || token == .max || token & 0xFFF != 0xFFF { Issue.record("token \(token)") }
      fault.complete(token)
      // The interrupt register was never written: vector 0 is no interrupt, and the event is dropped.
      #expect(fault.takeReady() == nil)
    }
  }

  @Test func enablingAgainWakesEverybodyOnce() throws {
    var fault = try enabled()
    for _ in 0..<3 { #expect(fault.write(enable: address | 9) == true) }
    #expect(fault.takeReady() == 0xF3)
    #expect(guestTakes(&fault) == .max)
    #expect(fault.takeReady() == nil)
  }

  @Test func disablingDropsWhatIsOnItsWay() throws {
    for value: UInt64 in [0, 8, 1] {
      var fault = try enabled()
      let token = try begin(&fault)
      fault.complete(try begin(&fault))
      #expect(fault.write(enable: address | value) == true)
      #expect(!fault.isActive && fault.outstanding == 0)
      fault.complete(token)
      #expect(fault.takeReady() == nil)
    }
    var fault = try enabled()
    fault.complete(try begin(&fault))
    fault.reset()
    #expect(fault.takeReady() == nil && fault.register == 0 && fault.interrupt == 0)
  }

  @Test func enableFaults() throws {
    var fault = Fault(features: .standard, memory: memory, cpu: 0)
    for bit: UInt64 in [4, 5] { #expect(fault.write(enable: address | 1 << bit) == false) }
    #expect(fault.register == 0)
    #expect(fault.write(enable: address | 0xF) == true)
    var plain = Fault(features: .asyncPageFault, memory: memory, cpu: 0)
    #expect(!plain.write(enable: address | 1 << 2) && !plain.write(enable: address | 1 << 3))
    // Accepted, and nothing comes of it.
    #expect(plain.write(enable: address | 1) && !plain.isActive)
    #expect(plain.takeReady() == nil)
    // An address that is not RAM faults, but is there to be read back.
    #expect(fault.write(enable: 0x3000 | 9) == false)
    #expect(fault.register == 0x3009)
    #expect(!fault.write(interrupt: 0x100) && !fault.write(interrupt: .max))
    #expect(fault.write(interrupt: 0xFF) == true)
  }

  @Test func aGuestThatLostItsStructureWaits() throws {
    var fault = Fault(features: .standard, memory: memory, cpu: 0)
    #expect(fault.write(enable: 0x3000 | 9) == false)
    #expect(fault.begin() == nil)
    #expect(fault.takeReady() == nil)
  }
}

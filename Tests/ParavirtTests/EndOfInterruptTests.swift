// SPDX-License-Identifier: Apache-2.0
// The end-of-interrupt byte from both sides: offered, taken, taken back.

import Paravirt
import Testing

@Suite struct EndOfInterruptTests {
  private let memory = TestMemory()
  private let address: UInt64 = 0x804

  private func enabled() throws -> KVMEndOfInterrupt<TestMemory> {
    var end = KVMEndOfInterrupt(memory: memory)
    try #require(end.write(address | 1) == true)
    return end
  }

  /// The guest's test-and-clear.
  private func guestTakes() -> Bool { memory.exchangeByte(0, at: address) == 1 }

  @Test func theGuestEndsItInMemory() throws {
    var end = try enabled()
    #expect(end.settle(withdrawing: true) == false)
    end.offer()
    #expect(end.isOffered && memory.loadByte(at: address) == 1)
    #expect(end.settle(withdrawing: false) == false)
    #expect(end.isOffered)
    #expect(guestTakes())
    #expect(end.settle(withdrawing: false) == true)
    #expect(!end.isOffered && !end.settle(withdrawing: false))
  }

  @Test func anOfferIsTakenBackOnce() throws {
    var end = try enabled()
    end.offer()
    #expect(end.settle(withdrawing: true) == false)
    #expect(!end.isOffered)
    // The guest finds the bit clear and writes to its APIC.
    #expect(!guestTakes())
    #expect(end.settle(withdrawing: true) == false)
  }

  @Test func tooLateToTakeBack() throws {
    var end = try enabled()
    end.offer()
    #expect(guestTakes())
    #expect(end.settle(withdrawing: true) == true)
  }

  @Test func aBitTheGuestSetsItselfIsItsOwnLoss() throws {
    var end = try enabled()
    memory.store(UInt8(1), at: address)
    #expect(end.settle(withdrawing: false) == false)
    #expect(memory.loadByte(at: address) == 1)
  }

  @Test func badAddressesFaultAndChangeNothing() throws {
    var end = try enabled()
    for value: UInt64 in [address | 2, address | 3, 2, 3, 0x3001, 0x2FFF | 2, .max, 0xFFFF_FFFF_FFFF_FFFD] {
      #expect(end.write(value) == false)
      #expect(end.register == address | 1)
    }
    // Disabled, the address may be anything that is aligned.
    #expect(end.write(0xFFFF_FFFF_FFFF_FFFC) == true)
    #expect(!end.isEnabled)
    end.offer()
    #expect(!end.isOffered)
  }

  @Test func onlyOneByteIsTouched() throws {
    var end = try enabled()
    for offset: UInt64 in 1..<4 { memory.store(UInt8(0xAA), at: address + offset) }
    end.offer()
    #expect(memory.loadWord(at: address) == 0xAAAA_AA01)
    _ = end.settle(withdrawing: true)
    #expect(memory.loadWord(at: address) == 0xAAAA_AA00)
  }

  @Test func anotherPlaceForgetsTheOffer() throws {
    for value: UInt64 in [0, 0x2000 | 1, address | 1] {
      var end = try enabled()
      end.offer()
      #expect(end.isOffered)
      #expect(end.write(0x2000 | 2) == false)
      #expect(end.isOffered)
      #expect(end.write(value) == true)
      // What is there now was not offered, and ends nothing.
      #expect(!end.isOffered && !end.settle(withdrawing: false))
    }
  }

  @Test func resetForgets() throws {
    var end = try enabled()
    end.offer()
    end.reset()
    #expect(!end.isOffered && !end.isEnabled)
    #expect(end.settle(withdrawing: true) == false)
  }
}

// SPDX-License-Identifier: Apache-2.0
// Steal time from the guest's side: what it reads, who may leave a wish in the byte, and that the version is never odd
// when the host is done.

import Paravirt
import Synchronization
import Testing

private let address: UInt64 = 0x1040

@Suite struct StealTimeTests {
  private let memory = TestMemory()

  private func enabled(total: UInt64 = 0) throws -> KVMStealTime<TestMemory> {
    var steal = KVMStealTime(memory: memory)
    try #require(steal.write(address | 1, total: total) == true)
    return steal
  }

  @Test func theGuestReadsWhatItWaited() throws {
    var steal = try enabled(total: 1000)
    #expect(memory.load(8, at: address) == 0)
    steal.update(total: 1500)
    steal.update(total: 1500)
    #expect(memory.load(8, at: address) == 500)
    #expect(memory.loadWord(at: address + 8) == 2)
    // The guest's own value is what is added to, and it wraps.
    memory.store(UInt64.max, at: address)
    steal.update(total: 1501)
    #expect(memory.load(8, at: address) == 0)
  }

  @Test(arguments: [0, 1, 2, .max, .max - 1] as [UInt32])
  func theVersionIsOddOnlyWhileItIsWritten(first: UInt32) throws {
    var steal = try enabled()
    memory.store(first, at: address + 8)
    memory.history.withLock { $0 = [] }
    steal.update(total: 7)
    let history = memory.history.withLock { $0 }
    #expect(history.count == 3)
    for (step, bytes) in history.enumerated() {
      let offset = Int(address)
      let isOdd = bytes[offset + 8] & 1 != 0
      #expect(isOdd == (step < 2))
    }
    #expect(memory.loadWord(at: address + 8) == ((first &+ 1) | 1) &+ 1)
  }

  @Test func preemptedIsSetAndTakenBack() throws {
    var steal = try enabled()
    steal.preempt()
    #expect(memory.loadByte(at: address + 16) == 1)
    #expect(steal.resume(total: 0) == false)
    #expect(memory.loadByte(at: address + 16) == 0)
  }

  @Test func aWishForAFlushIsHeardOnce() throws {
    var steal = try enabled()
    steal.preempt()
    // As another vCPU does it: compare and exchange 1 for 3.
    #expect(memory.exchangeByte(3, at: address + 16) == 1)
    #expect(steal.resume(total: 9) == true)
    #expect(steal.resume(total: 9) == false)
    // Unknown bits are cleared and mean nothing.
    memory.store(UInt8(0xFD), at: address + 16)
    #expect(steal.resume(total: 9) == false)
    #expect(memory.loadByte(at: address + 16) == 0)
  }

  @Test func reservedBitsFault() throws {
    var steal = KVMStealTime(memory: memory)
    for bit in 1...5 {
      #expect(steal.write(address | 1 << UInt64(bit), total: 0) == false)
      #expect(steal.write(address | 1 << UInt64(bit) | 1, total: 0) == false)
    }
    #expect(steal.register == 0)
  }

  @Test(arguments: [0x3000, 0xFFFF_FFFF_FFFF_FFC0, 0x2_0000_0000] as [UInt64])
  func whatIsNotRAMIsAcceptedAndLeftAlone(place: UInt64) throws {
    var steal = KVMStealTime(memory: memory)
    #expect(steal.write(place | 1, total: 0) == true)
    steal.preempt()
    #expect(steal.resume(total: 5) == false)
    steal.update(total: 6)
    #expect(steal.register == place | 1)
    #expect(memory.storeCount == 0)
  }

  @Test func disabledAndResetItIsLeftAlone() throws {
    for disable in [false, true] {
      var steal = try enabled()
      if disable { #expect(steal.write(address, total: 0) == true) } else { steal.reset() }
      let count = memory.storeCount
      steal.preempt()
      _ = steal.resume(total: 5)
      steal.update(total: 6)
      #expect(memory.storeCount == count)
    }
  }
}

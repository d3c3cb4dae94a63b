// SPDX-License-Identifier: Apache-2.0
// A vCPU's state through bytes into another vCPU.

import Engine
import Saving
import TestSupport
import Testing
import X86

@testable import Translator

@Suite struct SavedProcessorTests {
  @Test func anotherVCPUGoesOnFromTheBytes() throws {
    let (old, new) = (try FlatGuest(), try FlatGuest())
    var state = old.cpu.state
    var random = SeededGenerator("a saved vCPU")
    for number in 0..<16 { state.registers[number] = random.next() }
    for index in 0..<512 where !(24...31).contains(index) { state.xsave[index] = .random(in: 0...255, using: &random) }
    state.cr2 = random.next()
    state.dr0 = 0x1234
    state.kernelGSBase = 0xFFFF_8000_0000_0000
    state.star = random.next()
    state.tscAux = 7
    state.nmiBlocked = true
    state.pendingNMI = true
    state.pendingInterrupt = 0x61
    old.cpu.state = state
    old.cpu.processor.state.interruptShadow = .movSS
    old.cpu.processor.state.pendingDebug = 0x4000
    old.cpu.processor.state.tscAdjust = 99
    old.cpu.processor.state.isAPICEnabled = false
    #expect(old.cpu.write(register: 0x2FF, 0xC06) && old.cpu.write(register: 0x26F, 0x0606_0606_0505_0505))
    #expect(old.cpu.isAtBoundary)
    var saving = StateArchive(savingAt: 5)
    try old.cpu.transfer(&saving)
    var restoring = StateArchive(restoring: saving.bytes, at: 6)
    try new.cpu.transfer(&restoring)
    try restoring.finish()
    var again = StateArchive(savingAt: 7)
    try new.cpu.transfer(&again)
    #expect(again.bytes == saving.bytes && new.cpu.state == old.cpu.state)
    #expect(new.cpu.processor.state.interruptShadow == .movSS && new.cpu.processor.state.tscAdjust == 99)
    for length in [0, 1, saving.bytes.count / 2, saving.bytes.count - 1] {
      var short = StateArchive(restoring: Array(saving.bytes.prefix(length)), at: 8)
      #expect(throws: SavedStateError.self) { try new.cpu.transfer(&short) }
    }
  }

  @Test func anInstructionThatWaitsForADeviceIsNoBoundary() throws {
    let guest = try FlatGuest()
    try guest.load("first_device")
    #expect(guest.cpu.run() == .mmioRead(address: 0x2000_0000, size: 4))
    #expect(!guest.cpu.isAtBoundary)
    guest.cpu.completeRead(0x1234_5678)
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu.isAtBoundary && guest.cpu[register: 0] == 0x1234_5678)
  }
}

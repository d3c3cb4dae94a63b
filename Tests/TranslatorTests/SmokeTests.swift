// SPDX-License-Identifier: Apache-2.0
// The first things a translated guest must do: compute, loop, call, touch memory, halt.

import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct SmokeTests {
  @Test func addAndHalt() throws {
    let guest = try FlatGuest()
    try guest.load("first_sum")
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 0] == 12)
    #expect(guest.cpu.state.rip == 0x10000 + UInt64(GuestProgram("first_sum").bytes.count))
  }

  @Test func memoryAndStack() throws {
    let guest = try FlatGuest()
    try guest.load("first_memory")
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 15] == 0x1235)
    #expect(guest.cpu[register: 1] == 0x20000 + 0x246A + 4)
    #expect(guest.cpu[register: 4] == 0x80000)
    #expect(try guest.memory.load(UInt64.self, at: GuestPhysical(0x20008)) == 0x1235)
  }

  @Test func loopAndCall() throws {
    let guest = try FlatGuest()
    try guest.load("first_calls")
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 0] == 500500)
    #expect(guest.cpu.exitCounts[3] < 10)
  }

  @Test func stringsAndPorts() throws {
    let guest = try FlatGuest()
    try guest.load("first_strings")
    #expect(guest.cpu.run() == .portWrite(port: 0x3F8, size: 1, value: 0))
    #expect(guest.cpu[register: 1] == 0)
    #expect(guest.cpu[register: 7] == 0x30005)
    #expect(guest.cpu.run() == .halt)
  }
}

// SPDX-License-Identifier: Apache-2.0
// The first things a translated guest must do: compute, loop, call, touch memory, halt.

import Engine
import GuestMemory
import Testing
import X86

@testable import Translator

@Suite(.serialized) struct SmokeTests {
  @Test func addAndHalt() throws {
    let guest = try FlatGuest()
    // mov eax,5; add eax,7; hlt
    try guest.load([0xB8, 5, 0, 0, 0, 0x83, 0xC0, 7, 0xF4])
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 0] == 12)
    #expect(guest.cpu.state.rip == 0x10009)
  }

  @Test func memoryAndStack() throws {
    let guest = try FlatGuest()
    // mov rbx,0x20000; mov r14,0x1234; mov [rbx+8],r14; add qword [rbx+8],1; push qword [rbx+8]; pop r15;
    // lea rcx,[rbx+r15*2+4]; hlt
    try guest.load([
      0x48, 0xC7, 0xC3, 0, 0, 2, 0, 0x49, 0xC7, 0xC6, 0x34, 0x12, 0, 0, 0x4C, 0x89, 0x73, 8, 0x48, 0x83, 0x43, 8, 1,
      0xFF, 0x73, 8, 0x41, 0x5F, 0x4A, 0x8D, 0x4C, 0x7B, 4, 0xF4,
    ])
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 15] == 0x1235)
    #expect(guest.cpu[register: 1] == 0x20000 + 0x246A + 4)
    #expect(guest.cpu[register: 4] == 0x80000)
    #expect(try guest.memory.load(UInt64.self, at: GuestPhysical(0x20008)) == 0x1235)
  }

  @Test func loopAndCall() throws {
    let guest = try FlatGuest()
    // xor eax,eax; mov ecx,1000; L: call F; dec ecx; jnz L; hlt; F: add eax,ecx; ret
    try guest.load([
      0x31, 0xC0, 0xB9, 0xE8, 3, 0, 0, 0xE8, 5, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xF4, 0x01, 0xC8, 0xC3,
    ])
    #expect(guest.cpu.run() == .halt)
    #expect(guest.cpu[register: 0] == 500500)
    #expect(guest.cpu.exitCounts[3] < 10)
  }

  @Test func stringsAndPorts() throws {
    let guest = try FlatGuest()
    // lea rsi,[rip+..]; mov edi,0x30000; mov ecx,5; rep movsb; mov dx,0x3f8; mov al,[0x30001]; out dx,al; hlt
    try guest.load([
      0xBE, 0, 0, 1, 0, 0xBF, 0, 0, 3, 0, 0xB9, 5, 0, 0, 0, 0xF3, 0xA4, 0x66, 0xBA, 0xF8, 3, 0x8A, 0x04, 0x25, 1, 0, 3,
      0,
      0xEE, 0xF4,
    ])
    #expect(guest.cpu.run() == .portWrite(port: 0x3F8, size: 1, value: 0))
    #expect(guest.cpu[register: 1] == 0)
    #expect(guest.cpu[register: 7] == 0x30005)
    #expect(guest.cpu.run() == .halt)
  }
}

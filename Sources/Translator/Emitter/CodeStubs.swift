// SPDX-License-Identifier: Apache-2.0
// The trampolines at the start of the code cache. World.S's stubs are out of reach of a 32-bit displacement, and
// their addresses must not appear in blocks; a trampoline jumps through the vCPU page.

import CHost

/// Executable addresses of the trampolines.
struct CodeStubs {
  var exit: UInt64 = 0
  var tlbMiss: UInt64 = 0
  var slotMiss: UInt64 = 0
  var groupMiss: UInt64 = 0
  var jumpMiss: UInt64 = 0
  var branchMiss: UInt64 = 0
  var callMiss: UInt64 = 0
  var string: UInt64 = 0
  var light: UInt64 = 0

  init() {}

  /// Emits them.
  init(_ code: inout CodeEmitter) {
    exit = CodeStubs.trampoline(&code, Slot.exitStub)
    tlbMiss = CodeStubs.trampoline(&code, Slot.tlbMissStub)
    slotMiss = CodeStubs.trampoline(&code, Slot.slotMissStub)
    groupMiss = CodeStubs.trampoline(&code, Slot.groupMissStub)
    jumpMiss = CodeStubs.trampoline(&code, Slot.jumpMissStub)
    branchMiss = CodeStubs.trampoline(&code, Slot.branchMissStub)
    callMiss = CodeStubs.trampoline(&code, Slot.callMissStub)
    string = CodeStubs.trampoline(&code, Slot.stringStub)
    light = CodeStubs.trampoline(&code, Slot.lightStub)
  }

  private static func trampoline(_ code: inout CodeEmitter, _ slot: Int32) -> UInt64 {
    let address = code.address
    code.jump(through: .env(slot))
    return address
  }
}

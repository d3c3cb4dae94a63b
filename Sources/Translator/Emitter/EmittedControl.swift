// SPDX-License-Identifier: Apache-2.0
// Control transfers and flags as host instructions: jumps, calls, and EFLAGS to and from the page.

extension CodeEmitter {
  /// Condition codes.
  static let equal: UInt8 = 4, notEqual: UInt8 = 5, above: UInt8 = 7, aboveOrEqual: UInt8 = 3

  /// JMP rel32 to a known address.
  mutating func jump(to target: UInt64) {
    byte(0xE9)
    relative(to: target)
  }

  /// Jcc rel32.
  mutating func jump(if condition: UInt8, to target: UInt64) {
    byte(0x0F)
    byte(0x80 | condition & 15)
    relative(to: target)
  }

  mutating func call(_ target: UInt64) {
    forgetContents()
    byte(0xE8)
    relative(to: target)
  }

  mutating func call(through memory: HostMemory) {
    forgetContents()
    rex(w: false, reg: 2, memory: memory)
    byte(0xFF)
    modRM(reg: 2, memory: memory)
  }

  mutating func push(_ source: HostRegister) {
    rex(w: false, reg: 0, rm: source)
    byte(0x50 | source & 7)
  }

  mutating func jump(through memory: HostMemory) {
    rex(w: false, reg: 4, memory: memory)
    byte(0xFF)
    modRM(reg: 4, memory: memory)
  }

  private mutating func relative(to target: UInt64) {
    long(Int32(truncatingIfNeeded: Int64(bitPattern: target &- (address &+ 4))))
  }

  /// Captures EFLAGS' arithmetic flags in the page. RAX passes through `scratch`.
  mutating func saveFlags(scratch: HostRegister, to memory: HostMemory) {
    mov(scratch, RegisterMap.rax)
    byte(0x9F)  // LAHF
    byte(0x0F)  // SETO AL
    byte(0x90)
    byte(0xC0)
    store32(memory, RegisterMap.rax)  // bits 31:16 are noise that every reader masks; a 16-bit store would not forward
    mov(RegisterMap.rax, scratch)
  }

  /// Loads EFLAGS' arithmetic flags from the page.
  mutating func restoreFlags(scratch: HostRegister, from memory: HostMemory) {
    mov(scratch, RegisterMap.rax)
    load32(RegisterMap.rax, memory)
    byte(0x04)  // ADD AL,127: OF from bit 0
    byte(0x7F)
    byte(0x9E)  // SAHF
    mov(RegisterMap.rax, scratch)
  }
}

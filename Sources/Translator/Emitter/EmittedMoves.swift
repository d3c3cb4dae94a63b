// SPDX-License-Identifier: Apache-2.0
// Moves as host instructions: between registers and memory, addresses, and widening.

extension CodeEmitter {
  mutating func mov(_ target: HostRegister, _ source: HostRegister) {
    note(target)
    rex(w: true, reg: source, rm: target)
    byte(0x89)
    modRM(reg: source, rm: target)
  }

  /// 32 bits, zero-extended.
  mutating func mov32(_ target: HostRegister, _ source: HostRegister) {
    note(target)
    rex(w: false, reg: source, rm: target)
    byte(0x89)
    modRM(reg: source, rm: target)
  }

  mutating func load(_ target: HostRegister, _ source: HostMemory) {
    note(target)
    rex(w: true, reg: target, memory: source)
    byte(0x8B)
    modRM(reg: target, memory: source)
  }

  mutating func load32(_ target: HostRegister, _ source: HostMemory) {
    note(target)
    rex(w: false, reg: target, memory: source)
    byte(0x8B)
    modRM(reg: target, memory: source)
  }

  mutating func store(_ target: HostMemory, _ source: HostRegister) {
    rex(w: true, reg: source, memory: target)
    byte(0x89)
    modRM(reg: source, memory: target)
  }

  mutating func store32(_ target: HostMemory, _ source: HostRegister) {
    rex(w: false, reg: source, memory: target)
    byte(0x89)
    modRM(reg: source, memory: target)
  }

  mutating func storeImmediate32(_ target: HostMemory, _ value: UInt32) {
    rex(w: false, reg: 0, memory: target)
    byte(0xC7)
    modRM(reg: 0, memory: target)
    long(Int32(bitPattern: value))
  }

  mutating func storeImmediate64(_ target: HostMemory, _ value: Int32) {
    rex(w: true, reg: 0, memory: target)
    byte(0xC7)
    modRM(reg: 0, memory: target)
    long(value)
  }

  /// The shortest move of a constant.
  mutating func mov(_ target: HostRegister, immediate value: UInt64) {
    note(target)
    if value <= 0xFFFF_FFFF {
      rex(w: false, reg: 0, rm: target)
      byte(0xB8 | target & 7)
      long(Int32(truncatingIfNeeded: value))
    } else if Int64(bitPattern: value) >= -0x8000_0000, Int64(bitPattern: value) < 0 {
      rex(w: true, reg: 0, rm: target)
      byte(0xC7)
      modRM(reg: 0, rm: target)
      long(Int32(truncatingIfNeeded: value))
    } else {
      rex(w: true, reg: 0, rm: target)
      byte(0xB8 | target & 7)
      quad(value)
    }
  }

  mutating func lea(_ target: HostRegister, _ source: HostMemory) {
    note(target)
    rex(w: true, reg: target, memory: source)
    byte(0x8D)
    modRM(reg: target, memory: source)
  }

  /// LEA with a 32-bit displacement, 7 bytes, whatever the displacement is.
  mutating func leaLong(_ target: HostRegister, _ base: HostRegister, _ displacement: Int32) {
    note(target)
    rex(w: true, reg: target, rm: base)
    byte(0x8D)
    byte(0x80 | (target & 7) << 3 | base & 7)
    long(displacement)
  }

  mutating func lea32(_ target: HostRegister, _ source: HostMemory) {
    note(target)
    rex(w: false, reg: target, memory: source)
    byte(0x8D)
    modRM(reg: target, memory: source)
  }

  mutating func zeroExtend16(_ target: HostRegister, _ source: HostRegister) {
    note(target)
    rex(w: false, reg: target, rm: source)
    byte(0x0F)
    byte(0xB7)
    modRM(reg: target, rm: source)
  }

  mutating func signExtend32(_ target: HostRegister, _ source: HostRegister) {
    note(target)
    rex(w: true, reg: target, rm: source)
    byte(0x63)
    modRM(reg: target, rm: source)
  }

  mutating func signExtend16(_ target: HostRegister, _ source: HostRegister) {
    note(target)
    rex(w: true, reg: target, rm: source)
    byte(0x0F)
    byte(0xBF)
    modRM(reg: target, rm: source)
  }
}

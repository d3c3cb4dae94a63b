// SPDX-License-Identifier: Apache-2.0
// Arithmetic as host instructions: the group-1 operations, tests, shifts and multiplication.

extension CodeEmitter {
  mutating func alu(_ operation: ALU, _ target: HostRegister, _ source: HostMemory) {
    note(target)
    rex(w: true, reg: target, memory: source)
    byte(operation.rawValue << 3 | 3)
    modRM(reg: target, memory: source)
  }

  mutating func alu32(_ operation: ALU, _ target: HostRegister, _ source: HostMemory) {
    note(target)
    rex(w: false, reg: target, memory: source)
    byte(operation.rawValue << 3 | 3)
    modRM(reg: target, memory: source)
  }

  mutating func alu(_ operation: ALU, _ target: HostRegister, _ source: HostRegister) {
    note(target)
    rex(w: true, reg: source, rm: target)
    byte(operation.rawValue << 3 | 1)
    modRM(reg: source, rm: target)
  }

  mutating func alu32(_ operation: ALU, _ target: HostRegister, _ source: HostRegister) {
    note(target)
    rex(w: false, reg: source, rm: target)
    byte(operation.rawValue << 3 | 1)
    modRM(reg: source, rm: target)
  }

  mutating func alu(_ operation: ALU, _ target: HostRegister, immediate value: Int32, w: Bool = true) {
    note(target)
    rex(w: w, reg: 0, rm: target)
    if value >= -128 && value <= 127 {
      byte(0x83)
      modRM(reg: operation.rawValue, rm: target)
      byte(UInt8(truncatingIfNeeded: value))
    } else {
      byte(0x81)
      modRM(reg: operation.rawValue, rm: target)
      long(value)
    }
  }

  /// 32-bit operation on memory.
  mutating func alu32(_ operation: ALU, _ target: HostMemory, immediate value: Int32) {
    rex(w: false, reg: 0, memory: target)
    if value >= -128 && value <= 127 {
      byte(0x83)
      modRM(reg: operation.rawValue, memory: target)
      byte(UInt8(truncatingIfNeeded: value))
    } else {
      byte(0x81)
      modRM(reg: operation.rawValue, memory: target)
      long(value)
    }
  }

  mutating func test32(_ target: HostRegister, immediate value: Int32) {
    rex(w: false, reg: 0, rm: target)
    byte(0xF7)
    modRM(reg: 0, rm: target)
    long(value)
  }

  mutating func test(_ first: HostRegister, _ second: HostRegister) {
    rex(w: true, reg: second, rm: first)
    byte(0x85)
    modRM(reg: second, rm: first)
  }

  mutating func not(_ target: HostRegister) {
    note(target)
    rex(w: true, reg: 0, rm: target)
    byte(0xF7)
    modRM(reg: 2, rm: target)
  }

  /// The lower half of a product, zero-extended.
  mutating func multiply32(_ target: HostRegister, _ source: HostRegister, by factor: Int32) {
    note(target)
    rex(w: false, reg: target, rm: source)
    byte(0x69)
    modRM(reg: target, rm: source)
    long(factor)
  }

  mutating func shiftRight32(_ target: HostRegister, _ count: UInt8) {
    note(target)
    rex(w: false, reg: 0, rm: target)
    byte(0xC1)
    modRM(reg: 5, rm: target)
    byte(count)
  }

  mutating func shiftRightArithmetic(_ target: HostRegister, _ count: UInt8) {
    note(target)
    rex(w: true, reg: 0, rm: target)
    byte(0xC1)
    modRM(reg: 7, rm: target)
    byte(count)
  }

  mutating func shiftLeft(_ target: HostRegister, _ count: UInt8, w: Bool) {
    note(target)
    rex(w: w, reg: 0, rm: target)
    byte(0xC1)
    modRM(reg: 4, rm: target)
    byte(count)
  }

  mutating func shiftRight(_ target: HostRegister, _ count: UInt8) {
    note(target)
    rex(w: true, reg: 0, rm: target)
    byte(0xC1)
    modRM(reg: 5, rm: target)
    byte(count)
  }
}

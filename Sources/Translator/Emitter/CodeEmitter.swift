// SPDX-License-Identifier: Apache-2.0
// Writes host instructions into the code cache. It knows encodings (REX, ModRM, SIB) and nothing about guests;
// the rules call it by mnemonic. Two of these exist per block: hot code, and the cold stubs kept away from it.

/// A memory operand of the host: base, optional index (unscaled or scaled) and displacement.
struct HostMemory {
  var base: HostRegister
  /// 0xFF: none.
  var index: HostRegister = 0xFF
  var scale: UInt8 = 0
  var displacement: Int32 = 0

  init(_ base: HostRegister, _ displacement: Int32 = 0) {
    self.base = base
    self.displacement = displacement
  }

  init(_ base: HostRegister, index: HostRegister, scale: UInt8 = 0, _ displacement: Int32 = 0) {
    self.base = base
    self.index = index
    self.scale = scale
    self.displacement = displacement
  }

  /// A field of the vCPU page.
  static func env(_ displacement: Int32) -> HostMemory { HostMemory(RegisterMap.env, displacement) }
}

/// The group-1 arithmetic operations, by their /digit.
enum ALU: UInt8 { case add, or, adc, sbb, and, sub, xor, cmp }

/// Appends to one stretch of code memory.
@safe struct CodeEmitter {
  /// The next byte to be written (writable alias).
  private var cursor: UnsafeMutablePointer<UInt8>
  private let start: UnsafeMutablePointer<UInt8>
  /// Executable address of `start`.
  let base: UInt64
  let capacity: Int
  /// What each host register is known to hold, in the words of whoever noted it, until it is written.
  private var contents = InlineArray<16, UInt8>(repeating: CodeEmitter.unknown)
  static let unknown: UInt8 = 0xFF
  /// Where in the page T0 and T1 are to be stored before they are written; 0: nowhere.
  private var owed: (t0: Int32, t1: Int32) = (0, 0)

  init(writable: UnsafeMutableRawPointer, executable: UInt64, capacity: Int) {
    unsafe start = writable.assumingMemoryBound(to: UInt8.self)
    unsafe cursor = start
    base = executable
    self.capacity = capacity
  }

  /// Bytes written.
  var count: Int { unsafe cursor - start }
  /// Executable address of the next byte.
  var address: UInt64 { base &+ UInt64(count) }
  /// Room left. Nothing here looks at it: `BlockTranslator.emit` does before each guest instruction.
  var room: Int { capacity &- count }

  // MARK: Bytes

  @inline(__always)
  mutating func byte(_ value: UInt8) {
    unsafe cursor.pointee = value
    unsafe cursor += 1
  }

  @inline(__always)
  mutating func long(_ value: Int32) {
    unsafe UnsafeMutableRawPointer(cursor).storeBytes(of: value, as: Int32.self)
    unsafe cursor += 4
  }

  @inline(__always)
  mutating func quad(_ value: UInt64) {
    unsafe UnsafeMutableRawPointer(cursor).storeBytes(of: value, as: UInt64.self)
    unsafe cursor += 8
  }

  /// Overwrites a 32-bit displacement that ends at `end` so that it reaches `target`.
  func patch(_ end: UInt64, to target: UInt64) {
    let value = Int32(truncatingIfNeeded: Int64(bitPattern: target &- end))
    unsafe UnsafeMutableRawPointer(start).storeBytes(
      of: value, toByteOffset: Int(end &- base) &- 4, as: Int32.self)
  }

  /// Overwrites the byte at `offset` from the start.
  func setByte(_ offset: Int, _ value: UInt8) { unsafe start[offset] = value }

  // MARK: Encoding

  /// REX for a register and a memory operand; `force` when a byte register needs it.
  @inline(__always)
  mutating func rex(w: Bool, reg: HostRegister, memory: HostMemory, force: Bool = false) {
    var value: UInt8 = 0x40 | (w ? 8 : 0) | (reg >> 3 & 1) << 2 | memory.base >> 3 & 1
    if memory.index != 0xFF { value |= (memory.index >> 3 & 1) << 1 }
    if value != 0x40 || force { byte(value) }
  }

  @inline(__always)
  mutating func rex(w: Bool, reg: HostRegister, rm: HostRegister, force: Bool = false) {
    let value: UInt8 = 0x40 | (w ? 8 : 0) | (reg >> 3 & 1) << 2 | rm >> 3 & 1
    if value != 0x40 || force { byte(value) }
  }

  /// ModRM, SIB and displacement of a memory operand.
  @inline(__always)
  mutating func modRM(reg: UInt8, memory: HostMemory) {
    let r = (reg & 7) << 3
    let d = memory.displacement
    let mode: UInt8 =
      d == 0 && memory.base & 7 != 5 ? 0 : (d >= -128 && d <= 127 ? 0x40 : 0x80)
    if memory.index != 0xFF {
      byte(mode | r | 4)
      byte(memory.scale << 6 | (memory.index & 7) << 3 | memory.base & 7)
    } else if memory.base & 7 == 4 {
      byte(mode | r | 4)
      byte(0x24)
    } else {
      byte(mode | r | memory.base & 7)
    }
    if mode == 0x40 {
      byte(UInt8(truncatingIfNeeded: d))
    } else if mode == 0x80 {
      long(d)
    }
  }

  @inline(__always)
  mutating func modRM(reg: UInt8, rm: HostRegister) { byte(0xC0 | (reg & 7) << 3 | rm & 7) }

  /// Notes that a register is written.
  @inline(__always)
  mutating func note(_ target: HostRegister) {
    if target >= RegisterMap.t1 { settle(target) }
    contents[Int(target & 15)] = CodeEmitter.unknown
  }

  /// T0 or T1 is to be stored at this displacement from ENV before it is written, unless it is not wanted any more by
  /// then.
  mutating func owe(_ register: HostRegister, to displacement: Int32) {
    if register == RegisterMap.t0 { owed.t0 = displacement } else { owed.t1 = displacement }
  }

  /// Stores T0 or T1 if that is owed. Keeps EFLAGS. Called before a branch beyond which the register is lost on one
  /// way.
  mutating func settle(_ register: HostRegister) {
    let displacement = register == RegisterMap.t0 ? owed.t0 : owed.t1
    if displacement == 0 { return }
    owe(register, to: 0)
    store(.env(displacement), register)
  }

  /// Notes what a register holds from here on.
  @inline(__always)
  mutating func keep(_ contents: UInt8, in register: HostRegister) { self.contents[Int(register & 15)] = contents }

  @inline(__always)
  func holds(_ contents: UInt8, in register: HostRegister) -> Bool { self.contents[Int(register & 15)] == contents }

  /// Nothing is known of any register from here on.
  mutating func forgetContents() {
    settle(RegisterMap.t0)
    settle(RegisterMap.t1)
    contents = InlineArray(repeating: CodeEmitter.unknown)
  }

  // MARK: Padding

  /// One instruction of 0...3 bytes that does nothing.
  mutating func pad(_ count: Int) {
    switch count {
    case 1: byte(0x90)
    case 2:
      byte(0x66)
      byte(0x90)
    case 3:
      byte(0x0F)
      byte(0x1F)
      byte(0x00)
    default: break
    }
  }

  /// Makes sure that a 32-bit displacement behind so many bytes lies inside an aligned quadword: it is patched while
  /// other vCPUs may execute it, and they must see it old or new (AMD64 Architecture Programmer's Manual volume 2,
  /// 7.6.1, "Cross-Modifying Code").
  mutating func padDisplacement(behind bytes: UInt64) {
    let place = Int((address &+ bytes) & 7)
    if place > 4 { pad(8 &- place) }
  }
}

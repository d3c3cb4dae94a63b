// SPDX-License-Identifier: Apache-2.0
// The guests that the command carries within itself, for `lguest tour` and `lguest bench`, are written with this:
// 64-bit code as a list of calls named by mnemonic, and labels. It knows the instructions they use and no more.

import Paravirt
import X86

/// A general register by its number in encodings.
enum GuestRegister: UInt8 {
  case rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
}

/// A condition by its number in encodings.
enum GuestCondition: UInt8 {
  case below = 2, notBelow, equal, notEqual, less = 12, notLess
}

/// Appends 64-bit code that runs where the loader puts it: branches and addresses of labels are relative.
struct GuestAssembler {
  /// A place in the code, known now or later.
  struct Label { fileprivate let number: Int }

  private var bytes: [UInt8] = []
  private var places: [Int?] = []
  /// Where a 32-bit distance to a label stands.
  private var distances: [(at: Int, label: Label)] = []

  /// The code, with every distance filled in.
  var code: [UInt8] {
    var code = bytes
    for (at, label) in distances {
      guard let place = places[label.number] else { preconditionFailure("a label that was never placed") }
      let distance = UInt32(truncatingIfNeeded: place - (at + 4))
      for index in 0..<4 { code[at + index] = UInt8(truncatingIfNeeded: distance >> UInt32(8 * index)) }
    }
    return code
  }

  // MARK: Places and data

  mutating func label() -> Label {
    places.append(nil)
    return Label(number: places.count - 1)
  }

  mutating func place(_ label: Label) { places[label.number] = bytes.count }

  /// A label at this place.
  mutating func here() -> Label {
    let label = label()
    place(label)
    return label
  }

  mutating func emit(_ more: UInt8...) { bytes += more }

  mutating func data(_ more: [UInt8]) { bytes += more }

  /// Fills with INT3 up to a multiple of `alignment`, or to `remainder` behind one.
  mutating func align(_ alignment: Int, remainder: Int = 0) {
    while bytes.count % alignment != remainder { bytes.append(0xCC) }
  }

  private mutating func long(_ value: UInt32) {
    for index in 0..<4 { bytes.append(UInt8(value >> (8 * index) & 0xFF)) }
  }

  private mutating func distance(to label: Label) {
    distances.append((bytes.count, label))
    long(0)
  }

  // MARK: Moves

  private mutating func wide(_ reg: GuestRegister, _ rm: GuestRegister) {
    emit(0x48 | (reg.rawValue >> 3) << 2 | rm.rawValue >> 3)
  }

  private mutating func registers(_ reg: GuestRegister, _ rm: GuestRegister) {
    emit(0xC0 | (reg.rawValue & 7) << 3 | rm.rawValue & 7)
  }

  /// ModRM of `[base + displacement]`; RSP and R12 as a base would need one byte more.
  private mutating func memory(_ reg: GuestRegister, _ base: GuestRegister, _ displacement: UInt32) {
    precondition(base.rawValue & 7 != 4)
    emit(0x80 | (reg.rawValue & 7) << 3 | base.rawValue & 7)
    long(displacement)
  }

  mutating func mov(_ target: GuestRegister, _ value: UInt64) {
    if value <= 0xFFFF_FFFF {
      if target.rawValue >= 8 { emit(0x41) }
      emit(0xB8 | target.rawValue & 7)
      long(UInt32(value))
    } else {
      emit(0x48 | target.rawValue >> 3, 0xB8 | target.rawValue & 7)
      long(UInt32(truncatingIfNeeded: value))
      long(UInt32(value >> 32))
    }
  }

  mutating func mov(_ target: GuestRegister, _ source: GuestRegister) {
    wide(source, target)
    emit(0x89)
    registers(source, target)
  }

  mutating func lea(_ target: GuestRegister, _ label: Label) {
    wide(target, .rax)
    emit(0x8D, 5 | (target.rawValue & 7) << 3)
    distance(to: label)
  }

  /// 64 bits from memory.
  mutating func load(_ target: GuestRegister, _ base: GuestRegister, _ displacement: UInt32 = 0) {
    wide(target, base)
    emit(0x8B)
    memory(target, base, displacement)
  }

  /// 32 bits from memory, zero-extended.
  mutating func load32(_ target: GuestRegister, _ base: GuestRegister, _ displacement: UInt32 = 0) {
    emit(0x40 | (target.rawValue >> 3) << 2 | base.rawValue >> 3, 0x8B)
    memory(target, base, displacement)
  }

  /// A byte from memory, zero-extended.
  mutating func load8(_ target: GuestRegister, _ base: GuestRegister, _ displacement: UInt32 = 0) {
    wide(target, base)
    emit(0x0F, 0xB6)
    memory(target, base, displacement)
  }

  /// 64 bits to memory.
  mutating func store(_ source: GuestRegister, _ base: GuestRegister, _ displacement: UInt32 = 0) {
    wide(source, base)
    emit(0x89)
    memory(source, base, displacement)
  }

  /// 32 bits to memory.
  mutating func store32(_ source: GuestRegister, _ base: GuestRegister, _ displacement: UInt32 = 0) {
    emit(0x40 | (source.rawValue >> 3) << 2 | base.rawValue >> 3, 0x89)
    memory(source, base, displacement)
  }

  mutating func push(_ register: GuestRegister) {
    if register.rawValue >= 8 { emit(0x41) }
    emit(0x50 | register.rawValue & 7)
  }

  mutating func pop(_ register: GuestRegister) {
    if register.rawValue >= 8 { emit(0x41) }
    emit(0x58 | register.rawValue & 7)
  }

  // MARK: Arithmetic

  private mutating func arithmetic(_ opcode: UInt8, _ target: GuestRegister, _ source: GuestRegister) {
    wide(source, target)
    emit(opcode)
    registers(source, target)
  }

  private mutating func arithmetic(_ digit: UInt8, _ target: GuestRegister, _ value: Int32) {
    wideGroup(0x81, digit, target)
    long(UInt32(bitPattern: value))
  }

  mutating func add(_ target: GuestRegister, _ source: GuestRegister) { arithmetic(0x01, target, source) }
  mutating func or(_ target: GuestRegister, _ source: GuestRegister) { arithmetic(0x09, target, source) }
  mutating func sub(_ target: GuestRegister, _ source: GuestRegister) { arithmetic(0x29, target, source) }
  mutating func cmp(_ target: GuestRegister, _ source: GuestRegister) { arithmetic(0x39, target, source) }
  mutating func add(_ target: GuestRegister, _ value: Int32) { arithmetic(0, target, value) }
  mutating func sub(_ target: GuestRegister, _ value: Int32) { arithmetic(5, target, value) }
  /// The constant is sign-extended.
  mutating func cmp(_ target: GuestRegister, _ value: Int32) { arithmetic(7, target, value) }

  /// An instruction that its opcode and a digit in ModRM name, on one 64-bit register.
  private mutating func wideGroup(_ opcode: UInt8, _ digit: UInt8, _ target: GuestRegister) {
    emit(0x48 | target.rawValue >> 3, opcode, 0xC0 | digit << 3 | target.rawValue & 7)
  }

  mutating func shl(_ target: GuestRegister, _ count: UInt8) {
    wideGroup(0xC1, 4, target)
    emit(count)
  }

  mutating func shr(_ target: GuestRegister, _ count: UInt8) {
    wideGroup(0xC1, 5, target)
    emit(count)
  }

  /// By the count in CL.
  mutating func shiftLeft(_ target: GuestRegister) { wideGroup(0xD3, 4, target) }
  mutating func shiftRight(_ target: GuestRegister) { wideGroup(0xD3, 5, target) }

  /// The constant is sign-extended.
  mutating func and(_ target: GuestRegister, _ value: Int32) { arithmetic(4, target, value) }
  mutating func negate(_ target: GuestRegister) { wideGroup(0xF7, 3, target) }

  /// RAX by a register to RDX:RAX, and RDX:RAX by a register to RAX with the rest in RDX; unsigned.
  mutating func multiply(_ factor: GuestRegister) { wideGroup(0xF7, 4, factor) }
  mutating func divide(_ divisor: GuestRegister) { wideGroup(0xF7, 6, divisor) }

  // MARK: Branches

  mutating func jmp(_ label: Label) {
    emit(0xE9)
    distance(to: label)
  }

  mutating func jump(_ condition: GuestCondition, _ label: Label) {
    emit(0x0F, 0x80 | condition.rawValue)
    distance(to: label)
  }

  mutating func call(_ label: Label) {
    emit(0xE8)
    distance(to: label)
  }

  mutating func call(_ target: GuestRegister) {
    if target.rawValue >= 8 { emit(0x41) }
    emit(0xFF, 0xD0 | target.rawValue & 7)
  }

  mutating func ret() { emit(0xC3) }
  mutating func iretq() { emit(0x48, 0xCF) }

  // MARK: The system

  mutating func hypercall(_ opcode: HypercallOpcode) { bytes += opcode.bytes }
  mutating func cpuid() { emit(0x0F, 0xA2) }
  mutating func rdmsr() { emit(0x0F, 0x32) }
  mutating func wrmsr() { emit(0x0F, 0x30) }
  mutating func halt() { emit(0xF4) }

  /// Adds a register to 64 bits of memory atomically; the register holds the sum's old value afterwards.
  mutating func exchangeAdd(_ source: GuestRegister, _ base: GuestRegister) {
    emit(0xF0)
    wide(source, base)
    emit(0x0F, 0xC1)
    memory(source, base, 0)
  }

  mutating func pause() { emit(0xF3, 0x90) }
  /// CR3 to RAX.
  mutating func readControl3() { emit(0x0F, 0x20, 0xD8) }

  /// The time-stamp counter, all 64 bits, to RAX; RDX is lost.
  mutating func readTimestamp() {
    emit(0x0F, 0x31)
    shl(.rdx, 32)
    or(.rax, .rdx)
  }

  /// LIDT of a ten-byte operand in memory.
  mutating func lidt(_ base: GuestRegister) {
    emit(0x40 | base.rawValue >> 3, 0x0F, 0x01)
    memory(GuestRegister(rawValue: 3) ?? .rbx, base, 0)
  }

  /// A byte from the port in DX to AL.
  mutating func inByte() { emit(0xEC) }
  /// AL to the port in DX.
  mutating func outByte() { emit(0xEE) }
}

// SPDX-License-Identifier: Apache-2.0
// Vector instructions that touch only the elements a mask selects: gathers and masked moves. An element that is not
// selected must not fault, so they are executed element by element on the saved vector registers (SDM volume 2,
// VGATHERDPS, VMASKMOV, MASKMOVDQU).

import CHost
import X86

/// The vector registers of a vCPU in its saved XSAVE image.
@safe struct VectorImage {
  private let base: UnsafeMutableRawPointer

  init(_ page: VCPUPage) {
    unsafe base = UnsafeMutableRawPointer(page.pointer) + Int(CHOST_ENV) + Int(CHOST_FPU)
  }

  /// Where byte `index` of YMM `register` is.
  private func offset(_ register: UInt8, _ index: Int) -> Int {
    (index < 16 ? 160 + index : 576 + index - 16) + Int(register & 15) * 16
  }

  /// An element of 1, 4 or 8 bytes.
  func element(_ register: UInt8, _ number: Int, size: Int) -> UInt64 {
    let place = offset(register, number * size & 31)
    return switch size {
    case 1: UInt64(unsafe base.load(fromByteOffset: place, as: UInt8.self))
    case 4: UInt64(unsafe base.load(fromByteOffset: place, as: UInt32.self))
    default: unsafe base.load(fromByteOffset: place, as: UInt64.self)
    }
  }

  /// Writes an element of 4 or 8 bytes.
  func set(_ register: UInt8, _ number: Int, size: Int, _ value: UInt64) {
    let place = offset(register, number * size & 31)
    if size == 4 {
      unsafe base.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: place, as: UInt32.self)
    } else {
      unsafe base.storeBytes(of: value, toByteOffset: place, as: UInt64.self)
    }
    // XSTATE_BV: SSE and AVX hold something.
    let components = unsafe base.load(fromByteOffset: 512, as: UInt64.self)
    unsafe base.storeBytes(of: components | 6, toByteOffset: 512, as: UInt64.self)
  }

  /// All of it, to be put back: x87, SSE, header and AVX.
  var contents: InlineArray<104, UInt64> {
    get {
      var words = InlineArray<104, UInt64>(repeating: 0)
      for word in 0..<104 { words[word] = unsafe base.load(fromByteOffset: word * 8, as: UInt64.self) }
      return words
    }
    nonmutating set {
      for word in 0..<104 { unsafe base.storeBytes(of: newValue[word], toByteOffset: word * 8, as: UInt64.self) }
    }
  }

  private var top: Int { Int(unsafe base.load(fromByteOffset: 2, as: UInt16.self) >> 11 & 7) }

  /// A byte of an MMX register. The image holds the x87 registers from the top of their stack on.
  func mmxByte(_ register: UInt8, _ index: Int) -> UInt8 {
    let slot = (Int(register) &- top) & 7
    return unsafe base.load(fromByteOffset: 32 + slot * 16 + (index & 7), as: UInt8.self)
  }

  /// What every MMX instruction does to the x87 state: TOP is 0 and every register valid.
  func enterMMX() {
    var old = InlineArray<16, UInt64>(repeating: 0)
    for word in 0..<16 { old[word] = unsafe base.load(fromByteOffset: 32 + word * 8, as: UInt64.self) }
    let top = self.top
    for word in 0..<16 {
      let slot = (word / 2 &- top) & 7
      unsafe base.storeBytes(of: old[slot * 2 + word % 2], toByteOffset: 32 + word * 8, as: UInt64.self)
    }
    let status = unsafe base.load(fromByteOffset: 2, as: UInt16.self)
    unsafe base.storeBytes(of: status & ~0x3800, toByteOffset: 2, as: UInt16.self)
    unsafe base.storeBytes(of: 0xFF, toByteOffset: 4, as: UInt8.self)
    let components = unsafe base.load(fromByteOffset: 512, as: UInt64.self)
    unsafe base.storeBytes(of: components | 1, toByteOffset: 512, as: UInt64.self)
  }
}

extension TranslatedCPU {
  /// Executes an instruction of the gather or masked-move rule, as often as devices have to be asked first.
  func executeVectorMemoryWithDevices(_ instruction: Instruction, _ row: Opcode) throws(Fault) -> SystemOutcome {
    let vectors = VectorImage(page)
    let before = vectors.contents
    let outcome = try executeWithDevices { () throws(Fault) in
      try executeVectorMemory(instruction, row)
      return .done
    }
    if isRestarting { vectors.contents = before }
    return outcome
  }

  private func executeVectorMemory(_ instruction: Instruction, _ row: Opcode) throws(Fault) {
    if row.rule == .gather {
      try gather(instruction, row)
    } else if instruction.isMemory {
      try maskedMove(instruction, row)
    } else {
      try maskedStore(instruction, row)
    }
    processor.advance(instruction)
  }

  /// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ.
  private func maskedMove(_ instruction: Instruction, _ row: Opcode) throws(Fault) {
    let vectors = VectorImage(page)
    // 2D and 2F are PD, 2C and 2E PS; 8C and 8E say it with W.
    let wide = row.byte >= 0x80 ? instruction.vexW : row.byte & 1 != 0
    let size = wide ? 8 : 4
    let count = (instruction.vexL ? 32 : 16) / size
    let isStore = row.byte & 2 != 0
    let operand = processor.effectiveAddress(instruction)
    func selected(_ number: Int) -> Bool {
      vectors.element(instruction.vvvv, number, size: size) >> UInt64(size * 8 - 1) & 1 != 0
    }
    var spans = InlineArray<8, LinearSpan?>(repeating: nil)
    for number in 0..<count where selected(number) {
      // Past the end of the address size, stores go on at its beginning and loads do not, as the host's do.
      let offset = operand.offset &+ UInt64(number * size)
      spans[number] = try element(
        operand.segment, isStore ? offset & Processor.mask(instruction.addressSize) : offset, size, write: isStore)
    }
    if isStore {
      for number in 0..<count {
        guard let span = spans[number] else { continue }
        processor.store(vectors.element(instruction.reg, number, size: size), span, size: UInt8(size))
      }
      return
    }
    for number in 0..<count {
      var value: UInt64 = 0
      if let span = spans[number] { value = processor.load(span, size: UInt8(size)) }
      vectors.set(instruction.reg, number, size: size, value)
    }
    clearUpperHalf(of: instruction.reg, instruction)
  }

  private func clearUpperHalf(of register: UInt8, _ instruction: Instruction) {
    guard !instruction.vexL else { return }
    VectorImage(page).set(register, 2, size: 8, 0)
    VectorImage(page).set(register, 3, size: 8, 0)
  }

  /// The place of one element, checked. The offset has wrapped to the address size as a whole operand's does.
  private func element(
    _ segment: SegmentRegister, _ offset: UInt64, _ size: Int, write: Bool
  ) throws(Fault) -> LinearSpan {
    let linear = try processor.linear(segment, offset, size: size, write: write)
    return try processor.span(linear, count: size, write: write, as: processor.authority, stack: segment == .ss)
  }

  /// MASKMOVQ, MASKMOVDQU: bytes of `reg` selected by those of `rm` go to DS:[RDI].
  private func maskedStore(_ instruction: Instruction, _ row: Opcode) throws(Fault) {
    let vectors = VectorImage(page)
    let isMMX = row.operand1 == .Pq
    let count = isMMX ? 8 : 16
    let segment = processor.dataSegment(instruction)
    let start = page[register: GPR.rdi] & Processor.mask(instruction.addressSize)
    func mask(_ index: Int) -> UInt8 {
      isMMX ? vectors.mmxByte(instruction.rm, index) : UInt8(vectors.element(instruction.rm, index, size: 1))
    }
    var spans = InlineArray<16, LinearSpan?>(repeating: nil)
    for index in 0..<count where mask(index) & 0x80 != 0 {
      spans[index] = try element(segment, start &+ UInt64(index), 1, write: true)
    }
    for index in 0..<count {
      guard let span = spans[index] else { continue }
      let value =
        isMMX ? UInt64(vectors.mmxByte(instruction.reg, index)) : vectors.element(instruction.reg, index, size: 1)
      processor.store(value, span, size: 1)
    }
    if isMMX { vectors.enterMMX() }
  }

  /// VPGATHERxx, VGATHERxPx. A fault leaves the elements done and their mask bits cleared, so that it can go on.
  private func gather(_ instruction: Instruction, _ row: Opcode) throws(Fault) {
    let i = instruction
    guard i.index != i.reg, i.index != i.vvvv, i.reg != i.vvvv else { throw .invalidOpcode }
    let vectors = VectorImage(page)
    let size = i.vexW ? 8 : 4
    let indexSize = row.byte & 1 == 0 ? 4 : 8
    let bytes = i.vexL ? 32 : 16
    let count = bytes / max(size, indexSize)
    let segment = SegmentRegister(rawValue: Int(i.segment & 7)) ?? .ds
    var base = UInt64(bitPattern: Int64(i.displacement))
    if i.base != 0xFF { base &+= page[register: i.base] }
    // Every mask element becomes its sign first.
    for number in 0..<count {
      let sign = vectors.element(i.vvvv, number, size: size) >> UInt64(size * 8 - 1) & 1
      vectors.set(i.vvvv, number, size: size, sign == 0 ? 0 : .max)
    }
    for number in 0..<count where vectors.element(i.vvvv, number, size: size) != 0 {
      let raw = vectors.element(i.index, number, size: indexSize)
      let index = indexSize == 4 ? UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: raw))) : raw
      let span = try element(
        segment, (base &+ index << UInt64(i.scale)) & Processor.mask(i.addressSize), size, write: false)
      vectors.set(i.reg, number, size: size, processor.load(span, size: UInt8(size)))
      vectors.set(i.vvvv, number, size: size, 0)
    }
    // What the elements do not reach is zero, in the target and in the mask.
    for number in count * size / 4..<8 {
      vectors.set(i.reg, number, size: 4, 0)
      vectors.set(i.vvvv, number, size: 4, 0)
    }
  }
}

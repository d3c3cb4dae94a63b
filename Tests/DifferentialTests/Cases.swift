// SPDX-License-Identifier: Apache-2.0
// Cases of one instruction: what each rule needs of the registers and of memory so that most cases are about its
// operation and some about its faults.

import CNative
import X86

@testable import Translator

extension Generator {
  /// Whether a row's instructions can run on both sides.
  static func isComparable(_ row: Opcode) -> Bool {
    switch row.rule {
    case .undefined, .system, .hypercall, .cpuid, .syscall, .sysret, .swapgs, .rdtsc, .rdtscp, .stac, .clac, .ins,
      .outs,
      .pushSegment, .popSegment, .movSegment:
      false
    // 0F 0D with a register is #UD on AMD and NOP on Intel.
    case .nop: row.attribute != .notIn64 && !(row.byte == 0x0D && row.form == .register)
    default: row.attribute != .notIn64 && row.attribute != .privileged
    }
  }

  /// A case of row `number`, or nil if the random choices do not make one.
  mutating func makeCase(_ number: UInt16) -> Case? {
    let row = table[number]
    var encoding = random.encode(row)
    let code = codeAddress(encoding.length)
    guard let i = decode(encoding, code: code), i.row == number else { return nil }
    randomizeState(unmasked: (row.rule == .x87 || row.rule == .sse || row.rule == .avx) && random.chance(15))
    var result = Case(bytes: [], code: code, instruction: i, row: row, privilege: random.chance(50) ? 3 : 0)
    let traits = RowTraits(row)
    if i.isMemory && !row.hasVSIB {
      guard aimOperand(&encoding, &result, traits) else { return nil }
    }
    guard tune(&encoding, &result) else { return nil }
    result.bytes = encoding.bytes
    guard let again = decode(encoding, code: code), again.row == number, again.length == i.length else { return nil }
    result.instruction = again
    unsafe bench.input.pointee.rip = code
    return result
  }

  /// Where the code goes: anywhere in the arena's code pages but their ends.
  mutating func codeAddress(_ length: Int) -> UInt64 {
    let page = Arena.codeBase + UInt64(1 + random.below(Arena.codePages - 3)) << 12
    if random.chance(4) && length > 1 { return page + 4096 - UInt64(1 + random.below(length - 1)) }
    return page + UInt64(random.below(4000))
  }

  func decode(_ encoding: Encoding, code: UInt64) -> Instruction? {
    let bytes = encoding.bytes
    guard bytes.count <= 15 else { return nil }
    let padded = bytes + [UInt8](repeating: 0xF4, count: 16)
    guard case .complete(let i) = decoder.decode(padded.span, code: .code64),
      Int(i.length) == bytes.count
    else { return nil }
    return i
  }

  private mutating func aimOperand(_ encoding: inout Encoding, _ c: inout Case, _ traits: RowTraits) -> Bool {
    let i = c.instruction
    let size = max(traits.memoryBytes(i), 1)
    var alignment = c.row.attribute == .aligned ? size : 1
    switch traits.memorySize {
    case .fxsave: alignment = 16
    case .xsave: alignment = 64
    case .wide: alignment = size == 16 ? 16 : 1
    default: break
    }
    let low = i.addressSize == 4 || i.isRIPRelative || i.base == 0xFF && i.index == 0xFF
    let rule = c.row.rule
    let isBranch = rule == .jumpIndirect || rule == .callIndirect
    // Masked moves are for memory: devices do not answer them.
    let device = rule != .maskMove
    var target = place(size, alignment: alignment, low: low, faults: !isBranch, device: device)
    // AMD's processors do not always mind SHA's alignment: those of family 25 model 1 never.
    if c.row.feature == .sha && target % 16 != 0 { return false }
    // AMD moves x87 operands in parts, and a part beyond 4 GiB wraps.
    let parts = traits.fixedSize == 10 || traits.memorySize == .fenv || traits.memorySize == .fsave
    if (parts || rule == .maskMove) && i.addressSize == 4 && target > 0xFFFF_0000 { target -= 4096 }
    var avoiding: Set<UInt8> = []
    if c.row.rule == .bitMemory { avoiding = [i.reg] }
    guard aim(&encoding, i, at: target, code: c.code, avoiding: avoiding) else { return false }
    c.target = target
    c.size = size
    if c.size > 64 { c.touched.append(target &+ UInt64(size)) }
    c.touched.append(target)
    return true
  }

  /// The case's bytes at `address` are RAM on both sides that tests may write.
  func isWritable(_ address: UInt64, _ count: Int) -> Bool {
    for end in [address, address &+ UInt64(count) &- 1] {
      guard bench.arena.kind(end) == .ram else { return false }
    }
    return true
  }

  func isReadable(_ address: UInt64, _ count: Int) -> Bool {
    for end in [address, address &+ UInt64(count) &- 1] {
      guard let kind = bench.arena.kind(end), kind != .absent else { return false }
    }
    return true
  }

  /// A code address to jump to: a HLT not in the instruction.
  mutating func landing(_ c: Case, _ length: Int) -> UInt64 {
    while true {
      let address = Arena.codeBase + UInt64(random.below(Arena.codePages << 12))
      if address < c.code || address >= c.code + UInt64(length) { return address }
    }
  }

  func store(_ value: UInt64, at address: UInt64) {
    try? bench.arena.store((0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }, at: address)
  }

  /// Puts RSP where `size` bytes can be pushed (or popped), mostly.
  mutating func placeStack(_ c: inout Case, pops: Int, pushes: Int, faults: Bool = true) {
    let top = place(pops + pushes, alignment: random.chance(70) ? 8 : 1, low: random.chance(50), faults: faults)
    bench[4] = top &+ UInt64(pushes)
    c.touched.append(top)
  }

  /// Rule by rule: registers, memory, immediates.
  private mutating func tune(_ encoding: inout Encoding, _ c: inout Case) -> Bool {
    let i = c.instruction
    let size = Int(i.operandSize)
    switch c.row.rule {
    case .copy, .cmpxchgWide: tuneCopy(&c)
    case .bitMemory:
      guard i.isMemory else { break }
      let offset = random.below(6000) - 3000
      let bits: UInt64 = size == 2 ? 0xFFFF : (size == 4 ? 0xFFFF_FFFF : .max)
      bench[Int(i.reg)] = UInt64(bitPattern: Int64(offset)) & bits | random.next() & ~bits
      c.touched.append(c.target! &+ UInt64(bitPattern: Int64(offset >> 3)))
    case .jcc, .jump, .call, .loop:
      if c.row.rule == .call { placeStack(&c, pops: 0, pushes: 8) }
      if c.row.rule == .loop && random.chance(80) { bench[1] = UInt64(random.below(4)) }
      if encoding.immediate.count == 1 {
        let target =
          c.code &+ UInt64(encoding.length) &+ UInt64(bitPattern: Int64(Int8(bitPattern: encoding.immediate[0])))
        return target < c.code || target >= c.code + UInt64(encoding.length)
      }
      let displacement = landing(c, encoding.length) &- c.code &- UInt64(encoding.length)
      encoding.immediate = (0..<4).map { UInt8(truncatingIfNeeded: displacement >> UInt64($0 * 8)) }
    case .jumpIndirect, .callIndirect:
      let target = landing(c, encoding.length)
      if c.row.rule == .callIndirect && !(i.isMemory && (i.base == 4 || i.index == 4)) {
        placeStack(&c, pops: 0, pushes: 8)
      }
      if i.isMemory {
        guard isWritable(c.target!, 8) else { return false }
        store(target, at: c.target!)
      } else if i.rm == 4 {
        return false
      } else {
        bench[Int(i.rm)] = target
      }
    case .ret:
      placeStack(&c, pops: 8, pushes: 0)
      guard isWritable(bench[4], 8) || !isReadable(bench[4], 8) else { return false }
      if isWritable(bench[4], 8) { store(landing(c, encoding.length), at: bench[4]) }
    case .push:
      if !(i.isMemory && (i.base == 4 || i.index == 4)) { placeStack(&c, pops: 0, pushes: size) }
      c.touched.append(bench[4] &- 8)
    case .pop:
      // POP [RSP...]: the address is computed after RSP has moved.
      if i.isMemory && (i.base == 4 || i.index == 4) { return c.touched.isEmpty == false && popThroughRSP(&c) }
      placeStack(&c, pops: size, pushes: 0)
    case .pushFlags: placeStack(&c, pops: 0, pushes: size)
    case .popFlags:
      placeStack(&c, pops: size, pushes: 0)
      c.privilege = 3
      guard isWritable(bench[4], 8) else { return false }
      store(random.next() & (RFLAGS.arithmetic | RFLAGS.df) | 0x202, at: bench[4])
    case .leave:
      bench[5] = place(size, alignment: 1, low: random.chance(50))
      c.touched.append(bench[5])
    case .enter:
      let levels = random.chance(60) ? 0 : random.below(4)
      encoding.immediate = [UInt8(truncatingIfNeeded: random.next()), UInt8(random.below(2)), UInt8(levels)]
      bench[5] = Arena.low.base + 0x4800
      placeStack(&c, pops: 0, pushes: (levels + 1) * 8)
    case .movs, .stos, .lods, .scas, .cmps: tuneString(&c)
    case .xlat, .moffs, .maskMove: return tuneImplicit(&encoding, &c)
    case .saveState, .restoreState: return tuneState(&c)
    case .sse where c.row.loadsMXCSR, .avx where c.row.loadsMXCSR: return tuneState(&c)
    case .gather: return tuneGather(encoding, &c)
    case .cli, .sti: c.privilege = 3
    case .wrfsbase: if random.chance(50) { bench[Int(i.rm)] = random.next() >> 17 }
    default: break
    }
    return true
  }

  /// POP to an operand addressed by RSP: the operand must be somewhere sensible and so must the stack.
  private func popThroughRSP(_ c: inout Case) -> Bool {
    c.touched.append(bench[4])
    c.touched.append(bench[4] &+ 8)
    return isReadable(bench[4], 8) && isWritable(c.target! &+ 8, 8)
  }

  mutating func tuneCopy(_ c: inout Case) {
    let i = c.instruction
    if c.row.flags == .divide, ![0, 2].contains(i.base), ![0, 2].contains(i.index) {
      if random.chance(75) { bench[2] = random.chance(50) ? 0 : UInt64(random.below(3)) }
      if random.chance(40) { bench[0] >>= UInt64(random.below(60)) }
    }
    let isExchange = c.row.map == .x0F && (c.row.byte == 0xB0 || c.row.byte == 0xB1)
    if isExchange || c.row.rule == .cmpxchgWide, random.chance(60), let target = c.target, isReadable(target, c.size) {
      func native(_ offset: UInt64) -> UInt64 {
        unsafe bench.arena.native(target + offset).loadUnaligned(as: UInt64.self)
      }
      guard isReadable(target, 16), i.base != 0, i.base != 2, i.index != 0, i.index != 2 else { return }
      if isExchange || c.size == 16 { bench[0] = native(0) } else { bench[0] = native(0) & 0xFFFF_FFFF }
      if !isExchange { bench[2] = c.size == 16 ? native(8) : native(0) >> 32 }
    }
  }

  private mutating func tuneString(_ c: inout Case) {
    let i = c.instruction
    let element = i.opcode & 1 == 0 ? 1 : Int(i.operandSize)
    let narrow = i.addressSize == 4
    let count = i.repeatPrefix == 0 ? 1 : random.below(40)
    let junk = narrow ? random.next() << 32 : 0
    if i.repeatPrefix != 0 { bench[1] = UInt64(count) | junk }
    let backwards = random.chance(40)
    if backwards { unsafe bench.input.pointee.rflags |= RFLAGS.df }
    let bytes = max(count, 1) * element
    let start = backwards ? UInt64(bytes - element) : 0
    var source = place(bytes, alignment: 1, low: narrow)
    let target =
      random.chance(20) ? source &+ UInt64(random.below(32)) : place(bytes, alignment: 1, low: narrow)
    if c.row.rule == .cmps, random.chance(60), isWritable(source, bytes), isReadable(target, bytes) {
      // Equal for a while.
      let same = random.below(bytes + 1)
      let copy = (0..<same).map { unsafe bench.arena.native(target + UInt64($0)).load(as: UInt8.self) }
      try? bench.arena.store(copy, at: source)
    }
    c.touched += [source, target, source &+ UInt64(bytes), target &+ UInt64(bytes)]
    if c.row.rule == .scas, isReadable(target &+ start, 8), random.chance(60) {
      bench[0] = unsafe bench.arena.native(target + start).loadUnaligned(as: UInt64.self)
    }
    if i.segment >= 4 {
      let base = source &- random.next() >> 36
      if base < 1 << 47 {
        if i.segment == 4 {
          unsafe bench.input.pointee.fs_base = base
        } else {
          unsafe bench.input.pointee.gs_base = base
        }
        source = source &- base
      }
    }
    let mask: UInt64 = narrow ? 0xFFFF_FFFF : .max
    bench[6] = (source &+ start) & mask | junk
    bench[7] = (target &+ start) & mask | junk
  }

  private mutating func tuneImplicit(_ encoding: inout Encoding, _ c: inout Case) -> Bool {
    let i = c.instruction
    if c.row.rule == .maskMove {
      guard !i.isMemory else { return true }
      // Whether bytes that are not selected may fault is the processor's choice.
      bench[7] = place(16, alignment: 1, low: i.addressSize == 4, faults: false)
      if i.segment >= 4 { return false }
      c.touched.append(bench[7])
      return true
    }
    let size = c.row.rule == .xlat || i.opcode & 1 == 0 ? 1 : Int(i.operandSize)
    let target = place(size, alignment: 1, low: i.addressSize == 4)
    c.touched.append(target)
    var offset = target
    if i.segment >= 4 {
      offset = random.next() >> (i.addressSize == 4 ? 35 : 24)
      guard target >= offset, target - offset < 1 << 47 else { return false }
      if i.segment == 4 {
        unsafe bench.input.pointee.fs_base = target - offset
      } else {
        unsafe bench.input.pointee.gs_base = target - offset
      }
    }
    if c.row.rule == .xlat {
      let mask: UInt64 = i.addressSize == 4 ? 0xFFFF_FFFF : .max
      bench[3] = (offset &- (bench[0] & 0xFF)) & mask | (i.addressSize == 4 ? random.next() << 32 : 0)
    } else {
      for position in encoding.immediate.indices {
        encoding.immediate[position] = UInt8(truncatingIfNeeded: offset >> UInt64(position * 8))
      }
    }
    return true
  }

  /// Indices and masks of a gather: most elements in RAM, some not there, some not selected.
  mutating func tuneGather(_ encoding: Encoding, _ c: inout Case) -> Bool {
    let i = c.instruction
    guard i.segment < 4, i.base != 0xFF || random.chance(20) else { return false }
    let wide = c.row.byte & 1 != 0
    let base = Arena.low.base + 0x1000 &- UInt64(bitPattern: Int64(encoding.displacement))
    if i.base != 0xFF { bench[Int(i.base)] = i.addressSize == 4 ? base & 0xFFFF_FFFF : base }
    if i.base == 0xFF { return false }
    for number in 0..<8 {
      var index = Int64(random.below(0x1800) - 0x800) >> Int64(i.scale)
      if random.chance(3) { index = Int64(0x2000 >> Int(i.scale)) + Int64(random.below(64)) }
      let register = Int(i.index)
      let place = (number < 4 ? 160 + number * 4 : 576 + number * 4 - 16) + register * 16
      if wide {
        guard number & 1 == 0 else { continue }
        bench.setImage(place, UInt64(bitPattern: index))
      } else {
        bench.setImage(place, UInt32(truncatingIfNeeded: index))
      }
    }
    for number in 0..<8 {
      let place = (number < 4 ? 160 + number * 4 : 576 + number * 4 - 16) + Int(i.vvvv) * 16
      if i.vvvv != i.index {
        bench.setImage(place, random.chance(75) ? UInt32.max : UInt32(truncatingIfNeeded: random.next() >> 40))
      }
    }
    return true
  }

  mutating func tuneState(_ c: inout Case) -> Bool {
    guard let target = c.target else { return true }
    if RowTraits(c.row).memorySize == .xsave {
      bench[0] = UInt64(random.below(8))
      bench[2] = random.value()
      if c.instruction.base == 0 || c.instruction.base == 2 || c.instruction.index == 0 || c.instruction.index == 2 {
        return false
      }
      // XSAVEC and XSAVEOPT depend on what the processor tracks; standard XSAVE does not.
      if c.row.feature == .xsavec || c.row.feature == .xsaveopt || c.row.feature == .xsaves { return false }
      // XSAVE of neither x87 nor SSE state leaves the image's first 512 bytes alone (SDM volume 1, 13.7), and Intel's
      // processors do not mind where they lie. The engine checks the whole operand first (docs/design.md, 13).
      if c.row.rule == .saveState, bench[0] & 3 == 0, !isWritable(target, c.size) { bench[0] |= 1 }
    }
    guard c.row.rule == .restoreState || c.row.loadsMXCSR else { return true }
    if random.chance(10) {
      // As it is, but for components and a compacted form that the host knows and the guest does not.
      if RowTraits(c.row).memorySize == .xsave, isWritable(target, c.size) {
        store(random.value() & ~0x7_FFF8, at: target &+ 512)
        store(random.value() & ~(1 << 63), at: target &+ 520)
      }
      return true
    }
    guard isWritable(target, c.size), target & 63 == 0 || c.size < 512 else { return !isReadable(target, c.size) }
    // A valid image: that of another random state.
    let saved = (0..<104).map { bench.imageWord($0 * 8) }
    let registers = (0..<16).map { bench[$0] }
    let bases = unsafe (bench.input.pointee.fs_base, bench.input.pointee.gs_base)
    randomizeState(unmasked: false)
    var image: [UInt8] = []
    for index in 0..<104 {
      let word = bench.imageWord(index * 8)
      for shift in 0..<8 { image.append(UInt8(truncatingIfNeeded: word >> UInt64(shift * 8))) }
    }
    image[512] = UInt8(random.below(8))
    for (index, word) in saved.enumerated() { bench.setImage(index * 8, word) }
    for (index, value) in registers.enumerated() { bench[index] = value }
    unsafe (bench.input.pointee.fs_base, bench.input.pointee.gs_base) = bases
    if c.size < 28 { image = Array(image[24..<28]) }
    if c.size == 28 || c.size == 108 || c.size == 14 || c.size == 94 {
      // FLDENV, FRSTOR: control, status and tag words, then pointers.
      var environment = [UInt8](repeating: 0, count: c.size)
      let step = c.size == 28 || c.size == 108 ? 4 : 2
      environment[0] = image[0] | 0x3F
      environment[1] = image[1]
      environment[step] = image[2] & 0x7F
      environment[step + 1] = image[3] & 0x7F
      environment[step * 2] = UInt8(truncatingIfNeeded: random.next())
      environment[step * 2 + 1] = UInt8(truncatingIfNeeded: random.next())
      for index in step * 7..<max(c.size, step * 7) { environment[index] = image[32 + index] }
      image = environment
    }
    try? bench.arena.store(Array(image.prefix(c.size)), at: target)
    return true
  }
}

extension Opcode {
  /// LDMXCSR and VLDMXCSR, which mind what they load.
  var loadsMXCSR: Bool { byte == 0xAE && form == .mem2 && (rule == .sse || rule == .avx) }
}
